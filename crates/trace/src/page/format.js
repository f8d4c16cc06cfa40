// Formats numbers and untrusted text.

const time = (us) => {
  const size = Math.abs(us);
  if (size < 1000) return `${Math.round(us)} µs`;
  if (size < 1e6) return `${digits(us / 1000)} ms`;
  if (size < 120e6) return `${digits(us / 1e6)} s`;
  return `${digits(us / 60e6)} min`;
};

const bytes = (n) => {
  for (const [unit, size] of [["GiB", 2 ** 30], ["MiB", 2 ** 20], ["KiB", 1024]]) {
    if (n >= size) return `${digits(n / size)} ${unit}`;
  }
  return `${Math.round(n)} B`;
};

// Three significant digits.
const digits = (n) => {
  const size = Math.abs(n);
  if (size >= 99.95) return String(Math.round(n));
  return size >= 9.995 ? n.toFixed(1) : n.toFixed(2);
};

const count = (n, one, many = `${one}s`) => `${grouped(n)} ${n === 1 ? one : many}`;

const grouped = (n) => String(n).replace(/\B(?=(\d{3})+$)/g, "\u202f");

// Escapes characters of untrusted text that are invisible or change the writing direction.
const INVISIBLE = /[\u0000-\u001f\u007f-\u00a0\u00ad\u061c\u115f\u1160\u180e\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3164\ufe00-\ufe0f\ufeff\ufff9-\ufffb]|[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g;
const shown = (text) =>
  String(text).replace(INVISIBLE, (c) => `\\u{${c.charCodeAt(0).toString(16)}}`);

// Truncates a path at its start, since its end is more informative.
const tail = (text, places) => {
  if (text.length <= places) return text;
  return places < 2 ? "" : `…${text.slice(text.length - places + 1)}`;
};

// Shares in tenths of a percent that add up to exactly 1000: the remainder goes to the shares that
// lost most by rounding.
const shares = (sums) => {
  const total = sums.reduce((a, b) => a + b, 0);
  if (total <= 0) return sums.map(() => 0);
  const exact = sums.map((sum) => (sum * 1000) / total);
  const whole = exact.map(Math.floor);
  const left = 1000 - whole.reduce((a, b) => a + b, 0);
  const order = exact.map((_, i) => i).sort((a, b) => exact[b] - whole[b] - exact[a] + whole[a]);
  for (const i of order.slice(0, left)) whole[i] += 1;
  return whole;
};

const percent = (tenths) => `${(tenths / 10).toFixed(1)} %`;

// Creates an element with text and attributes; children are nodes or text.
const element = (name, attributes = {}, ...children) => {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else if (value !== undefined) made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
};

const byId = (id) => document.getElementById(id);
