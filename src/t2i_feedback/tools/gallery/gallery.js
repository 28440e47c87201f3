// Rows of captions; images get their source when they come near the window. The view stands in the address's hash.
"use strict";

const by = (id) => document.getElementById(id);
const data = JSON.parse(by("data").textContent);
const several = new Set(data.columns.map((one) => one.run)).size > 1;
const names = data.columns.map((one) => (several ? `${one.run}: ${one.label}` : one.label));
const columns = names.map((_, number) => number);
const start = { text: "", sort: "", from: "0", to: String(names.length - 1), only: "", size: "144", hidden: "", open: "", left: "0", right: String(names.length - 1), mode: "wipe", zoom: "1" };
const view = { ...start };
const fields = ["text", "sort", "from", "to", "only", "size", "left", "right", "mode", "zoom"];

function element(tag, text = "", attributes = {}) {
  const made = document.createElement(tag);
  made.textContent = text;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
}

const fixed = (value, digits) => (value === undefined ? null : value.toFixed(digits));

function figures(cell) {
  const known = [
    ["aligned", fixed(cell.alignment, 2)], ["judge", fixed(cell.judge_score, 1)], ["held out", fixed(cell.held_out_score, 1)],
    ["P(yes)", fixed(cell.p_yes, 2)], ["rounds", String(cell.rounds.length)],
  ];
  return known.filter(([, value]) => value !== null).map(([name, value]) => `${name} ${value}`).join(", ");
}

const near = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (!entry.isIntersecting) continue;
    entry.target.src = data.images[entry.target.dataset.image];
    near.unobserve(entry.target);
  }
}, { rootMargin: "600px" });

function row(index) {
  const caption = data.captions[index];
  const made = element("section", "", { class: "row" });
  made.append(element("h2", caption.text));
  const cells = element("div", "", { class: "cells" });
  for (const column of columns) {
    const cell = data.cells[column][index];
    const figure = element("figure", "", { "data-column": column });
    const button = element("button", "", { type: "button" });
    const image = element("img", "", { alt: `${names[column]}: ${cell.prompt}`, "data-image": cell.image });
    button.append(image);
    button.addEventListener("click", () => set({ open: String(caption.id), right: String(column), left: column === Number(view.left) ? view.from : view.left }));
    const words = element("figcaption");
    words.append(element("strong", names[column]), element("br"), figures(cell), element("span", cell.prompt, { class: "prompt", title: cell.prompt }));
    figure.append(button, words);
    cells.append(figure);
    near.observe(image);
  }
  made.append(cells);
  return made;
}

const made = new Map(); // index -> its row, made once
const rowOf = (index) => made.get(index) ?? made.set(index, row(index)).get(index);

function moved(index) {
  const [from, to] = [data.cells[view.from][index][view.sort], data.cells[view.to][index][view.sort]];
  return from === undefined || to === undefined ? -1 : Math.abs(to - from);
}

const disagreement = (cell) => (cell.judge_score === undefined || cell.held_out_score === undefined ? -1 : Math.abs(cell.judge_score - cell.held_out_score));

function wanted(index) {
  const words = view.text.toLowerCase().split(/\s+/).filter(Boolean);
  const text = data.captions[index].text.toLowerCase();
  const cell = data.cells[view.to][index];
  const kept = { "": true, accepted: cell.accepted === true, rejected: cell.accepted === false, judges: disagreement(cell) >= 1 }[view.only];
  return kept && words.every((word) => text.includes(word));
}

let shown = "";
function draw() {
  for (const name of fields) if (by(name).value !== view[name]) by(name).value = view[name];
  document.documentElement.style.setProperty("--size", `${Number(view.size)}px`);
  const hidden = new Set(view.hidden.split(",").filter(Boolean));
  for (const box of by("arms").querySelectorAll("input")) box.checked = !hidden.has(box.value);
  by("hiding").textContent = "";
  by("hiding").sheet && [...hidden].forEach((column) => by("hiding").sheet.insertRule(`figure[data-column="${Number(column)}"] { display: none; }`));
  const list = JSON.stringify([view.text, view.sort, view.from, view.to, view.only]);
  if (list !== shown) {
    shown = list;
    let indices = data.captions.map((_, index) => index).filter(wanted);
    if (view.sort) indices = indices.map((index) => [moved(index), index]).sort((a, b) => b[0] - a[0]).map((one) => one[1]);
    by("rows").replaceChildren(...indices.map(rowOf));
    by("count").textContent = `${indices.length} of ${data.captions.length} captions, ${names.length} arms`;
  }
  closer();
}

function closer() {
  const index = data.captions.findIndex((one) => String(one.id) === view.open);
  if (index < 0) {
    if (by("closer").open) by("closer").close();
    return;
  }
  by("closer-caption").textContent = data.captions[index].text;
  const frame = by("under").parentElement;
  frame.className = `frame ${view.mode}`;
  frame.style.setProperty("--zoom", view.zoom);
  for (const [id, column] of [["under", view.left], ["over", view.right]]) {
    const cell = data.cells[column][index];
    by(id).src = data.images[cell.image];
    by(id).alt = `${names[column]}: ${cell.prompt}`;
  }
  by("wipe").hidden = view.mode !== "wipe";
  wipe();
  by("stories").replaceChildren(...[view.left, view.right].map((column) => story(Number(column), data.cells[column][index])));
  if (!by("closer").open) by("closer").showModal();
}

function wipe() {
  by("over").style.clipPath = view.mode === "wipe" ? `inset(0 0 0 ${by("wipe").value}%)` : "none";
}

function story(column, cell) {
  const told = element("section");
  told.append(element("h3", names[column]), element("p", figures(cell)));
  const list = element("ol");
  for (const one of cell.rounds) {
    const verdict = one.p_yes === undefined ? "" : ` (${one.accepted ? "accepted" : "rejected"}, P(yes) ${one.p_yes.toFixed(2)})`;
    list.append(element("li", `${one.prompt}${verdict}${one.missed ? `; missed: ${one.missed}` : ""}`));
  }
  told.append(list);
  return told;
}

function set(changes) {
  Object.assign(view, changes);
  const kept = new URLSearchParams(Object.entries(view).filter(([name, value]) => value !== start[name]));
  history.replaceState(null, "", `#${kept}`);
  draw();
}

// Only what this page offers is taken from an address.
function fromHash() {
  const given = Object.fromEntries(new URLSearchParams(location.hash.slice(1)));
  const isColumn = (value) => /^\d+$/.test(value) && Number(value) < names.length;
  Object.assign(view, start);
  for (const [name, value] of Object.entries(given)) {
    if (!(name in start)) continue;
    if (["from", "to", "left", "right"].includes(name) ? isColumn(value) : true) view[name] = value;
  }
  for (const name of ["sort", "only", "mode"]) if (![...by(name).options].some((one) => one.value === view[name])) view[name] = start[name];
  draw();
}

for (const id of ["from", "to", "left", "right"]) by(id).append(...columns.map((column) => element("option", names[column], { value: column })));
for (const column of columns) {
  const label = element("label", ` ${names[column]}`);
  const box = element("input", "", { type: "checkbox", value: column });
  box.addEventListener("change", () => set({ hidden: [...by("arms").querySelectorAll("input:not(:checked)")].map((one) => one.value).join(",") }));
  label.prepend(box);
  by("arms").append(label);
}
for (const name of fields) by(name).addEventListener("input", () => set({ [name]: by(name).value }));
document.head.append(element("style", "", { id: "hiding" }));
by("controls").addEventListener("submit", (event) => event.preventDefault());
by("wipe").addEventListener("input", wipe);
by("closer").addEventListener("close", () => { if (view.open) set({ open: "" }); });
document.addEventListener("keydown", (event) => {
  const index = data.captions.findIndex((one) => String(one.id) === view.open);
  if (index < 0 || !["ArrowUp", "ArrowDown"].includes(event.key) || event.target.matches("select, input")) return;
  const next = data.captions[index + (event.key === "ArrowDown" ? 1 : -1)];
  if (next) set({ open: String(next.id) });
  event.preventDefault();
});
window.addEventListener("hashchange", fromHash);
const probe = new Image();
probe.addEventListener("load", () => document.body.classList.toggle("small", probe.naturalWidth < 256));
probe.src = Object.values(data.images)[0];
fromHash();
