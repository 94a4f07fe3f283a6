// A slider between baseline's output and a preset's, made when a reader opens it, from the pictures above it.
(() => {
  "use strict";

  function build(holder) {
    const pictures = [...holder.closest(".item").querySelectorAll("img[data-preset]")];
    const [baseline, ...others] = pictures;
    const under = baseline.cloneNode(), over = others[0].cloneNode();
    over.className = "over";
    const frame = document.createElement("div");
    frame.className = "frame";
    frame.append(under, over);

    const preset = document.createElement("select");
    preset.ariaLabel = "Preset to compare with baseline";
    preset.append(...others.map((picture, index) => new Option(picture.dataset.preset, index)));
    preset.addEventListener("change", () => {
      over.src = others[preset.value].src;
      over.alt = others[preset.value].alt;
    });

    const cut = document.createElement("input");
    Object.assign(cut, { type: "range", min: 0, max: 100, value: 50, ariaLabel: "How much of baseline is shown, in percent" });
    cut.addEventListener("input", () => over.style.setProperty("--cut", `${cut.value}%`));

    const controls = document.createElement("div");
    controls.className = "controls";
    controls.append("baseline", cut, preset);
    holder.append(frame, controls);
  }

  for (const holder of document.querySelectorAll("details.compare")) {
    holder.hidden = false;
    holder.addEventListener("toggle", () => build(holder), { once: true });
  }
})();
