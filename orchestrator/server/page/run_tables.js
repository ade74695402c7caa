// The tables of a run: time ledger, attempts with their phases, ranks and nodes, checkpoints.

import { el, svg } from "./dom.js";
import { ago, bytes, clock, count, counted, duration, percent, utc, words } from "./format.js";
import { badge } from "./fleet_row.js";

const BUCKETS = {
  productive: "steps never done before", lost: "steps done again", restoring: "loading a checkpoint",
  starting: "stopping, placing, starting processes", stalled: "no progress, and not noticed yet",
  unknown: "the script does not say", checkpointing: "saves that blocked training",
  queued: "waiting for nodes, or held",
};
const PHASES = ["detect", "stop", "place", "start", "restore", "recompute"];
const TRUST = { good: "good", verified: "good", complete: "info", writing: "idle", bad: "bad" };
const SHOWN = 12;

/** A table; rows are arrays of cells, a cell is a child or [child, class]. */
function table(caption, titles, rows) {
  const head = titles.map((title) => el("th", { scope: "col", role: "columnheader" }, title));
  const body = rows.map((cells) => el("tr", { role: "row" }, cells.map((cell, at) => {
    const [child, kind] = Array.isArray(cell) ? cell : [cell, ""];
    const first = at === 0;
    return el(first ? "th" : "td", { scope: first ? "row" : null, role: first ? "rowheader" : "cell",
      class: [kind, child === "–" ? "none" : ""].join(" ").trim() || null, "data-label": titles[at] }, child);
  })));
  return el("table", { class: "list", role: "table" }, el("caption", { class: "unseen" }, caption),
    el("thead", { role: "rowgroup" }, el("tr", { role: "row" }, head)),
    el("tbody", { role: "rowgroup" }, body));
}

/** A bar of parts: `[name, seconds]`. */
function bar(parts, kind) {
  const total = parts.reduce((sum, [, seconds]) => sum + seconds, 0) || 1;
  let x = 0;
  const shown = parts.filter(([, seconds]) => seconds > 0).map(([name, seconds]) => {
    const width = (1000 * seconds) / total;
    const made = svg("rect", { class: `part-${name}`, x: x.toFixed(1), y: 0, width: width.toFixed(1), height: 10 },
      svg("title", {}, `${name}: ${duration(seconds)}`));
    x += width;
    return made;
  });
  return svg("svg", { class: `bar ${kind}`, viewBox: "0 0 1000 10", preserveAspectRatio: "none", "aria-hidden": "true" }, shown);
}

/** Where the time went. */
export function ledger(detail) {
  const parts = Object.keys(BUCKETS).map((name) => [name, detail.seconds[name] ?? 0]);
  const total = parts.reduce((sum, [, seconds]) => sum + seconds, 0) || 1;
  const rows = parts.filter(([, seconds]) => seconds >= 0.05).sort((a, b) => b[1] - a[1])
    .map(([name, seconds]) => [
      [el("span", { class: "bucket" }, el("span", { class: `swatch part-${name}`, "aria-hidden": "true" }), name), ""],
      [duration(seconds), "number"], [percent(seconds / total), "number"], [BUCKETS[name], "muted wide"],
    ]);
  return [bar(parts, "ledger"), table("Time by what it was spent on", ["Spent on", "Time", "Share", "Meaning"], rows)];
}

function phases(restart) {
  const parts = PHASES.map((name) => [name, restart.seconds[name] ?? 0]);
  const told = parts.filter(([, seconds]) => seconds > 0.04)
    .map(([name, seconds]) => `${name} ${duration(seconds)}`).join(" · ");
  return [bar(parts, "phases"), el("span", { class: "muted" }, told || "under way")];
}

/** Attempts, the newest first, each with the restart that led to it. */
export function attempts(list) {
  const rows = [...list].reverse().map((attempt) => {
    const { restart } = attempt;
    const total = restart && Object.values(restart.seconds).reduce((sum, s) => sum + (s ?? 0), 0);
    const where = restart ? [restart.rank !== null ? `rank ${restart.rank}` : "", restart.node ?? ""].filter(Boolean).join(" on ") : "";
    return [
      [`${attempt.number}`, "number-head"],
      [badge(attempt.state), ""],
      [restart ? [el("b", {}, words(restart.class)), where ? ` · ${where}` : "", el("span", { class: "because" }, restart.reason)] : el("span", { class: "muted" }, "first attempt"), "grow"],
      [restart ? words(restart.remedy) : "–", ""],
      [el("time", { datetime: attempt.started_at, title: utc(attempt.started_at) }, clock(attempt.started_at)), ""],
      [`${count(attempt.start_step)} → ${count(attempt.step)}`, "number"],
      [restart && restart.lost_steps !== null ? count(restart.lost_steps) : "–", "number"],
      [restart ? [el("b", {}, duration(total)), phases(restart)] : "–", "phases-cell"],
    ];
  });
  return rows.length
    ? table("Attempts, newest first", ["Attempt", "State", "Why", "Remedy", "Started", "Steps", "Steps lost", "Recovery"], rows)
    : el("p", { class: "muted" }, "No attempt yet: the run has not started.");
}

/** Where the ranks of the newest attempt are. */
export function ranks(view, more) {
  if (!view.seats.length) return el("p", { class: "muted" }, "No ranks: the run has not started.");
  const told = [counted(view.world_size, "rank"), `on ${counted(view.seats.length, "node")}`];
  const stages = `${count(view.started)} started, ${count(view.restored)} restored` + (view.done ? `, ${count(view.done)} done` : "");
  const rows = more.cut("ranks", view.seats).map((seat) => [
    [seat.node, ""], [seat.node_state ? el("span", { class: "badge " + (seat.node_state === "ready" ? "good" : "warn") }, seat.node_state) : el("span", { class: "badge idle" }, "not listed"), ""],
    [`${seat.ranks} (${seat.count})`, ""],
    [seat.worker_state ? words(seat.worker_state) : "ended", ""],
    [seat.failures.length ? el("span", { class: "error" }, seat.failures.join("; ")) : "–", "grow"],
  ]);
  return [el("p", {}, `${told.join(" ")}, attempt ${view.attempt}: ${stages}.`),
    table("Nodes of the newest attempt", ["Node", "Node state", "Ranks", "Agent", "Failures"], rows),
    more.button("ranks", view.seats.length, "nodes")];
}

/** Checkpoints, the newest step first. */
export function checkpoints(list, more) {
  if (!list.length) return el("p", { class: "muted" }, "No checkpoint yet.");
  const rows = more.cut("checkpoints", list).map((each) => {
    const marks = [each.pinned && "pinned", each.doubted && "doubted", each.superseded && "superseded",
      each.deleting && "being deleted"].filter(Boolean).join(", ");
    return [
      [`${count(each.step)}`, "number-head"], [each.tier, ""],
      [el("span", { class: `badge ${TRUST[each.trust] ?? "idle"}` }, each.trust), ""],
      [bytes(each.bytes), "number"],
      [el("time", { datetime: each.created_at, title: utc(each.created_at) }, ago(each.created_at)), ""],
      [[marks, each.reason].filter(Boolean).join(": ") || "–", "muted grow"],
    ];
  });
  return [table("Checkpoints, newest step first", ["Step", "Tier", "Trust", "Size", "Saved", "Notes"], rows),
    more.button("checkpoints", list.length, "checkpoints")];
}

/** Cuts long lists, and has the button that shows the rest. */
export class More {
  #open = new Set();
  #redraw;

  constructor(redraw) {
    this.#redraw = redraw;
  }

  cut(name, list) {
    return this.#open.has(name) ? list : list.slice(0, SHOWN);
  }

  button(name, length, what) {
    if (this.#open.has(name) || length <= SHOWN) return null;
    return el("button", { type: "button", class: "more", "data-key": `more-${name}`, onclick: () => {
      this.#open.add(name);
      this.#redraw();
    } }, `Show all ${count(length)} ${what}`);
  }
}
