// The dashboard: asks `status` every two seconds while somebody looks, and writes what it says.
// Whatever comes from outside goes into the page as text, never as markup.

const at = document.documentElement.dataset.at;
const POLL = 2000, PATIENCE = 5000, STALE = 7000, HISTORY = 15000, TOLD = 8000;
const $ = (id) => document.getElementById(id);
let answered = 0, asking = false, timer = 0, historyAt = 0, history = null, told = 0;
const began = Date.now();
const shown = new Map(); // by section: what it was drawn from

// ── small things ───────────────────────────────────────────────────────────────────────────

function make(tag, facts = {}, ...inside) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(facts)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "click") node.addEventListener("click", value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...inside.flat().filter((one) => one !== null && one !== undefined));
  return node;
}

const number = (value, digits = 0) => Number(value ?? 0).toLocaleString("en-US", { maximumFractionDigits: digits });
const percent = (share) => `${number(100 * share, share < 0.1 ? 1 : 0)} %`;
const plural = (count, word) => `${number(count)} ${word}${count === 1 ? "" : "s"}`;

function dollars(value) {
  const size = Math.abs(value ?? 0);
  const digits = size === 0 || size >= 1 ? 2 : size >= 0.01 ? 4 : 6;
  return `$${Number(value ?? 0).toLocaleString("en-US", { minimumFractionDigits: 2, maximumFractionDigits: digits })}`;
}

function bytes(value) {
  if (value === null || value === undefined) return "unknown";
  const mib = value / 1048576;
  return mib >= 1024 ? `${number(mib / 1024, 2)} GiB` : `${number(mib, mib < 10 ? 1 : 0)} MiB`;
}

function took(ms) {
  if (ms === null || ms === undefined) return "–";
  return ms >= 1000 ? `${number(ms / 1000, 1)} s` : `${number(ms, ms < 10 ? 1 : 0)} ms`;
}

function clock(moment, seconds = false) {
  const date = new Date(moment);
  if (Number.isNaN(date.getTime())) return "";
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (seconds) options.second = "2-digit";
  const time = date.toLocaleTimeString([], options);
  const today = date.toDateString() === new Date().toDateString();
  return today ? time : `${date.toLocaleDateString([], { month: "short", day: "numeric" })}, ${time}`;
}

// Draws a part anew only where its data changed, and leaves the keyboard where it was.
function draw(name, data, paint) {
  const key = JSON.stringify(data);
  if (shown.get(name) === key) return;
  shown.set(name, key);
  const focus = document.activeElement?.dataset?.key;
  paint();
  if (focus && document.activeElement === document.body) {
    for (const one of document.querySelectorAll("[data-key]")) if (one.dataset.key === focus) one.focus();
  }
}

function fill(id, rows) {
  const table = $(id), heads = [...table.querySelectorAll("thead th")].map((head) => head.textContent);
  const body = table.tBodies[0];
  body.replaceChildren(...rows.map((cells) => make("tr", { role: "row" }, cells.map((cell, index) => {
    const inside = cell instanceof Node ? cell : String(cell ?? "–");
    if (index === 0) return make("th", { scope: "row", role: "rowheader" }, inside);
    return make("td", { role: "cell", "data-label": heads[index], class: cell === "" ? "blank" : null }, inside);
  }))));
  table.classList.toggle("empty", rows.length === 0);
}

const word = (text, kind) => make("span", { class: kind }, text);

function gauge(label, value, most, text, warn = 0.8) {
  const share = most ? value / most : null;
  return make("p", {}, `${label}: ${text}`, share === null ? null : make("meter", {
    min: 0, max: 1, high: Math.min(0.999, warn), value: Math.min(1, share), "aria-label": `${label}, ${percent(share)}`,
  }));
}

// ── by hand ────────────────────────────────────────────────────────────────────────────────

function act(text, path, question, why, name = "") {
  return make("button", {
    type: "button", "data-key": path, "aria-label": name ? `${text.replace("…", "")} ${name}` : null,
    click: () => ask(question, why, path),
  }, text);
}

const acts = (...buttons) => make("div", { class: "acts" }, buttons);
const userPath = (action, user) => `${action}/${encodeURIComponent(user)}`;

function ask(question, why, path) {
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
  poll();
}

function tell(text) {
  $("done").textContent = text;
  $("done").hidden = false;
  clearTimeout(told);
  told = setTimeout(() => { $("done").hidden = true; }, TOLD);
}

const asks = {
  block: (user) => [`Block ${user}?`, "Every request and call of this user is refused until you unblock them, over restarts too."],
  unblock: (user) => [`Unblock ${user}?`, "Limits and caps hold for this user as before."],
  forgive: (user) => [`Forgive what ${user} spent today?`, "It no longer counts against the user’s cap; the ledger keeps it."],
};
const button = (text, action, user) => act(text, userPath(action, user), ...asks[action](user), user);

// ── parts of the page ──────────────────────────────────────────────────────────────────────

function sentence(summary, alerts) {
  const parts = summary.problems.map((one) => {
    const since = one.since ? ` since ${clock(one.since)}` : "";
    return `${one.text}${since}${one.why ? ` (${one.why})` : ""}`;
  });
  const firing = alerts.filter((one) => one.state !== "cleared");
  if (firing.length) parts.push(`${plural(firing.length, "alert")} firing`);
  if (!parts.length) return "All is well.";
  return `${parts.join("; ")}.`;
}

function now(status) {
  const text = sentence(status.summary, status.alerts);
  const line = $("now");
  if (line.textContent !== text) line.textContent = text; // read out only where it changed
  line.className = status.summary.state;
  document.title = `${status.summary.state === "ok" ? "" : "! "}${text === "All is well." ? "Outrigger" : text.slice(0, 80)}`;
}

function alerts(found) {
  document.querySelector("#alerts .none").hidden = found.length > 0;
  $("alert-list").replaceChildren(...found.map((one) => make("li", { class: one.state }, make("h3", {},
    word(one.state, one.state === "cleared" ? "ok" : one.severity === "warning" ? "warn" : "bad"),
    ` ${one.name}${one.subject ? `: ${one.subject}` : ""}`),
  make("p", {}, one.message ?? ""), make("p", { class: "quiet" }, `since ${clock(one.since)}`))));
}

function parts(status) {
  const names = ["app", "upstreams", "postgres", "store", "ledger", "memory"];
  const words = { ok: "ok", degraded: "warn", down: "bad", off: "quiet" };
  fill("parts", names.filter((name) => status.health[name]).map((name) => {
    const part = status.health[name];
    return [name, word(part.state, words[part.state]), part.reason, part.since ? clock(part.since) : ""];
  }));
  const memory = status.memory, cpu = status.cpu, both = memory.gateway + (memory.app ?? 0);
  const of = memory.limit ? ` of ${bytes(memory.limit)}` : ", no limit known";
  const cores = cpu.limit ?? cpu.cores;
  const gauges = [gauge("Memory", both, memory.limit, `${bytes(both)}${of} (app ${bytes(memory.app)}, gateway ${bytes(memory.gateway)})`, memory.warn)];
  if (cpu.busy !== null) gauges.push(gauge("CPU", cpu.busy, cores, `${number(cpu.busy, 2)} of ${plural(cores, "core")}`));
  gauges.push(make("p", {}, `Held back by the CPU quota: ${number(cpu.throttled_lately_s, 1)} s in the last 5 minutes`));
  $("gauges").replaceChildren(...gauges);
}

function policy(status) {
  const refused = status.policy.refused;
  $("policy").textContent = `Policy ${status.policy.source}, in force since ${clock(status.policy.since)}.`
    + (refused ? ` The newest one was refused: ${refused}` : "");
  $("policy").className = refused ? "bad" : "quiet";
  $("about").textContent = `Outrigger ${status.health.version}, pid of the app ${status.app.pid ?? "unknown"}.`;
}

function routes(status) {
  fill("routes", Object.entries(status.routes).map(([name, one]) => [
    name,
    `${number(one.lately.requests)} / ${number(one.requests)}`,
    word(`${number(one.lately.errors)} / ${number(one.errors)}`, one.lately.errors ? "bad" : ""),
    took(one.lately.p50_ms), took(one.lately.p95_ms),
    number(one.in_flight), number(one.queued), number(one.refused), number(one.limited_users),
    status.memory.growth[name] ? bytes(status.memory.growth[name].bytes) : "–",
  ]));
}

function upstreams(status) {
  const states = { closed: ["closed, calls pass", "ok"], "half-open": ["half-open, one probe decides", "warn"], open: ["open, calls are refused", "bad"] };
  fill("upstreams", Object.entries(status.upstreams).map(([name, one]) => {
    const [text, kind] = states[one.breaker] ?? [one.breaker, ""];
    const why = one.breaker === "closed" && !one.forced ? "" : ` since ${clock(one.since)}: ${one.why}`;
    const calls = Object.entries(one.lately.calls).filter(([, count]) => count).map(([outcome, count]) => `${number(count)} ${outcome}`);
    const many = Object.values(one.lately.calls).reduce((a, b) => a + b, 0);
    const tries = Object.values(one.lately.attempts).reduce((a, b) => a + b, 0);
    const path = (state) => `breaker/${encodeURIComponent(name)}/${state}`;
    return [
      name, make("span", {}, word(text, kind), why), calls.join(", ") || "no call", many ? number(tries / many, 2) : "–",
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
  fill("blocked", (status.blocked ?? []).map((user) => [user, acts(button("Unblock…", "unblock", user))]));
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
    click: () => { $("find").value = one.request_id; errors(status); $("find").focus(); },
  }, one.request_id);
  fill("errors", status.errors.filter(fits).map((one) => [
    clock(one.time, true), one.status, `${one.method} ${one.path}`, one.route, one.user || "none", one.reason, took(one.duration_ms), id(one, "request ")]));
  fill("failed", status.failed_calls.filter(fits).map((one) => [
    clock(one.time, true), one.status ?? "none", one.upstream, one.model ?? "none", one.user, one.reason, took(one.duration_ms), id(one, "call ")]));
  $("no-errors").hidden = status.errors.some(fits) || status.failed_calls.some(fits);
}

// ── charts ─────────────────────────────────────────────────────────────────────────────────

const minute = (values, step) => values.map((value) => value === null ? null : value * 60 / step);
const times = (values, factor) => values.map((value) => value === null ? null : value * factor);
const CHARTS = [
  { name: "Requests a minute", lines: ["requests", "errors"], of: (h) => [minute(h.requests, h.step_s), minute(h.errors, h.step_s)], say: (v) => number(v, 1) },
  { name: "Time of a request", lines: ["half took up to", "95 % took up to"], of: (h) => [times(h.p50_s, 1000), times(h.p95_s, 1000)], say: took },
  { name: "Calls out a minute", lines: ["calls", "failed or refused"], of: (h) => [minute(h.calls, h.step_s), minute(h.failed_calls, h.step_s)], say: (v) => number(v, 1) },
  { name: "Spent an hour", lines: ["dollars"], of: (h) => [times(h.cost_usd, 3600 / h.step_s)], say: dollars },
  { name: "Memory", lines: ["app", "gateway"], of: (h) => [h.app_bytes, h.gateway_bytes], say: bytes },
  { name: "Database connections", lines: ["in use", "waiting"], of: (h) => [h.pool_in_use, h.pool_waiting], say: (v) => number(v) },
];
const drawn = [];

function charts() {
  if (history === null || typeof uPlot === "undefined") return;
  const range = document.querySelector("input[name=range]:checked").value;
  const found = history[range];
  const style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  drawn.splice(0).forEach((one) => one.destroy());
  $("charts").replaceChildren(...CHARTS.map((chart) => {
    const columns = chart.of(found);
    const spoken = chart.lines.map((line, index) => {
      const values = columns[index], known = values.filter((value) => value !== null);
      if (!known.length) return `${line}: nothing yet`;
      return `${line}: ${chart.say(values.at(-1) ?? known.at(-1))} now, ${chart.say(Math.max(...known))} at most`;
    });
    const name = `h-${chart.name.replaceAll(" ", "-")}`;
    const figure = make("figure", { role: "group", "aria-labelledby": name }, make("h3", { id: name }, chart.name));
    const space = make("div", { role: "img", "aria-label": `${chart.name}, ${range === "day" ? "24 hours" : "15 minutes"}. ${spoken.join("; ")}.` });
    figure.append(space, make("figcaption", {}, spoken.map((text, index) => make("div", { class: `key-${index + 1}` }, text))));
    requestAnimationFrame(() => {
      const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
      drawn.push(new uPlot({
        width: Math.max(200, space.clientWidth), height: 140, legend: { show: false }, cursor: { show: false },
        scales: { y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
        axes: [{ ...axis, space: 70, size: 26, values: (_, ticks) => ticks.map((tick) => clock(tick * 1000)) },
          { ...axis, size: 64, values: (_, ticks) => ticks.map(chart.say) }],
        series: [{}, ...chart.lines.map((line, index) => ({ label: line, width: 2, stroke: colour(index ? "--second" : "--first"), dash: index ? [6, 4] : undefined, points: { show: found.at.length < 2 } }))],
      }, [found.at, ...columns], space));
    });
    return figure;
  }));
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

let latest = null;

function show(status) {
  latest = status;
  now(status);
  draw("alerts", status.alerts, () => alerts(status.alerts));
  draw("parts", [status.health, status.memory, status.cpu].map((one) => ({ ...one, uptime_s: 0 })), () => parts(status));
  draw("policy", [status.policy, status.app, status.health.version], () => policy(status));
  draw("routes", [status.routes, status.memory.growth], () => routes(status));
  draw("upstreams", status.upstreams, () => upstreams(status));
  draw("money", status.money, () => money(status.money));
  draw("users", [status.limited, status.blocked], () => users(status));
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
      draw("charts", history, charts);
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

function age() {
  const old = Date.now() - (answered || began) > STALE && !document.hidden;
  if (old === !$("stale").hidden) return;
  $("stale").textContent = !old ? "" : answered
    ? `No answer since ${clock(answered, true)}: what is below is of then.`
    : "No answer yet: the gateway cannot be reached.";
  $("stale").hidden = !old;
  document.body.classList.toggle("old", old);
}

document.querySelectorAll("table").forEach((table) => {
  table.setAttribute("role", "table");
  table.querySelectorAll("thead, tbody").forEach((group) => group.setAttribute("role", "rowgroup"));
  table.querySelectorAll("thead tr").forEach((row) => row.setAttribute("role", "row"));
  table.querySelectorAll("thead th").forEach((head) => head.setAttribute("role", "columnheader"));
  table.classList.add("empty");
});
$("restart").addEventListener("click", () => ask("Restart the app?", "Requests wait for it, as far as app.hold allows; WebSockets and background work are cut.", "restart-app"));
$("reload").addEventListener("click", () => ask("Reload the policy?", "A policy with a fault is refused whole, and the running one stays.", "reload"));
$("by-name").addEventListener("submit", (event) => {
  event.preventDefault();
  const action = event.submitter?.value ?? "block", user = $("user").value.trim();
  if (user) ask(...asks[action](user), userPath(action, user));
});
$("find").addEventListener("input", () => { if (latest) errors(latest); });
document.querySelectorAll("input[name=range]").forEach((one) => one.addEventListener("change", charts));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", charts);
let wide = innerWidth;
addEventListener("resize", () => { if (innerWidth !== wide) { wide = innerWidth; charts(); } });
document.addEventListener("visibilitychange", () => { if (document.hidden) clearTimeout(timer); else poll(); });
setInterval(age, 1000);
poll();
