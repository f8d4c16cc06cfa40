// Shows the summary: how long the start took, where the time went, sums.

const showSummary = () => {
  const { trace } = view;
  const { path } = trace;
  document.title = `${trace.title || trace.command.join(" ") || "trace"} · inlay trace`;
  byId("title").textContent = trace.title || trace.command.join(" ") || "A trace without a title";
  byId("title").title = trace.command.join(" ");
  byId("about").replaceChildren(...about(trace));
  byId("verdict-name").textContent = trace.ready === null ? "Recorded for" : "Ready after";
  byId("ready").textContent = time(trace.ready ?? trace.duration);
  byId("ready-by").textContent = trace.ready === null ? "nothing in this trace says when it was ready" : trace.readyBy;
  const kinds = [...Object.keys(KINDS).filter((kind) => path.sums.has(kind)), ...[...path.sums.keys()].filter((kind) => !Object.hasOwn(KINDS, kind))];
  const sums = kinds.map((kind) => path.sums.get(kind));
  const parts = shares(sums);
  byId("sentence").textContent = sentence(path);
  byId("share").replaceChildren(...kinds.map((kind, n) => {
    const part = element("div", { class: "part", title: `${kindName(kind)}: ${time(sums[n])}, ${percent(parts[n])}` }, parts[n] >= 60 ? percent(parts[n]) : "");
    part.style.flexGrow = sums[n];
    part.style.background = kindColour(kind);
    part.style.color = writing(kindColour(kind));
    return part;
  }));
  byId("share").setAttribute("aria-label", kinds.map((kind, n) => `${kindName(kind)} ${time(sums[n])}, ${percent(parts[n])}`).join("; "));
  byId("sums").replaceChildren(...kinds.map((kind, n) => element("li", { "data-kind": kind, "data-us": sums[n] }, swatch(kindColour(kind)), element("span", { class: "what" }, kindName(kind)), element("b", {}, time(sums[n])), element("span", { class: "percent" }, percent(parts[n])))));
  showWorst();
  showCards();
  showWarnings();
};

const about = (trace) => {
  const images = trace.snapshots.slice(0, 6).map(({ id, name }) => name || tail(id, 20));
  const { kernel, cores } = trace.host;
  const parts = [
    ["Image", images.join(" + ") + (trace.snapshots.length > 6 ? ` + ${trace.snapshots.length - 6} more` : "")],
    ["Store", [...new Set(trace.snapshots.map(({ store }) => store).filter(Boolean))].slice(0, 2).join(", ")],
    ["Host", [typeof kernel === "string" ? `Linux ${text(kernel)}` : "", typeof cores === "number" ? count(cores, "core") : ""].filter(Boolean).join(", ")],
    ["inlay", trace.version], ["Recorded", trace.recorded],
  ];
  return parts.filter(([, value]) => value).map(([name, value]) => element("span", {}, element("span", { class: "label" }, name), ` ${value}`));
};

const sentence = ({ sums, target }) => {
  if (sums.size === 0) return "This trace has no critical path.";
  const waited = [...WAITS].reduce((sum, kind) => sum + (sums.get(kind) ?? 0), 0);
  return `${time(waited)} of ${time(target)} were spent waiting for the store`;
};

const showWorst = () => {
  const { path, touches, fetches } = view.trace;
  const waits = path.steps.map((step, n) => ({ step, n })).filter(({ step }) => WAITS.has(step.kind));
  waits.sort((a, b) => b.step.to - b.step.from - a.step.to + a.step.from);
  const name = (step) => (step.touch >= 0 ? pathOf(touches.file[step.touch]) : step.what || (step.fetch >= 0 ? `${CLASSES[fetches.class[step.fetch]][1]} fetch` : kindName(step.kind)));
  byId("worst-list").replaceChildren(...waits.slice(0, 5).map(({ step, n }) => element("li", {}, element("button", { title: name(step), onclick: () => goTo({ type: "path", index: n }) }, swatch(kindColour(step.kind)), element("b", {}, time(step.to - step.from)), element("span", { class: "path" }, element("bdi", {}, name(step)))))));
  byId("worst").hidden = waits.length === 0;
};

const showCards = () => {
  const { touches, fetches, rows, served } = view.trace;
  const many = (column, value) => column.reduce((sum, each) => sum + (each === value ? 1 : 0), 0);
  const first = many(touches.first, 1);
  const sum = (column) => column.reduce((all, each) => all + each, 0);
  const failed = many(fetches.outcome, 1);
  const cancelled = many(fetches.outcome, 2);
  const waiting = touches.wait.reduce((all, wait, i) => all + (touches.tier[i] === 2 || touches.tier[i] === 3 ? wait : 0), 0);
  const demand = many(fetches.class, 0);
  const cards = [
    ["Files read", grouped(rows.length), first === rows.length ? `in ${count(touches.length, "read")}` : `in ${count(touches.length, "read")}, ${grouped(first)} first ones`],
    ["Without a wait", touches.length > 0 ? percent(Math.round((1000 * (many(touches.tier, 0) + many(touches.tier, 1) + many(touches.tier, 4))) / touches.length)) : "–", "of the reads"],
    ["Readers' waits", time(waiting), "all readers together"],
    ["Fetches", grouped(fetches.length), `${grouped(demand)} on demand`],
    ["Fetched", bytes(sum(fetches.bytes)), "as stored"],
  ];
  if (failed + cancelled > 0) cards.push(["Without success", grouped(failed + cancelled), `${failed} failed, ${cancelled} cancelled`]);
  if (number(served.requests, -1) >= 0) cards.push(["FUSE requests", grouped(number(served.requests)), `${time(number(served.time))} in the daemon`]);
  byId("cards").replaceChildren(...cards.map(([name, value, more]) => element("div", {}, element("dt", {}, name), element("dd", {}, element("b", {}, value), element("small", {}, more)))));
};

const showWarnings = () => {
  const { dropped, touches, fetches, path, ready } = view.trace;
  const warnings = [];
  if (dropped > 0) warnings.push(`${count(dropped, "event")} found the recorder's buffer full and ${dropped === 1 ? "is" : "are"} missing: sums and rows below are too small.`);
  const lost = path.sums.get("unexplained") ?? 0;
  if (lost > path.target * 0.05) warnings.push(`${time(lost)} of the critical path are not explained by what was recorded.`);
  byId("warnings").replaceChildren(...warnings.map((words) => element("p", { class: "warning", role: "alert" }, words)));
  const notes = [];
  if (touches.length === 0 && fetches.length === 0) notes.push("Nothing was read and nothing was fetched while this was recorded.");
  if (ready === null) notes.push("Nothing says when the start was ready: times are until the end of the recording.");
  byId("warnings").append(...notes.map((words) => element("p", { class: "note" }, words)));
};

const showLegends = () => {
  const { fetches, touches } = view.trace;
  const legend = (id, names, column, state, palette) => {
    const many = names.map(() => 0);
    for (const value of column) many[value] += 1;
    byId(id).replaceChildren(...names.map(([, name, what], n) => {
      const button = element("button", { "aria-pressed": String(state[n]), title: `${what}: click hides or shows, double click shows only these`, "data-n": n }, swatch(palette[n]), `${name} `, element("small", {}, grouped(many[n])));
      button.addEventListener("click", () => toggle(state, n, !state[n]));
      button.addEventListener("dblclick", () => {
        state.fill(false);
        toggle(state, n, true);
      });
      return many[n] > 0 ? button : "";
    }));
  };
  const toggle = (state, n, value) => {
    state[n] = value;
    for (const [id, of] of [["classes", view.classes], ["tiers", view.tiers]]) {
      for (const button of byId(id).children) button.setAttribute("aria-pressed", String(of[button.dataset.n]));
    }
    findHits();
    view.hit = -1;
    showHits();
    changed();
  };
  legend("classes", CLASSES, fetches.class, view.classes, colours.classes);
  legend("tiers", TIERS, touches.tier, view.tiers, colours.tiers);
  byId("phases").replaceChildren(...PHASES.map((name, n) => element("span", {}, swatch(colours.phases[3][n]), name)));
  byId("file-keys").replaceChildren(element("span", {}, element("i", { class: "first" }), "first read"), element("span", {}, element("i", { class: "outlined" }), "on the critical path"));
};
