// The trend: eight charts of the last day or the last quarter of an hour, those of them that there is something for.

import { $, bytes, dollars, make, number, tick, took } from "./text.js";

const minute = (values, step) => values.map((value) => value === null ? null : value * 60 / step);
const times = (values, factor) => values.map((value) => value === null ? null : value * factor);
const always = () => true;
const STEPS = [1, 2, 5].flatMap((first) => [0, 1, 2, 3, 4, 5].map((zeros) => first * 10 ** zeros)).sort((a, b) => a - b);
const BINARY = Array.from({ length: 20 }, (_, power) => 1048576 * 2 ** power);
const CHARTS = [
  { name: "Requests a minute", lines: ["requests", "errors"], of: (h) => [minute(h.requests, h.step_s), minute(h.errors, h.step_s)], say: (v) => number(v, 1), on: always },
  { name: "Time of a request", lines: ["half took up to", "95 % took up to"], of: (h) => [times(h.p50_s, 1000), times(h.p95_s, 1000)], say: took, on: always },
  { name: "Calls out a minute", lines: ["calls", "failed or refused"], of: (h) => [minute(h.calls, h.step_s), minute(h.failed_calls, h.step_s)], say: (v) => number(v, 1), on: (s) => Object.keys(s.upstreams).length },
  { name: "Spent an hour", lines: ["dollars"], of: (h) => [times(h.cost_usd, 3600 / h.step_s)], say: dollars, on: (s) => Object.keys(s.money.upstreams).length },
  { name: "Memory", lines: ["app", "gateway"], of: (h) => [h.app_bytes, h.gateway_bytes], say: bytes, steps: BINARY, on: always },
  { name: "Database connections", lines: ["in use", "waiting"], of: (h) => [h.pool_in_use, h.pool_waiting], say: (v) => number(v), steps: STEPS, on: (s) => s.postgres !== null },
  { name: "Tasks a minute", lines: ["succeeded", "failed"], of: (h) => [minute(h.tasks_succeeded, h.step_s), minute(h.tasks_failed, h.step_s)], say: (v) => number(v, 1), on: (s) => s.tasks !== null },
  { name: "Tasks under way", lines: ["waiting", "running"], of: (h) => [h.tasks_waiting, h.tasks_running], say: (v) => number(v), steps: STEPS, on: (s) => s.tasks !== null },
];
// Seconds: what an axis of time is parted by, and the least that one spans: a single sample has no width of its own.
const PARTS = [60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200, 86400];
const LEAST = { day: 3600, recent: 300 };
const drawn = [];

export function charts(history, status) {
  if (history === null || status === null || typeof uPlot === "undefined") return;
  const range = document.querySelector("input[name=range]:checked").value;
  const found = history[range], style = getComputedStyle(document.documentElement);
  const colour = (name) => style.getPropertyValue(name).trim();
  drawn.splice(0).forEach((one) => one.destroy());
  $("no-trend").hidden = found.at.length > 0;
  $("no-trend").textContent = `The first point comes ${range === "day" ? "five minutes" : "five seconds"} after the start.`;
  $("charts").replaceChildren(...(found.at.length ? CHARTS : []).filter((chart) => chart.on(status)).map((chart) => figure(chart, found, range, colour)));
}

function figure(chart, found, range, colour) {
  const columns = chart.of(found);
  const spoken = chart.lines.map((line, index) => {
    const known = columns[index].filter((value) => value !== null);
    if (!known.length) return `${line}: nothing yet`;
    return `${line}: ${chart.say(columns[index].at(-1) ?? known.at(-1))} now, ${chart.say(Math.max(...known))} at most`;
  });
  const name = `h-${chart.name.replaceAll(" ", "-")}`;
  const space = make("div", { role: "img", "aria-label": `${chart.name}, ${range === "day" ? "24 hours" : "15 minutes"}. ${spoken.join("; ")}.` });
  requestAnimationFrame(() => plot(chart, found.at, columns, space, colour, LEAST[range]));
  return make("figure", { role: "group", "aria-labelledby": name }, make("h3", { id: name }, chart.name), space,
    make("figcaption", {}, spoken.map((text, index) => make("div", { class: `key-${index + 1}` }, text))));
}

function plot(chart, at, columns, space, colour, least) {
  const axis = { stroke: colour("--quiet"), grid: { stroke: colour("--line"), width: 1 }, ticks: { show: false }, font: "12px system-ui" };
  drawn.push(new uPlot({
    width: Math.max(200, space.clientWidth), height: 140, legend: { show: false }, cursor: { show: false },
    scales: { x: { range: () => [Math.min(at[0], at.at(-1) - least), at.at(-1)] }, y: { range: (_, low, high) => [0, high > 0 ? high * 1.1 : 1] } },
    axes: [{ ...axis, space: 56, size: 26, incrs: PARTS, values: (_, ticks) => ticks.map((one) => tick(one * 1000)) },
      { ...axis, size: 64, ...(chart.steps ? { incrs: chart.steps } : {}), values: (_, ticks) => ticks.map(chart.say) }],
    series: [{}, ...chart.lines.map((line, index) => ({ label: line, width: 2, stroke: colour(index ? "--second" : "--first"), dash: index ? [6, 4] : undefined, points: { show: at.length < 2 } }))],
  }, [at, ...columns], space));
}
