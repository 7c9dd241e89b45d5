// Who shares the store, and how the store is.

import { fill } from "./table.js";
import { $, clock, make, number } from "./text.js";

export function instances(store, members) {
  $("no-store").hidden = store !== null;
  const line = $("store");
  line.hidden = store === null;
  if (store !== null) {
    const without = Object.entries(store.fallbacks).filter(([, count]) => count).map(([what, count]) => `${number(count)} × ${what}`);
    const alone = without.length ? ` Decided without it since the start: ${without.join(", ")}.` : "";
    const money = store.money === null ? "" : ` Caps are in ${store.money.where}, which ${store.money.up ? "answers" : "does not answer"}.`;
    line.className = store.up ? "" : "bad";
    line.textContent = store.up ? `${store.where} answers.${money}${alone}` : `${store.reason}. Until it is back this instance decides alone (store.on_error: ${store.on_error}).${money}${alone}`;
  }
  fill("instances", (store === null ? [] : members).map((one) => [
    one.id === store.this ? make("strong", {}, `${one.id} (this one)`) : one.id, one.host, one.region, one.version, clock(one.started), clock(one.seen),
  ]));
}
