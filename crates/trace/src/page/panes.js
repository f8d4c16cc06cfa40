// Draws the panes of the waterfall, and handles the pointer and keys on them.

// Layout of the first picture from the top: overview, marks, ruler, path, bandwidth.
const AXIS = { overview: 6, marks: 22, ruler: 48, path: 66, bandwidth: 97, height: 141 };

class Pane {
  constructor(type, id) {
    this.type = type;
    this.box = byId(id);
    this.spacer = this.box.querySelector(".spacer");
    this.picture = new Picture(this.box.querySelector("canvas"));
    this.pointer = null;
  }

  rows() {
    return this.type === "fetch" ? view.fetches : view.files;
  }

  // Position of a row of the trace in the current order of its kind.
  place(row) {
    return view.trace.orders[view.order][this.type].place[row];
  }

  // Returns the row at a screen position, or the last one.
  rowAt(y) {
    const rows = this.rows();
    return rows[Math.min(Math.max(Math.floor((y + this.box.scrollTop) / ROW), 0), rows.length - 1)];
  }

  index(row) {
    const rows = this.rows();
    const place = this.place(row);
    return firstWhere(rows.length, (n) => this.place(rows[n]) >= place);
  }

  // Keeps the row under the pointer in place while `change` adds and removes rows.
  keep(change) {
    const y = this.pointer ?? this.box.clientHeight / 2;
    const row = this.rows().length > 0 ? this.rowAt(y) : undefined;
    const within = (y + this.box.scrollTop) % ROW;
    const all = this.box.scrollHeight <= this.box.clientHeight;
    change();
    this.spacer.style.height = `${Math.max(this.rows().length * ROW, this.box.clientHeight)}px`;
    if (row !== undefined && !all) this.box.scrollTop = this.index(row) * ROW + within - y;
  }

  show(row, how = "middle") {
    const top = this.index(row) * ROW;
    const { scrollTop, clientHeight } = this.box;
    if (how === "nearest" && top >= scrollTop && top + ROW <= scrollTop + clientHeight) return;
    this.box.scrollTop = top - (clientHeight - ROW) / 2;
  }

  draw() {
    const { picture, box } = this;
    picture.begin(box.clientWidth, box.clientHeight);
    backdrop(picture);
    const rows = this.rows();
    const first = Math.max(Math.floor(box.scrollTop / ROW), 0);
    const last = Math.min(Math.ceil((box.scrollTop + box.clientHeight) / ROW), rows.length);
    for (let n = first; n < last; n++) {
      const y = n * ROW - box.scrollTop;
      this.ground(rows[n], n, y);
    }
    markLines(picture);
    for (let n = first; n < last; n++) {
      const y = n * ROW - box.scrollTop;
      if (this.type === "fetch") drawFetch(picture, rows[n], y);
      else drawFile(picture, rows[n], y);
    }
    picture.fill(picture.left - 1, 0, 1, picture.height, colours.line);
    if (rows.length === 0) picture.text(this.empty(), 12, 16, colours.muted);
  }

  empty() {
    const all = this.type === "fetch" ? view.trace.fetches.length : view.trace.rows.length;
    const what = this.type === "fetch" ? "fetches" : "reads of files";
    return all === 0 ? `This trace has no ${what}.` : `No ${what} of these kinds in this range.`;
  }

  // Draws a row's background: alternating, hovered, pinned or linked.
  ground(row, n, y) {
    const { picture } = this;
    const is = (item) => item !== null && ((this.type === "fetch" && item.type === "fetch" && item.index === row)
      || (this.type === "file" && ((item.type === "file" && item.index === row) || (item.type === "touch" && view.trace.rows.ofTouch[item.index] === row))));
    let colour = n % 2 === 1 ? colours.stripe : null;
    if (view.pinned && this.isLinked(row)) colour = colours.linked;
    if (is(view.hover)) colour = colours.hover;
    if (is(view.focus) || is(view.pinned)) colour = colours.chosen;
    if (colour) picture.fill(0, y, picture.width, ROW, colour);
  }

  isLinked(row) {
    if (this.type === "fetch") return view.links.fetches.has(row);
    if (this.linksFor !== view.links) {
      this.linksFor = view.links;
      this.linkedRows = new Set([...view.links.touches].map((touch) => view.trace.rows.ofTouch[touch]));
    }
    return this.linkedRows.has(row);
  }

  // Returns the item at a position: in a file's row the nearest touch, if one is near.
  item(x, y) {
    const rows = this.rows();
    const n = Math.floor((y + this.box.scrollTop) / ROW);
    if (n < 0 || n >= rows.length) return null;
    if (this.type === "fetch") return { type: "fetch", index: rows[n] };
    return nearestTouch(this.picture, rows[n], x) ?? { type: "file", index: rows[n] };
  }
}

const nearestTouch = (picture, row, x) => {
  const { rows, touches } = view.trace;
  if (x < picture.left) return null;
  let best = null;
  let distance = 6;
  for (let n = rows.begin[row]; n < rows.begin[row + 1]; n++) {
    const touch = rows.touch[n];
    if (!view.tiers[touches.tier[touch]]) continue;
    const [from, to] = [picture.x(touches.at[touch]), picture.x(touches.end[touch])];
    const away = Math.max(from - x, x - to, 0);
    if (away < distance || (away === 0 && best !== null && touches.wait[touch] < touches.wait[best])) {
      best = touch;
      distance = away;
    }
  }
  return best === null ? null : { type: "touch", index: best };
};

const drawFetch = (picture, i, y) => {
  const { fetches, files } = view.trace;
  const kind = fetches.class[i];
  const file = fetches.file[i];
  const { c, left } = picture;
  c.globalAlpha = dimmed(file) ? 0.3 : 1;
  picture.fill(8, y + 5, 8, 8, colours.classes[kind]);
  const name = fetches.file[i] >= 0 ? files[file].path : CLASSES[kind][1];
  picture.clip(0, y, left - 66, ROW, () => picture.path(name, 22, y + 9, left - 92, colours.ink, colours.muted));
  picture.text(bytes(fetches.bytes[i]), left - 8, y + 9, colours.muted, { size: 11, align: "right" });
  const at = fetches.phase.map((times) => picture.x(times[i]));
  const width = Math.max(at[4] - at[0], 2);
  for (let n = 0; n < 4; n++) picture.rect(at[n], y + 4, at[n + 1] - at[n], 10, colours.phases[kind][n]);
  if (at[4] - at[0] < 2) picture.rect(at[0], y + 4, 2, 10, colours.phases[kind][2]);
  if (fetches.onPath[i] && width >= 4) picture.outline(at[0], y + 4, width, 10, colours.outline);
  if (at[0] < picture.width && at[4] > left) {
    const failed = fetches.outcome[i] !== 0;
    const words = failed ? `✕ ${OUTCOMES[fetches.outcome[i]]}` : time(fetches.end[i] - fetches.start[i]);
    picture.clip(left, y, picture.width - left, ROW, () => barLabel(picture, words, at[0], at[0] + width, y, failed ? colours.bad : colours.muted));
  }
  c.globalAlpha = 1;
};

// Draws a label after the bar, or before it if there is no room.
const barLabel = (picture, words, from, to, y, colour) => {
  if (to + 70 < picture.width) picture.text(words, to + 6, y + 9, colour, { size: 11 });
  else if (from - 70 > picture.left) picture.text(words, from - 6, y + 9, colour, { size: 11, align: "right" });
};

const drawFile = (picture, row, y) => {
  const { rows, touches, files } = view.trace;
  const file = rows.file[row];
  const { c, left } = picture;
  c.globalAlpha = dimmed(file) ? 0.3 : 1;
  picture.fill(8, y + 5, 8, 8, colours.tiers[rows.tier[row]]);
  const name = file >= 0 ? files[file].path : "(a file that is not named)";
  picture.clip(0, y, left - 66, ROW, () => picture.path(name, 22, y + 9, left - 92, colours.ink, colours.muted));
  picture.text(time(rows.wait[row]), left - 8, y + 9, colours.muted, { size: 11, align: "right" });
  drawTouches(picture, row, y);
  c.globalAlpha = 1;
};

const drawTouches = (picture, row, y) => {
  const { rows, touches } = view.trace;
  let longest = -1;
  const drawnUntil = colours.tiers.map(() => -1);
  for (let n = rows.begin[row]; n < rows.begin[row + 1]; n++) {
    const i = rows.touch[n];
    const tier = touches.tier[i];
    if (!view.tiers[tier]) continue;
    const from = picture.x(touches.at[i]);
    if (from > picture.width) break;
    const to = picture.x(touches.end[i]);
    if (to < picture.left) continue;
    if (longest < 0 || touches.wait[i] > touches.wait[longest]) longest = i;
    const pinned = view.links.touches.has(i);
    // Skip a touch that would overdraw one of the same colour in the same pixel.
    if (to - drawnUntil[tier] < 0.5 && !pinned) continue;
    drawnUntil[tier] = to;
    picture.rect(from, y + 4, Math.max(to - from, 2), 10, colours.tiers[tier]);
    // On a bar hardly wider than its border, nothing but the border would be visible.
    const wide = to - from >= 4;
    if (touches.first[i] && wide) picture.rect(from, y + 2, 2, 14, colours.ink);
    if ((touches.onPath[i] && wide) || pinned) picture.outline(from, y + 4, Math.max(to - from, 2), 10, colours.outline);
  }
  if (longest >= 0 && touches.wait[longest] * picture.perUs > 12) {
    const [from, to] = [picture.x(touches.at[longest]), picture.x(touches.end[longest])];
    // Do not overlap the next bar.
    const last = rows.touch[rows.begin[row + 1] - 1];
    if (last !== longest && picture.x(touches.at[last]) > to && picture.x(touches.at[last]) < to + 60) return;
    picture.clip(picture.left, y, picture.width - picture.left, ROW, () => barLabel(picture, time(touches.wait[longest]), from, to, y, colours.muted));
  }
};

const panes = {};
let axis = null;

const makePanes = () => {
  axis = { box: byId("axis"), picture: new Picture(byId("axis")), pointer: null };
  panes.fetch = new Pane("fetch", "fetch-pane");
  panes.file = new Pane("file", "file-pane");
  for (const pane of [axis, panes.fetch, panes.file]) listen(pane);
};

const showRow = (item, how) => {
  const { rows, path } = view.trace;
  if (item.type === "fetch") panes.fetch.show(item.index, how);
  else if (item.type === "file") panes.file.show(item.index, how);
  else if (item.type === "touch") panes.file.show(rows.ofTouch[item.index], how);
  else if (item.type === "path") {
    const { touch, fetch } = path.steps[item.index];
    if (touch >= 0) panes.file.show(rows.ofTouch[touch], how);
    if (fetch >= 0) panes.fetch.show(fetch, how);
  }
};

const drawAxis = () => {
  const { picture } = axis;
  picture.begin(panes.file.box.clientWidth, AXIS.height);
  const { left, width } = picture;
  picture.range(0, whole());
  pathBand(picture, AXIS.overview, 8, false);
  picture.range(view.from, view.to);
  const window = (at) => left + (at / whole()) * (width - left);
  picture.c.globalAlpha = 0.72;
  picture.fill(left, AXIS.overview, window(view.from) - left, 8, colours.paper);
  picture.fill(window(view.to), AXIS.overview, width - window(view.to), 8, colours.paper);
  picture.c.globalAlpha = 1;
  picture.c.strokeStyle = colours.ink;
  picture.c.strokeRect(window(view.from) + 0.5, AXIS.overview - 1.5, Math.max(window(view.to) - window(view.from) - 1, 2), 11);
  backdrop(picture, AXIS.ruler);
  drawBandwidth(picture);
  markLines(picture, AXIS.marks);
  const found = ticks(picture);
  const step = found.length > 1 ? found[1] - found[0] : 1;
  for (const at of found) {
    if (picture.x(at) >= left) picture.text(tickLabel(at, step), picture.x(at) + 4, AXIS.ruler + 8, colours.muted, { size: 11 });
  }
  drawMarkNames(picture);
  pathBand(picture, AXIS.path, 24, true);
  if (view.trace.path.steps.length === 0) picture.text("This trace has no critical path.", left + 8, AXIS.path + 12, colours.muted);
  const title = (name, y, more) => {
    picture.text(name, 8, y, colours.ink, { weight: "600" });
    if (more) picture.text(more, left - 8, y, colours.muted, { size: 11, align: "right" });
  };
  title("Whole trace", AXIS.overview + 4, width > 1000 ? time(view.trace.end) : "");
  title("Critical path", AXIS.path + 12, width > 1000 ? "what the start waited for" : "");
  title("Bandwidth", AXIS.bandwidth + 12, axis.peak > 0 ? `up to ${bytes(axis.peak)}/s` : "");
  picture.fill(left - 1, 0, 1, picture.height, colours.line);
};

const drawMarkNames = (picture) => {
  const lanes = [[], []];
  // "ready" matters most, "begin" least.
  const rank = ({ name }) => ({ ready: 0, "first-exec": 1, mounted: 2, begin: 4 })[name] ?? 3;
  for (const mark of view.trace.marks.slice(0, 500).sort((a, b) => rank(a) - rank(b))) {
    const x = picture.x(mark.at);
    if (x < picture.left - 1 || x > picture.width) continue;
    const ready = mark.name === "ready";
    const weight = ready ? "600" : "";
    const label = tail(mark.name, 30);
    const width = picture.measure(label, { size: 11, weight });
    const outside = x + width + 8 > picture.width;
    const begin = outside ? x - width - 5 : x + 4;
    const lane = lanes.findIndex((taken) => taken.every(([from, to]) => begin > to || begin + width < from));
    if (lane < 0) continue;
    picture.text(label, begin, AXIS.marks + 6 + lane * 12, ready ? colours.ready : colours.muted, { size: 11, weight });
    lanes[lane].push([begin, begin + width + 8]);
  }
};

const drawBandwidth = (picture) => {
  const { received } = view;
  const height = AXIS.height - AXIS.bandwidth - 2;
  const wide = Math.max((picture.width - picture.left) / 2, 1);
  const step = (view.to - view.from) / wide;
  const rates = [];
  for (let n = 0; n < wide; n++) {
    const from = view.from + n * step;
    rates.push(((received(from + step) - received(from)) / step) * 1e6);
  }
  axis.peak = Math.max(...rates, 0);
  if (axis.peak <= 0) return;
  const { c } = picture;
  c.fillStyle = colours.area;
  c.beginPath();
  c.moveTo(picture.left, AXIS.height);
  rates.forEach((rate, n) => c.lineTo(picture.left + n * 2, AXIS.height - (rate / axis.peak) * height));
  c.lineTo(picture.width, AXIS.height);
  c.fill();
  counts.drawn += 1;
};

// Returns the item at a position of the first picture: a mark, or a step of the path.
const axisItem = (x, y) => {
  const { picture } = axis;
  const { marks, path } = view.trace;
  if (x < picture.left) return null;
  if (y >= AXIS.path && y < AXIS.path + 24) {
    const at = picture.at(x);
    const n = firstWhere(path.steps.length, (i) => path.steps[i].to > at);
    return n < path.steps.length && path.steps[n].from <= at ? { type: "path", index: n } : null;
  }
  if (y >= AXIS.bandwidth) return { type: "moment", index: picture.at(x) };
  const near = marks.findIndex((mark) => Math.abs(picture.x(mark.at) - x) < 5);
  return y >= AXIS.marks && y < AXIS.path && near >= 0 ? { type: "mark", index: near } : null;
};

const itemAt = (pane, x, y) => (pane === axis ? axisItem(x, y) : pane.item(x, y));

const listen = (pane) => {
  const { box } = pane;
  const place = (event) => {
    const bounds = box.getBoundingClientRect();
    return [event.clientX - bounds.left, event.clientY - bounds.top];
  };
  let drag = null;
  box.addEventListener("wheel", (event) => {
    const [x, y] = place(event);
    const { left } = pane.picture;
    if (x < left || event.shiftKey) {
      // With Shift, Chrome converts a vertical wheel event to a horizontal one.
      if (event.shiftKey && pane !== axis) box.scrollTop += event.deltaY || event.deltaX;
      if (event.shiftKey) event.preventDefault();
      return;
    }
    event.preventDefault();
    pane.pointer = pane === axis ? null : y;
    const lines = event.deltaMode === 1 ? 16 : event.deltaMode === 2 ? 400 : 1;
    if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) pan((event.deltaX * lines) / pane.picture.perUs);
    else zoom(Math.exp(Math.min(Math.max(event.deltaY * lines, -400), 400) * 0.0022), pane.picture.at(x));
  }, { passive: false });
  box.addEventListener("pointerdown", (event) => {
    const [x, y] = place(event);
    // The scroll bar is not part of the picture.
    if (event.button !== 0 || x >= pane.picture.width) return;
    drag = { x, y, from: view.from, to: view.to, top: box.scrollTop, moved: false, overview: pane === axis && y < AXIS.marks && x > pane.picture.left };
    if (drag.overview) moveWindow(x);
  });
  box.addEventListener("pointermove", (event) => {
    const [x, y] = place(event);
    pane.pointer = y;
    if (!drag) return hover(x < pane.picture.width ? itemAt(pane, x, y) : null, event.clientX, event.clientY);
    if (drag.overview) return moveWindow(x);
    if (!drag.moved && Math.hypot(x - drag.x, y - drag.y) < 4) return;
    if (!drag.moved) {
      drag.moved = true;
      box.setPointerCapture(event.pointerId);
      hover(null);
    }
    const by = (drag.x - x) / pane.picture.perUs;
    setRange(drag.from + by, drag.to + by);
    if (pane !== axis) box.scrollTop = drag.top + drag.y - y;
  });
  box.addEventListener("pointerup", (event) => {
    const [x, y] = place(event);
    if (drag && !drag.moved && !drag.overview) {
      view.focus = null;
      pin(itemAt(pane, x, y), event.clientX, event.clientY);
    }
    drag = null;
  });
  box.addEventListener("pointercancel", () => { drag = null; });
  box.addEventListener("pointerleave", () => {
    pane.pointer = null;
    if (!drag) hover(null);
  });
  box.addEventListener("dblclick", () => {
    pin(null);
    fitStart();
  });
  box.addEventListener("scroll", () => changed());
  if (pane !== axis) box.addEventListener("keydown", (event) => paneKey(pane, event));
};

const moveWindow = (x) => {
  const { picture } = axis;
  const at = ((x - picture.left) / (picture.width - picture.left)) * whole();
  const half = (view.to - view.from) / 2;
  setRange(at - half, at + half);
};

// Keyboard navigation of rows: up and down select, Enter pins.
const paneKey = (pane, event) => {
  const rows = pane.rows();
  if (rows.length === 0) return;
  const step = { ArrowDown: 1, ArrowUp: -1, PageDown: 20, PageUp: -20 }[event.key];
  if (step) {
    const now = view.focus?.type === pane.type ? pane.index(view.focus.index) : step > 0 ? -1 : rows.length;
    const row = rows[Math.min(Math.max(now + step, 0), rows.length - 1)];
    view.focus = { type: pane.type, index: row };
    pane.show(row, "nearest");
    showDetails();
    changed();
  } else if ((event.key === "Enter" || event.key === " ") && view.focus) pin(view.focus);
  else return;
  event.preventDefault();
};
