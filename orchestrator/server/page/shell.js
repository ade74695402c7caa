// What every page has: the state of the connection, banners, theme, keys, help, announcements.

import { byId, el, say, show } from "./dom.js";
import { duration } from "./format.js";
import { person, signOut } from "./session.js";

const THEMES = ["system", "light", "dark"];
const keys = new Map();
let away = null;

function stored(name, value) {
  try {
    if (value === undefined) return localStorage.getItem(name);
    localStorage.setItem(name, value);
  } catch {
    // Storage may be forbidden: then the choice holds for this page.
  }
  return null;
}

/** Say how the connection is: `live`, or `away` with a reason and the age of the data in seconds. */
export function liveState(state, reason = "", age = null) {
  byId("live").dataset.live = state;
  if (state === "live") {
    say(byId("live-text"), "Live");
    if (away !== null) announce("The server is back. The page is live again.");
    away = null;
    banner("away", null);
    return;
  }
  if (away === null) away = Date.now() - (age ?? 0) * 1000;
  const old = duration(Math.round((Date.now() - away) / 1000));
  say(byId("live-text"), "Server away");
  const why = reason ? `The server has trouble: ${reason}.` : "No connection to the server.";
  banner("away", "bad", `${why} The data is ${old} old. The page connects again by itself.`);
}

const shown = new Map();

/** Show a banner, or change it; without a kind, take it away. */
export function banner(name, kind, ...children) {
  if (kind === null) {
    shown.get(name)?.remove();
    shown.delete(name);
    return;
  }
  let node = shown.get(name);
  if (!node) {
    node = el("div", { class: "banner", role: name === "away" ? null : "status" });
    shown.set(name, node);
    byId("banners").append(node);
    if (name === "away") announce(children.filter((c) => typeof c === "string").join(" "));
  }
  node.className = `banner ${kind}`;
  show(node, ...children);
}

let waiting = [];
let spoke = 0;
let timer = 0;

/** Have a screen reader say it; of many at once, the number. */
export function announce(text) {
  waiting.push(text);
  clearTimeout(timer);
  timer = setTimeout(speak, Math.max(300, spoke + 5000 - Date.now()));
}

function speak() {
  spoke = Date.now();
  const text = waiting.length > 3 ? `${waiting.length} changes. ${waiting.at(-1)}` : waiting.join(" ");
  waiting = [];
  say(byId("announce"), text);
}

/** What a key does: `words` are for the help. */
export function key(name, words, action) {
  keys.set(name, { words, action });
}

function pressed(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (stored("babysit-keys") === "off" || document.querySelector("dialog[open]")) return;
  const field = event.target.closest("input, select, textarea, [contenteditable]");
  if (field && event.key !== "Escape") return;
  if (field) return field.blur();
  const found = keys.get(event.key);
  if (!found) return;
  event.preventDefault();
  found.action();
}

function help() {
  const on = el("input", { type: "checkbox", id: "keys-on" });
  on.checked = stored("babysit-keys") !== "off";
  on.addEventListener("change", () => stored("babysit-keys", on.checked ? "on" : "off"));
  const rows = [...keys].map(([name, { words }]) =>
    el("tr", {}, el("th", { scope: "row" }, el("kbd", {}, name)), el("td", {}, words)));
  dialog("Keys", [
    el("table", { class: "keys", "aria-label": "Keys" }, el("tbody", {}, rows)),
    el("label", { class: "check", for: "keys-on" }, on, "Single keys act"),
  ]);
}

/** A dialog with a title; it is removed when it closes, and the focus returns by itself. */
export function dialog(title, children, buttons = []) {
  const close = el("button", { type: "button", class: "button" }, buttons.length ? "Cancel" : "Close");
  const made = el("dialog", { "aria-labelledby": "dialog-title" },
    el("h2", { id: "dialog-title" }, title), children,
    el("div", { class: "buttons" }, close, buttons));
  close.addEventListener("click", () => made.close());
  made.addEventListener("click", (event) => event.target === made && made.close());
  made.addEventListener("close", () => made.remove());
  document.body.append(made);
  made.showModal();
  return made;
}

function theme() {
  const old = document.documentElement.dataset.theme ?? "system";
  const chosen = THEMES[(THEMES.indexOf(old) + 1) % THEMES.length];
  if (chosen === "system") delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = chosen;
  stored("babysit-theme", chosen);
  nameTheme(chosen);
  announce(`Theme: ${chosen}`);
}

function nameTheme(chosen) {
  byId("theme").setAttribute("aria-label", `Theme: ${chosen}`);
  byId("theme").title = `Theme: ${chosen}`;
}

/** Move the focus among elements, by one forward or back. */
export function move(elements, by) {
  const at = elements.indexOf(document.activeElement);
  const next = elements[at < 0 ? (by > 0 ? 0 : elements.length - 1) : at + by];
  next?.focus();
  next?.scrollIntoView({ block: "nearest" });
}

/** Set the shell up; called once a page. */
export function start() {
  nameTheme(document.documentElement.dataset.theme ?? "system");
  byId("theme").addEventListener("click", theme);
  byId("help").addEventListener("click", help);
  document.addEventListener("keydown", pressed);
  key("?", "This help", help);
  key("t", "Theme: system, light, dark", theme);
}

/** Show who is signed in. */
export function showPerson() {
  const who = person();
  const button = byId("who");
  button.hidden = false;
  button.setAttribute("aria-label", `Signed in as ${who.name}, ${who.role}`);
  say(button, (who.name[0] ?? "?").toUpperCase());
  button.onclick = () => {
    const error = el("p", { class: "error", role: "alert" });
    const out = el("button", { type: "button", class: "button primary",
      onclick: async () => say(error, await signOut()) }, "Sign out");
    dialog("Signed in", [el("p", {}, `${who.name}, role ${who.role}`), error], [out]);
  };
}

/** Banners about the control plane, from the status of the fleet. */
export function showStatus(status) {
  const hold = status.hold;
  banner("hold", hold ? "warn" : null, `All automation is held: ${hold}. `,
    "Training and monitoring go on.");
  banner("database", status.database ? "bad" : null, `Nothing can be stored: ${status.database}`);
  banner("alerts", status.alerts ? "warn" : null, `Notices do not arrive: ${status.alerts}`);
  banner("lag", status.lag ? "warn" : null, `The server is behind: ${status.lag}`);
  const leader = status.leader_name ? `${status.leader_name} leads` : "none leads now";
  banner("leader", status.leader ? null : "warn",
    `This server does not lead (${leader}): the page is a few seconds late, and cannot act.`);
}
