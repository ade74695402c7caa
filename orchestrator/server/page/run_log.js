// The newest lines of a rank's log, followed while they are in view.

import { byId, el, say, show, visible } from "./dom.js";
import { get, path } from "./api.js";
import { bytes } from "./format.js";

const LINES = 200;
const KEPT = 2000;
const EVERY = 3000;
const COLOURS = /\u001b\[[0-9;]*[A-Za-z]/g;

/** The log of a run. */
export class LogView {
  #run; #files = []; #next = null; #lines = []; #inView = false; #busy = false;
  #pick = el("select", { id: "log-pick", "aria-label": "Attempt and rank" });
  #follow = el("input", { type: "checkbox", id: "log-follow" });
  #text = el("pre", { class: "log", tabindex: 0, role: "log", "aria-live": "off", "aria-label": "Log" });
  #note = el("p", { class: "muted", role: "status" });

  constructor(run) {
    this.#run = run;
    this.#follow.checked = true;
    byId("log-view").append(
      el("div", { class: "log-tools" }, this.#pick,
        el("label", { class: "check", for: "log-follow" }, this.#follow, "Follow")),
      this.#text, this.#note);
    this.#pick.addEventListener("change", () => this.#begin());
    new IntersectionObserver(([entry]) => {
      this.#inView = entry.isIntersecting;
      this.#look();
    }).observe(this.#text);
    setInterval(() => this.#look(), EVERY);
  }

  /** List the logs anew: another attempt has begun. */
  async list() {
    this.#files = await get(path("runs", this.#run, "logs")).catch(() => this.#files);
    const old = this.#pick.value;
    const newest = this.#files.reduce((most, file) => Math.max(most, file.attempt), 0);
    const options = [...this.#files].sort((a, b) => b.attempt - a.attempt || a.rank - b.rank)
      .map((file) => [`${file.attempt}/${file.rank}`, `attempt ${file.attempt}, rank ${file.rank}`]);
    if (!options.length) options.push(["", "no rank has written yet"]);
    options.push(["controller", "babysit itself"]);
    show(this.#pick, options.map(([value, text]) => el("option", { value }, text)));
    const there = options.some(([value]) => value === old);
    const stale = there && old !== "controller" && Number(old.split("/")[0]) < newest;
    this.#pick.value = there && !(stale && this.#follow.checked) ? old : options[0][0];
    if (this.#pick.value !== old) this.#begin();
    if (!this.#pick.value) this.#text.textContent = "Nothing has been written yet.";
  }

  #begin() {
    this.#next = null;
    this.#lines = [];
    this.#look(true);
  }

  async #look(first = false) {
    if (this.#busy || !this.#pick.value || (!first && (!this.#inView || !this.#follow.checked || document.hidden))) return;
    this.#busy = true;
    const chosen = this.#pick.value;
    const where = path("runs", this.#run, "logs", ...chosen.split("/"));
    try {
      const piece = await get(`${where}?${this.#next === null ? `tail=${LINES}` : `offset=${this.#next}`}`);
      if (chosen !== this.#pick.value) return;
      this.#take(piece);
      say(this.#note, chosen === "controller" ? "" : `${bytes(piece.bytes)} in all; the last ${LINES} lines at first`);
    } catch (problem) {
      if (problem.status) say(this.#note, problem.message);
    } finally {
      this.#busy = false;
      if (chosen !== this.#pick.value) this.#look(true);
    }
  }

  #take(piece) {
    const fresh = this.#next === null;
    this.#next = piece.next_offset;
    if (!piece.text && !fresh) return;
    const whole = (this.#lines.pop() ?? "") + piece.text.replace(COLOURS, "");
    this.#lines.push(...whole.split("\n").map((line) => line.slice(line.replace(/\r$/, "").lastIndexOf("\r") + 1)));
    this.#lines = this.#lines.slice(-KEPT);
    const atEnd = fresh || this.#text.scrollTop + this.#text.clientHeight > this.#text.scrollHeight - 40;
    this.#text.textContent = visible(this.#lines.join("\n")) || "Nothing has been written yet.";
    if (atEnd) this.#text.scrollTop = this.#text.scrollHeight;
  }
}
