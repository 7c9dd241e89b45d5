// What is done by hand: each order is asked once more, sent, and its answer told. `ordered` says that one was.

import { $, make } from "./text.js";

const TOLD = 8000;
const at = document.documentElement.dataset.at;
let told = 0;

export function act(text, path, question, why, name = "") {
  return make("button", {
    type: "button", "data-key": path, "aria-label": name ? `${text.replace("…", "")} ${name}` : null,
    click: () => ask(question, why, path),
  }, text);
}

export const acts = (...buttons) => make("div", { class: "acts" }, buttons);

const asks = {
  block: (user) => [`Block ${user}?`, "Every request and call of this user is refused until you unblock them, over restarts too."],
  unblock: (user) => [`Unblock ${user}?`, "Limits and caps hold for this user as before."],
  forgive: (user) => [`Forgive what ${user} spent today?`, "It no longer counts against the user’s cap; the ledger keeps it."],
};
const userPath = (action, user) => `${action}/${encodeURIComponent(user)}`;
export const button = (text, action, user) => act(text, userPath(action, user), ...asks[action](user), user);
export const askOf = (action, user) => ask(...asks[action](user), userPath(action, user));

export function ask(question, why, path) {
  const dialog = $("sure"), from = document.activeElement;
  $("sure-what").textContent = question;
  $("sure-why").textContent = why;
  dialog.returnValue = "no";
  dialog.addEventListener("close", () => {
    if (dialog.returnValue === "yes") send(path);
    const again = [...document.querySelectorAll("[data-key]")].find((one) => one.dataset.key === from?.dataset?.key);
    (again ?? from)?.focus();
  }, { once: true });
  dialog.showModal();
}

async function send(path) {
  try {
    const answer = await fetch(`${at}/ctl/${path}`, { method: "POST", credentials: "same-origin", signal: AbortSignal.timeout(60000) });
    const body = await answer.json().catch(() => ({}));
    tell(answer.ok ? body.done ?? "Done." : `Not done: ${body.detail ?? `the answer was ${answer.status}`}`);
  } catch (error) {
    tell(`Not known whether it was done: ${error.message}`);
  }
  document.dispatchEvent(new Event("ordered"));
}

function tell(text) {
  $("done").textContent = text;
  $("done").hidden = false;
  clearTimeout(told);
  told = setTimeout(() => { $("done").hidden = true; }, TOLD);
}
