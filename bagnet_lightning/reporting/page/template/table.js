// What all parts of the page share, and the tables.

const make = (tag, className, ...children) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...children.filter(child => child !== null && child !== undefined && child !== ""));
  return element;
};
const at = id => document.getElementById(id);
const known = value => value !== null && value !== undefined;
const share = value => known(value) ? value.toFixed(4) : "";
const signed = value => known(value) ? (value < 0 ? "−" : "+") + Math.abs(value).toFixed(4) : "";
const grouped = value => known(value) ? Math.round(value).toLocaleString("en") : "";
const duration = seconds => !known(seconds) ? "" : seconds < 9.95 ? `${seconds.toFixed(1)} s` : seconds < 99.5 ? `${Math.round(seconds)} s`
  : seconds < 5970 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
const bytes = count => !known(count) ? "" : count < 2 ** 20 / 10 ? `${(count / 2 ** 10).toFixed(1)} KiB` : `${(count / 2 ** 20).toFixed(1)} MiB`;
const runLink = (name, ...children) => Object.assign(make("a", "", ...children), { href: `#run=${encodeURIComponent(name)}` });
const direction = value => !known(value) || Math.abs(value) < 5e-5 ? "" : value > 0 ? "up" : "down";

const narrow = matchMedia("screen and (max-width: 760px)");

// Of each column: its name, a row's value to sort by, and the cell's content. `left`: of words. `strong`, and
// `first` and those of sweeps: at the front of a narrow screen, which has no room for all.
function columns(data) {
  const several = data.sweeps.length > 1, any = of => data.rows.some(row => row.entries.some(entry => entry && of(entry, row)));
  const list = [
    ...(data.rows.some(row => known(row.row)) ? [{ name: "row", of: row => row.row }] : []),
    { name: "model", left: true, first: true, of: row => row.model_name, cell: modelCell },
    { name: "optimizer", left: true, first: true, of: row => row.optimizer_name },
    ...(data.rows.some(row => row.pretrained !== "no") ? [{ name: "pretrained", left: true, of: row => row.pretrained }] : []),
    ...(known(onlyEpochs(data)) ? [] : [{ name: "epochs", of: row => row.epochs }]),
    ...data.settings.filter(s => data.rows.some(row => known(row.settings[s.key])))
      .map(s => ({ name: s.name, title: s.key, of: row => row.settings[s.key] })),
  ];
  const compared = data.rows.some(row => known(row.paper));
  const paper = { name: "paper", of: row => row.paper, show: (value, row) => row.comparable ? share(value) : `(${share(value)})` };
  data.sweeps.forEach((sweep, i) => {
    const of = name => row => row.entries[i]?.[name], group = several ? sweep.name : null;
    list.push({ group, name: "accuracy", of: of("accuracy"), cell: row => accuracyCell(data, row.entries[i], several), strong: true });
    if (any(entry => known(entry.std))) list.push(
      { group, name: "±", title: "standard deviation over seeds or folds", of: of("std"), show: share },
      { group, name: "n", title: "runs that differ only in their seed or fold", of: of("n") });
    for (const name of measuresOf(data, i)) list.push(
      { group, name, title: "in the best epoch", of: row => row.entries[i]?.measures[name], show: share });
    if (compared && !several) list.push(paper);
    if (any(entry => known(entry.difference)))
      list.push({ group, name: several ? "− paper" : "difference", of: of("difference"), show: signed, direction: true });
    if (!several) list.push(
      { name: "top-5", of: of("top5"), show: share },
      { name: "parameters", of: of("parameters"), show: grouped },
      { name: "img/s", of: of("speed"), show: grouped },
      { name: "time", of: of("seconds"), show: duration });
  });
  if (compared && several) list.splice(list.findIndex(column => column.group), 0, paper);
  if (data.sweeps.length === 2) list.push({ name: "2nd − 1st", title: `${data.sweeps[1].name} less ${data.sweeps[0].name}`, show: signed, direction: true,
    of: ({ entries: [a, b] }) => known(a?.accuracy) && known(b?.accuracy) ? b.accuracy - a.accuracy : null });
  return list;
}

// What is shown of a sweep beside the accuracy: what chose best epochs, and what callbacks have logged.
function measuresOf(data, sweep) {
  const entry = data.rows.map(row => row.entries[sweep]).find(known);
  return entry ? Object.keys(entry.measures) : [];
}

// The number of epochs, if it is the same everywhere: then it needs no column.
const onlyEpochs = data => new Set(data.rows.map(row => row.epochs)).size === 1 ? data.rows[0].epochs : null;

const modelCell = row => runLink(row.entries.find(Boolean).runs[0], row.model_name);

// The accuracy, or why there is none.
function accuracyCell(data, entry, several) {
  if (!entry) return "";
  if (known(entry.accuracy)) return several ? runLink(entry.runs[0], share(entry.accuracy)) : share(entry.accuracy);
  return stateOf(data, entry);
}

function stateOf(data, entry) {
  const { state } = data.runs[entry.runs[0]], badge = make("span", `state ${state}`, state);
  if (entry.error) badge.title = entry.error;
  return badge;
}

// The systems with a table of their own, and the runs that left a backbone.
function relatedColumns(data) {
  const any = name => data.related.some(row => known(row[name]));
  return [
    ...(data.sweeps.length > 1 ? [{ name: "sweep", left: true, of: row => row.sweep }] : []),
    { name: "system", left: true, first: true, of: row => row.system, cell: row => runLink(row.runs[0], row.system) },
    { name: "accuracy", of: row => row.accuracy, cell: row => accuracyCell(data, row, false), strong: true },
    ...(any("std") ? [{ name: "±", title: "standard deviation over seeds or folds", of: row => row.std, show: share },
      { name: "n", title: "runs that differ only in their seed or fold", of: row => row.n }] : []),
    { name: "top-5", of: row => row.top5, show: share },
    { name: "features", title: "time to compute the features of all images", of: row => row.feature_seconds, show: duration },
    { name: "training", title: "time to train on them", of: row => row.seconds, show: duration },
    { name: "size", title: "of what is needed to classify", of: row => row.bytes, show: bytes },
    ...(any("without_keypoints") ? [{ name: "without keypoints", title: "images; classified all the same", of: row => row.without_keypoints }] : []),
    { name: "explains", left: true, of: row => row.explains },
  ];
}

function pretrainingColumns(data) {
  return [
    ...(data.sweeps.length > 1 ? [{ name: "sweep", left: true, of: row => row.sweep }] : []),
    { name: "method", left: true, first: true, of: row => row.method, cell: row => runLink(row.runs[0], row.method) },
    { name: "model", left: true, of: row => row.model },
    { name: "epochs", of: row => row.epochs },
    { name: "loss", of: row => row.loss, cell: row => known(row.loss) ? share(row.loss) : stateOf(data, row), strong: true },
    { name: "neighbour nearer", title: "share of held-out triplets", of: row => row.nearer, show: share },
    { name: "by colour", title: "the same by the tiles' mean colours alone", of: row => row.byColour, show: share },
    { name: "time", of: row => row.seconds, show: duration },
    { name: "backbone", left: true, of: row => row.backbone, cell: row => make("span", "path", row.backbone) },
  ];
}

// A table whose headings sort it; state.sorts remembers by which column.
function showTable(id, columns, data, rows, state) {
  const front = column => Boolean(column.first || column.strong || column.group);
  const list = narrow.matches ? [...columns].sort((a, b) => front(b) - front(a)) : columns;
  const table = at(id), head = make("tr"), groups = make("tr"), sort = state.sorts[id] ?? {};
  const sorting = list.find(column => key(column) === sort.key);
  for (const column of list) {
    const th = make("th", column.left ? "left" : ""), button = make("button", "", column.name);
    button.type = "button";
    button.id = `${id}-${key(column)}`;
    if (column.title) button.title = column.title;
    th.scope = "col";
    th.setAttribute("aria-sort", column !== sorting ? "none" : sort.up ? "ascending" : "descending");
    button.addEventListener("click", () => {
      state.sorts[id] = { key: key(column), up: column === sorting ? !sort.up : Boolean(column.left) || column.name === "row" };
      showTable(id, columns, data, rows, state);
      at(button.id).focus();
    });
    th.append(button);
    head.append(th);
  }
  for (let i = 0; i < list.length;) {
    let end = i + 1;
    while (end < list.length && list[i].group && list[end].group === list[i].group) end++;
    const th = make("th", "group", list[i].group);
    th.colSpan = end - i;
    groups.append(th);
    i = end;
  }
  const sorted = sorting ? [...rows].sort((a, b) => compare(sorting.of(a), sorting.of(b), sort.up)) : rows;
  const body = make("tbody", "", ...sorted.map(row => make("tr", "", ...list.map(column => {
    const value = column.of(row), shown = column.cell ? column.cell(row)
      : !known(value) ? "" : column.show ? column.show(value, row) : String(value);
    return make("td", [column.left && "left", column.strong && "strong", column.direction && direction(value)].filter(Boolean).join(" "), shown);
  }))));
  table.replaceChildren(make("thead", "", ...(list.some(column => column.group) ? [groups] : []), head), body);
}

const key = column => `${column.group || ""}/${column.name}`.replace(/\s/g, "_");

// Numbers by size, words by letter, and what is unknown always last.
function compare(a, b, up) {
  if (!known(a) || !known(b)) return known(b) - known(a);
  const order = typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b), "en", { numeric: true });
  return up ? order : -order;
}
