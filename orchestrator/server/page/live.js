// Follows a stream of events; comes back by itself, and says how old the data is meanwhile.

import { learnTime } from "./format.js";
import { get, path } from "./api.js";
import { over } from "./session.js";
import { liveState } from "./shell.js";

const SILENCE = 25000; // the server speaks at least every 10 s
const HIDDEN = 15000; // a page that nobody sees holds no connection: browsers have six for a site
const LONGEST_PAUSE = 15000;

/** A stream: `on` has a function for each kind of event; `opened` is called before the first. */
export class Live {
  #where; #on; #opened; #source = null; #after = ""; #pause = 1000;
  #timer = 0; #watchdog = 0; #hidden = 0; #last = Date.now(); #ended = false;
  #turn = 0; // grows with each close: who awaits something sees that another has taken over

  constructor(where, on, opened = async () => "") {
    this.#where = where;
    this.#on = on;
    this.#opened = opened;
    document.addEventListener("visibilitychange", () => this.#seen());
    window.addEventListener("online", () => this.#again(0));
    window.addEventListener("pagehide", () => this.#close());
    window.addEventListener("pageshow", (event) => event.persisted && this.#again(0));
    setInterval(() => this.#tell(), 1000);
    this.#open();
  }

  /** End for good. */
  end() {
    this.#ended = true;
    this.#close();
  }

  async #open() {
    if (this.#ended || document.hidden) return; // a tab in the background waits until it is seen
    this.#close();
    const turn = this.#turn;
    try {
      const after = await this.#opened(this.#after);
      if (turn !== this.#turn) return;
      this.#after = after || this.#after;
    } catch (problem) {
      if (turn !== this.#turn) return;
      if (problem.status === 401) over();
      else this.#again();
      return;
    }
    const after = this.#after ? `?after=${encodeURIComponent(this.#after)}` : "";
    const source = new EventSource(this.#where + after);
    this.#source = source;
    this.#heard();
    for (const kind of ["changes", "reload", "run", "alive", "trouble", "over", "leaving"]) {
      source.addEventListener(kind, (event) => source === this.#source && this.#take(kind, event));
    }
    source.addEventListener("error", () => source === this.#source && this.#failed());
  }

  #take(kind, event) {
    const data = JSON.parse(event.data);
    if (event.lastEventId) this.#after = event.lastEventId;
    if (data.at) learnTime(data.at);
    if (kind === "trouble") return liveState("away", data.message);
    if (kind === "over") {
      this.end();
      return over();
    }
    this.#heard();
    if (kind === "leaving") return this.#failed();
    this.#pause = 1000;
    if (kind === "reload") this.#after = "";
    if (kind === "reload") return this.#open();
    this.#last = Date.now();
    liveState("live");
    this.#on[kind]?.(data);
  }

  #heard() {
    clearTimeout(this.#watchdog);
    this.#watchdog = setTimeout(() => this.#failed(), SILENCE);
  }

  async #failed() {
    this.#close();
    const turn = this.#turn;
    // A browser does not say why a stream failed: a request does.
    const signedOut = await get(path("info")).then(() => false, (p) => p.status === 401);
    if (turn !== this.#turn) return;
    if (signedOut) over();
    else this.#again();
  }

  #again(pause = this.#pause * (0.75 + Math.random() / 2)) {
    if (this.#ended) return;
    this.#close();
    this.#pause = Math.min(this.#pause * 2, LONGEST_PAUSE);
    clearTimeout(this.#timer);
    this.#timer = setTimeout(() => this.#open(), pause);
  }

  #close() {
    this.#turn += 1;
    clearTimeout(this.#watchdog);
    clearTimeout(this.#timer);
    this.#source?.close();
    this.#source = null;
  }

  #seen() {
    clearTimeout(this.#hidden);
    if (document.hidden) this.#hidden = setTimeout(() => this.#close(), HIDDEN);
    else if (this.#source === null) this.#again(0);
  }

  #tell() {
    const age = (Date.now() - this.#last) / 1000;
    if (this.#source?.readyState !== EventSource.OPEN && age > 3) liveState("away", "", age);
  }
}
