// Numbers, times and words as people read them. Times of the server count, not those of the browser.

let skew = 0;

/** Learn the server's time from an answer of it. */
export function learnTime(at) {
  const theirs = Date.parse(at);
  if (Number.isFinite(theirs)) skew = Date.now() - theirs;
}

/** Milliseconds of the server's clock, as far as it is known. */
export const now = () => Date.now() - skew;

/** `0.9 s`, `2 min 31 s`, `3 h 12 min`, `5 d 2 h`. */
export function duration(seconds) {
  if (seconds === null || seconds === undefined || !Number.isFinite(seconds)) return "–";
  if (seconds < 60) return `${seconds < 10 ? seconds.toFixed(1) : Math.round(seconds)} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${Math.floor(seconds % 60)} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** `12 s ago`, `3 h ago`: as exact as it matters. */
export function ago(iso) {
  const seconds = Math.max(0, (now() - Date.parse(iso)) / 1000);
  if (seconds < 60) return `${Math.floor(seconds)} s ago`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.floor(seconds / 3600)} h ago`;
  return `${Math.floor(seconds / 86400)} d ago`;
}

/** Hours, minutes and seconds here, with the day if it is another one. */
export function clock(iso) {
  const when = new Date(iso);
  const day = when.toDateString() === new Date(now()).toDateString();
  const time = when.toLocaleTimeString("en-GB");
  return day ? time : `${when.toLocaleDateString("en-CA")} ${time}`;
}

/** The moment in UTC, for titles: the journal and Slack say it so. */
export const utc = (iso) => `${new Date(iso).toISOString().slice(0, 19).replace("T", " ")} UTC`;

export const count = (number) => Number(number).toLocaleString("en-US");

export function loss(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  return size !== 0 && (size >= 1e5 || size < 1e-3) ? value.toExponential(2) : value.toPrecision(4);
}

export const percent = (ratio) =>
  ratio === null || ratio === undefined ? "–" : `${(100 * ratio).toFixed(1)} %`;

export function bytes(size) {
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  let unit = 0;
  while (size >= 1000 && unit < units.length - 1) {
    size /= 1000;
    unit += 1;
  }
  return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
}

/** `1 run`, `2 runs`. */
export const counted = (number, noun) => `${count(number)} ${noun}${number === 1 ? "" : "s"}`;

/** `loss_spike` as `loss spike`. */
export const words = (name) => String(name).replaceAll("_", " ");
