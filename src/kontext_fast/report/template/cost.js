// The formulas of kontext_fast.cost, so that a reader can put in numbers of his own. Nothing leaves the page.
(() => {
  "use strict";
  const SECONDS_PER_HOUR = 3600, HOURS_PER_DAY = 24, ROUNDING = 1e-12, TYPED = "typed";

  // cost/fleet.py: gpus_needed
  function gpusNeeded(seconds, asked) {
    const peak = asked.images * asked.peakShare;
    const wanted = peak * seconds / (SECONDS_PER_HOUR * asked.rhoMax);
    const gpus = Math.max(1, Math.ceil(wanted * (1 - ROUNDING)));
    const soldBy = asked.billing === "by-use" ? 1 : asked.price.count;
    return Math.ceil(gpus / soldBy) * soldBy;
  }

  function busyHours(seconds, asked) {
    return asked.images * seconds / SECONDS_PER_HOUR;
  }

  // cost/billing.py: usd_per_day; seconds are per image
  function usdPerDay(seconds, preset, asked) {
    if (asked.billing === "by-use") {
      const starting = asked.coldStarts * (preset.cold_start_s ?? 0) / SECONDS_PER_HOUR;
      return asked.price.usd * (busyHours(seconds, asked) + starting);
    }
    return asked.price.usd * HOURS_PER_DAY * gpusNeeded(seconds, asked);
  }

  function scaled(estimate, factor) {
    return { value: estimate.value * factor, interval: estimate.interval?.map((end) => end * factor) };
  }

  function perDay(preset, asked) {
    const dollars = (seconds) => usdPerDay(Math.max(0, seconds), preset, asked);
    const time = preset.seconds_per_image;
    return { value: dollars(time.value), interval: time.interval?.map(dollars) };
  }

  // cost/payback.py: savings_per_month
  function savedPerMonth(baseline, other, asked) {
    const slow = perDay(baseline, asked), fast = perDay(other, asked);
    const value = slow.value - fast.value;
    let interval;
    if (asked.billing === "by-use" && other.saved_half_s_per_image !== null) {
      const half = asked.price.usd * busyHours(other.saved_half_s_per_image, asked);
      interval = [value - half, value + half];
    } else if (slow.interval && fast.interval) {
      interval = [slow.interval[0] - fast.interval[1], slow.interval[1] - fast.interval[0]];
    }
    return scaled({ value, interval }, asked.days);
  }

  // analysis/format.py: usd
  function usd(value) {
    const size = Math.abs(value);
    const decimals = size >= 100 ? 0 : size >= 0.1 || size === 0 ? 2 : 2 - Math.floor(Math.log10(size));
    const digits = new Intl.NumberFormat("en-US", {
      minimumFractionDigits: decimals, maximumFractionDigits: decimals, roundingMode: "halfEven",
    }).format(size);
    return `${value < 0 ? "-" : ""}$${digits}`;
  }

  const data = JSON.parse(document.getElementById("cost-data").textContent);
  const form = document.getElementById("cost-form");
  if (!form) return;
  const fields = form.elements;

  function group() {
    return data.groups[fields.group.value];
  }

  function fits(price) {
    return (price.kind === "reserved") === (fields.billing.value === "reserved");
  }

  function holds(price) {
    return group().peak_bytes === null || price.memory_gib === undefined
      || group().peak_bytes <= price.memory_gib * 2 ** 30;
  }

  function offerPrices(wanted) {
    const kind = fields.billing.value === "reserved" ? "reserved" : "on-demand";
    const options = group().prices.filter(fits).map((price) => {
      const option = new Option(`${price.id}, $${rate(price.usd_per_gpu_hour)}, ${price.day}`, price.id);
      option.disabled = !holds(price);
      if (option.disabled) option.text += " (too little memory)";
      return option;
    });
    fields.price.replaceChildren(...options, new Option("another price, typed below", TYPED));
    const known = options.some((option) => option.value === wanted && !option.disabled);
    fields.price.value = known || wanted === TYPED ? wanted : group().typical[kind] ?? TYPED;
    if (fields.price.selectedOptions[0]?.disabled ?? true) fields.price.value = TYPED;
  }

  // analysis/format.py: usd_rate
  function rate(dollars) {
    const exact = String(Number(dollars.toPrecision(6))), cents = dollars.toFixed(2);
    return exact.length > cents.length ? exact : cents;
  }

  function number(field) {
    return field.value.trim() === "" ? NaN : Number(field.value);
  }

  function chosenPrice() {
    if (fields.price.value !== TYPED) {
      const row = group().prices.find((price) => price.id === fields.price.value);
      return { ...row, usd: row.usd_per_gpu_hour };
    }
    if (fields.usd.value.trim() === "" && !fields.usd.validity.badInput) {
      throw new Error(`Not priced: ${group().refusal ?? "no price is given"}. Type dollars per GPU-hour.`);
    }
    const dollars = number(fields.usd);
    if (!(Number.isFinite(dollars) && dollars > 0)) throw new Error("A price is in dollars per GPU-hour, above 0.");
    return { id: "user", day: data.today, usd: dollars, count: 1, stale: false, source: "typed on this page" };
  }

  function question() {
    const images = number(fields.images_per_day), starts = number(fields.cold_starts);
    const even = fields.peak_percent.value.trim() === "" && !fields.peak_percent.validity.badInput;
    const peakShare = even ? 1 / HOURS_PER_DAY : number(fields.peak_percent) / 100;
    if (!(Number.isFinite(images) && images > 0)) throw new Error("Images a day are a number above 0.");
    if (!(peakShare >= 1 / HOURS_PER_DAY && peakShare <= 1)) {
      throw new Error("The busiest hour has between 4.17 % (an even load; leave it empty) and 100 % of a day's images.");
    }
    if (!(Number.isFinite(starts) && starts >= 0)) throw new Error("Cold starts a day are 0 or more.");
    return {
      images, peakShare, coldStarts: starts, billing: fields.billing.value, price: chosenPrice(),
      rhoMax: data.rho_max, days: data.days_per_month,
    };
  }

  function element(name, text, attributes = {}) {
    const made = Object.assign(document.createElement(name), attributes);
    if (text !== undefined) made.textContent = text;
    return made;
  }

  function cell(text, attributes = {}) {
    return element("td", text, { className: "n", ...attributes });
  }

  function moneyCell(estimate) {
    const made = cell();
    const shown = element("data", usd(estimate.value), { value: String(estimate.value) });
    const range = estimate.interval ? estimate.interval.map(usd).join(" to ") : "no interval";
    made.dataset.value = String(estimate.value);
    made.append(shown, element("small", range));
    return made;
  }

  function row(preset, baseline, asked) {
    const made = element("tr"), name = element("th", preset.preset, { scope: "row" });
    made.append(name);
    if (!preset.seconds_per_image) {
      made.append(cell(preset.note, { colSpan: 6, className: "words" }));
      return made;
    }
    const seconds = preset.seconds_per_image.value, time = cell(preset.time);
    time.dataset.value = String(seconds);
    time.append(element("small", preset.time_range));
    made.append(time);
    if (!asked) {
      made.append(cell("no price", { colSpan: 5 }));
      return made;
    }
    const day = perDay(preset, asked);
    const saved = baseline && preset !== baseline ? savedPerMonth(baseline, preset, asked) : null;
    made.append(moneyCell(scaled(day, 1 / asked.images)), moneyCell(day), moneyCell(scaled(day, asked.days)));
    made.append(saved ? moneyCell(saved) : cell(preset === baseline ? "reference" : "no baseline"));
    const gpus = cell();
    gpus.append(element("data", String(gpusNeeded(seconds, asked)), { value: String(gpusNeeded(seconds, asked)) }));
    const used = 100 * busyHours(seconds, asked) * asked.price.usd / day.value;
    gpus.append(element("small", asked.billing === "by-use" ? "at the peak" : `${used.toFixed(0)} % used`));
    made.append(gpus);
    return made;
  }

  function basis(asked) {
    const price = asked.price;
    const sold = price.count > 1 && asked.billing !== "by-use" ? `, sold ${price.count} together` : "";
    const spot = price.kind === "spot" ? " It is a spot price: the machine can be taken away." : "";
    return `Billed ${asked.billing} at ${price.id}, ${price.day}${price.stale ? " (stale: older than 90 days)" : ""}, `
      + `$${rate(price.usd)} per GPU-hour${sold}; ${price.source}.${spot}`;
  }

  function show() {
    let asked = null, words;
    try {
      asked = question();
      words = basis(asked);
    } catch (error) {
      words = error.message;
    }
    const presets = group().presets;
    const baseline = presets.find((preset) => preset.preset === "baseline" && preset.seconds_per_image);
    const shown = presets.filter((preset) => preset.shown || fields.all?.checked);
    document.getElementById("cost-rows").replaceChildren(...shown.map((preset) => row(preset, baseline, asked)));
    document.getElementById("cost-basis").textContent = words;
    fields.usd.closest("label").hidden = fields.price.value !== TYPED;
    fields.cold_starts.closest("label").hidden = fields.billing.value !== "by-use";
  }

  form.addEventListener("submit", (event) => event.preventDefault());
  // Not every browser fires "input" for a list, nor "change" before a field is left.
  for (const kind of ["input", "change"]) {
    form.addEventListener(kind, (event) => {
      if (event.target === fields.group || event.target === fields.billing) offerPrices(fields.price.value);
      show();
    });
  }
  form.hidden = false;
  const start = group().price;
  if (start?.id === "user") fields.usd.value = start.usd_per_gpu_hour;
  offerPrices(start?.id === "user" ? TYPED : start?.id);
  show();
})();
