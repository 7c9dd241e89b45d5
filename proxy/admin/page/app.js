// The dashboard: asks `status` every two seconds while somebody looks, and writes what it says.

import { charts } from "./chart.js";
import { act, acts, ask, askOf, button } from "./order.js";
import { draw, dress, fill, gauge } from "./table.js";
import { instances } from "./instances.js";
import { tasks } from "./tasks.js";
import { $, bytes, cents, clock, cut, dollars, make, number, percent, plural, took, word } from "./text.js";

const at = document.documentElement.dataset.at;
const POLL = 2000, PATIENCE = 5000, STALE = 7000, HISTORY = 15000;
const began = Date.now();
let answered = 0, asking = false, timer = 0, historyAt = 0, history = null, latest = null, said = "";

const sum = (counts) => Object.values(counts).reduce((a, b) => a + b, 0);

// ── parts of the page ──────────────────────────────────────────────────────────────────────

const firing = (alerts) => alerts.filter((one) => one.state !== "cleared");

// One sentence for each thing that is wrong; the most important words come first, why in smaller ones.
function now(status) {
  const found = status.summary.problems.map((one) => [`${one.text}${one.since ? ` since ${clock(one.since)}` : ""}`, one.why]);
  if (firing(status.alerts).length) found.push([`${plural(firing(status.alerts).length, "alert")} firing`, null]);
  if (!found.length) found.push(["All is well", null]);
  const line = $("now"), key = JSON.stringify(found);
  line.className = status.summary.state;
  if (said === key) return; // read out only where it changed
  said = key;
  line.replaceChildren(...found.flatMap(([text, why]) => [make("span", { class: "line" }, text, why ? make("small", {}, ` (${cut(why, 200)}).`) : "."), " "]).slice(0, -1));
  document.title = status.summary.state === "ok" ? "Outrigger" : `! ${cut(found[0][0], 80)}`;
}

function tile(label, figure, more, kind = "") {
  return make("li", {}, make("span", {}, label), make("strong", { class: kind }, figure), make("small", {}, more));
}

// What an owner looks for first, in five figures.
function glance(status) {
  const over = status.lately_s >= 60 ? `in ${plural(Math.round(status.lately_s / 60), "minute")}` : `in ${status.lately_s} s`;
  const lately = Object.values(status.routes).map((one) => one.lately);
  const requests = lately.reduce((all, one) => all + one.requests, 0), errors = lately.reduce((all, one) => all + one.errors, 0);
  const tiles = [
    tile("Requests", number(requests), over),
    tile("Errors", number(errors), errors && requests ? `${percent(errors / requests)} of them` : over, errors ? "bad" : ""),
  ];
  const calls = Object.values(status.upstreams).map((one) => one.lately.calls);
  if (calls.length) {
    const failed = calls.reduce((all, one) => all + (one.error ?? 0) + (one.refused ?? 0), 0);
    tiles.push(tile("Calls out", number(calls.reduce((all, one) => all + sum(one), 0)), failed ? `${number(failed)} failed or refused` : over, failed ? "bad" : ""));
  }
  const purses = Object.entries(status.money.upstreams);
  if (purses.length) {
    const [name, most] = purses.reduce((a, b) => (b[1].cap_share ?? 0) > (a[1].cap_share ?? 0) ? b : a);
    const told = most.cap_share === null ? "today, no cap on the whole" : `today; ${percent(most.cap_share)} of ${cut(name, 20)}’s cap`;
    tiles.push(tile("Spent", cents(status.money.today_usd), told, most.cap_share >= 1 ? "bad" : most.cap_share >= 0.8 ? "warn" : ""));
  }
  const memory = status.memory, both = memory.gateway + (memory.app ?? 0);
  tiles.push(memory.limit ? tile("Memory", percent(both / memory.limit), `of ${bytes(memory.limit)}`, both / memory.limit > memory.warn ? "warn" : "")
    : tile("Memory", bytes(both), "no limit known"));
  $("glance").replaceChildren(...tiles);
}

function alerts(found) {
  document.querySelector("#alerts .none").hidden = found.length > 0;
  $("alert-list").replaceChildren(...found.map((one) => {
    const kind = one.state === "cleared" ? "ok" : one.severity === "warning" ? "warn" : "bad";
    return make("li", { class: `${one.state} ${kind}` },
      make("h3", {}, word(one.state, kind), ` ${one.name}${one.subject ? `: ${one.subject}` : ""}`, make("small", { class: "quiet" }, ` since ${clock(one.since)}`)),
      make("p", {}, one.message ?? ""));
  }));
}

function parts(status) {
  const words = { ok: "ok", degraded: "warn", down: "bad" };
  const found = ["app", "upstreams", "postgres", "store", "ledger", "tasks", "memory"].map((name) => [name, status.health[name]]);
  fill("parts", found.filter(([, part]) => part.state !== "off").map(([name, part]) => [name, word(part.state, words[part.state]), part.reason, part.since ? clock(part.since) : ""]));
  const off = found.filter(([, part]) => part.state === "off").map(([name]) => name);
  $("off").textContent = off.length ? `Off: ${off.join(", ")}.` : "";
  const memory = status.memory, cpu = status.cpu, both = memory.gateway + (memory.app ?? 0);
  const of = memory.limit ? ` of ${bytes(memory.limit)}` : ", no limit known";
  const whose = memory.app === null ? "the gateway’s alone" : `app ${bytes(memory.app)}, gateway ${bytes(memory.gateway)}`;
  const gauges = [gauge("Memory", both, memory.limit, `${bytes(both)}${of} (${whose})`, memory.warn)];
  if (cpu.busy !== null) gauges.push(gauge("CPU", cpu.busy, cpu.limit ?? cpu.cores, `${number(cpu.busy, 2)} of ${plural(cpu.limit ?? cpu.cores, "core")}`));
  if (cpu.limit !== null) gauges.push(make("p", {}, `Held back by the CPU quota: ${number(cpu.throttled_lately_s, 1)} s in the last 5 minutes`));
  const last = status.app.last_exit;
  if (last) {
    const how = `status ${last.status}${last.signal ? ` (${last.signal})` : ""}, ${last.why}`;
    const often = status.app.crashes ? `The app ended by itself ${plural(status.app.crashes, "time")}; ` : "The app was replaced; ";
    gauges.push(make("p", { class: status.app.crashes ? "warn" : "" }, `${often}last at ${clock(last.time)}: ${how}`));
  }
  $("gauges").replaceChildren(...gauges);
}

function policy(status) {
  const refused = status.policy.refused;
  $("policy").textContent = `Policy ${status.policy.source}, in force since ${clock(status.policy.since)}.`
    + status.policy.pending.map((one) => ` ${one.key} waits for the next ${one.until}.`).join("")
    + (refused ? ` The newest one was refused: ${refused}` : "");
  $("policy").className = refused ? "bad" : "quiet";
  $("about").textContent = `Outrigger ${status.health.version}${status.app.pid === null ? "" : `, pid of the app ${status.app.pid}`}.`;
}

// Those with errors come first, the others as in the policy.
function routes(status) {
  const found = Object.entries(status.routes).sort(([, a], [, b]) => (b.lately.errors > 0) - (a.lately.errors > 0));
  fill("routes", found.map(([name, one]) => [
    name,
    `${number(one.lately.requests)} / ${number(one.requests)}`,
    word(`${number(one.lately.errors)} / ${number(one.errors)}`, one.lately.errors ? "bad" : ""),
    took(one.lately.p50_ms), took(one.lately.p95_ms),
    number(one.in_flight), number(one.queued), number(one.refused), number(one.limited_users),
    one.cache && one.cache.hit_ratio !== null ? `${number(one.cache.hit_ratio * 100)} %` : "–",
    status.memory.growth[name]?.bytes ? bytes(status.memory.growth[name].bytes) : "–",
  ]));
}

function upstreams(status) {
  const states = { closed: ["closed, calls pass", "ok"], "half-open": ["half-open, probes decide", "warn"], open: ["open, calls are refused", "bad"] };
  $("no-upstream").hidden = Object.keys(status.upstreams).length > 0;
  fill("upstreams", Object.entries(status.upstreams).map(([name, one]) => {
    const [text, kind] = states[one.breaker] ?? [one.breaker, ""];
    const why = one.breaker === "closed" && !one.forced ? "" : ` since ${clock(one.since)}: ${one.why}`;
    const calls = Object.entries(one.lately.calls).filter(([, count]) => count).map(([outcome, count]) => `${number(count)} ${outcome}`);
    const many = sum(one.lately.calls), path = (state) => `breaker/${encodeURIComponent(name)}/${state}`;
    return [
      name, make("span", {}, word(text, kind), why), calls.join(", ") || "no call", many ? number(sum(one.lately.attempts) / many, 2) : "–",
      one.cost ? dollars(one.cost.today_usd) : "no prices",
      acts(
        act("Open…", path("open"), `Open the breaker of ${name}?`, "Every call to it is refused until you close it or give it back.", `the breaker of ${name}`),
        act("Close…", path("close"), `Hold the breaker of ${name} closed?`, "Calls pass even while they fail, until you give it back.", `the breaker of ${name}`),
        act("Auto…", path("auto"), `Give the breaker of ${name} back?`, "It opens and closes by itself again.", `the breaker of ${name}`)),
    ];
  }));
  fill("models", Object.entries(status.upstreams).flatMap(([name, one]) => Object.entries(one.calls).map(([model, by]) => [
    name, model, number(by.ok), word(number(by.error), by.error ? "bad" : ""), number(by.refused), number(by.cached), number(by.fallback),
  ])));
}

function money(found) {
  const metered = Object.entries(found.upstreams);
  $("money").textContent = metered.length
    ? `${dollars(found.today_usd)} spent; ${dollars(found.projected_usd)} by the day’s end at the pace of the last hour.`
    : "No upstream has prices.";
  $("money").className = metered.length ? "figure" : "none";
  $("caps").replaceChildren(...metered.map(([name, one]) => gauge(
    name, one.cap_share ?? 0, one.cap === null ? null : 1,
    one.cap === null ? `${dollars(one.today_usd)}, no cap on the whole`
      : `${dollars(one.cap_spent_usd)} of ${one.cap}, ${dollars(one.reserved_usd)} reserved`)));
  fill("spenders", found.top_users.map((one) => [
    one.user, dollars(one.usd),
    one.user === "unattributed" ? "" : acts(button("Block…", "block", one.user), button("Forgive…", "forgive", one.user)),
  ]));
}

function users(status) {
  fill("limited", status.limited.map((one) => [
    one.user, one.reason, one.where, one.tier || "none", number(one.refused), clock(one.last),
    acts(button("Block…", "block", one.user), one.reason === "cost-cap" ? button("Forgive…", "forgive", one.user) : null),
  ]));
  fill("blocked", status.blocked.map((user) => [user, acts(button("Unblock…", "unblock", user))]));
}

function pool(found) {
  $("no-pool").hidden = found !== null;
  if (found === null) { fill("pool", []); return; }
  const words = (counts) => Object.entries(counts).map(([name, count]) => `${number(count)} ${name.replaceAll("_", " ")}`).join(", ") || "none";
  fill("pool", [
    ["To the database", `${words(found.servers)}; ${number(found.max)} at most`],
    ["From the app", words(found.clients)],
    ["Waiting for one", `${number(found.waiting)}, the longest for ${number(found.longest_wait_s, 1)} s`],
    ["Transactions since the start", words(found.transactions)],
  ]);
}

function errors(status) {
  const wanted = $("find").value.trim().toLowerCase();
  const fits = (one) => !wanted || String(one.request_id ?? "").toLowerCase().includes(wanted);
  const id = (one, kind) => one.request_id === null ? "none" : make("button", {
    type: "button", class: "id", "data-key": `${kind}${one.request_id}`, "aria-label": `Find ${one.request_id}`,
    click: () => { $("find").value = one.request_id; errors(latest); $("find").focus(); },
  }, one.request_id);
  fill("errors", status.errors.filter(fits).map((one) => [
    clock(one.time, true), one.status, `${one.method} ${one.path}`, one.route, one.user || "none", one.reason, took(one.duration_ms), id(one, "request ")]));
  fill("failed", status.failed_calls.filter(fits).map((one) => [
    clock(one.time, true), one.status ?? "none", one.upstream, one.model ?? "none", one.user, one.reason, took(one.duration_ms), id(one, "call ")]));
  $("no-errors").hidden = status.errors.some(fits) || status.failed_calls.some(fits);
  $("no-errors").textContent = wanted ? "Nothing that is remembered fits; the log has every request." : "No error is remembered.";
}

// ── asking ─────────────────────────────────────────────────────────────────────────────────

async function get(path) {
  const answer = await fetch(`${at}/${path}`, { credentials: "same-origin", cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  if (answer.status === 401) {
    location.reload(); // the session has ended: the form comes
    throw new Error("logged out");
  }
  if (!answer.ok) throw new Error(`the answer was ${answer.status}`);
  return answer.json();
}

function show(status) {
  latest = status;
  now(status);
  draw("glance", [status.lately_s, status.routes, status.upstreams, status.money, status.memory], () => glance(status));
  draw("alerts", status.alerts, () => alerts(status.alerts));
  draw("parts", [status.health, status.memory, status.cpu, status.app].map((one) => ({ ...one, uptime_s: 0 })), () => parts(status));
  draw("policy", [status.policy, status.app, status.health.version], () => policy(status));
  draw("routes", [status.routes, status.memory.growth], () => routes(status));
  draw("upstreams", status.upstreams, () => upstreams(status));
  draw("money", status.money, () => money(status.money));
  draw("users", [status.limited, status.blocked], () => users(status));
  draw("tasks", status.tasks, () => tasks(status.tasks));
  draw("instances", [status.store, status.instances], () => instances(status.store, status.instances));
  draw("pool", status.postgres, () => pool(status.postgres));
  draw("errors", [status.errors, status.failed_calls], () => errors(status));
}

async function poll() {
  if (asking || document.hidden) return;
  asking = true;
  clearTimeout(timer);
  try {
    show(await get("status"));
    answered = Date.now();
    if (answered - historyAt > (history?.recent.at.length > 2 ? HISTORY : POLL)) {
      historyAt = answered;
      history = (await get("status?history=1")).history;
      draw("charts", history, trend);
    }
  } catch (error) {
    if (!(error instanceof DOMException) && !(error instanceof TypeError)) console.warn(error.message);
  } finally {
    asking = false;
    age();
    clearTimeout(timer);
    timer = setTimeout(poll, POLL);
  }
}

const trend = () => charts(history, latest);

function age() {
  const old = Date.now() - (answered || began) > STALE && !document.hidden;
  if (old === !$("stale").hidden) return;
  $("stale").textContent = !old ? "" : answered
    ? `No answer since ${clock(answered, true)}: what is below is of then.`
    : "No answer yet: the gateway cannot be reached.";
  $("stale").hidden = !old;
  document.body.classList.toggle("old", old);
}

dress();
$("restart").addEventListener("click", () => ask("Restart the app?", "Requests wait for it, as far as app.hold allows; WebSockets and background work are cut.", "restart-app"));
$("reload").addEventListener("click", () => ask("Reload the policy?", "A policy with a fault is refused whole, and the running one stays.", "reload"));
$("by-name").addEventListener("submit", (event) => {
  event.preventDefault();
  const user = $("user").value.trim();
  if (user) askOf(event.submitter?.value ?? "block", user);
});
$("find").addEventListener("input", () => { if (latest) errors(latest); });
document.querySelectorAll("input[name=range]").forEach((one) => one.addEventListener("change", trend));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", trend);
let wide = innerWidth;
addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; trend(); } });
document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else poll(); });
document.addEventListener("ordered", poll);
setInterval(age, 1000);
poll();
