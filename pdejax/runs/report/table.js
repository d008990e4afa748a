"use strict";
// Sorting by a click on a column's head, and the way to a number in the JSON. The page reads without it.
(() => {
  document.documentElement.classList.add("js");

  const key = (row, column) => row.cells[column]?.dataset.sort ?? row.cells[column]?.textContent.trim() ?? "";
  const compare = (a, b) => {
    const x = Number(a), y = Number(b);
    const numbers = [a !== "" && !Number.isNaN(x), b !== "" && !Number.isNaN(y)];
    if (numbers[0] && numbers[1]) return x - y;
    if (numbers[0] !== numbers[1]) return numbers[0] ? -1 : 1;
    return a.localeCompare(b, "en", { numeric: true });
  };

  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const down = head.getAttribute("aria-sort") === "ascending";
        heads.forEach((other) => other.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", down ? "descending" : "ascending");
        const rows = [...table.tBodies[0].rows];
        const empty = (row) => ["", "–"].includes(key(row, column));
        rows.sort((a, b) => {
          if (empty(a) !== empty(b)) return empty(a) ? 1 : -1; // what was not measured stays below
          return (down ? -1 : 1) * compare(key(a, column), key(b, column));
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // A number in a closed block is opened before it is shown.
  const reveal = () => {
    const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
    let opened = false;
    for (let node = target; node; node = node.parentElement) {
      if (node instanceof HTMLDetailsElement && !node.open) opened = node.open = true;
    }
    if (opened) target.scrollIntoView({ block: "center" });
  };
  addEventListener("hashchange", reveal);
  reveal();

  const contents = document.querySelector("nav details");
  if (contents && matchMedia("(max-width: 60rem)").matches) contents.open = false;
})();
