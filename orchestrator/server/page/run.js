// A run, live: where it stands, what went wrong, what was done, and what is asked.

import { byId, el, say, show } from "./dom.js";
import { Problem, get, path } from "./api.js";
import { ago, clock, count, duration, loss, now, percent, words } from "./format.js";
import { badge, isOver } from "./fleet_row.js";
import { Live } from "./live.js";
import { announce, banner, key, move, showPerson, showStatus, start } from "./shell.js";
import { signedIn } from "./session.js";
import { Chart } from "./run_chart.js";
import { More, attempts, checkpoints, ledger, ranks } from "./run_tables.js";
import { article, isOpen, tick } from "./run_incidents.js";
import { LogView } from "./run_log.js";
import { incidentButtons, runButtons } from "./actions.js";

const DETAIL_EVERY = 2500;
const SERIES_EVERY = 5000;
const OLD = 10000; // milliseconds after which it is said
const POINTS = 600;
const chart = new Chart();
const more = new More(() => drawTables());
const known = { row: null, detail: null, attempts: [], checkpoints: [], ranks: null, series: null, story: null };
let run = "";
let revision = null;
let log = null;
let detailAt = 0;
let seriesAt = 0;
let asked = 0;
let askedStep = -1;
let gotAt = 0;
const busy = new Set();
let linked = false;

/** The id of the run of this address; an incident's address leads to its run. */
async function find() {
  const [, kind, encoded] = location.pathname.split("/");
  const reference = decodeURIComponent(encoded);
  if (kind === "runs") return (await get(path("runs", reference))).id;
  const incident = await get(path("incidents", reference));
  history.replaceState(null, "", `/runs/${encodeURIComponent(incident.run)}#incident-${incident.id}`);
  return incident.run;
}

function drawHead() {
  const { row, detail } = known;
  document.title = `${row.name} ${row.state} · babysit`;
  say(byId("name"), row.name);
  show(byId("state"), badge(row.state));
  say(byId("why"), row.reason || "");
  const end = row.ended_at ? Date.parse(row.ended_at) : now();
  const saved = detail?.checkpoint;
  const facts = [
    ["Step", row.step ? count(row.step) : "–"], ["Loss", loss(row.loss)], ["ETTR", percent(row.ettr)],
    ["Restarts", count(row.restarts)], ["Attempt", count(row.attempt)],
    ["Age", duration(Math.round((end - Date.parse(row.submitted_at)) / 1000))],
    ["Checkpoint", saved ? `step ${count(saved.step)}, ${ago(saved.created_at)}` : "none"],
    ["Nodes", detail?.node_names.length ? count(detail.node_names.length) : `${count(row.nodes)} wanted`],
    ["Queue", `${row.project} · ${row.queue}`], ["Owner", row.owner || "–"],
  ];
  const box = byId("facts");
  if (box.childElementCount !== facts.length) {
    box.replaceChildren(...facts.map(([name]) => el("div", {}, el("dt", {}, name), el("dd", {}))));
  }
  facts.forEach(([, value], at) => say(box.children[at].lastChild, value));
  drawWhy();
  if (detail) show(byId("actions"), runButtons(known, acted));
}

/** After a command: show what it led to, at once. */
function acted() {
  detailAt = 0;
  asked = 1;
  keep();
}

function drawWhy() {
  const { detail, story } = known;
  const suspect = detail?.suspect;
  banner("suspect", suspect ? "warn" : null,
    suspect && `No progress since ${clock(suspect.since)}: ${suspect.evidence}`);
  banner("run-alerts", detail?.alerts ? "warn" : null, `Notices about this run do not arrive: ${detail?.alerts}`);
  const text = story && !isOver(known.row) && story.underlying ? story.sentences.join(" ") : known.row.reason;
  say(byId("why"), text || "–");
}

function drawTables() {
  const { detail } = known;
  show(byId("ledger"), ledger(detail));
  show(byId("attempt-list"), attempts(known.attempts));
  if (known.ranks) show(byId("rank-list"), ranks(known.ranks, more));
  show(byId("checkpoint-list"), checkpoints(known.checkpoints, more));
  const open = detail.incidents.filter(isOpen);
  const closed = detail.incidents.filter((each) => !isOpen(each));
  byId("open").hidden = !open.length;
  show(byId("open-incidents"), open.map((each) => article(each, incidentButtons(each, acted))));
  show(byId("incident-list"), closed.length ? closed.map((each) => article(each))
    : el("p", { class: "card muted" }, open.length ? "The open ones are at the top." : "No incident."));
  tick(document);
  toIncident();
}

function toIncident() {
  if (linked || !location.hash.startsWith("#incident-")) return;
  const node = byId(decodeURIComponent(location.hash.slice(1)));
  if (!node) return;
  linked = true;
  node.scrollIntoView({ block: "start" });
  node.focus({ preventScroll: true });
}

function drawChart() {
  const { series, detail } = known;
  if (!series || !detail) return;
  const saved = known.checkpoints.filter((each) => each.tier === "directory").map((each) => each.step);
  chart.show({ series, restarts: detail.restarts, incidents: detail.incidents, checkpoints: saved });
}

async function loadDetail() {
  detailAt = Date.now();
  const of = (...parts) => get(path("runs", run, ...parts));
  const old = known.detail;
  const [detail, tried, saved, seats, story] = await Promise.all([
    of(), of("attempts"), of("checkpoints"), of("ranks"), of("explain").catch(() => null)]);
  Object.assign(known, { detail, attempts: tried, checkpoints: saved, ranks: seats, story });
  gotAt = Date.now();
  banner("detail", null);
  const before = new Set(old?.incidents.map((each) => each.id));
  for (const each of detail.incidents) {
    if (old && !before.has(each.id)) announce(`New incident, ${each.severity}: ${words(each.kind)}. ${each.reason}`);
  }
  if (old?.attempt !== detail.attempt) log.list();
  drawHead();
  drawTables();
  drawChart();
}

async function loadSeries() {
  seriesAt = Date.now();
  askedStep = known.row.step;
  known.series = await get(`${path("runs", run, "samples")}?points=${POINTS}`);
  drawChart();
}

/** Get what is out of date, not more often than it is worth. */
async function keep() {
  if (!known.row || document.hidden) return;
  const work = [];
  if (asked && !busy.has(loadDetail) && Date.now() - detailAt >= DETAIL_EVERY) {
    asked = 0;
    work.push(alone(loadDetail, (problem) => {
      asked = 1; // it is tried again
      tellOld(problem);
    }));
  }
  if (known.row.step !== askedStep && !busy.has(loadSeries) && Date.now() - seriesAt >= SERIES_EVERY) {
    work.push(alone(loadSeries, () => (askedStep = -1)));
  }
  await Promise.all(work);
}

/** One request of a kind at a time: the answer to an older one must not replace a newer answer. */
async function alone(load, failed) {
  busy.add(load);
  try {
    await load();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    failed(problem);
  } finally {
    busy.delete(load);
  }
}

/** The stream may be live while other requests fail: then the page says what is not. */
function tellOld(problem) {
  const old = Date.now() - gotAt;
  if (old < OLD) return;
  const age = gotAt ? `${duration(Math.round(old / 1000))} old` : "not here yet";
  banner("detail", "warn", `Incidents, attempts and checkpoints are ${age}: ${problem.message}`);
}

function hear({ row, revision: newest, status }) {
  showStatus(status);
  const old = known.row;
  known.row = row;
  if (old && old.state !== row.state) announce(`${row.name} is ${row.state}. ${row.reason}`);
  if (newest !== revision) asked = 1;
  revision = newest;
  drawHead();
  keep();
}

function missing(problem) {
  say(byId("name"), problem.status === 404 ? "There is no such run" : "The run cannot be shown");
  say(byId("why"), problem.message);
  for (const section of document.querySelectorAll("main > section, #facts, #actions")) section.hidden = true;
  byId("live").hidden = true;
}

function keysOf() {
  const titles = () => [...document.querySelectorAll("article.incident.open, main > section > h2[tabindex]")];
  for (const name of ["j", "ArrowDown"]) key(name, "Next section", () => move(titles(), 1));
  for (const name of ["k", "ArrowUp"]) key(name, "Previous section", () => move(titles(), -1));
  key("u", "Up to the fleet", () => location.assign("/"));
}

async function begin() {
  start();
  keysOf();
  byId("chart").append(chart.node);
  await signedIn();
  showPerson();
  try {
    run = await find();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    return missing(problem);
  }
  log = new LogView(run);
  window.addEventListener("hashchange", () => {
    linked = false;
    toIncident();
  });
  setInterval(keep, 1000);
  setInterval(() => tick(document), 1000);
  new Live(`${path("runs", run)}/changes`, { run: hear });
}

await begin();
