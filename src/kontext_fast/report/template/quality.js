// What a reader does with the images of a verification: slide, choose which ones are shown, go from one to the next.
(() => {
  "use strict";

  const sliders = () => [...document.querySelectorAll(".card:not([hidden]) .slider input")];
  for (const input of document.querySelectorAll(".slider input")) {
    input.addEventListener("input", () => input.parentElement.style.setProperty("--cut", `${input.value}%`));
    input.addEventListener("keydown", (event) => {
      const step = { ArrowUp: -1, ArrowDown: 1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const all = sliders(), next = all[all.indexOf(input) + step];
      next?.focus();
      next?.closest(".card").scrollIntoView({ block: "nearest" });
    });
  }

  const form = document.getElementById("pick");
  if (!form) return;
  const holder = document.querySelector(".cards"), cards = [...holder.children];

  function show() {
    const { preset, choice, kind, order } = Object.fromEntries(new FormData(form));
    const worse = (card) => Number(card.getAttribute(`data-score-${order}`) ?? -Infinity);
    let count = 0;
    for (const card of cards) {
      const { dataset } = card;
      card.hidden = dataset.preset !== preset || dataset.choice !== choice || (kind !== "" && dataset.kind !== kind);
      count += !card.hidden;
    }
    holder.append(...(order ? [...cards].sort((one, other) => worse(other) - worse(one)) : cards));
    document.getElementById("picked").textContent = `${count} ${count === 1 ? "edit" : "edits"} of ${preset}`;
  }

  form.addEventListener("change", show);
  form.hidden = false;
  show();
})();
