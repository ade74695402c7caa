// Requests to the API. A refused one throws a Problem, which says what to do.

const ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

/** An error of the API, or of the way to it (status 0). */
export class Problem extends Error {
  constructor(status, message, allowed = []) {
    super(message);
    this.status = status;
    this.allowed = allowed;
  }
}

/** A ULID: the key of one request, however often it is sent. */
export function ulid() {
  let time = Date.now();
  let head = "";
  for (let place = 0; place < 10; place += 1) {
    head = ALPHABET[time % 32] + head;
    time = Math.floor(time / 32);
  }
  const random = crypto.getRandomValues(new Uint8Array(16));
  return head + [...random].map((byte) => ALPHABET[byte % 32]).join("");
}

/** A path of the API; each part may hold any characters. */
export const path = (...parts) => `/api/v1/${parts.map(encodeURIComponent).join("/")}`;

/** The answer of a GET, as JSON. */
export const get = (where) => send("GET", where);

/** Ask the server to do something once: the key stays the same when the request is sent again. */
export function post(where, body = {}, key = ulid()) {
  return send("POST", where, body, key);
}

/** Delete what is at a path. */
export const remove = (where) => send("DELETE", where, undefined, ulid());

async function send(method, where, body, key) {
  const headers = { Accept: "application/json" };
  if (method !== "GET") headers["X-Babysit-Request"] = "1";
  if (key) headers["Idempotency-Key"] = key;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(where, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(20000),
    });
  } catch {
    throw new Problem(0, "The server does not answer. Check your connection; try again.");
  }
  if (answer.status === 204) return null;
  const found = await answer.json().catch(() => null);
  if (answer.ok) return found;
  const error = found?.error ?? { message: `the server answered ${answer.status}` };
  throw new Problem(answer.status, error.message, error.allowed ?? []);
}
