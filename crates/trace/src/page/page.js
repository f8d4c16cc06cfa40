// Starts the page, redraws it on changes, and handles buttons and keys.

let frame = 0;

const changed = () => {
  if (frame === 0) frame = requestAnimationFrame(draw);
};

const draw = () => {
  frame = 0;
  if (byId("waterfall").hidden) return;
  counts.drawn = 0;
  refresh();
  drawAxis();
  panes.fetch.draw();
  panes.file.draw();
  counts.frames += 1;
  counts.most = Math.max(counts.most, counts.drawn);
  const step = (view.to - view.from) / 100;
  byId("range").textContent = `${tickLabel(view.from, step)} – ${tickLabel(Math.min(view.to, view.trace.end), step)}`;
  const of = (rows, all) => (rows === all ? grouped(all) : `${grouped(rows)} of ${grouped(all)}`);
  byId("fetch-count").textContent = of(view.fetches.length, view.trace.fetches.length);
  byId("file-count").textContent = of(view.files.length, view.trace.rows.length);
};

const showHits = () => {
  const many = view.hits.length;
  byId("hits").textContent = view.query === "" ? "" : many === 0 ? "no hits" : view.hit < 0 ? count(many, "hit") : `${grouped(view.hit + 1)} of ${grouped(many)}`;
  byId("hit-back").disabled = byId("hit-next").disabled = many === 0;
};

const nextHit = (by) => {
  showTab("waterfall");
  stepHit(by);
  showHits();
};

const onKey = (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = event.target.id === "search" || event.target.id === "order";
  if (event.key === "Escape") return escape(typing);
  if (typing || event.defaultPrevented) return;
  const tenth = (view.to - view.from) / 10;
  const keys = {
    ArrowLeft: () => pan(-tenth), ArrowRight: () => pan(tenth), "+": () => zoom(1 / 1.5), "=": () => zoom(1 / 1.5), "-": () => zoom(1.5), 0: fitStart,
    "/": () => byId("search").focus(), "[": () => stepPath(-1), "]": () => stepPath(1),
  };
  // A focused button handles arrow and other keys itself.
  if (!Object.hasOwn(keys, event.key) || byId("waterfall").hidden) return;
  keys[event.key]();
  event.preventDefault();
};

const escape = (typing) => {
  if (view.pinned || view.focus) {
    view.focus = null;
    pin(null);
  } else {
    byId("search").value = "";
    search("");
    showHits();
    changed();
  }
  if (typing) byId("search").blur();
};

const listenToPage = () => {
  const click = (id, action) => byId(id).addEventListener("click", action);
  click("zoom-in", () => zoom(1 / 1.5));
  click("zoom-out", () => zoom(1.5));
  click("fit", fit);
  click("fit-start", fitStart);
  click("hit-next", () => nextHit(1));
  click("hit-back", () => nextHit(-1));
  click("path-next", () => stepPath(1));
  click("path-back", () => stepPath(-1));
  click("page-next", () => turnPage(1));
  click("page-back", () => turnPage(-1));
  for (const tab of ["waterfall", "waits", "path"]) click(`tab-${tab}`, () => showTab(tab));
  byId("search").addEventListener("input", (event) => {
    search(event.target.value);
    showHits();
    changed();
  });
  byId("search").addEventListener("keydown", (event) => {
    if (event.key === "Enter") nextHit(event.shiftKey ? -1 : 1);
  });
  byId("in-range").addEventListener("change", (event) => {
    view.onlyInRange = event.target.checked;
    changed();
  });
  byId("order").addEventListener("change", (event) => {
    view.order = event.target.value;
    refresh();
    for (const pane of Object.values(panes)) pane.box.scrollTop = 0;
    changed();
  });
  document.addEventListener("keydown", onKey);
  new ResizeObserver(changed).observe(byId("waterfall"));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
    readColours();
    showSummary();
    showLegends();
    changed();
  });
};

const start = () => {
  try {
    view.trace = readTrace(byId("trace").textContent);
  } catch (error) {
    if (!(error instanceof Unusable)) throw error;
    byId("warnings").replaceChildren(element("p", { class: "warning", role: "alert" }, error.message));
    return;
  }
  view.links = linked(null);
  view.received = makeReceived(view.trace);
  readColours();
  byId("main").hidden = false;
  showSummary();
  makePanes();
  showLegends();
  listenToPage();
  fitStart();
};

// For tests, and for debugging on the console.
window.inlayTrace = { view, counts, panes, where: (item) => where(item) };
start();
