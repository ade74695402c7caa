// Incidents of a run: what happened, what babysit does about it and when, and what is asked.

import { el } from "./dom.js";
import { clock, count, duration, now, utc, words } from "./format.js";
import { person, severityBadge } from "./fleet_row.js";

const HIDDEN_EVIDENCE = new Set(["finding"]);

const opened = new Set(); // incidents whose evidence somebody reads: it stays open

export const isOpen = (incident) => incident.state !== "resolved";

/** An incident as an article with an address of its own; `buttons` are those of an open one. */
export function article(incident, buttons = []) {
  const open = isOpen(incident);
  const facts = [
    ["Where", incident.subject || null],
    ["Onset", incident.onset_step === null ? null : `step ${count(incident.onset_step)}`],
    ["Attempt", String(incident.attempt)],
    ["Remedy", open && incident.response === "asked" ? null : incident.remedy || "none"],
    ["Opened", el("time", { datetime: incident.opened_at, title: utc(incident.opened_at) }, clock(incident.opened_at))],
    ["Resolved", incident.resolved_at && el("time", { datetime: incident.resolved_at, title: utc(incident.resolved_at) }, clock(incident.resolved_at))],
    ["Acknowledged", incident.acknowledged_by && `by ${person(incident.acknowledged_by)}`],
    ["Silenced", silenced(incident)],
    ["Judged", incident.verdict],
  ].filter(([, value]) => value);
  return el("article", { id: `incident-${incident.id}`, class: `incident ${incident.severity}${open ? " open" : ""}`,
    tabindex: -1, "data-key": `article-${incident.id}`, "aria-labelledby": `title-${incident.id}` },
  el("header", {}, el("h3", { id: `title-${incident.id}` }, severityBadge(incident.severity), ` ${words(incident.kind)}`),
    el("span", { class: "badge idle" }, words(incident.state)),
    el("a", { class: "link", href: `#incident-${incident.id}`, "aria-label": `Link to this incident, ${words(incident.kind)}` }, "Link")),
  el("p", { class: "cause" }, incident.reason),
  open ? countdown(incident) : null,
  el("dl", {}, facts.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value)))),
  evidence(incident),
  buttons.length ? el("div", { class: "buttons" }, buttons) : null);
}

function silenced(incident) {
  const until = incident.silenced_until;
  return until && Date.parse(until) > now() ? `until ${clock(until)}` : null;
}

/** What an asked remedy will do, and when. Its time is counted down by :func:`tick`. */
function countdown(incident) {
  if (incident.response !== "asked") return null;
  if (incident.acknowledged_by) {
    return el("p", { class: "ask" }, `babysit asked, and ${person(incident.acknowledged_by)} acknowledged: the remedy does not start by itself.`);
  }
  if (!incident.remedy_at) return el("p", { class: "ask" }, incident.remedy);
  return el("p", { class: "ask" },
    el("b", { class: "count-down", "data-at": incident.remedy_at, role: "timer" }, left(incident.remedy_at)),
    `: babysit ${incident.remedy.replace(/^ask(ed|ing); /, "")}. Acknowledge it to stop the countdown: the decision is then yours.`);
}

/** Count the remedies of the page down by a second. */
export function tick(root) {
  for (const node of root.querySelectorAll(".count-down")) {
    const text = left(node.dataset.at);
    if (node.textContent !== text) node.textContent = text;
  }
}

function left(at) {
  const seconds = (Date.parse(at) - now()) / 1000;
  return seconds > 0 ? `${duration(Math.round(seconds))} left` : "Now";
}

function evidence(incident) {
  const entries = Object.entries(incident.evidence).filter(([name]) => !HIDDEN_EVIDENCE.has(name));
  if (!entries.length) return null;
  const text = entries.map(([name, value]) =>
    `${name}: ${typeof value === "string" ? value : JSON.stringify(value, null, 1)}`).join("\n");
  const made = el("details", { open: opened.has(incident.id) },
    el("summary", { "data-key": `evidence-${incident.id}` }, "Evidence"),
    el("pre", { tabindex: 0, "data-key": `text-${incident.id}`, "aria-label": "Evidence" }, text.slice(0, 20000)));
  made.addEventListener("toggle", () => (made.open ? opened.add(incident.id) : opened.delete(incident.id)));
  return made;
}
