// Draws on canvases: colours, time to position, bars. The work per frame is bounded by the size of
// the canvas, not of the trace.

const counts = { frames: 0, drawn: 0, most: 0 };
let colours = null;

const readColours = () => {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(`--${name}`).trim();
  colours = {
    ink: of("ink"), muted: of("muted"), faint: of("faint"), line: of("line"), paper: of("paper"), stripe: of("stripe"), after: of("after"),
    chosen: of("chosen"), linked: of("linked"), hover: of("hover"), ready: of("ready"), mark: of("mark"), area: of("area"), bad: of("bad"), outline: of("outline"),
    kinds: Object.fromEntries(Object.keys(KINDS).map((kind) => [kind, of(`kind-${kind}`)])),
    other: of("kind-other"),
    tiers: TIERS.map(([name]) => of(`tier-${name}`)),
    classes: CLASSES.map(([name]) => of(`class-${name}`)),
    mono: of("mono"), sans: of("sans"),
  };
  colours.phases = colours.classes.map((colour) => [mix(colour, colours.paper, 0.72), mix(colour, colours.paper, 0.42), colour, mix(colour, of("deep"), 0.4)]);
};

const kindColour = (kind) => (Object.hasOwn(KINDS, kind) ? colours.kinds[kind] : colours.other);

// Mixes two colours in the form #rrggbb; `share` is the part of the second.
const mix = (a, b, share) => {
  const part = (colour, n) => parseInt(colour.slice(1 + 2 * n, 3 + 2 * n), 16);
  const mixed = [0, 1, 2].map((n) => Math.round(part(a, n) * (1 - share) + part(b, n) * share));
  return `#${mixed.map((n) => n.toString(16).padStart(2, "0")).join("")}`;
};

// Returns a text colour that is legible on a background.
const writing = (colour) => {
  const [r, g, b] = [1, 3, 5].map((n) => parseInt(colour.slice(n, n + 2), 16));
  return 0.299 * r + 0.587 * g + 0.114 * b > 120 ? "#101418" : "#ffffff";
};

class Picture {
  constructor(canvas) {
    this.canvas = canvas;
    this.c = canvas.getContext("2d");
    this.width = this.height = 0;
  }

  // Begins a frame: sizes the canvas to its box, in device pixels.
  begin(width, height) {
    const scale = window.devicePixelRatio || 1;
    if (this.width !== width || this.height !== height || this.scale !== scale) {
      Object.assign(this, { width, height, scale });
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(height * scale);
      this.canvas.style.width = `${width}px`;
      this.canvas.style.height = `${height}px`;
    }
    this.c.setTransform(scale, 0, 0, scale, 0, 0);
    this.c.clearRect(0, 0, width, height);
    this.c.textBaseline = "middle";
    this.left = names(width);
    this.range(view.from, view.to);
  }

  range(from, to) {
    this.from = from;
    this.perUs = (this.width - this.left) / (to - from);
  }

  x(at) {
    return this.left + (at - this.from) * this.perUs;
  }

  at(x) {
    return this.from + (x - this.left) / this.perUs;
  }

  rect(x, y, width, height, colour) {
    // Clamp: coordinates far outside the canvas lose precision.
    const begin = Math.max(x, this.left);
    const end = Math.min(x + width, this.width + 4);
    if (end <= begin) return;
    this.fill(begin, y, end - begin, height, colour);
  }

  fill(x, y, width, height, colour) {
    this.c.fillStyle = colour;
    this.c.fillRect(x, y, width, height);
    counts.drawn += 1;
  }

  outline(x, y, width, height, colour) {
    const begin = Math.max(x, this.left);
    const end = Math.min(x + width, this.width + 4);
    if (end <= begin) return;
    this.c.strokeStyle = colour;
    this.c.lineWidth = 1;
    this.c.strokeRect(begin - 1, y - 1, end - begin + 2, height + 2);
    counts.drawn += 1;
  }

  text(value, x, y, colour, { mono = false, size = 12, align = "left", weight = "" } = {}) {
    this.c.font = `${weight} ${size}px ${mono ? colours.mono : colours.sans}`;
    this.c.fillStyle = colour;
    this.c.textAlign = align;
    this.c.fillText(value, x, y);
    counts.drawn += 1;
  }

  measure(value, { mono = false, size = 12, weight = "" } = {}) {
    this.c.font = `${weight} ${size}px ${mono ? colours.mono : colours.sans}`;
    return this.c.measureText(value).width;
  }

  // Clips drawing to a rectangle, so that long names and bars do not overlap.
  clip(x, y, width, height, draw) {
    this.c.save();
    this.c.beginPath();
    this.c.rect(x, y, width, height);
    this.c.clip();
    draw();
    this.c.restore();
  }

  // Draws the end of a path, the directory fainter than the name.
  path(value, x, y, width, colour, faint) {
    const each = this.measure("m", { mono: true, size: 11 });
    const fitting = tail(value, Math.floor(width / each));
    const name = fitting.lastIndexOf("/") + 1;
    this.text(fitting.slice(0, name), x, y, faint, { mono: true, size: 11 });
    this.text(fitting.slice(name), x + name * each, y, colour, { mono: true, size: 11 });
  }
}

// Width of the names in a picture.
const names = (width) => Math.round(Math.min(Math.max(width * 0.27, 150), 460));

// Times of the grid lines: 1, 2 or 5 times a power of ten apart, and at least 90 pixels.
const ticks = (picture) => {
  const least = 90 / picture.perUs;
  const power = 10 ** Math.floor(Math.log10(least));
  const step = Math.max(1, [1, 2, 5, 10].map((n) => n * power).find((n) => n >= least));
  const found = [];
  for (let at = Math.ceil(picture.from / step) * step; picture.x(at) <= picture.width && found.length < 100; at += step) found.push(at);
  return found;
};

const tickLabel = (at, step) => {
  const unit = at >= 1e6 || step >= 1e6 ? [1e6, "s"] : at >= 1000 || step >= 1000 ? [1000, "ms"] : [1, "µs"];
  const places = Math.max(0, Math.ceil(Math.log10(unit[0] / step) - 1e-9));
  return `${(at / unit[0]).toFixed(Math.min(places, 6))} ${unit[1]}`;
};

// Draws the common background of all pictures.
const backdrop = (picture, top = 0) => {
  const { ready } = view.trace;
  for (const at of ticks(picture)) picture.rect(picture.x(at), top, 1, picture.height - top, colours.line);
  if (ready !== null && picture.x(ready) < picture.width) picture.rect(picture.x(ready), top, picture.width, picture.height - top, colours.after);
  if (view.pinned) {
    const [from, to] = span(view.pinned);
    picture.rect(picture.x(from), top, Math.max((to - from) * picture.perUs, 1), picture.height - top, colours.linked);
  }
};

const markLines = (picture, top = 0) => {
  view.trace.marks.slice(0, 500).forEach(({ at, name }) => {
    const ready = name === "ready";
    picture.rect(picture.x(at) - (ready ? 1 : 0), top, ready ? 2 : 1, picture.height - top, ready ? colours.ready : colours.mark);
  });
};

// Binary search: the first index below `length` for which `wanted` holds; it must hold for all
// later ones.
const firstWhere = (length, wanted) => {
  let [low, high] = [0, length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (wanted(middle)) high = middle;
    else low = middle + 1;
  }
  return low;
};

// Draws the steps of the path in one line. Steps narrower than a pixel are summed up per column and
// stacked by kind, so that no step hides another.
const pathBand = (picture, y, height, outlined) => {
  const { steps } = view.trace.path;
  let column = -1;
  let sums = new Map();
  const flush = () => {
    let top = y;
    const all = [...sums.values()].reduce((a, b) => a + b, 0);
    for (const [kind, sum] of sums) {
      picture.rect(column, top, 1, (height * sum) / all, kindColour(kind));
      top += (height * sum) / all;
    }
    sums = new Map();
  };
  for (let n = firstWhere(steps.length, (i) => steps[i].to > picture.from); n < steps.length; n++) {
    const step = steps[n];
    const [from, to] = [picture.x(step.from), picture.x(step.to)];
    if (from > picture.width) break;
    if (to - from >= 1) picture.rect(from, y, to - from, height, kindColour(step.kind));
    else {
      if (Math.floor(from) !== column) {
        if (sums.size > 0) flush();
        column = Math.floor(from);
      }
      sums.set(step.kind, (sums.get(step.kind) ?? 0) + step.to - step.from);
    }
    if (outlined && view.pinned?.type === "path" && view.pinned.index === n) picture.outline(from, y + 1, Math.max(to - from, 2), height - 2, colours.outline);
  }
  if (sums.size > 0) flush();
};

// Bytes received until a time: the sum of all transfers, each assumed to be uniform.
const makeReceived = ({ fetches }) => {
  const changes = [];
  for (let i = 0; i < fetches.length; i++) {
    if (fetches.outcome[i] !== 0 || fetches.bytes[i] === 0) continue;
    const from = fetches.phase[2][i];
    const to = Math.max(fetches.phase[3][i], from + 1);
    const rate = fetches.bytes[i] / (to - from);
    changes.push([from, rate], [to, -rate]);
  }
  changes.sort((a, b) => a[0] - b[0]);
  const at = new Float64Array(changes.length);
  const sum = new Float64Array(changes.length);
  const rate = new Float64Array(changes.length);
  changes.forEach(([when, change], n) => {
    at[n] = when;
    sum[n] = n > 0 ? sum[n - 1] + rate[n - 1] * (when - at[n - 1]) : 0;
    rate[n] = (n > 0 ? rate[n - 1] : 0) + change;
  });
  return (when) => {
    const n = firstWhere(at.length, (i) => at[i] > when) - 1;
    return n < 0 ? 0 : sum[n] + rate[n] * (when - at[n]);
  };
};
