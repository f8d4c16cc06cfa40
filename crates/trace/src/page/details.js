// Shows the details of an item: next to the pointer, or pinned together with linked items.

const tip = byId("tip");
let shownAt = [0, 0];

const hover = (item, x, y) => {
  if (same(item, view.hover) && x === shownAt[0] && y === shownAt[1]) return;
  view.hover = item;
  if (item && !view.pinned) {
    shownAt = [x, y];
    fill(item, false);
    place(x, y);
  } else if (!view.pinned) tip.hidden = true;
  changed();
};

const showDetails = () => {
  const item = view.pinned ?? view.focus;
  tip.classList.toggle("pinned", view.pinned !== null);
  if (!item) {
    tip.hidden = true;
    return;
  }
  fill(item, view.pinned !== null);
  place(...where(item), ROW);
};

// Position next to the row of an item selected without the pointer.
const where = (item) => {
  const pane = item.type === "fetch" ? panes.fetch : item.type === "file" || item.type === "touch" ? panes.file : axis;
  const bounds = pane.box.getBoundingClientRect();
  const row = item.type === "touch" ? view.trace.rows.ofTouch[item.index] : item.index;
  const y = pane === axis ? AXIS.height : (pane.index(row) + 1) * ROW - pane.box.scrollTop;
  const [from] = span(item);
  const { width } = bounds;
  const left = names(width);
  const x = left + ((from - view.from) / (view.to - view.from)) * (width - left);
  return [bounds.left + Math.min(Math.max(x, left), width), bounds.top + Math.min(Math.max(y, 0), bounds.height)];
};

const place = (x, y, high = 0) => {
  tip.hidden = false;
  const { offsetWidth, offsetHeight } = tip;
  const right = x + 16 + offsetWidth > innerWidth ? x - 16 - offsetWidth : x + 16;
  const below = y + 12 + offsetHeight > innerHeight ? y - 8 - high - offsetHeight : y + 12;
  tip.style.left = `${Math.max(right, 4)}px`;
  tip.style.top = `${Math.max(Math.min(below, innerHeight - offsetHeight - 4), 4)}px`;
};

const fill = (item, pinned) => {
  const { title, kind, colour, rows, links, note } = describe(item);
  const parts = [element("p", { class: "kind" }, swatch(colour), kind), element("p", { class: "name" }, title)];
  if (note) parts.push(element("p", { class: "note" }, note));
  parts.push(element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])));
  if (pinned) {
    parts.unshift(element("button", { class: "close", "aria-label": "Close", onclick: () => pin(null) }, "✕"));
    if (links.length > 0) {
      parts.push(element("ul", { class: "links" }, ...links.slice(0, 8).map(([words, to]) => element("li", {}, element("button", { onclick: () => goTo(to) }, words)))));
      if (links.length > 8) parts.push(element("p", { class: "note" }, `and ${count(links.length - 8, "other")}`));
    }
  }
  tip.replaceChildren(...parts);
};

const swatch = (colour) => {
  const made = element("i", { class: "swatch" });
  made.style.background = colour;
  return made;
};

const describe = (item) => ({ touch: aboutTouch, fetch: aboutFetch, file: aboutFile, path: aboutStep, mark: aboutMark, moment: aboutMoment })[item.type](item.index);

const pathOf = (file) => (file >= 0 ? view.trace.files[file].path : "(a file that is not named)");

const snapshotName = (n) => {
  const snapshot = view.trace.snapshots[n];
  return snapshot ? snapshot.name || snapshot.id : "";
};

const known = (rows) => rows.filter(([, value]) => value !== "" && value !== undefined && value !== null);

const aboutTouch = (i) => {
  const { touches, files } = view.trace;
  const file = touches.file[i];
  const [, name, what] = TIERS[touches.tier[i]];
  const fetch = touches.fetch[i];
  return {
    title: pathOf(file), kind: touches.first[i] ? `First read, ${name}` : `Later read, ${name}`, colour: colours.tiers[touches.tier[i]], note: what,
    rows: known([
      ["Asked at", time(touches.at[i])], ["Waited", time(touches.wait[i])], ["Answered at", time(touches.end[i])],
      ["Offset", touches.offset[i] >= 0 ? grouped(touches.offset[i]) : ""], ["Length", touches.bytes[i] >= 0 ? bytes(touches.bytes[i]) : ""],
      ["File size", file >= 0 && files[file].size >= 0 ? bytes(files[file].size) : ""], ["Snapshot", file >= 0 ? snapshotName(files[file].snapshot) : ""],
      ["Critical path", touches.onPath[i] ? "yes: the start waited for this" : "no"],
    ]),
    links: fetch >= 0 ? [[`Answered by the ${CLASSES[view.trace.fetches.class[fetch]][1]} fetch of ${bytes(view.trace.fetches.bytes[fetch])}`, { type: "fetch", index: fetch }]] : [],
  };
};

const aboutFetch = (i) => {
  const { fetches, answers, touches } = view.trace;
  const [, name, what] = CLASSES[fetches.class[i]];
  const answered = answers.get(i) ?? [];
  const length = (n) => time(fetches.phase[n + 1][i] - fetches.phase[n][i]);
  const transfer = fetches.phase[3][i] - fetches.phase[2][i];
  return {
    title: fetches.file[i] >= 0 ? pathOf(fetches.file[i]) : name, kind: `Fetch, ${name}`, colour: colours.classes[fetches.class[i]], note: what,
    rows: known([
      ["Queued at", time(fetches.start[i])], ["In the queue", length(0)], ["First byte after", length(1)], ["Transfer", length(2)], ["Verify and decode", length(3)],
      ["All of it", time(fetches.end[i] - fetches.start[i])], ["Ready at", time(fetches.end[i])], ["Stored bytes", bytes(fetches.bytes[i])],
      ["Rate", transfer > 0 && fetches.bytes[i] > 0 ? `${bytes((fetches.bytes[i] / transfer) * 1e6)}/s` : ""],
      ["Groups", fetches.groups[i] >= 0 ? grouped(fetches.groups[i]) : ""], ["Snapshot", snapshotName(fetches.snapshot[i])],
      ["Outcome", fetches.open[i] ? "not ready when the recording ended" : OUTCOMES[fetches.outcome[i]]], ["Reads answered", grouped(answered.length)],
      ["Critical path", fetches.onPath[i] ? "yes: the start waited for this" : "no"],
    ]),
    links: answered.map((touch) => [`${tail(pathOf(touches.file[touch]), 44)} waited ${time(touches.wait[touch])}`, { type: "touch", index: touch }]),
  };
};

const aboutFile = (row) => {
  const { rows, touches, files } = view.trace;
  const file = rows.file[row];
  const touched = [...rows.touch.subarray(rows.begin[row], rows.begin[row + 1])];
  const longest = touched.slice().sort((a, b) => touches.wait[b] - touches.wait[a]);
  return {
    title: pathOf(file), kind: "File", colour: colours.tiers[rows.tier[row]],
    rows: known([
      ["First read at", time(rows.start[row])], ["Reads recorded", grouped(touched.length)], ["Waited in all", time(rows.wait[row])],
      ["File size", file >= 0 && files[file].size >= 0 ? bytes(files[file].size) : ""], ["Snapshot", file >= 0 ? snapshotName(files[file].snapshot) : ""],
    ]),
    links: longest.map((touch) => [`Read at ${time(touches.at[touch])}, ${TIERS[touches.tier[touch]][1]}, waited ${time(touches.wait[touch])}`, { type: "touch", index: touch }]),
  };
};

const aboutStep = (n) => {
  const { path, touches, fetches } = view.trace;
  const step = path.steps[n];
  const links = [];
  if (step.touch >= 0) links.push([`The read of ${tail(pathOf(touches.file[step.touch]), 44)}`, { type: "touch", index: step.touch }]);
  if (step.fetch >= 0) links.push([`The ${CLASSES[fetches.class[step.fetch]][1]} fetch of ${bytes(fetches.bytes[step.fetch])}`, { type: "fetch", index: step.fetch }]);
  return {
    title: step.what || (step.touch >= 0 ? pathOf(touches.file[step.touch]) : kindName(step.kind)), kind: `Critical path, step ${n + 1} of ${path.steps.length}`, colour: kindColour(step.kind), note: kindName(step.kind),
    rows: known([["From", time(step.from)], ["To", time(step.to)], ["Took", time(step.to - step.from)], ["Of the whole", path.target > 0 ? `${(((step.to - step.from) / path.target) * 100).toFixed(1)} %` : ""]]),
    links,
  };
};

const aboutMark = (n) => {
  const mark = view.trace.marks[n];
  return { title: mark.detail || mark.name, kind: `Mark, ${mark.name}`, colour: mark.name === "ready" ? colours.ready : colours.mark, rows: [["At", time(mark.at)]], links: [] };
};

// Bandwidth over two pixels around a time, as drawn.
const aboutMoment = (at) => {
  const { fetches } = view.trace;
  const step = 2 / axis.picture.perUs;
  const open = fetches.phase[1].reduce((all, sent, i) => all + (sent <= at && fetches.phase[3][i] > at ? 1 : 0), 0);
  const rate = ((view.received(at + step / 2) - view.received(at - step / 2)) / step) * 1e6;
  return {
    title: tickLabel(at, step), kind: "Bandwidth", colour: colours.area,
    rows: [["Received", `${bytes(rate)}/s`], ["Until then", bytes(view.received(at))], ["Requests under way", grouped(open)]],
    links: [],
  };
};
