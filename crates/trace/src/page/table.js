// Shows the same data as tables: sortable by any column, in pages.

const PAGE = 100;
const table = { name: "waits", sort: 1, down: true, page: 0, order: [] };

const TABLES = {
  waits: {
    about: "Every read that was recorded. Choose a column to sort by it, a name to see it in the waterfall.",
    sort: 1,
    length: () => view.trace.touches.length,
    item: (i) => ({ type: "touch", index: i }),
    columns: [
      ["Asked at", (i) => view.trace.touches.at[i], time],
      ["Waited", (i) => view.trace.touches.wait[i], time],
      ["File", (i) => pathOf(view.trace.touches.file[i]), null],
      ["Answered", (i) => TIERS[view.trace.touches.tier[i]][1], String],
      ["Offset", (i) => view.trace.touches.offset[i], grouped],
      ["Length", (i) => view.trace.touches.bytes[i], bytes],
      ["Fetch", (i) => (view.trace.touches.fetch[i] >= 0 ? CLASSES[view.trace.fetches.class[view.trace.touches.fetch[i]]][1] : ""), String],
      ["First", (i) => (view.trace.touches.first[i] ? "first" : ""), String],
      ["Critical path", (i) => (view.trace.touches.onPath[i] ? "yes" : ""), String],
    ],
  },
  path: {
    about: "What the start waited for, in its order; the times add up to the whole.",
    sort: 0,
    length: () => view.trace.path.steps.length,
    item: (n) => ({ type: "path", index: n }),
    columns: [
      ["From", (n) => view.trace.path.steps[n].from, time],
      ["Took", (n) => view.trace.path.steps[n].to - view.trace.path.steps[n].from, time],
      ["What", (n) => describe({ type: "path", index: n }).title, null],
      ["Kind", (n) => kindName(view.trace.path.steps[n].kind), String],
    ],
  },
};

const chooseTable = (name) => {
  Object.assign(table, { name, sort: TABLES[name].sort, down: name === "waits", page: 0 });
  sortTable();
};

const sortTable = () => {
  const { columns, length } = TABLES[table.name];
  const [, value] = columns[table.sort];
  const values = Array.from({ length: length() }, (_, i) => value(i));
  const sign = table.down ? -1 : 1;
  const compare = (a, b) => (a < b ? -1 : a > b ? 1 : 0);
  table.order = [...values.keys()].sort((a, b) => sign * compare(values[a], values[b]) || a - b);
  showTable();
};

const showTable = () => {
  const { columns, about: words, item } = TABLES[table.name];
  byId("table-about").textContent = words;
  byId("table-head").replaceChildren(...columns.map(([name], n) => {
    const sorted = n === table.sort ? (table.down ? "descending" : "ascending") : "none";
    return element("th", { scope: "col", "aria-sort": sorted }, element("button", { onclick: () => {
      Object.assign(table, { down: n === table.sort ? !table.down : n < 2, sort: n, page: 0 });
      sortTable();
    } }, name, element("span", { class: "sign", "aria-hidden": "true" }, { ascending: "▲", descending: "▼", none: "" }[sorted])));
  }));
  const rows = table.order.slice(table.page * PAGE, (table.page + 1) * PAGE);
  byId("table-body").replaceChildren(...rows.map((i) => element("tr", {}, ...columns.map(([, value, format]) => {
    if (format === null) return element("td", { class: "path" }, element("button", { onclick: () => goTo(item(i)) }, element("bdi", {}, value(i))));
    const number = typeof value(i) === "number";
    return element("td", number ? { class: "number" } : {}, number && value(i) < 0 ? "" : format(value(i)));
  }))));
  const pages = Math.max(Math.ceil(table.order.length / PAGE), 1);
  byId("page-at").textContent = table.order.length === 0 ? "Nothing was recorded." : `${grouped(table.page * PAGE + 1)} to ${grouped(table.page * PAGE + rows.length)} of ${grouped(table.order.length)}`;
  byId("page-back").disabled = table.page === 0;
  byId("page-next").disabled = table.page + 1 >= pages;
};

const turnPage = (by) => {
  table.page += by;
  showTable();
  byId("table-scroll").scrollTop = 0;
};

const showTab = (name) => {
  for (const tab of ["waterfall", "waits", "path"]) byId(`tab-${tab}`).setAttribute("aria-selected", String(tab === name));
  byId("waterfall").hidden = name !== "waterfall";
  byId("tables").hidden = name === "waterfall";
  if (name !== "waterfall") {
    view.focus = null;
    pin(null);
    chooseTable(name);
  }
  changed();
};
