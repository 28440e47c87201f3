"use strict";

// ------------------------------------------------------------------------------------------------ sorting
// A button in a header sorts by its column; one in a table of class "along" sorts the columns by its row. It goes
// from ascending to descending to the first order. What was not measured comes last.

const NEXT = { none: "ascending", ascending: "descending", descending: "none" };

function order(cells, direction) {
  const places = cells.map((_, place) => place);
  if (direction === "none") return places;
  const texts = cells.map((cell) => cell.textContent.trim().replace(/^−/, "-"));
  const missing = texts.map((text) => text === "" || text === "–");
  const numeric = texts.every((text, place) => missing[place] || /^[+-]?\d/.test(text));
  const compare = numeric
    ? (a, b) => parseFloat(texts[a]) - parseFloat(texts[b])
    : (a, b) => texts[a].localeCompare(texts[b], "en", { numeric: true });
  const sign = direction === "ascending" ? 1 : -1;
  return places.sort((a, b) => missing[a] - missing[b] || (missing[a] ? 0 : sign * compare(a, b)));
}

for (const table of document.querySelectorAll("table.sortable")) {
  const along = table.classList.contains("along");
  const lines = along
    ? [...table.rows].filter((row) => row.cells.length > 1).map((row) => [row, [...row.cells].slice(1)])
    : [[table.tBodies[0], [...table.tBodies[0].rows]]];
  for (const button of table.querySelectorAll(".sort")) {
    const header = button.closest("th");
    button.addEventListener("click", () => {
      const direction = NEXT[header.getAttribute("aria-sort")];
      for (const other of table.querySelectorAll("[aria-sort]")) other.setAttribute("aria-sort", "none");
      header.setAttribute("aria-sort", direction);
      const cells = along
        ? lines.find(([row]) => row === header.parentElement)[1]
        : lines[0][1].map((row) => row.cells[header.cellIndex]);
      const sorted = order(cells, direction);
      for (const [parent, children] of lines) parent.append(...sorted.map((place) => children[place]));
    });
  }
}

// ------------------------------------------------------------------------------------------------ images
// An image opens in the dialog; its neighbours are the other images of its section. Escape is the dialog's own.

const EXACT_SIDE = 96; // pixels: so small an image is shown pixel by pixel
const dialog = document.querySelector("dialog");
let neighbours = [];
let place = 0;

function show(next) {
  place = (next + neighbours.length) % neighbours.length;
  const image = neighbours[place].querySelector("img");
  const copy = image.cloneNode();
  copy.classList.toggle("small", image.naturalWidth <= EXACT_SIDE);
  const text = document.createElement("figcaption");
  text.textContent = image.alt;
  dialog.querySelector("figure").replaceChildren(copy, text);
  dialog.querySelector("[role=status]").textContent = `${place + 1} of ${neighbours.length}`;
}

for (const button of document.querySelectorAll(".enlarge")) {
  button.addEventListener("click", () => {
    neighbours = [...button.closest("main > section").querySelectorAll(".enlarge")];
    show(neighbours.indexOf(button));
    dialog.showModal();
  });
}
dialog.addEventListener("click", (event) => {
  const step = event.target.dataset.step;
  if (step) show(place + Number(step));
  else if (event.target === dialog || event.target.closest(".close")) dialog.close();
});
dialog.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step) show(place + step);
});
dialog.addEventListener("close", () => neighbours[place].focus());

// ------------------------------------------------------------------------------------------------ contents, print

const contents = document.querySelector("nav");
const links = new Map([...contents.querySelectorAll("a")].map((link) => [link.hash.slice(1), link]));
const watcher = new IntersectionObserver(
  (entries) => {
    const seen = entries.findLast((entry) => entry.isIntersecting);
    if (!seen) return;
    for (const link of links.values()) link.removeAttribute("aria-current");
    const link = links.get(seen.target.id);
    link.setAttribute("aria-current", "true");
    contents.scrollTo({ left: link.offsetLeft - 16 });
  },
  { rootMargin: "-15% 0px -80% 0px" },
);
for (const section of document.querySelectorAll("main > section")) watcher.observe(section);

// What is folded is printed all the same.
let folded = [];
addEventListener("beforeprint", () => {
  folded = [...document.querySelectorAll("details:not([open])")];
  for (const one of folded) one.open = true;
});
addEventListener("afterprint", () => {
  for (const one of folded) one.open = false;
});
