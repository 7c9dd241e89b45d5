// Tables and gauges, drawn anew only where their data changed.

import { $, make, number, percent } from "./text.js";

const FIRST = 10; // rows of a table until all are asked for
const LONG = 32, ENDLESS = 120; // characters of what may break anywhere, and of what is clipped to three lines
const shown = new Map(); // by section: what it was drawn from
const whole = new Set(); // tables of which all is asked for

// Draws a part anew only where its data changed, and leaves the keyboard where it was.
export function draw(name, data, paint) {
  const key = JSON.stringify(data);
  if (shown.get(name) === key) return;
  shown.set(name, key);
  const focus = document.activeElement?.dataset?.key;
  paint();
  if (focus && document.activeElement === document.body) {
    for (const one of document.querySelectorAll("[data-key]")) if (one.dataset.key === focus) one.focus();
  }
}

function cell(found, index, heads) {
  const text = found instanceof Node ? null : String(found ?? "–");
  const inside = text === null ? found : text.length > LONG ? make("span", { class: text.length > ENDLESS ? "long clip" : "long", title: text }, text) : text;
  const kind = text === "" ? "blank" : text === "0" || text === "–" ? "zero" : text !== null && text.length <= 20 ? "brief" : null;
  if (index === 0) return make("th", { scope: "row", role: "rowheader" }, inside);
  return make("td", { role: "cell", "data-label": heads[index], class: kind }, inside);
}

export function fill(id, rows) {
  const table = $(id), heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
  const some = whole.has(id) ? rows : rows.slice(0, FIRST);
  table.tBodies[0].replaceChildren(...some.map((cells) => make("tr", { role: "row" }, cells.map((one, index) => cell(one, index, heads)))));
  table.classList.toggle("empty", rows.length === 0);
  if (!$(`${id}-more`)) table.after(make("button", { type: "button", id: `${id}-more`, class: "more", "aria-controls": id }));
  const more = $(`${id}-more`);
  more.hidden = rows.length <= FIRST;
  more.textContent = whole.has(id) ? `Show the first ${FIRST}` : `Show all ${number(rows.length)}`;
  more.setAttribute("aria-label", `${more.textContent}: ${table.caption.textContent}`);
  more.onclick = () => { if (!whole.delete(id)) whole.add(id); fill(id, rows); };
}

export function gauge(label, value, most, text, warn = 0.8) {
  const share = most ? value / most : null;
  return make("p", {}, `${label}: ${text}`, share === null ? null : make("meter", {
    min: 0, max: 1, high: Math.min(0.999, warn), value: Math.min(1, share), "aria-label": `${label}, ${percent(share)}`,
  }));
}

// Stacked on a phone, a table loses its meaning to a reader of screens; its roles give it back.
export function dress() {
  document.querySelectorAll("table").forEach((table) => {
    table.setAttribute("role", "table");
    table.querySelectorAll("thead, tbody").forEach((group) => group.setAttribute("role", "rowgroup"));
    table.querySelectorAll("thead tr").forEach((row) => row.setAttribute("role", "row"));
    table.querySelectorAll("thead th").forEach((head) => head.setAttribute("role", "columnheader"));
    table.classList.add("empty");
  });
}
