// The loss curve of a run, with what happened to it marked; in words, too.

import { el, say, svg } from "./dom.js";
import { count, counted, loss, words } from "./format.js";

const [WIDTH, HEIGHT] = [1000, 300];
const EDGE = { top: 34, right: 12, bottom: 30, left: 62 };
const LOG_RATIO = 40; // beyond this ratio a linear axis would flatten the whole curve
const NARROW = 560;

/** A chart that is drawn anew in place; its figure is `node`. */
export class Chart {
  #picture = el("div", { class: "picture" });
  #summary = el("p", { class: "summary" });
  #slider = el("input", { type: "range", min: 0, max: 0, value: 0, "aria-label": "Look at a step", step: 1 });
  #reading = el("output", { class: "reading" });
  #data = null;
  #drawn = "";

  constructor() {
    this.node = el("figure", {}, this.#picture,
      el("div", { class: "cursor" }, this.#slider, this.#reading), legend(), this.#summary);
    this.#slider.addEventListener("input", () => this.#read(Number(this.#slider.value)));
    this.#picture.addEventListener("pointermove", (event) => this.#point(event));
    this.#picture.addEventListener("pointerdown", (event) => this.#point(event));
    new ResizeObserver(() => this.#draw()).observe(this.#picture);
  }

  /** Show a series with its marks: `{series, restarts, incidents, checkpoints}`. */
  show(data) {
    this.#data = data;
    this.#draw();
    const text = summary(data);
    say(this.#summary, text);
  }

  #draw() {
    const width = Math.round(this.#picture.clientWidth) || WIDTH;
    if (!this.#data || !width) return;
    const { series } = this.#data;
    const key = JSON.stringify([width, series.step.length, series.step.at(-1), series.loss.at(-1),
      this.#data.restarts.length, this.#data.incidents.map((i) => [i.id, i.severity]), this.#data.checkpoints]);
    if (key === this.#drawn) return;
    this.#drawn = key;
    const atEnd = Number(this.#slider.value) >= Number(this.#slider.max);
    this.#slider.max = Math.max(0, series.step.length - 1);
    if (atEnd) this.#slider.value = this.#slider.max;
    this.#picture.replaceChildren(picture(this.#data, width));
    this.#read(Number(this.#slider.value));
  }

  #point(event) {
    const { series } = this.#data ?? {};
    if (!series?.step.length) return;
    const box = this.#picture.getBoundingClientRect();
    const scale = scales(this.#data, box.width);
    const step = scale.step(event.clientX - box.left);
    let best = 0;
    series.step.forEach((each, at) => {
      if (Math.abs(each - step) < Math.abs(series.step[best] - step)) best = at;
    });
    this.#slider.value = best;
    this.#read(best);
  }

  #read(at) {
    const { series } = this.#data;
    const there = series.step.length > 0;
    this.#slider.disabled = !there;
    if (!there) return say(this.#reading, "No steps yet");
    const value = series.loss[at];
    const [low, high] = [series.loss_min[at], series.loss_max[at]];
    const range = low !== null && high !== null && high > low ? ` (from ${loss(low)} to ${loss(high)})` : "";
    const text = `step ${count(series.step[at])}: loss ${value === null ? "not finite" : loss(value)}` +
      `${range}, attempt ${series.attempt[at]}`;
    say(this.#reading, text);
    this.#slider.setAttribute("aria-valuetext", text);
    const scale = scales(this.#data, Math.round(this.#picture.clientWidth) || WIDTH);
    const line = this.#picture.querySelector(".hair");
    const x = scale.x(series.step[at]);
    line?.setAttribute("d", `M${x} ${EDGE.top}V${HEIGHT - EDGE.bottom}`);
  }
}

function legend() {
  const item = (kind, text) => el("li", { class: kind }, el("span", { class: "key", "aria-hidden": "true" }), text);
  return el("ul", { class: "legend", "aria-label": "Legend" }, item("line", "loss"),
    item("restart", "restart"), item("rollback", "rollback"), item("incidents", "▼ incident"),
    item("saved", "checkpoint"));
}

/** Maps of steps and losses to places. */
function scales({ series, restarts }, width) {
  const left = width < NARROW ? 46 : EDGE.left;
  const first = Math.min(series.step[0] ?? 0, ...restarts.map((r) => r.resumed_step ?? Infinity));
  const last = Math.max(series.step.at(-1) ?? 1, first + 1);
  const finite = [series.loss, series.loss_min, series.loss_max].flat().filter((value) => value !== null);
  const low = finite.length ? Math.min(...finite) : 0;
  const high = finite.length ? Math.max(...finite) : 1;
  const log = low > 0 && high / low > LOG_RATIO;
  const f = log ? Math.log10 : (value) => value;
  const pad = (f(high) - f(low)) * 0.06 || Math.abs(f(high)) * 0.05 || 1;
  const [bottom, top] = [f(low) - pad, f(high) + pad];
  const inner = width - left - EDGE.right;
  const clamp = (value) => Math.min(1, Math.max(0, value));
  return {
    left, log, bottom, top, first, last,
    x: (step) => Math.round((left + clamp((step - first) / (last - first)) * inner) * 10) / 10,
    y: (value) => Math.round((EDGE.top + (1 - (f(value) - bottom) / (top - bottom)) *
      (HEIGHT - EDGE.top - EDGE.bottom)) * 10) / 10,
    step: (x) => first + clamp((x - left) / inner) * (last - first),
  };
}

function picture(data, width) {
  const scale = scales(data, width);
  return svg("svg", { viewBox: `0 0 ${width} ${HEIGHT}`, width, height: HEIGHT, role: "img",
    "aria-label": summary(data) },
  axes(scale, width), svg("g", {}, data.checkpoints.map((step) => mark("saved", scale.x(step)))),
  data.restarts.map((restart) => restartMark(restart, scale)),
  curve(data.series, scale), svg("path", { class: "hair" }),
  data.incidents.map((incident) => incidentMark(incident, data.series, scale)));
}

function axes(scale, width) {
  const lines = [];
  const heights = ticks(scale.bottom, scale.top, 4);
  for (const height of heights) {
    const value = scale.log ? 10 ** height : height;
    const y = scale.y(value);
    lines.push(svg("path", { class: "grid", d: `M${scale.left} ${y}H${width - EDGE.right}` }),
      svg("text", { x: scale.left - 8, y: y + 4, class: "tick end" }, tick(value, heights, scale.log)));
  }
  for (const value of ticks(scale.first, scale.last, width < NARROW ? 3 : 7)) {
    lines.push(svg("text", { x: scale.x(value), y: HEIGHT - 8, class: "tick middle" }, count(value)));
  }
  return svg("g", { "aria-hidden": "true" }, lines);
}

/** A number of an axis, as exact as its neighbours need. */
function tick(value, ticksOf, log) {
  if (log) return String(Number(value.toPrecision(2)));
  const gap = ticksOf.length > 1 ? ticksOf[1] - ticksOf[0] : 1;
  return value.toFixed(Math.min(8, Math.max(0, -Math.floor(Math.log10(gap)))));
}

function ticks(low, high, most) {
  const rough = (high - low) / most;
  const size = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((each) => each * size).find((each) => each >= rough) ?? rough;
  const found = [];
  for (let value = Math.ceil(low / step) * step; value <= high; value += step) found.push(Number(value.toPrecision(12)));
  return found;
}

function curve(series, scale) {
  let line = "";
  let pen = "M";
  const lost = [];
  series.step.forEach((step, at) => {
    const value = series.loss[at];
    if (value === null) {
      pen = "M";
      lost.push(mark("nan", scale.x(step)));
      return;
    }
    line += `${pen}${scale.x(step)} ${scale.y(value)}`;
    pen = "L";
  });
  return svg("g", {}, lost, svg("path", { class: "band", d: band(series, scale) }),
    svg("path", { class: "curve-line", d: line || "M0 0" }));
}

/** From the lowest to the highest loss of each point: a spike of one step is not thinned away. */
function band({ step, loss_min: low, loss_max: high }, scale) {
  const places = step.map((_, at) => at).filter((at) => low[at] !== null && high[at] !== null);
  if (!places.some((at) => high[at] > low[at])) return "M0 0";
  const up = places.map((at) => `${scale.x(step[at])} ${scale.y(high[at])}`);
  const down = places.map((at) => `${scale.x(step[at])} ${scale.y(low[at])}`).reverse();
  return `M${[...up, ...down].join("L")}Z`;
}

const mark = (kind, x) =>
  svg("path", { class: kind, d: kind === "saved" ? `M${x} ${HEIGHT - EDGE.bottom}v-7` : `M${x} ${EDGE.top}V${HEIGHT - EDGE.bottom}` });

const isRollback = (restart) => restart.remedy.startsWith("roll back");

function restartMark(restart, scale) {
  if (restart.resumed_step === null) return null;
  const x = scale.x(restart.resumed_step);
  const back = isRollback(restart);
  const until = scale.x(restart.resumed_step + (restart.lost_steps ?? 0));
  const what = back ? "Rollback" : "Restart";
  return svg("g", { class: back ? "rollback" : "restart" },
    svg("title", {}, `${what} to step ${restart.resumed_step}: ${restart.reason}`),
    until > x ? svg("rect", { x, y: EDGE.top, width: until - x, height: HEIGHT - EDGE.top - EDGE.bottom }) : null,
    svg("path", { d: `M${x} ${EDGE.top}V${HEIGHT - EDGE.bottom}` }));
}

function incidentMark(incident, series, scale) {
  const step = incident.onset_step ?? stepAt(incident.opened_at, series);
  if (step === null) return null;
  const x = scale.x(step);
  return svg("a", { href: `#incident-${incident.id}`, class: `incident-mark ${incident.severity}`,
    "aria-label": `${words(incident.kind)} at step ${step}` },
  svg("title", {}, `${words(incident.kind)} (${incident.severity}) at step ${step}: ${incident.reason}`),
  svg("rect", { class: "touch", x: x - 14, y: 4, width: 28, height: 28 }),
  svg("path", { d: `M${x - 7} 12h14l-7 14z` }));
}

function stepAt(iso, series) {
  const time = Date.parse(iso) / 1000;
  const at = series.time.findIndex((each) => each >= time);
  if (!series.step.length) return null;
  return at < 0 ? series.step.at(-1) : series.step[at];
}

/** The curve in words: what a screen reader says of it. */
export function summary({ series, restarts, incidents }) {
  const points = series.step.map((step, at) => [step, series.loss[at]]).filter(([, value]) => value !== null);
  if (!points.length) return "No loss has been reported yet.";
  const [[first, begin], [last, end]] = [points[0], points.at(-1)];
  const low = Math.min(...series.loss_min.filter((value) => value !== null));
  const high = Math.max(...series.loss_max.filter((value) => value !== null));
  const back = restarts.filter(isRollback);
  const parts = [`Loss from ${loss(begin)} at step ${count(first)} to ${loss(end)} at step ${count(last)}; ` +
    `lowest ${loss(low)}, highest ${loss(high)}.`];
  parts.push(`${counted(restarts.length - back.length, "restart")}, ${counted(back.length, "rollback")}` +
    (back.length ? ` (to step ${back.map((r) => count(r.resumed_step ?? 0)).join(", ")})` : "") +
    `, ${counted(incidents.length, "incident")}.`);
  return parts.join(" ");
}
