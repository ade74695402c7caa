// A run of the fleet as a row of the table; on a phone, the same row is laid out as a card.

import { el, say, show, svg } from "./dom.js";
import { clock, count, counted, loss, percent, utc, words } from "./format.js";

const SIGNS = {
  queued: "◌", starting: "◔", running: "●", recovering: "↻", held: "❚❚",
  succeeded: "✓", failed: "✕", cancelled: "⊘",
};
const KINDS = {
  queued: "idle", starting: "info", running: "good", recovering: "warn", held: "warn",
  succeeded: "good", failed: "bad", cancelled: "idle",
};
const SEVERITIES = { critical: "bad", warning: "warn", info: "info" };
const OVER = new Set(["succeeded", "failed", "cancelled"]);

export const isOver = (row) => OVER.has(row.state);

/** True for a run that a person should look at now. */
export const needsPeople = (row) =>
  !isOver(row) &&
  (row.state === "held" || row.state === "recovering" || ["critical", "warning"].includes(row.severity));

/** The state as a badge: a sign and the word, so that colour is not all there is. */
export const badge = (state) =>
  el("span", { class: `badge ${KINDS[state] ?? "idle"}` },
    el("span", { class: "sign", "aria-hidden": "true" }, SIGNS[state] ?? "·"), words(state));

/** A severity as a badge. */
export const severityBadge = (severity, text = severity) =>
  el("span", { class: `badge ${SEVERITIES[severity] ?? "idle"}` },
    el("span", { class: "sign", "aria-hidden": "true" }, severity === "critical" ? "▲" : "△"), text);

const CELLS = [
  ["name", "Run", ""], ["state", "State", ""], ["step", "Step", "number"],
  ["loss", "Loss", "number"], ["curve", "Curve", ""], ["ettr", "ETTR", "number"],
  ["restarts", "Restarts", "number"], ["incidents", "Incidents", "number"], ["why", "Why", ""],
];

/** A row with its cells; `change` shows the newest data in it. */
export class FleetRow {
  #cells = {};
  #shown = null;
  #curve = null;

  constructor(row) {
    this.node = el("tr", { role: "row", "data-run": row.id });
    for (const [name, label, kind] of CELLS) {
      const header = name === "name";
      this.#cells[name] = el(header ? "th" : "td", {
        class: `${name} ${kind}`.trim(), scope: header ? "row" : null,
        role: header ? "rowheader" : "cell", "data-label": label,
      });
      this.node.append(this.#cells[name]);
    }
    this.#cells.name.append(el("a", { href: `/runs/${encodeURIComponent(row.id)}` }, row.name),
      el("span", { class: "place" }));
    this.change(row);
  }

  change(row) {
    const old = this.#shown;
    if (old === row) return;
    this.#shown = row;
    const cells = this.#cells;
    this.node.dataset.state = row.state;
    const owner = row.owner ? ` · ${row.owner}` : "";
    say(cells.name.lastChild, `${row.project} · ${row.queue}${owner} · ${counted(row.nodes, "node")}`);
    if (old?.state !== row.state) show(cells.state, badge(row.state));
    this.numbers(row);
    say(cells.restarts, count(row.restarts));
    cells.restarts.classList.toggle("zero", !row.restarts);
    cells.incidents.classList.toggle("zero", !row.incidents);
    show(cells.incidents, row.incidents ? severityBadge(row.severity, String(row.incidents)) : "0");
    const why = [row.pending && row.pending !== row.state ? `${words(row.pending)}: ` : "", row.reason];
    say(cells.why, why.join("") || "–");
    cells.why.title = row.ended_at ? `ended ${utc(row.ended_at)}` : `submitted ${utc(row.submitted_at)}`;
  }

  numbers(row) {
    this.#shown = row;
    say(this.#cells.step, row.step ? count(row.step) : "–");
    say(this.#cells.loss, loss(row.loss));
    say(this.#cells.ettr, percent(row.ettr));
  }

  curve(values) {
    const key = JSON.stringify(values);
    if (key === this.#curve) return;
    this.#curve = key;
    this.#cells.curve.replaceChildren(spark(values));
  }
}

/** A small loss curve, or a dash where there is none. */
export function spark(values) {
  const [width, height, pad] = [96, 24, 2];
  const finite = values.filter((value) => value !== null);
  if (finite.length < 2) return el("span", { class: "muted" }, "–");
  const sorted = [...finite].sort((a, b) => a - b);
  const low = sorted[0];
  const high = Math.max(sorted[Math.floor((sorted.length - 1) * 0.97)], low + 1e-9);
  const x = (at) => pad + (at * (width - 2 * pad)) / (values.length - 1);
  const y = (value) =>
    pad + (1 - Math.min(1.05, (value - low) / (high - low))) * (height - 2 * pad);
  let line = "";
  let pen = "M";
  values.forEach((value, at) => {
    if (value === null) pen = "M";
    else {
      line += `${pen}${x(at).toFixed(1)} ${Math.max(0.5, y(value)).toFixed(1)}`;
      pen = "L";
    }
  });
  const first = loss(finite[0]);
  return svg("svg", { viewBox: `0 0 ${width} ${height}`, class: "spark", role: "img",
    "aria-label": `loss from ${first} to ${loss(finite.at(-1))}` }, svg("path", { d: line }));
}

/** An open incident in a line, for the list of what needs attention. */
export function attentionItem(incident) {
  const known = incident.acknowledged_by ? ` · acknowledged by ${person(incident.acknowledged_by)}` : "";
  const remedy = incident.remedy ? ` · ${incident.remedy}` : "";
  const about = incident.run  // empty: it is about a node, which has no page of its own
    ? { href: `/runs/${encodeURIComponent(incident.run)}#incident-${incident.id}` }
    : { title: `babysit incidents show ${incident.id}` };
  return el("li", { class: `incident-line ${SEVERITIES[incident.severity] ?? "idle"}` },
    el("a", { ...about, "data-key": incident.id },
    severityBadge(incident.severity), el("b", {}, incident.run_name), ` ${words(incident.kind)}`),
    el("span", { class: "reason" }, incident.reason),
    el("span", { class: "muted", title: utc(incident.opened_at) },
      `since ${clock(incident.opened_at)}${remedy}${known}`));
}

/** `operator:mia` as `mia`. */
export const person = (actor) => String(actor).replace(/^operator:/, "");
