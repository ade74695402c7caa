// Makes elements. Text from the server becomes text nodes and nothing else, with characters that
// would hide or reorder it written out.

const UNSEEN =
  /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
const SVG = "http://www.w3.org/2000/svg";

/** The text with control characters and overrides of direction written out. */
export function visible(text) {
  return String(text).replace(UNSEEN, (found) => {
    const code = found.charCodeAt(0);
    return code < 256
      ? `\\x${code.toString(16).padStart(2, "0")}`
      : `\\u${code.toString(16).padStart(4, "0")}`;
  });
}

/** The element of the page with an id. */
export const byId = (id) => document.getElementById(id);

/** An element: attributes by name, `on…` for listeners, then children; null children are left out. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** An element of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : visible(value));
  }
  append(node, children);
  return node;
}

function append(node, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : visible(child));
  }
}

/** Replace what is in an element, unless it is the same already: a new node would lose the focus. */
export function show(node, ...children) {
  const made = document.createDocumentFragment();
  append(made, children);
  if (same(node, made)) return;
  const focused = node.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  node.replaceChildren(made);
  if (focused) node.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
}

function same(node, made) {
  if (node.childNodes.length !== made.childNodes.length) return false;
  // Listeners may differ from those of equal nodes: elements with some are marked by a key.
  return [...node.childNodes].every((each, at) => each.isEqualNode(made.childNodes[at]));
}

/** Set the text of an element if it differs. */
export function say(node, text) {
  const shown = visible(text);
  if (node.textContent !== shown) node.textContent = shown;
}
