// A slider between baseline's picture and a preset's, made from the small pictures below it.
(() => {
  "use strict";

  function build(holder) {
    const [baseline, ...others] = holder.closest(".item").querySelectorAll("img[data-preset]");
    const under = baseline.cloneNode(), over = others.at(-1).cloneNode();
    const handle = document.createElement("span"), cut = document.createElement("input");
    over.className = "over";
    handle.className = "handle";
    handle.ariaHidden = "true";
    handle.textContent = "\u2194";
    Object.assign(cut, { type: "range", min: 0, max: 100, value: 50, ariaLabel: "How much of baseline is shown, in percent" });
    const frame = document.createElement("div");
    frame.className = "frame";
    frame.append(under, over, handle, cut);
    cut.addEventListener("input", () => frame.style.setProperty("--cut", `${cut.value}%`));

    const preset = document.createElement("select");
    preset.ariaLabel = "Preset to compare with baseline";
    preset.append(...others.map((picture, index) => new Option(picture.dataset.preset, index)));
    const first = others.findIndex((picture) => picture.dataset.preset === holder.dataset.first);
    preset.value = first < 0 ? others.length - 1 : first;
    over.src = others[preset.value].src;
    over.alt = others[preset.value].alt;
    preset.addEventListener("change", () => {
      over.src = others[preset.value].src;
      over.alt = others[preset.value].alt;
    });
    const controls = document.createElement("div");
    controls.className = "controls";
    controls.append(baseline.dataset.preset, preset);
    holder.append(frame, controls);
    holder.hidden = false;
  }

  for (const holder of document.querySelectorAll(".compare")) build(holder);
})();
