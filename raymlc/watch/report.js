"use strict";
// Pointing at a trial shows it everywhere; a tap or a click keeps it so. Without this script
// nothing is missing but that, and the sorting of the table.
{
  const marks = new Map();
  for (const mark of document.querySelectorAll("[data-t]")) {
    const trial = mark.dataset.t;
    if (!marks.has(trial)) marks.set(trial, []);
    marks.get(trial).push(mark);
  }
  let shown = null;
  let kept = null;
  const show = (trial) => {
    if (trial === shown) return;
    for (const mark of marks.get(shown) ?? []) mark.classList.remove("on");
    for (const mark of marks.get(trial) ?? []) mark.classList.add("on");
    document.body.classList.toggle("picked", trial !== null);
    shown = trial;
  };
  const trialAt = (event) => event.target.closest?.("[data-t]")?.dataset.t ?? null;
  document.addEventListener("pointerover", (event) => show(trialAt(event) ?? kept));
  document.addEventListener("click", (event) => {
    if (event.target.closest("a, button")) return;
    const trial = trialAt(event);
    kept = trial === kept ? null : trial;
    show(kept);
  });

  const value = (row, at) => {
    const text = row.cells[at].dataset.v ?? row.cells[at].textContent.trim();
    const number = Number.parseFloat(text.replace(/,/g, ""));
    return text === "" || Number.isNaN(number) ? text : number;
  };
  const order = (a, b) => {
    if (a === "" || b === "") return 0;
    return typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(b);
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const body = table.tBodies[0];
    const first = [...body.rows];
    [...table.tHead.rows[0].cells].forEach((head, at) => {
      const button = document.createElement("button");
      button.textContent = head.textContent;
      button.title = "sort";
      head.replaceChildren(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "descending";
        for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", down ? "ascending" : "descending");
        const sign = down ? 1 : -1;
        const empty = (row) => value(row, at) === "";
        const rows = [...first].sort(
          (a, b) => empty(a) - empty(b) || sign * order(value(a, at), value(b, at)),
        );
        body.append(...rows);
      });
    });
  }
}
