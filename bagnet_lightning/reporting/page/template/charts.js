// Figure 2 and curves by Chart.js. Legends are buttons, which keyboards and screen readers reach.

const charts = {}; // canvas id -> Chart
const PALETTE = ["#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999"]; // Okabe & Ito's
const DASHES = [[], [7, 4], [2, 3], [9, 3, 2, 3], [12, 3]];

function plot(id, type, datasets, labels, options) {
  const style = getComputedStyle(document.documentElement), colour = name => style.getPropertyValue(name).trim();
  Chart.defaults.color = colour("--quiet");
  Chart.defaults.borderColor = colour("--line");
  Chart.defaults.font = { family: getComputedStyle(document.body).fontFamily, size: 12 };
  const all = { animation: false, responsive: true, maintainAspectRatio: false, ...options,
    plugins: { legend: { display: false }, ...options.plugins } };
  if (charts[id]?.canvas.isConnected) {
    Object.assign(charts[id], { options: all });
    Object.assign(charts[id].data, { datasets, labels });
    charts[id].update("none");
  } else {
    charts[id]?.destroy();
    charts[id] = new Chart(at(id), { type, data: { datasets, labels }, options: all, plugins: [whiskers] });
  }
  return charts[id];
}

// One standard deviation up and down, on bars that have one.
const whiskers = {
  id: "whiskers",
  afterDatasetsDraw(chart) {
    const { ctx, scales } = chart;
    chart.data.datasets.forEach((dataset, i) => dataset.std?.forEach((std, j) => {
      const bar = chart.getDatasetMeta(i).data[j];
      if (!known(std) || !bar || !chart.isDatasetVisible(i)) return;
      const [low, high] = [-1, 1].map(sign => scales.y.getPixelForValue(dataset.data[j] + sign * std));
      ctx.beginPath();
      ctx.moveTo(bar.x, low); ctx.lineTo(bar.x, high);
      for (const y of [low, high]) { ctx.moveTo(bar.x - 4, y); ctx.lineTo(bar.x + 4, y); }
      for (const [colour, width] of [["--card", 4], ["--ink", 1.5]]) { // seen on any bar
        ctx.strokeStyle = getComputedStyle(document.body).getPropertyValue(colour);
        ctx.lineWidth = width;
        ctx.stroke();
      }
    }));
  },
};

// Buttons that show and hide; state.hidden remembers what is hidden. items: [key, words, colour or dash].
function toggles(id, items, state, redraw) {
  const box = at(id), same = box.dataset.items === JSON.stringify(items);
  box.redraw = redraw;
  if (same) return; // a button that is renewed below the pointer would lose its click
  box.dataset.items = JSON.stringify(items);
  box.replaceChildren(...items.map(([key, words, mark]) => {
    const swatch = make("i", mark === "hollow" ? "hollow" : ""), button = make("button", "toggle", swatch, words);
    if (Array.isArray(mark)) swatch.replaceWith(dashMark(mark));
    else if (mark && mark !== "hollow") swatch.style.background = mark;
    button.type = "button";
    button.id = `${id}-${key}`;
    button.setAttribute("aria-pressed", !state.hidden.has(key));
    button.addEventListener("click", () => {
      state.hidden.has(key) ? state.hidden.delete(key) : state.hidden.add(key);
      button.setAttribute("aria-pressed", !state.hidden.has(key));
      box.redraw();
    });
    return button;
  }));
}

function dashMark(dash) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg"), line = document.createElementNS(svg.namespaceURI, "line");
  svg.setAttribute("viewBox", "0 0 28 8");
  for (const [name, value] of Object.entries({ x1: 0, x2: 28, y1: 4, y2: 4, stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": dash.join(" ") }))
    line.setAttribute(name, value);
  svg.append(line);
  return svg;
}

const optimizersOf = data => [...new Map(data.rows.map(row => [row.optimizer, row.optimizer_name]))];
const percent = value => known(value) ? 100 * value : null;

const variantOf = (data, row) => [`${row.epochs ?? "?"} epoch${row.epochs === 1 ? "" : "s"}`, row.pretrained === "no" ? "from scratch" : `pretrained (${row.pretrained})`,
  ...data.settings.filter(s => !s.of_networks && known(row.settings[s.key])).map(s => `${s.name} ${row.settings[s.key]}`)].join(", ");

function showFigure2(data, state) {
  const variants = [...new Set(data.rows.map(row => variantOf(data, row)))];
  const finished = words => data.rows.some(row => variantOf(data, row) === words && row.entries.some(entry => known(entry?.accuracy)));
  const usual = variants.includes("15 epochs, from scratch") ? "15 epochs, from scratch" : variants.find(finished) ?? variants[0];
  if (!variants.includes(state.variant)) state.variant = usual;
  at("figure2").hidden = !variants.length;
  at("variants").hidden = variants.length < 2;
  at("variant").replaceChildren(...variants.map(words => new Option(words, words, false, words === state.variant)));
  const redraw = () => drawFigure2(data, state);
  at("variant").onchange = () => { state.variant = at("variant").value; showFigure2(data, state); };
  toggles("figure2-toggles", [
    ...optimizersOf(data).map(([key, name]) => [key, name, data.colours[key]]),
    ...(data.rows.some(row => known(row.paper)) ? [["paper", "the paper" + (data.rows.some(row => row.comparable && variantOf(data, row) === state.variant) ? "" : " (other data or settings: not comparable)"), "hollow"]] : []),
  ], state, redraw);
  redraw();
}

function drawFigure2(data, state) {
  const rows = data.rows.filter(row => variantOf(data, row) === state.variant), several = data.sweeps.length > 1;
  const models = data.models.filter(([key]) => rows.some(row => row.model === key));
  const find = (model, optimizer) => rows.filter(row => row.model === model && row.optimizer === optimizer)
    .sort((a, b) => known(b.entries[0]?.accuracy) - known(a.entries[0]?.accuracy))[0];
  const datasets = optimizersOf(data).filter(([key]) => !state.hidden.has(key) && rows.some(row => row.optimizer === key)).flatMap(([key, name]) => {
    const cells = models.map(([model]) => find(model, key)), colour = data.colours[key];
    const bars = data.sweeps.map((sweep, i) => ({
      label: several ? `${name}, ${sweep.name}` : name,
      data: cells.map(row => percent(row?.entries[i]?.accuracy)),
      std: cells.map(row => percent(row?.entries[i]?.std)),
      notes: cells.map(row => row?.entries[i]?.n > 1 ? ` ± ${percent(row.entries[i].std).toFixed(2)} (n = ${row.entries[i].n})` : ""),
      backgroundColor: colour + ["", "99", "55"][Math.min(i, 2)], borderColor: "transparent", borderWidth: { left: 2, right: 1 },
    }));
    const paper = { label: `${name}, the paper`, data: cells.map(row => percent(row?.paper)), notes: cells.map(row => row?.comparable ? "" : " (not comparable)"), backgroundColor: "transparent", borderColor: colour, borderWidth: 1.5 };
    return state.hidden.has("paper") || !cells.some(row => known(row?.paper)) ? bars : [...bars, paper];
  });
  const most = Math.max(...models.map((_, i) => datasets.filter(({ data: bars }) => known(bars[i])).length), 1);
  const highest = Math.max(...datasets.flatMap(({ data: bars, std }) => bars.map((value, i) => value + (std?.[i] ?? 0))));
  plot("figure2-chart", "bar", datasets, models.map(([, name]) => name), {
    interaction: { mode: "nearest", intersect: true },
    datasets: { bar: { barThickness: ({ chart }) => Math.min(56, .8 * chart.scales.x.width / models.length / most), skipNull: true } }, // as wide everywhere
    scales: { x: { grid: { display: false } }, y: { beginAtZero: true, suggestedMax: highest, title: { display: true, text: "accuracy (%)" } } },
    plugins: { tooltip: { callbacks: {
      label: ({ dataset, dataIndex, parsed }) => `${dataset.label}: ${parsed.y.toFixed(2)} %${dataset.notes?.[dataIndex] ?? ""}` } } },
  });
}

function showCurves(data, state) {
  const runs = Object.entries(data.runs).filter(([, run]) => !run.kind && run.curves?.epoch.length), optimizers = new Set(runs.map(([, run]) => run.optimizer));
  at("curves").hidden = !runs.length;
  const dash = Object.fromEntries(data.models.map(([key], i) => [key, DASHES[i % DASHES.length]]));
  const variant = {};
  for (const row of data.rows) for (const entry of row.entries) for (const name of entry?.runs ?? []) variant[name] = variantOf(data, row);
  const variants = [...new Set(Object.values(variant))];
  // Colours are of optimizers; of one network by one optimizer, of what else was swept.
  const swept = optimizers.size === 1 && data.models.length === 1 && variants.length > 1;
  const kind = key => swept ? variant[key] : data.runs[key].optimizer;
  const colours = swept ? Object.fromEntries(variants.map((words, i) => [words, PALETTE[i % PALETTE.length]])) : data.colours;
  const draw = () => {
    const shown = runs.filter(([key, run]) => !state.hidden.has(`curve-${kind(key)}`) && !state.hidden.has(run.model));
    for (const [id, name, of] of [["accuracy-chart", "val_accuracy", percent], ["loss-chart", "train_loss", value => value]]) {
      const datasets = shown.map(([key, run]) => line(key, run.curves, name, of, colours[kind(key)], swept ? DASHES[Math.floor(variants.indexOf(variant[key]) / PALETTE.length) % DASHES.length] : dash[run.model], run.title));
      plot(id, "line", datasets, undefined, curveOptions(datasets, name === "val_accuracy"));
    }
  };
  toggles("curves-toggles", [
    ...(swept ? variants.map(words => [words, words]) : optimizersOf(data).filter(([key]) => optimizers.has(key)))
      .map(([key, name]) => [`curve-${key}`, name, colours[key]]),
    ...(data.models.length > 1 ? data.models.map(([key, name]) => [key, name, dash[key]]) : []),
  ], state, draw);
  draw();
}

const line = (key, curves, name, of, colour, dash, title) => ({
  key, label: title, borderColor: colour, backgroundColor: colour, borderDash: dash, borderWidth: 1.6, spanGaps: true,
  pointRadius: curves.epoch.length > 1 ? 0 : 3, pointHitRadius: 8, data: curves.epoch.map((x, i) => ({ x, y: of(curves[name][i]) })),
});

const curveOptions = (datasets, fromZero, onlyOne = false) => ({
  parsing: false, normalized: true,
  interaction: onlyOne ? { mode: "index", intersect: false } : { mode: "nearest", intersect: false },
  onClick: (event, _, chart) => { // a tap only shows values
    const [hit] = event.native.pointerType === "touch" ? [] : chart.getElementsAtEventForMode(event, "nearest", { intersect: true }, false);
    if (hit && chart.data.datasets[hit.datasetIndex].key) location.hash = `run=${encodeURIComponent(chart.data.datasets[hit.datasetIndex].key)}`;
  },
  scales: { x: { type: "linear", bounds: "data", title: { display: true, text: "epoch" }, ticks: { precision: 0, callback: epoch => epoch } }, y: { beginAtZero: fromZero } },
  plugins: { tooltip: { callbacks: { title: ([item]) => `epoch ${item.parsed.x}`, label: ({ dataset, parsed }) => `${dataset.label}: ${parsed.y.toPrecision(4)}` } } },
});
