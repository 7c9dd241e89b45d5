// Nodes and figures. Whatever comes from outside goes into the page as text, never as markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, facts = {}, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "click") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...inside.flat().filter((one) => one !== null && one !== undefined));
  return node;
}

export const word = (text, kind) => make("span", { class: kind }, text);
export const number = (value, digits = 0) => Number(value ?? 0).toLocaleString("en-US", { maximumFractionDigits: digits });
export const percent = (share) => share > 0 && share < 0.001 ? "under 0.1 %" : `${number(100 * share, share < 0.1 ? 1 : 0)} %`;
export const plural = (count, noun) => `${number(count, 2)} ${noun}${count === 1 ? "" : "s"}`;
export const cut = (text, most) => text.length > most ? `${text.slice(0, most - 1)}…` : text;

export function dollars(value) {
  const size = Math.abs(value ?? 0);
  const digits = size === 0 || size >= 1 ? 2 : size >= 0.01 ? 4 : 6;
  return `$${Number(value ?? 0).toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

export const cents = (value) => value > 0 && value < 0.01 ? "under $0.01" : `$${Number(value).toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: 2 })}`;

export function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  const mib = value / 1048576;
  return mib >= 1024 ? `${number(mib / 1024, 2)} GiB` : `${number(mib, mib < 10 ? 1 : 0)} MiB`;
}

export function took(ms) {
  if (ms === null || ms === undefined) return "–";
  return ms >= 1000 ? `${number(ms / 1000, 1)} s` : `${number(ms, ms < 10 ? 1 : 0)} ms`;
}

const day = (date) => date.toLocaleDateString([], { month: "short", day: "numeric" });

// The time of day, after its date where that is not today's.
export function clock(moment, seconds = false) {
  const date = new Date(moment);
  if (Number.isNaN(date.getTime())) return "";
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (seconds) options.second = "2-digit";
  const time = date.toLocaleTimeString([], options);
  return date.toDateString() === new Date().toDateString() ? time : `${day(date)}, ${time}`;
}

// At an axis: the time of day alone, and the date in place of midnight.
export function tick(moment) {
  const date = new Date(moment);
  if (date.getHours() + date.getMinutes() === 0) return day(date);
  return date.toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", hourCycle: "h23" });
}
