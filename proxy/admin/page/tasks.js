// Requests that run later: the queue by route, what waits longest, what runs, what failed and why, and what comes by the clock.

import { act, acts } from "./order.js";
import { fill } from "./table.js";
import { $, clock, make, number, took, word } from "./text.js";

const short = (id) => make("span", { title: id }, `${id.slice(0, 8)}…`);
const seconds = (value) => value === null ? "–" : took(value * 1000);

const cancel = (one) => one.can_cancel ? acts(act("Cancel…", `task/${one.id}/cancel`, `Cancel the task ${one.id.slice(0, 8)}…?`,
  one.status === "running" ? "It loses its connection to the app." : "It will not run.", `the task ${one.id.slice(0, 8)} of ${one.route}`)) : "";
const again = (one) => one.can_retry ? acts(act("Try again…", `task/${one.id}/retry`, `Try the task ${one.id.slice(0, 8)}… again?`,
  "It is queued as if it had never been tried; what its first tries did is not undone.", `the task ${one.id.slice(0, 8)} of ${one.route}`)) : "";

export function tasks(found) {
  $("no-tasks").hidden = found !== null;
  $("tasks-away").hidden = !found?.away;
  if (found?.away) $("tasks-away").textContent = `The queue’s database (${found.where}) does not answer: ${found.away}. What is below is of before.`;
  fill("task-routes", Object.entries(found?.routes ?? {}).map(([name, one]) => [
    name, number(one.queued), word(seconds(one.longest_wait_s), one.longest_wait_s > 300 ? "warn" : ""), number(one.running),
    number(one.succeeded), word(number(one.failed), one.failed ? "bad" : ""), number(one.cancelled),
  ]));
  fill("task-waiting", (found?.waiting ?? []).map((one) => [short(one.id), one.route, one.user, seconds(one.waits_s), number(one.attempts), cancel(one)]));
  fill("task-running", (found?.running ?? []).map((one) => [short(one.id), one.route, one.user, seconds(one.runs_s), number(one.attempts), cancel(one)]));
  fill("task-failed", (found?.failed ?? []).map((one) => [
    short(one.id), one.route, one.user, clock(one.ended), one.reason ?? "", number(one.attempts), again(one),
  ]));
  fill("schedules", (found?.schedules ?? []).map((one) => [one.name, `${one.cron} (${one.timezone})`, one.request, clock(one.next)]));
}
