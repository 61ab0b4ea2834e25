// Tables that sort by a click on a header and filter by what is typed; charts from the JSON in the page.
"use strict";

function cellValue(row, column) {
  const cell = row.cells[column];
  return "value" in cell.dataset ? Number(cell.dataset.value) : cell.textContent.trim().toLowerCase();
}

function sortBy(table, column, header) {
  const descending = header.getAttribute("aria-sort") === "ascending" || (!header.hasAttribute("aria-sort") && header.classList.contains("number"));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", descending ? "descending" : "ascending");
  const rows = Array.from(table.tBodies[0].rows);
  rows.sort((a, b) => {
    const x = cellValue(a, column), y = cellValue(b, column);
    return (x < y ? -1 : x > y ? 1 : 0) * (descending ? -1 : 1);
  });
  table.tBodies[0].append(...rows);
}

for (const table of document.querySelectorAll("table.sortable")) {
  Array.from(table.tHead.rows[0].cells).forEach((header, column) => {
    header.querySelector("button").addEventListener("click", () => sortBy(table, column, header));
  });
}

for (const input of document.querySelectorAll("input[data-table]")) {
  input.addEventListener("input", () => {
    const wanted = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    for (const row of document.getElementById(input.dataset.table).tBodies[0].rows) {
      const text = row.textContent.toLowerCase();
      row.hidden = !wanted.every((word) => text.includes(word));
    }
  });
}

const data = document.getElementById("charts");
if (data) {
  const specifications = JSON.parse(data.textContent);
  const renderer = data.dataset.renderer;
  Promise.all(
    Object.entries(specifications).map(([name, specification]) =>
      window.vegaEmbed(document.getElementById("chart-" + name), specification, { actions: false, renderer: renderer })
    )
  ).then(() => document.body.classList.add("drawn"), (error) => console.error(String(error)));
}
