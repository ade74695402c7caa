// Who is signed in, with which role; and the form to sign in.

import { el, byId, say } from "./dom.js";
import { Problem, get, path, post, remove } from "./api.js";

const RANK = { viewer: 0, operator: 1, admin: 2 };
let who = null;
let ended = false;

/** The person: `{name, role}`; null before :func:`signedIn` has resolved. */
export const person = () => who;

/** Why the person may not act; empty: they may. */
export function forbidden() {
  if (who === null) return "Sign in first.";
  if ((RANK[who.role] ?? 0) >= RANK.operator) return "";
  return `Needs the role operator; you are signed in as ${who.role}.`;
}

/** Resolves once somebody is signed in, with the person; shows the form while nobody is. */
export async function signedIn() {
  for (let pause = 1000; ; pause = Math.min(pause * 2, 15000)) {
    try {
      who = await ask();
      return who;
    } catch (problem) {
      if (problem.status === 401) {
        await form(problem.methods ?? []);
      } else {
        byId("live").dataset.live = "away";
        say(byId("live-text"), "Server away");
        await new Promise((done) => setTimeout(done, pause));
      }
    }
  }
}

/** A refusal for the form: commands are not what helps here. */
function refusal({ status, message }) {
  if (status !== 401) return message;
  const why = message.replace(/:? *set BABYSIT_TOKEN.*$/, "");
  return `${why[0].toUpperCase()}${why.slice(1)}. Paste another one.`;
}

/** Show the form again, since the session is over; the page loads anew after it. */
export async function over() {
  if (ended) return;
  ended = true;
  const problem = await ask().then(() => null, (found) => found);
  if (problem) await form(problem.methods ?? []);
  location.reload();
}

async function ask() {
  const found = await get(path("session"));
  if (found.signed_in) return { name: found.name, role: found.role };
  const problem = new Problem(401, "Nobody is signed in.");
  problem.methods = found.methods.filter((method) => method.kind !== "token");
  throw problem;
}

function form(methods) {
  // A provider leads back here; the page of a finished sign-in knows the person by the cookie.
  const next = encodeURIComponent(location.pathname + location.search + location.hash);
  return new Promise((done) => {
    const field = el("input", {
      type: "password", id: "token", name: "token", required: true, autocomplete: "current-password",
      "aria-describedby": "sign-in-help sign-in-error", autofocus: true,
    });
    const error = el("p", { id: "sign-in-error", class: "error", role: "alert" });
    const dialog = el("dialog", { class: "sign-in", "aria-labelledby": "sign-in-title" },
      el("form", { method: "dialog", onsubmit: submit },
        el("h2", { id: "sign-in-title" }, "Sign in"),
        methods.map((each) => el("a", { class: "button primary", href: `${each.path}?next=${next}` }, each.label)),
        el("label", { for: "token" }, "Token"), field, error,
        el("button", { type: "submit", class: "button primary" }, "Sign in"),
        el("p", { id: "sign-in-help", class: "muted" },
          "An administrator makes a token with ", el("code", {}, "babysit token create"),
          ". On the server's machine, ", el("code", {}, "babysit server sign-in"),
          " gives a link.")));
    async function submit(event) {
      event.preventDefault();
      try {
        await post(path("session"), { token: field.value.trim() });
        field.value = "";
        dialog.close();
        dialog.remove();
        done();
      } catch (problem) {
        say(error, refusal(problem));
        field.select();
      }
    }
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    document.body.append(dialog);
    dialog.showModal();
  });
}

/** End the session, on the server too; the answer says why it could not be ended. */
export async function signOut() {
  try {
    await remove(path("session"));
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    if (problem.status !== 401) return `You are still signed in. ${problem.message}`;
  }
  location.reload();
  return "";
}
