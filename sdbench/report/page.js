"use strict";

const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const live = document.getElementById("live");

// Without this script everything is there, in one order and size; with it, what needs it appears.
all(".controls").forEach((controls) => { controls.hidden = false; });
document.documentElement.classList.add("scripted");

function filtered(shown, total, what) {
  return `${shown === total ? "" : `${shown} of `}${total} ${what}${total === 1 ? "" : "s"}`;
}

// Tables: a click sorts by a column, best first; another turns it round, a third restores the order. What has no number stays at the end.
for (const table of all("table.board")) {
  const heads = all("thead th", table);
  const original = [...table.tBodies[0].rows];
  heads.forEach((head, column) => {
    const ways = head.dataset.better === "higher" ? [null, "descending", "ascending"] : [null, "ascending", "descending"];
    head.querySelector("button").addEventListener("click", () => {
      const way = ways[(ways.indexOf(head.getAttribute("aria-sort")) + 1) % ways.length];
      heads.forEach((each) => each.removeAttribute("aria-sort"));
      if (way) head.setAttribute("aria-sort", way);
      table.tBodies[0].append(...(way ? sorted(original, column, way) : original));
      live.textContent = way ? `Sorted by ${head.textContent.trim()}, ${way}` : "In the original order";
    });
  });
}

function sorted(rows, column, way) {
  const key = (row) => row.cells[column].dataset.sort;
  return [...rows].sort((one, other) => {
    const [a, b] = [key(one), key(other)];
    if (a === undefined || b === undefined) return (a === undefined) - (b === undefined);
    const order = column === 0 ? a.localeCompare(b, undefined, { numeric: true }) : a - b;
    return way === "ascending" ? order : -order;
  });
}

for (const controls of all("[data-table]")) {
  const rows = [...document.getElementById(controls.dataset.table).tBodies[0].rows];
  const text = controls.querySelector("[name=text]");
  const apply = () => {
    rows.forEach((row) => { row.hidden = !row.cells[0].textContent.toLowerCase().includes(text.value.toLowerCase()); });
    controls.querySelector(".count").textContent = filtered(rows.filter((row) => !row.hidden).length, rows.length, "model");
  };
  text.addEventListener("input", apply);
  apply();
}

// Charts: one metric at a time; on paper all.
for (const controls of all("[data-charts]")) {
  const select = controls.querySelector("select");
  const figures = all("figure", document.getElementById(controls.dataset.charts));
  const apply = () => figures.forEach((figure) => { figure.hidden = figure.dataset.metric !== select.value; });
  select.addEventListener("change", apply);
  addEventListener("beforeprint", () => figures.forEach((figure) => { figure.hidden = false; }));
  addEventListener("afterprint", apply);
  apply();
}

// The image wall.
for (const controls of all("[data-wall].controls")) {
  const wall = document.getElementById(controls.dataset.wall);
  const shots = all(".shot", wall);
  const field = (name) => controls.querySelector(`[name=${name}]`);
  const texts = new Map(shots.map((shot) => [shot, shot.querySelector(".prompt").textContent.toLowerCase()]));
  const apply = () => {
    const wanted = field("text").value.toLowerCase();
    const which = field("which").value;
    shots.forEach((shot) => { shot.hidden = !texts.get(shot).includes(wanted) || (which && shot.dataset.which !== which); });
    all("[name=model]", controls).forEach((box) => {
      all(`[data-model="${box.value}"]`, wall).forEach((item) => { item.hidden = !box.checked; });
    });
    controls.querySelector(".count").textContent = filtered(shots.filter((shot) => !shot.hidden).length, shots.length, "row");
  };
  const order = () => {
    const key = field("order").value;
    wall.append(...[...shots].sort((a, b) => a.dataset[key] - b.dataset[key]));
  };
  controls.addEventListener("input", apply);
  field("order").addEventListener("change", order);
  apply();
}

// The worst images show copies of the wall's, so that the page holds each only once.
const originals = new Map();
for (const copy of all("[data-copy]")) {
  const original = all(".zoom", document.getElementById(copy.dataset.wall)).find((button) => button.dataset.key === copy.dataset.copy);
  if (original) {
    originals.set(copy, original);
    copy.append(original.firstElementChild.cloneNode());
    copy.closest(".strip").hidden = false;
  }
}

// Zoom: of an image of the wall, or of the original of a copy.
const zoom = document.getElementById("zoom");
let opener = null;
let shown = null;

function show(button) {
  const shot = button.closest(".shot");
  const image = button.firstElementChild;
  shown = button;
  zoom.querySelector("h2").textContent = button.parentElement.querySelector(".caption").textContent;
  zoom.querySelector("img").src = image.src;
  zoom.querySelector("img").classList.toggle("small", image.getAttribute("width") <= 128);
  zoom.querySelector("img").alt = `${zoom.querySelector("h2").textContent}: ${shot.querySelector(".prompt").textContent.slice(0, 200)}`;
  zoom.querySelector(".prompt").textContent = shot.querySelector(".prompt").textContent;
  zoom.querySelector(".numbers").textContent = button.dataset.scores;
  if (!zoom.open) zoom.showModal();
}

function step(models, prompts) {
  const wall = shown.closest(".wall");
  const visible = (element) => !element.closest("[hidden]"); // the wall itself may be folded up
  if (models) {
    const row = all(".zoom", shown.closest(".shot")).filter(visible);
    show(row[(row.indexOf(shown) + models + row.length) % row.length]);
  } else {
    const model = shown.parentElement.dataset.model;
    const column = all(`[data-model="${model}"] .zoom`, wall).filter(visible);
    show(column[(column.indexOf(shown) + prompts + column.length) % column.length]);
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest(".zoom");
  if (button) show(originals.get(opener = button) ?? button);
});
all("[data-models]", zoom).forEach((button) => button.addEventListener("click", () => step(Number(button.dataset.models), 0)));
all("[data-prompts]", zoom).forEach((button) => button.addEventListener("click", () => step(0, Number(button.dataset.prompts))));
zoom.addEventListener("keydown", (event) => {
  const moves = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  if (event.key in moves) {
    event.preventDefault();
    step(...moves[event.key]);
  }
});
zoom.addEventListener("click", (event) => { if (event.target === zoom) zoom.close(); });
zoom.addEventListener("close", () => (originals.has(opener) ? opener : shown).focus());
addEventListener("beforeprint", () => all("details").forEach((details) => { details.open = true; }));
