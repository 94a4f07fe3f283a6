// What a reader does with the page: sort and filter tables, point at charts, go from a number to its records.
(() => {
  "use strict";

  const valueOf = (cell) => Number(cell?.dataset.value ?? NaN);
  const wordsOf = (cell) => cell?.firstChild?.textContent.trim() ?? "";

  function sort(table, column, ascending) {
    const sign = ascending ? 1 : -1;
    for (const body of table.tBodies) {
      const rows = [...body.rows].sort((one, other) => {
        const [a, b] = [one.cells[column], other.cells[column]], [x, y] = [valueOf(a), valueOf(b)];
        if (Number.isNaN(x) !== Number.isNaN(y)) return Number.isNaN(x) ? 1 : -1;
        return sign * (Number.isNaN(x) ? wordsOf(a).localeCompare(wordsOf(b), "en", { numeric: true }) : x - y);
      });
      body.append(...rows);
    }
    for (const [index, head] of [...table.tHead.rows[0].cells].entries()) {
      if (index === column) head.ariaSort = ascending ? "ascending" : "descending";
      else head.removeAttribute("aria-sort");
    }
  }

  for (const table of document.querySelectorAll("table.sortable")) {
    for (const [column, head] of [...table.tHead.rows[0].cells].entries()) {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(table, column, head.ariaSort !== "ascending"));
    }
  }

  function filter(table, lists) {
    for (const row of table.tBodies[0].rows) {
      row.hidden = lists.some(([column, list]) => list.value && wordsOf(row.cells[column]) !== list.value);
    }
  }

  for (const table of document.querySelectorAll("table[data-filters]")) {
    const names = [...table.tHead.rows[0].cells].map(wordsOf), bar = document.createElement("div"), lists = [];
    bar.className = "filters";
    for (const name of table.dataset.filters.split(",")) {
      const column = names.indexOf(name), label = document.createElement("label"), list = document.createElement("select");
      const values = new Set([...table.tBodies[0].rows].map((row) => wordsOf(row.cells[column])));
      list.append(new Option("all", ""), ...[...values].map((value) => new Option(value)));
      list.addEventListener("change", () => filter(table, lists));
      label.append(name, list);
      bar.append(label);
      lists.push([column, list]);
    }
    table.parentElement.before(bar);
  }

  // Charts: the words of what is pointed at, and its records on a click.
  const tip = document.createElement("div");
  tip.id = "tip";
  tip.hidden = true;
  document.body.append(tip);
  for (const part of document.querySelectorAll("svg .tip")) {
    const title = part.querySelector("title");
    part.dataset.words = title.textContent;
    title.remove();
  }
  function say(event) {
    const part = event.target.closest?.("svg .tip");
    tip.hidden = !part;
    if (!part) return;
    tip.textContent = part.dataset.words;
    const box = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - box.width - 4))}px`;
    tip.style.top = `${event.clientY + 18 + box.height > innerHeight ? event.clientY - box.height - 10 : event.clientY + 18}px`;
  }
  for (const kind of ["pointermove", "pointerdown"]) document.addEventListener(kind, say);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  function reveal(element) {
    for (let each = element?.closest("details"); each; each = each.parentElement.closest("details")) each.open = true;
    element?.scrollIntoView();
  }

  function showRecords(wanted) {
    const records = document.getElementById("records");
    if (!records) return;
    for (const row of records.querySelectorAll("tbody tr")) {
      row.hidden = false;
      row.classList.toggle("found", wanted(row));
    }
    reveal(records.querySelector("tr.found") ?? records);
  }

  document.addEventListener("click", (event) => {
    const link = event.target.closest("a[data-runs]"), part = event.target.closest("svg .tip[data-preset]");
    if (link) {
      const numbers = new Set(link.dataset.runs.trim().split(" ").map((number) => `record-${number}`));
      event.preventDefault();
      showRecords((row) => numbers.has(row.id));
    } else if (part) {
      showRecords((row) => row.cells[1].textContent === part.dataset.preset);
    }
  });

  const goTo = () => reveal(location.hash.length > 1 ? document.getElementById(location.hash.slice(1)) : null);
  addEventListener("hashchange", goTo);
  if (location.hash) goTo();
})();
