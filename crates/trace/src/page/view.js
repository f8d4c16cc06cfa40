// Holds the state of the view: time range, filters, search, and the pinned item.

const ROW = 18;
const SHORTEST = 20;

const view = {
  trace: null,
  from: 0, to: 1,
  classes: CLASSES.map(() => true), tiers: TIERS.map(() => true),
  onlyInRange: true, order: "time",
  // Visible rows from top to bottom: fetches, and files.
  fetches: [], files: [],
  query: "", matches: null, hits: [], hit: -1,
  hover: null, pinned: null, focus: null,
};

const whole = () => view.trace.end * 1.02;

const setRange = (from, to) => {
  const span = Math.min(Math.max(to - from, SHORTEST), whole());
  const begin = Math.min(Math.max(from, 0), whole() - span);
  view.from = begin;
  view.to = begin + span;
  changed();
};

const zoom = (factor, at = (view.from + view.to) / 2) =>
  setRange(at - (at - view.from) * factor, at + (view.to - at) * factor);

const pan = (by) => setRange(view.from + by, view.to + by);

const fit = () => setRange(0, whole());

// Shows the start without later prefetch: the most common question.
const fitStart = () => setRange(0, view.trace.ready === null ? whole() : Math.min(view.trace.ready * 1.04, whole()));

// Moves or zooms the range to show `from` to `to`. No-op if they are visible and not too narrow.
const reveal = (from, to) => {
  const span = view.to - view.from;
  if (from >= view.from && to <= view.to && to - from > span / 400) return;
  if (to - from > span) setRange(from - (to - from) * 0.1, to + (to - from) * 0.1);
  else if (from < view.from || to > view.to) setRange((from + to - span) / 2, (from + to + span) / 2);
};

// Selects the visible rows, if a value they depend on has changed.
const chooseRows = () => {
  const chosen = [view.from, view.to, view.onlyInRange, view.order, view.classes, view.tiers].join();
  if (chosen === view.chosen) return;
  view.chosen = chosen;
  const { fetches, rows, touches, orders } = view.trace;
  const { fetch, file } = orders[view.order];
  const inRange = (start, end) => !view.onlyInRange || (end >= view.from && start <= view.to);
  view.fetches = fetch.rows.filter((i) => view.classes[fetches.class[i]] && inRange(fetches.start[i], fetches.end[i]));
  const files = [];
  for (const row of file.rows) {
    for (let n = rows.begin[row]; n < rows.begin[row + 1]; n++) {
      const touch = rows.touch[n];
      if (view.tiers[touches.tier[touch]] && inRange(touches.at[touch], touches.end[touch])) {
        files.push(row);
        break;
      }
    }
  }
  view.files = files;
};

// Updates the rows for the range, keeping the position of each pane.
const refresh = () => panes.fetch.keep(() => panes.file.keep(chooseRows));

const search = (query) => {
  view.query = query;
  view.hit = -1;
  const { files } = view.trace;
  const wanted = query.toLowerCase();
  view.matches = wanted === "" ? null : Uint8Array.from(files, (file) => (file.path.toLowerCase().includes(wanted) ? 1 : 0));
  findHits();
};

// Finds matches, files before fetches, regardless of filters and range.
const findHits = () => {
  const { rows, fetches, touches } = view.trace;
  view.hits = [];
  if (!view.matches) return;
  for (let row = 0; row < rows.length; row++) {
    const touched = rows.touch.subarray(rows.begin[row], rows.begin[row + 1]);
    if (matches(rows.file[row]) && touched.some((touch) => view.tiers[touches.tier[touch]])) view.hits.push({ type: "file", index: row });
  }
  for (const fetch of fetches.order) {
    if (matches(fetches.file[fetch]) && view.classes[fetches.class[fetch]]) view.hits.push({ type: "fetch", index: fetch });
  }
};

const matches = (file) => file >= 0 && view.matches !== null && view.matches[file] === 1;

const dimmed = (file) => view.matches !== null && !matches(file);

const stepHit = (by) => {
  if (view.hits.length === 0) return;
  view.hit = view.hit < 0 ? (by > 0 ? 0 : view.hits.length - 1) : (view.hit + by + view.hits.length) % view.hits.length;
  view.pinned = null;
  view.links = linked(null);
  focusOn(view.hits[view.hit]);
  showDetails();
};

// An item is a touch, a fetch, a file's row, a step of the path or a mark, each by index, or a
// time.
const same = (a, b) => a !== null && b !== null && a.type === b.type && a.index === b.index;

const span = ({ type, index }) => {
  const { touches, fetches, rows, path, marks } = view.trace;
  if (type === "touch") return [touches.at[index], touches.end[index]];
  if (type === "fetch") return [fetches.start[index], fetches.end[index]];
  if (type === "file") return [rows.start[index], rows.start[index] + Math.min(rows.end[index] - rows.start[index], (view.to - view.from) / 2)];
  if (type === "path") return [path.steps[index].from, path.steps[index].to];
  if (type === "moment") return [index, index];
  return [marks[index].at, marks[index].at];
};

// Collects the linked items: the fetch that answered a touch, or the touches that a fetch answered.
const linked = (item) => {
  const found = { touches: new Set(), fetches: new Set() };
  if (!item) return found;
  const { touches, path, answers, rows } = view.trace;
  const addTouch = (touch) => {
    found.touches.add(touch);
    if (touches.fetch[touch] >= 0) found.fetches.add(touches.fetch[touch]);
  };
  const addFetch = (fetch) => {
    found.fetches.add(fetch);
    for (const touch of answers.get(fetch) ?? []) found.touches.add(touch);
  };
  if (item.type === "touch") addTouch(item.index);
  if (item.type === "fetch") addFetch(item.index);
  if (item.type === "file") rows.touch.subarray(rows.begin[item.index], rows.begin[item.index + 1]).forEach(addTouch);
  if (item.type === "path") {
    const step = path.steps[item.index];
    if (step.touch >= 0) addTouch(step.touch);
    if (step.fetch >= 0) found.fetches.add(step.fetch);
  }
  return found;
};

const focusOn = (item) => {
  view.focus = item;
  reveal(...span(item));
  refresh();
  showRow(item);
  changed();
};

const pin = (item) => {
  view.pinned = item;
  view.links = linked(item);
  if (item) {
    const [fetch] = view.links.fetches;
    const [touch] = view.links.touches;
    if (fetch !== undefined) showRow({ type: "fetch", index: fetch }, "nearest");
    if (touch !== undefined) showRow({ type: "touch", index: touch }, "nearest");
  }
  showDetails();
  changed();
};

const goTo = (item) => {
  showTab("waterfall");
  reveal(...span(item));
  refresh();
  showRow(item);
  view.focus = item;
  pin(item);
};

// Steps through the segments of the path that were waits.
const stepPath = (by) => {
  const { steps } = view.trace.path;
  const now = view.pinned?.type === "path" ? view.pinned.index : by > 0 ? -1 : steps.length;
  for (let n = now + by; n >= 0 && n < steps.length; n += by) {
    if (WAITS.has(steps[n].kind)) return goTo({ type: "path", index: n });
  }
};
