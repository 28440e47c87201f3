// Rows of captions; images get their source when they come near the window. The view stands in the address's hash.
"use strict";

const by = (id) => document.getElementById(id);
const data = JSON.parse(by("data").textContent);
const several = new Set(data.columns.map((one) => one.run)).size > 1;
const names = data.columns.map((one) => (several ? `${one.run}: ${one.label}` : one.label));
const columns = names.map((_, number) => number);
const start = { text: "", sort: "", from: "0", to: String(names.length - 1), only: "", size: "144", hidden: "", open: "", left: "0", right: String(names.length - 1), mode: "wipe", zoom: "1", wipe: "50" };
const view = { ...start };
const fields = ["text", "sort", "from", "to", "only", "size", "left", "right", "mode", "zoom", "wipe"];

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

const hidden = () => new Set(view.hidden.split(",").filter(Boolean));

let order = data.captions.map((_, index) => index); // of the captions shown
let shown = "";
function draw() {
  for (const name of fields) if (by(name).value !== view[name]) by(name).value = view[name];
  document.documentElement.style.setProperty("--size", `${Number(view.size)}px`);
  for (const box of by("arms").querySelectorAll("input")) box.checked = !hidden().has(box.value);
  by("hiding").textContent = "";
  by("hiding").sheet && [...hidden()].forEach((column) => by("hiding").sheet.insertRule(`figure[data-column="${Number(column)}"] { display: none; }`));
  const list = JSON.stringify([view.text, view.sort, view.from, view.to, view.only]);
  if (list !== shown) {
    shown = list;
    order = data.captions.map((_, index) => index).filter(wanted);
    if (view.sort) order = order.map((index) => [moved(index), index]).sort((a, b) => b[0] - a[0]).map((one) => one[1]);
    by("rows").replaceChildren(...order.map(rowOf));
    by("count").textContent = `${order.length} of ${data.captions.length} captions, ${names.length} arms`;
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
  const overlaid = ["wipe", "difference"].includes(view.mode);
  by("stage").hidden = !overlaid;
  by("panes").hidden = overlaid;
  by("wipe").hidden = view.mode !== "wipe";
  by("pair").hidden = view.mode === "all";
  by("closer").classList.toggle("wide", view.mode === "all");
  by("closer").style.setProperty("--zoom", view.zoom);
  const pair = [Number(view.left), Number(view.right)];
  if (overlaid) overlay(index, pair);
  else panes(index, view.mode === "all" ? columns.filter((column) => !hidden().has(String(column))) : pair);
  if (!by("closer").open) by("closer").showModal();
}

function overlay(index, pair) {
  by("under").parentElement.className = `frame ${view.mode}`;
  for (const [number, id] of ["under", "over"].entries()) {
    const cell = data.cells[pair[number]][index];
    by(id).src = data.images[cell.image];
    by(id).alt = `${names[pair[number]]}: ${cell.prompt}`;
  }
  by("over").style.clipPath = view.mode === "wipe" ? `inset(0 0 0 ${view.wipe}%)` : "none";
  by("stories").replaceChildren(...pair.map((column) => story(column, data.cells[column][index])));
}

// Each image in a window of its own; made again only when other images are to be seen, so that a zoom keeps its place.
let paned = "";
function panes(index, shownColumns) {
  by("stories").replaceChildren();
  const wantedPanes = JSON.stringify([index, shownColumns]);
  if (wantedPanes === paned) return;
  paned = wantedPanes;
  by("panes").replaceChildren(...shownColumns.map((column) => {
    const cell = data.cells[column][index];
    const pane = element("div", "", { class: "pane", tabindex: "0", role: "group", "aria-label": names[column] });
    pane.append(element("img", "", { src: data.images[cell.image], alt: `${names[column]}: ${cell.prompt}` }));
    const box = element("div");
    box.append(pane, story(column, cell));
    return box;
  }));
}

// All windows show the same part of their images.
by("panes").addEventListener("scroll", ({ target }) => {
  for (const pane of by("panes").querySelectorAll(".pane")) {
    if (Math.abs(pane.scrollLeft - target.scrollLeft) > 1) pane.scrollLeft = target.scrollLeft;
    if (Math.abs(pane.scrollTop - target.scrollTop) > 1) pane.scrollTop = target.scrollTop;
  }
}, true);

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

const slides = (name) => by(name).type === "range";

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
  for (const name of fields.filter(slides)) {
    by(name).value = Number.isFinite(Number(view[name])) ? view[name] : start[name];
    view[name] = by(name).value; // within its bounds
  }
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
// A slider's address is written when it is let go: browsers refuse hundreds of addresses in a few seconds.
for (const name of fields) {
  const read = () => ({ [name]: by(name).value });
  by(name).addEventListener(slides(name) ? "change" : "input", () => set(read()));
  if (slides(name)) by(name).addEventListener("input", () => { Object.assign(view, read()); draw(); });
}
document.head.append(element("style", "", { id: "hiding" }));
by("controls").addEventListener("submit", (event) => event.preventDefault());
by("closer").addEventListener("close", () => { if (view.open) set({ open: "" }); });
document.addEventListener("keydown", (event) => {
  const index = data.captions.findIndex((one) => String(one.id) === view.open);
  if (index < 0 || !["ArrowUp", "ArrowDown"].includes(event.key) || event.target.matches("select, input")) return;
  const next = data.captions[order[order.indexOf(index) + (event.key === "ArrowDown" ? 1 : -1)]];
  if (next) set({ open: String(next.id) });
  event.preventDefault();
});
window.addEventListener("hashchange", fromHash);
const probe = new Image();
probe.addEventListener("load", () => document.body.classList.toggle("small", probe.naturalWidth < 256));
probe.src = Object.values(data.images)[0];
fromHash();
