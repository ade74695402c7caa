// The API's operations, from the document that the server gives to generators of clients.

import { byId, el, say, show } from "./dom.js";
import { get } from "./api.js";
import { counted } from "./format.js";
import { key, move, start } from "./shell.js";

const DEPTH = 4;
let schema = null;

const named = (ref) => schema.components.schemas[ref.split("/").at(-1)];

/** A type in a word or two: `text`, `list of RunView`, `number or null`. */
function typeOf(of) {
  if (!of) return "";
  if (of.$ref) return of.$ref.split("/").at(-1);
  const parts = of.anyOf ?? of.oneOf ?? of.allOf;
  if (parts) return parts.map(typeOf).join(" or ");
  if (of.enum) return of.enum.map((each) => JSON.stringify(each)).join(" or ");
  if (of.const !== undefined) return JSON.stringify(of.const);
  if (of.type === "array") return `list of ${typeOf(of.items) || "anything"}`;
  if (of.type === "object" && of.additionalProperties?.type) return `map of ${typeOf(of.additionalProperties)}`;
  return [of.type ?? "anything", of.format && `(${of.format})`].filter(Boolean).join(" ");
}

function refOf(of) {
  if (!of) return null;
  if (of.$ref) return of.$ref;
  for (const part of [...(of.anyOf ?? []), ...(of.oneOf ?? []), ...(of.allOf ?? []), of.items]) {
    const found = refOf(part);
    if (found) return found;
  }
  return null;
}

function fields(of, depth = 0, above = []) {
  const ref = refOf(of);
  if (!ref || depth >= DEPTH || above.includes(ref)) return null;
  const model = named(ref);
  const needed = new Set(model.required ?? []);
  const rows = Object.entries(model.properties ?? {}).map(([name, field]) => el("li", {},
    el("code", {}, name), el("span", { class: "type" }, ` ${typeOf(field)}${needed.has(name) ? "" : ", optional"}`),
    field.description ? el("span", { class: "about" }, field.description) : null,
    fields(field, depth + 1, [...above, ref])));
  return rows.length ? el("ul", { class: "fields" }, rows) : null;
}

function parameters(list) {
  if (!list?.length) return null;
  return el("div", {}, el("h3", {}, "Parameters"), el("ul", { class: "fields" }, list.map((each) =>
    el("li", {}, el("code", {}, each.name),
      el("span", { class: "type" }, ` in the ${each.in}, ${typeOf(each.schema)}${each.required ? "" : ", optional"}`),
      each.description ? el("span", { class: "about" }, each.description) : null))));
}

function content(title, body) {
  const of = Object.values(body?.content ?? {})[0]?.schema;
  if (!of) return null;
  return el("div", {}, el("h3", {}, `${title}: ${typeOf(of)}`), fields(of));
}

function operation(method, where, found) {
  const good = Object.entries(found.responses ?? {}).find(([status]) => status < "300");
  const bad = Object.entries(found.responses ?? {}).filter(([status]) => status >= "300");
  const role = /\brole (admin|operator)\b/i.exec(found.description ?? "");
  const body = el("div", { class: "operation-body" });
  const made = el("details", { class: "operation", id: found.operationId },
    el("summary", {}, el("span", { class: `verb ${method}` }, method.toUpperCase()),
      el("code", { class: "where" }, where), el("span", { class: "muted" }, (found.description ?? found.summary ?? "").split("\n")[0])),
    body);
  made.addEventListener("toggle", () => {
    if (!made.open || body.childElementCount) return;
    show(body, el("p", {}, found.description ?? ""), role ? el("p", {}, `Needs the role ${role[1]}.`) : null,
      parameters(found.parameters), content("Body", found.requestBody), good ? content(`Answer ${good[0]}`, good[1]) : null,
      el("p", { class: "muted" }, `Errors: ${bad.map(([status, each]) => `${status} (${each.description})`).join("; ")}.`),
      el("pre", { tabindex: 0, "aria-label": "Example" }, example(method, where, found)));
  }, true);
  return made;
}

function example(method, where, found) {
  const lines = [`curl ${method === "get" ? "" : `-X ${method.toUpperCase()} `}-H "Authorization: Bearer $BABYSIT_TOKEN"`];
  const of = found.requestBody && named(refOf(Object.values(found.requestBody.content)[0].schema) ?? "");
  if (of) {
    const body = Object.fromEntries((of.required ?? []).map((name) => [name, `<${name}>`]));
    lines.push('  -H "Content-Type: application/json"', `  -d '${JSON.stringify(body)}'`);
  }
  lines.push(`  "${location.origin}${where}"`);
  return lines.join(" \\\n");
}

function draw() {
  const words = byId("q").value.trim().toLowerCase().split(/\s+/);
  const groups = new Map();
  let number = 0;
  for (const [where, methods] of Object.entries(schema.paths)) {
    for (const [method, found] of Object.entries(methods)) {
      const text = `${method} ${where} ${found.summary} ${found.description} ${(found.parameters ?? []).map((p) => p.name).join(" ")}`.toLowerCase();
      if (!words.every((word) => text.includes(word))) continue;
      number += 1;
      const tag = found.tags?.[0] ?? "other";
      groups.set(tag, [...(groups.get(tag) ?? []), operation(method, where, found)]);
    }
  }
  say(byId("found"), counted(number, "operation"));
  const about = new Map(schema.tags.map((tag) => [tag.name, tag.description]));
  byId("operations").replaceChildren(...[...groups].map(([tag, list]) =>
    el("section", { "aria-label": tag }, el("h2", {}, tag), el("p", { class: "muted" }, about.get(tag) ?? ""), list)));
}

async function begin() {
  start();
  byId("live").hidden = true;
  key("/", "Search", () => byId("q").focus());
  const list = () => [...document.querySelectorAll("summary")];
  key("j", "Next operation", () => move(list(), 1));
  key("k", "Previous operation", () => move(list(), -1));
  try {
    schema = await get("/api/v1/openapi.json");
  } catch (problem) {
    return say(byId("intro"), problem.message);
  }
  show(byId("intro"), `${schema.info.title} ${schema.info.version}: ${schema.info.summary} The document for generators of clients: `,
    el("a", { href: "/api/v1/openapi.json" }, "openapi.json"),
    ". Programs send a token (Authorization: Bearer …); a request that changes something may have an Idempotency-Key, a ULID, and is then done once however often it is sent.");
  byId("q").addEventListener("input", draw);
  draw();
  if (location.hash) byId(location.hash.slice(1))?.setAttribute("open", "");
}

await begin();
