// Parses the recorder's JSON, all of it untrusted, into the form that is drawn.

class Unusable extends Error {}

const TIERS = [
  ["index", "in the index", "the contents are in the snapshot's index"],
  ["cache", "in the cache", "the host's cache had the bytes"],
  ["in-flight", "already under way", "a fetch that was under way brought them"],
  ["store", "fetched for it", "a fetch had to be made for this read"],
  ["kernel", "read by the kernel", "passed through: the kernel reads the cache's file itself"],
];
const CLASSES = [
  ["demand", "demand", "a reader waits"],
  ["read-ahead", "read-ahead", "a sequential reader comes near"],
  ["directory", "directory", "of a mounted directory"],
  ["profile", "profile", "what earlier starts have read"],
  ["rest", "rest", "the rest of the image"],
  ["index", "index", "a snapshot's index"],
  ["record", "profile record", "what is known of earlier starts"],
];
const OUTCOMES = ["ok", "failed", "cancelled"];
const PHASES = ["queued", "waits for the first byte", "transfer", "verify and decode"];
// In the order of the legend.
const KINDS = {
  store: "Waiting for the store",
  "in-flight": "Waiting, fetch under way",
  served: "Answered on this host",
  running: "Program running",
  runtime: "Container runtime",
  attach: "Attaching the image",
  unexplained: "Not explained",
};
const WAITS = new Set(["store", "in-flight"]);

// Bounds times so that sums of them stay exact.
const LATEST = 1e13;
const number = (value, otherwise = 0) =>
  typeof value === "number" && Number.isFinite(value)
    ? Math.min(Math.max(value, -LATEST), LATEST) : otherwise;
const moment = (value) => Math.max(number(value), 0);
const list = (value) => (Array.isArray(value) ? value : []);
const object = (value) => (value && typeof value === "object" && !Array.isArray(value) ? value : {});
const text = (value) => (typeof value === "string" ? shown(value) : "");

const readTrace = (json) => {
  let raw;
  try {
    raw = JSON.parse(json);
  } catch (error) {
    throw new Unusable(`This page holds no trace: ${error.message}`);
  }
  if (object(raw).format !== "inlay-trace") throw new Unusable("This page holds no trace of inlay.");
  if (raw.version !== 1) {
    throw new Unusable(`This trace has the version ${shown(String(raw.version))}; this page shows version 1.`);
  }
  const files = list(raw.files).map((row) => ({ path: text(list(row)[0]), snapshot: number(list(row)[1], -1), size: number(list(row)[2], -1) }));
  const trace = {
    title: text(raw.title), command: list(raw.command).map(text), recorded: text(raw.recorded),
    host: object(raw.host), version: text(raw.inlay), files,
    snapshots: list(raw.snapshots).map((row) => ({ id: text(object(row).id), name: text(object(row).name), store: text(object(row).store), files: number(object(row).files, -1), size: number(object(row).size, -1) })),
    duration: moment(raw.duration), ready: typeof raw.ready === "number" ? moment(raw.ready) : null,
    readyBy: text(raw.ready_by), dropped: moment(raw.dropped), served: object(raw.served),
    marks: list(raw.marks).map((row) => ({ at: moment(object(row).at), name: text(object(row).name), detail: text(object(row).detail) })).sort((a, b) => a.at - b.at),
    touches: readTouches(raw.touches, files.length), fetches: readFetches(raw.fetches, files.length),
  };
  trace.rows = fileRows(trace);
  trace.orders = makeOrders(trace);
  trace.answers = answers(trace);
  trace.path = readPath(raw.path, trace);
  trace.end = Math.max(trace.duration, trace.ready ?? 0, latest(trace.touches.end), latest(trace.fetches.end), ...trace.marks.slice(-1).map((mark) => mark.at), trace.path.end, 1);
  return trace;
};

const latest = (times) => {
  let most = 0;
  for (const at of times) if (at > most) most = at;
  return most;
};

// Reads the columns of a table of rows by name.
const columns = (table, names, what) => {
  const { columns: found, rows } = object(table);
  const places = names.map((name) => list(found).indexOf(name));
  const good = list(rows).filter(Array.isArray);
  if (good.length > 0 && places.includes(-1)) {
    throw new Unusable(`This trace has ${what} without the column ${names[places.indexOf(-1)]}.`);
  }
  const read = { length: good.length };
  names.forEach((name, n) => {
    read[name] = Float64Array.from(good, (row) => number(row[places[n]], -1));
  });
  return read;
};

const readTouches = (table, files) => {
  const t = columns(table, ["at", "wait", "file", "tier", "offset", "bytes", "fetch", "first"], "touches");
  t.wait = t.wait.map((wait) => Math.max(wait, 0));
  // Activity in flight when the recording began is drawn from there.
  t.end = t.at.map((at, i) => Math.max(at + t.wait[i], 0));
  t.at = t.at.map((at) => Math.max(at, 0));
  t.file = Int32Array.from(t.file, (file) => (file >= 0 && file < files ? file : -1));
  t.tier = Uint8Array.from(t.tier, (tier) => (TIERS[tier] ? tier : 0));
  t.fetch = Int32Array.from(t.fetch);
  t.onPath = new Uint8Array(t.length);
  return t;
};

const readFetches = (table, files) => {
  const names = ["queued", "sent", "first_byte", "received", "ready"];
  const f = columns(table, [...names, "class", "snapshot", "groups", "bytes", "outcome", "file"], "fetches");
  f.phase = names.map(() => new Float64Array(f.length));
  for (let i = 0; i < f.length; i++) {
    // An unknown time equals the one before it: its phase has zero width.
    let last = Math.max(0, names.map((name) => f[name][i]).find((at) => at >= 0) ?? 0);
    names.forEach((name, n) => {
      last = Math.max(last, f[name][i]);
      f.phase[n][i] = last;
    });
  }
  [f.start, , , , f.end] = f.phase;
  f.class = Uint8Array.from(f.class, (c) => (CLASSES[c] ? c : 4));
  f.outcome = Uint8Array.from(f.outcome, (o) => (OUTCOMES[o] ? o : 1));
  f.bytes = f.bytes.map((n) => Math.max(n, 0));
  f.file = Int32Array.from(f.file, (file) => (file >= 0 && file < files ? file : -1));
  f.onPath = new Uint8Array(f.length);
  f.open = Uint8Array.from(f.ready, (at, i) => (at < 0 && f.outcome[i] === 0 ? 1 : 0));
  f.order = ordered(f.length, (a, b) => f.start[a] - f.start[b]);
  return f;
};

const ordered = (length, compare) => Int32Array.from({ length }, (_, i) => i).sort((a, b) => compare(a, b) || a - b);

// An order of rows, with the position of each row in it.
const order = (rows) => {
  const place = new Int32Array(rows.length);
  rows.forEach((row, at) => { place[row] = at; });
  return { rows, place };
};

// The selectable orders.
const makeOrders = ({ fetches, rows }) => ({
  time: { fetch: order(fetches.order), file: order(ordered(rows.length, () => 0)) },
  longest: {
    fetch: order(ordered(fetches.length, (a, b) => fetches.end[b] - fetches.start[b] - fetches.end[a] + fetches.start[a])),
    file: order(ordered(rows.length, (a, b) => rows.wait[b] - rows.wait[a])),
  },
});

// Creates a row per file read, in the order of first reads. A row's touches are consecutive in
// `touch`, from `begin[row]`.
const fileRows = ({ touches, files }) => {
  const { at, file, wait, tier, end } = touches;
  const order = ordered(at.length, (a, b) => at[a] - at[b]);
  const of = new Map();
  const sizes = [];
  for (const touch of order) {
    if (!of.has(file[touch])) {
      of.set(file[touch], sizes.length);
      sizes.push(0);
    }
    sizes[of.get(file[touch])] += 1;
  }
  const length = sizes.length;
  const rows = { length, file: new Int32Array(length), begin: new Int32Array(length + 1), touch: new Int32Array(order.length), start: new Float64Array(length), end: new Float64Array(length), wait: new Float64Array(length), tier: new Uint8Array(length), ofTouch: new Int32Array(order.length), ofFile: new Int32Array(files.length).fill(-1) };
  sizes.forEach((size, row) => { rows.begin[row + 1] = rows.begin[row] + size; });
  const next = rows.begin.slice();
  for (const touch of order) {
    const row = of.get(file[touch]);
    if (next[row] === rows.begin[row]) rows.start[row] = at[touch];
    rows.touch[next[row]++] = touch;
    rows.ofTouch[touch] = row;
    rows.file[row] = file[touch];
    if (file[touch] >= 0) rows.ofFile[file[touch]] = row;
    rows.end[row] = Math.max(rows.end[row], end[touch]);
    rows.wait[row] += wait[touch];
  }
  for (let row = 0; row < length; row++) {
    let slowest = rows.touch[rows.begin[row]];
    for (let n = rows.begin[row]; n < rows.begin[row + 1]; n++) if (wait[rows.touch[n]] > wait[slowest]) slowest = rows.touch[n];
    rows.tier[row] = tier[slowest];
  }
  return rows;
};

// Maps each fetch to the touches that it answered.
const answers = ({ touches, fetches }) => {
  const of = new Map();
  touches.fetch.forEach((fetch, touch) => {
    if (fetch < 0 || fetch >= fetches.length) {
      touches.fetch[touch] = -1;
    } else if (of.has(fetch)) of.get(fetch).push(touch);
    else of.set(fetch, [touch]);
  });
  return of;
};

// Reads the path without gaps and overlaps: missing parts become "unexplained".
const readPath = (raw, trace) => {
  const until = trace.ready ?? trace.duration;
  const steps = list(raw).map((row) => object(row)).map((row) => ({ from: moment(row.from), to: moment(row.to), kind: text(row.kind) || "unexplained", touch: number(row.touch, -1), fetch: number(row.fetch, -1), what: text(row.what) }));
  steps.sort((a, b) => a.from - b.from);
  const path = { steps: [], sums: new Map(), end: 0, target: until };
  const add = (step) => {
    if (step.to <= step.from) return;
    step.touch = trace.touches.at[step.touch] === undefined ? -1 : step.touch;
    step.fetch = trace.fetches.start[step.fetch] === undefined ? -1 : step.fetch;
    if (step.touch >= 0) trace.touches.onPath[step.touch] = 1;
    if (step.fetch >= 0) trace.fetches.onPath[step.fetch] = 1;
    path.steps.push(step);
    path.sums.set(step.kind, (path.sums.get(step.kind) ?? 0) + step.to - step.from);
    path.end = step.to;
  };
  const gap = (to) => add({ from: path.end, to, kind: "unexplained", touch: -1, fetch: -1, what: "" });
  if (steps.length === 0) return path;
  for (const step of steps) {
    gap(step.from);
    add({ ...step, from: Math.max(step.from, path.end) });
  }
  gap(until);
  return path;
};

const kindName = (kind) => (Object.hasOwn(KINDS, kind) ? KINDS[kind] : kind);
