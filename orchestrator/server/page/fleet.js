// The fleet: every run, live; search, state and order are kept in the address.

import { byId, el, say, show } from "./dom.js";
import { get } from "./api.js";
import { count, counted, learnTime, words } from "./format.js";
import { FleetRow, attentionItem, isOver, needsPeople } from "./fleet_row.js";
import { Live } from "./live.js";
import { announce, key, move, showPerson, showStatus, start } from "./shell.js";
import { signedIn } from "./session.js";

const PAGE = 100;
const ATTENTION = 4;
const CURVES_AT_ONCE = 40;
const CURVE_MILLISECONDS = 20000;
const SEVERITY = { critical: 3, warning: 2, info: 1 };
const STATES = ["running", "recovering", "held", "starting", "queued", "failed", "succeeded", "cancelled"];
const NODE_STATES = ["ready", "draining", "cordoned", "gone"];
const ORDERS = {
  "": (a, b) => urgency(b) - urgency(a) || newest(a, b),
  newest,
  name: (a, b) => a.name.localeCompare(b.name) || newest(a, b),
  ettr: (a, b) => (a.ettr ?? 2) - (b.ettr ?? 2) || newest(a, b),
  restarts: (a, b) => b.restarts - a.restarts || newest(a, b),
};

const rows = new Map();
const nodes = new Map();
const curves = new Map(); // run → when its curve was asked for
const seen = new Set();
let limit = PAGE;
let drawn = false;

function newest(a, b) {
  return a.submitted_at < b.submitted_at ? 1 : a.submitted_at > b.submitted_at ? -1 : 0;
}

function urgency(row) {
  if (isOver(row)) return 0;
  const state = { held: 3, recovering: 3, starting: 1, running: 1, queued: 1 }[row.state] ?? 1;
  return 1 + Math.max(2 * (SEVERITY[row.severity] ?? 0), state);
}

const filters = () => ({
  q: byId("q").value.trim().toLowerCase(), state: byId("state").value, sort: byId("sort").value,
});

function matches(row, { q, state }) {
  if (state === "attention" && !needsPeople(row)) return false;
  if (state === "live" && isOver(row)) return false;
  if (state && !["attention", "live"].includes(state) && row.state !== state) return false;
  if (!q) return true;
  const text = [row.name, row.id, row.owner, row.project, row.queue, row.state, row.reason, row.pending];
  const all = text.join(" ").toLowerCase();
  return q.split(/\s+/).every((word) => all.includes(word));
}

function draw() {
  const wanted = filters();
  const order = ORDERS[wanted.sort] ?? ORDERS[""];
  const found = [...rows.values()].filter((row) => matches(row, wanted)).sort(order);
  const top = found.slice(0, limit);
  const body = byId("rows");
  let at = body.firstElementChild;
  for (const row of top) {
    let made = nodes.get(row.id);
    if (!made) {
      made = new FleetRow(row);
      nodes.set(row.id, made);
      watcher.observe(made.node);
    }
    made.change(row);
    if (made.node === at) at = at.nextElementSibling;
    else body.insertBefore(made.node, at);
  }
  while (at) {
    const next = at.nextElementSibling;
    forget(at.dataset.run);
    at = next;
  }
  tell(found.length, wanted);
}

function forget(run) {
  const made = nodes.get(run);
  watcher.unobserve(made.node);
  made.node.remove();
  nodes.delete(run);
  seen.delete(run);
}

function tell(found, wanted) {
  const all = rows.size;
  const some = wanted.q || wanted.state;
  say(byId("found"), some ? `${count(found)} of ${counted(all, "run")}` : counted(all, "run"));
  const more = byId("more");
  more.hidden = found <= limit;
  say(more, `Show ${Math.min(PAGE, found - limit)} more of ${count(found - limit)}`);
  const empty = byId("empty");
  empty.hidden = found > 0;
  show(empty, all ? ["No run matches. ", el("a", { href: "/" }, "Show all runs")]
    : ["No runs yet. Submit one: ", el("code", {}, "babysit submit run.yaml")]);
}

function drawSummary({ status, nodes: pools, incidents }) {
  showStatus(status);
  const by = new Map();
  for (const { pool, state, count: number } of pools) {
    by.set(state, [...(by.get(state) ?? []), [pool, number]]);
  }
  const states = NODE_STATES.filter((state) => by.has(state));
  const named = pools.some(({ pool }) => pool);
  show(byId("node-counts"), states.length ? states.map((state) => {
    const parts = by.get(state);
    const total = parts.reduce((sum, [, number]) => sum + number, 0);
    const of = parts.map(([pool, number]) => `${pool || "no pool"} ${count(number)}`).join(", ");
    return el("span", { class: `count ${state === "ready" ? "good" : "warn"}` },
      el("b", {}, count(total)), ` ${state}`, named ? el("span", { class: "unseen" }, `: ${of}`) : null);
  }).concat(named ? el("span", { class: "pools", "aria-hidden": "true" }, poolWords(pools)) : []) : el("span", { class: "muted" }, "none"));
  const worst = ["critical", "warning", "info"];
  const number = (severity) => incidents.filter((each) => each.severity === severity).length;
  show(byId("incident-counts"), incidents.length
    ? worst.filter(number).map((severity) =>
      el("span", { class: `count ${severity === "critical" ? "bad" : severity === "warning" ? "warn" : ""}` },
        el("b", {}, count(number(severity))), ` ${severity}`))
    : el("span", { class: "count good" }, el("b", {}, "0"), " open"));
  const urgent = incidents.filter((each) => each.severity !== "info");
  const top = urgent.slice(0, ATTENTION);
  const rest = urgent.length - top.length;
  show(byId("attention-list"), top.length ? top.map(attentionItem)
    : el("li", { class: "calm" }, "✓ No open incident needs anybody."),
  rest ? el("li", { class: "rest" }, el("a", { href: "/?state=attention" }, `${counted(rest, "more incident")}: show their runs`)) : null);
}

/** `h100: 146 ready, 4 cordoned · a100: …`. */
function poolWords(pools) {
  const by = new Map();
  const ready = (each) => NODE_STATES.indexOf(each.state);
  for (const { pool, state, count: number } of [...pools].sort((a, b) => ready(a) - ready(b))) {
    by.set(pool, [...(by.get(pool) ?? []), `${count(number)} ${state}`]);
  }
  return [...by].map(([pool, parts]) => `${pool || "no pool"}: ${parts.join(", ")}`).join(" · ");
}

function drawCounts() {
  const by = new Map();
  for (const row of rows.values()) by.set(row.state, (by.get(row.state) ?? 0) + 1);
  const chosen = byId("state").value;
  show(byId("run-counts"), STATES.filter((state) => by.has(state) || state === "running").map((state) =>
    el("button", { type: "button", class: "count", "data-state": state, "data-key": `count-${state}`,
      "aria-pressed": String(chosen === state) },
    el("b", {}, count(by.get(state) ?? 0)), ` ${words(state)}`)));
}

function hear(row) {
  const old = rows.get(row.id);
  rows.set(row.id, row);
  if (!drawn) return;
  if (old?.state !== row.state) announce(`${row.name} is ${row.state}. ${row.reason}`);
  else if (row.incidents > old.incidents) announce(`${row.name} has a new incident, ${row.severity}.`);
}

async function load(after) {
  if (after) return after;
  const fleet = await get("/api/v1/fleet");
  learnTime(fleet.at);
  const there = new Set(fleet.rows.map((row) => row.id));
  for (const id of rows.keys()) if (!there.has(id)) rows.delete(id);
  for (const row of fleet.rows) hear(row);
  drawSummary(fleet);
  drawCounts();
  draw();
  drawn = true;
  byId("main").removeAttribute("aria-busy");
  return fleet.id;
}

function change({ rows: changed, numbers, gone, ...summary }) {
  for (const row of changed) hear(row);
  for (const id of gone) rows.delete(id);
  for (const [id, step, loss, ettr] of numbers) {
    const row = rows.get(id);
    if (!row) continue;
    const next = { ...row, step, loss, ettr };
    rows.set(id, next);
    nodes.get(id)?.numbers(next);
  }
  if (summary.status) drawSummary(summary);
  if (changed.length || gone.length) {
    drawCounts();
    draw();
  }
}

async function drawCurves() {
  const old = Date.now() - CURVE_MILLISECONDS;
  const wanted = [...seen].filter((run) => (curves.get(run) ?? 0) < old).slice(0, CURVES_AT_ONCE);
  if (!wanted.length || document.hidden) return;
  for (const run of wanted) curves.set(run, Date.now());
  const query = wanted.map((run) => `run=${encodeURIComponent(run)}`).join("&");
  const found = await get(`/api/v1/fleet/losses?${query}`).catch(() => ({}));
  for (const [run, values] of Object.entries(found)) nodes.get(run)?.curve(values);
}

const watcher = new IntersectionObserver((entries) => {
  for (const { target, isIntersecting } of entries) {
    if (isIntersecting) seen.add(target.dataset.run);
    else seen.delete(target.dataset.run);
  }
  drawCurves();
}, { rootMargin: "100px" });

function toAddress() {
  const query = new URLSearchParams();
  for (const name of ["q", "state", "sort"]) {
    const value = byId(name).value.trim();
    if (value) query.set(name, value);
  }
  const text = query.toString();
  history.replaceState(null, "", text ? `/?${text}` : "/");
  limit = PAGE;
  drawCounts();
  draw();
}

function fromAddress() {
  const query = new URLSearchParams(location.search);
  for (const name of ["q", "state", "sort"]) byId(name).value = query.get(name) ?? "";
}

function setUp() {
  start();
  fromAddress();
  byId("filters").addEventListener("input", toAddress);
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("run-counts").addEventListener("click", (event) => {
    const state = event.target.closest("button")?.dataset.state;
    if (!state) return;
    byId("state").value = byId("state").value === state ? "" : state;
    toAddress();
  });
  byId("more").addEventListener("click", () => {
    const first = limit;
    limit += PAGE;
    draw();
    byId("rows").children[first]?.querySelector("a")?.focus();
  });
  const links = () => [...document.querySelectorAll("#attention-list a, #rows a")];
  for (const name of ["j", "ArrowDown"]) key(name, "Next run", () => move(links(), 1));
  for (const name of ["k", "ArrowUp"]) key(name, "Previous run", () => move(links(), -1));
  key("Enter", "Open the run", () => document.activeElement.click());
  key("/", "Search", () => byId("q").focus());
}

setUp();
await signedIn();
showPerson();
new Live("/api/v1/fleet/changes", { changes: change }, load);
setInterval(drawCurves, 5000);
