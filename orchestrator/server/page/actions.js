// What an operator may do: the buttons that Slack has, each an audited command sent once.

import { byId, el, say, show } from "./dom.js";
import { path, post, ulid } from "./api.js";
import { ago, count, counted, words } from "./format.js";
import { isOver } from "./fleet_row.js";
import { forbidden } from "./session.js";
import { announce, banner, dialog } from "./shell.js";

const STEPS = 10;
const LOADABLE = new Set(["complete", "verified", "good"]);
const SILENCE_SECONDS = 3600;

/** Steps that a run may go back to, newest first, each with the checkpoint that speaks for it. */
export function stepsOf(checkpoints) {
  const steps = new Map();
  for (const each of checkpoints) {
    const whole = LOADABLE.has(each.trust) && !each.doubted && !each.superseded && !each.deleting;
    if (whole && !steps.has(each.step)) steps.set(each.step, each);
  }
  return [...steps.values()].sort((a, b) => b.step - a.step).slice(0, STEPS);
}

/** A button; with a reason why not, it stays where it is, says why, and does nothing. */
function button(name, label, why, kind, action) {
  const node = el("button", { type: "button", class: `button ${kind}`, "data-key": name,
    "aria-disabled": why ? "true" : null, title: why || null }, label);
  node.addEventListener("click", () => (why ? announce(why) : action()));
  return node;
}

/** The buttons of a run; `done` is called after each command. */
export function runButtons(known, done) {
  const { row, checkpoints } = known;
  const why = forbidden() || (isOver(row) ? `The run is over: it ${row.state}.` : "");
  const steps = stepsOf(checkpoints);
  const noStep = why || (steps.length ? "" : "There is no checkpoint to go back to.");
  const made = [row.state === "held"
    ? button("release", "Release", why, "primary", () => release(known.row, done))
    : button("hold", "Hold automation", why, "", () => hold(known.row, done)),
  button("rollback", "Roll back to …", noStep, "danger", () => rollBack(known.row, stepsOf(known.checkpoints), done))];
  return [...made, why || noStep ? el("p", { class: "muted" }, why || noStep) : null];
}

/** The buttons of an open incident. */
export function incidentButtons(incident, done) {
  const why = forbidden();
  const where = (verb) => path("incidents", incident.id, verb);
  const what = words(incident.kind);
  const made = [];
  if (!incident.acknowledged_by) {
    made.push(button(`acknowledge-${incident.id}`, "Acknowledge", why, "primary", () =>
      once(`acknowledge-${incident.id}`, `Acknowledge ${what}`, where("acknowledge"), {},
        `${what} is acknowledged.`, done)));
  }
  made.push(button(`silence-${incident.id}`, "Silence 1 h", why, "", () =>
    once(`silence-${incident.id}`, `Silence ${what}`, where("silence"),
      { seconds: SILENCE_SECONDS, reason: "clicked on the page" },
      `Nobody is pinged about ${what} for an hour.`, done)));
  return made;
}

/** Send a command that needs no confirmation; the same click is sent again with the same key. */
async function once(name, title, where, body, said, done, key = ulid()) {
  banner(`act-${name}`, null);
  try {
    await post(where, body, key);
    announce(said);
    done();
  } catch (problem) {
    const again = el("button", { type: "button", class: "button", "data-key": `again-${name}`,
      onclick: () => once(name, title, where, body, said, done, key) }, "Try again");
    const away = el("button", { type: "button", class: "button", "data-key": `close-${name}`,
      onclick: () => banner(`act-${name}`, null) }, "Close");
    banner(`act-${name}`, "bad", el("span", { role: "alert" }, `${title}: not done. ${told(problem)} `),
      [0, 429, 503].includes(problem.status) ? again : null, away);
  }
}

function told(problem) {
  const allowed = problem.allowed.length ? ` Possible: ${problem.allowed.join(", ")}.` : "";
  const message = problem.message.replace(/([^.!?])$/, "$1.");
  if (problem.status === 503) return `${message} Nothing was changed.${allowed}`;
  if (problem.status === 403) return `${message} Sign in with a token that has the role.${allowed}`;
  return message + allowed;
}

/** A dialog that says what will happen, asks for a reason, and sends the command once. */
function confirm({ title, text, fields = [], label, kind, send, said, done }) {
  const reason = el("textarea", { id: "reason", required: true, maxlength: 1000, rows: 2, "aria-describedby": "will-happen" });
  const error = el("p", { class: "error", role: "alert" });
  const act = el("button", { type: "submit", form: "confirm", class: `button ${kind}` }, label);
  let key = ulid();
  const form = el("form", { id: "confirm", class: "stack" }, fields,
    el("p", { id: "will-happen" }, text()),
    el("label", { for: "reason" }, "Reason (for the logbook)"), reason, error);
  const made = dialog(title, form, [act]);
  form.addEventListener("input", () => {
    key = ulid(); // another request
    say(byId("will-happen"), text());
  });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    act.disabled = true;
    say(error, "");
    try {
      await send(reason.value.trim(), key);
      made.close();
      announce(said());
      done();
    } catch (problem) {
      say(error, `Not done: ${told(problem)}`);
    } finally {
      act.disabled = false;
    }
  });
  (fields.length ? form.querySelector("select") : reason).focus();
}

function hold(row, done) {
  confirm({
    title: `Hold ${row.name}?`,
    text: () => "babysit takes no action for the run until somebody releases it. Training and " +
      "monitoring go on; a run that dies under the hold stays down.",
    label: "Hold automation", kind: "primary", done,
    send: (reason, key) => post(path("runs", row.id, "hold"), { reason }, key),
    said: () => `${row.name} is held.`,
  });
}

function release(row, done) {
  confirm({
    title: `Release ${row.name}?`,
    text: () => "babysit acts for the run again, and at once if something waits to be done. " +
      `Now: ${row.reason}.`,
    label: "Release", kind: "primary", done,
    send: (reason, key) => post(path("runs", row.id, "release"), { reason }, key),
    said: () => `${row.name} is released.`,
  });
}

function rollBack(row, steps, done) {
  const pick = el("select", { id: "to-step" });
  show(pick, steps.map((each) => el("option", { value: each.step },
    `step ${count(each.step)} · ${each.trust} · saved ${ago(each.created_at)}`)));
  const chosen = () => Number(pick.value);
  const held = row.state === "held"
    ? " It is held: if nothing of it runs, this ends the hold; else release it first." : "";
  confirm({
    title: `Roll back ${row.name}?`,
    fields: [el("label", { for: "to-step" }, "Roll back to"), pick],
    text: () => {
      const lost = Math.max(0, row.step - chosen());
      return `The run stops and loads the checkpoint of step ${count(chosen())}. It has trained ` +
        `${counted(lost, "step")} since: they are lost, and computed again. Later checkpoints are ` +
        `superseded.${held}`;
    },
    label: "Roll back", kind: "danger", done,
    send: (reason, key) => post(path("runs", row.id, "rollback"), { to_step: chosen(), reason }, key),
    said: () => `${row.name} rolls back to step ${count(chosen())}.`,
  });
}
