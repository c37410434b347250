// One run, under its #run=NAME.

function showRun(data, name) {
  const run = Object.hasOwn(data.runs, name) ? data.runs[name] : null, section = at("run");
  const back = Object.assign(make("a", "back", "← all runs"), { href: "#" });
  if (!run) {
    section.replaceChildren(back, make("p", "", `There is no run ${name} here.`));
    return;
  }
  if (run.state === "waiting") {
    section.replaceChildren(back, make("h2", "", name), make("p", "", make("span", "state waiting", "waiting"), " It has not begun."));
    return;
  }
  section.replaceChildren(...[
    back,
    Object.assign(make("h2", "", run.title, " ", make("span", `state ${run.state}`, run.state)), { tabIndex: -1 }),
    make("p", "quiet path", name),
    repetitions(data, name),
    run.error && make("p", "error", run.error),
    run.state === "running" && make("p", "", progressWords(run)),
    run.missing.length > 0 && make("ul", "quiet", ...run.missing.map(words => make("li", "", words))),
    run.facts.length > 0 && make("dl", "facts", ...run.facts.map(([what, value]) => make("div", "", make("dt", "", what), make("dd", "", value)))),
    run.facts.some(([what]) => what === "Cost") && make("p", "quiet", "Cost is the hours that devices were in use, validation included; a price for them depends on where it ran."),
    ...(run.curves.epoch.length ? [make("h3", "", "Learning curves"), curvePair(run)] : []),
    ...confusions(data, run),
    ...nearest(data, run),
    ...(run.explain ? [make("h3", "", `It can show ${run.explain.words}`), ...command(run.explain.command)] : []),
    make("h3", "", "The same again"),
    ...(run.command ? command(run.command, run.kind === "related" ? "It leaves a finished run as it is; fresh=true starts over."
      : "It goes on where the run stopped and leaves a finished one as it is; fresh=true starts over.") : [make("p", "quiet", "What was asked is not recorded in this folder.")]),
    ...(run.log ? [make("h3", "", "End of train.log"), make("pre", "log", run.log)] : []),
    ...configuration(data, run),
  ].filter(Boolean));
  if (run.curves.epoch.length) drawRun(run, data.colours[run.optimizer] ?? "#56B4E9");
}

// The runs that a row of a table is the mean of, each by what its title alone has: its seed or fold.
function repetitions(data, name) {
  const entry = [...data.rows.flatMap(row => row.entries), ...data.related].find(entry => entry?.runs.includes(name));
  if (!entry || entry.runs.length < 2) return null;
  const titles = entry.runs.map(run => data.runs[run].title.split(", "));
  const words = titles.map(parts => parts.filter(part => !titles.every(other => other.includes(part))).join(", "));
  return make("p", "quiet", `One of ${entry.runs.length} runs that differ in their seed or fold alone, mean ${share(entry.accuracy)} ± ${share(entry.std)}: `,
    ...entry.runs.flatMap((run, i) => [i ? ", " : "", run === name ? make("b", "", words[i]) : runLink(run, words[i]), ` ${share(data.runs[run].best)}`]), ".");
}

const progressWords = run => known(run.progress?.epoch)
  ? `epoch ${run.progress.epoch} of ${run.progress.epochs}, step ${grouped(run.progress.step)} of ${grouped(run.progress.steps)}` +
    (known(run.progress.seconds_left) ? `, about ${duration(run.progress.seconds_left)} left` : "")
  : run.kind === "related" ? "at work" : "preparing";

// The charts that there are values for: [canvas, what it is of, its name in metrics.csv, its unit].
const chartsOf = run => [["run-accuracy", "accuracy (%)", "accuracy", percent], ["run-loss", "loss", "loss", value => value]]
  .filter(([, , name]) => [...run.curves[`val_${name}`], ...run.curves[`train_${name}`]].some(known));

function curvePair(run) {
  const figure = (id, words) => make("figure", "", make("figcaption", "", words),
    make("div", "chart", Object.assign(document.createElement("canvas"), { id, ariaLabel: words, role: "img" })));
  return make("div", "pair", ...chartsOf(run).map(([id, words]) => figure(id, words)));
}

function drawRun(run, colour) {
  const grey = getComputedStyle(document.documentElement).getPropertyValue("--quiet").trim();
  for (const [id, , name, of] of chartsOf(run)) {
    const lines = [line(null, run.curves, `val_${name}`, of, colour, [], "validation"), line(null, run.curves, `train_${name}`, of, grey, [5, 4], "train")]
      .filter(({ data: points }) => points.some(({ y }) => known(y)));
    const options = curveOptions(lines, name === "accuracy", true);
    plot(id, "line", lines, undefined, { ...options, plugins: { ...options.plugins, legend: { display: true, position: "bottom", labels: { boxHeight: 0 } } } });
  }
}

function confusions(data, run) {
  if (!run.confusion) return [];
  const { pairs, sheet, side, each, among, matrix, right, images } = run.confusion, names = data.classes[run.confusion.classes];
  const items = pairs.map(([true_, said, count], i) => {
    const thumbs = Array.from({ length: Math.min(count, each) }, (_, j) => {
      const thumb = make("span", "thumb");
      thumb.style.cssText = `width:${side}px;height:${side}px;background-image:url(${sheet});background-position:${-j * side}px ${-i * side}px`;
      return thumb;
    });
    return make("li", "", make("span", "thumbs", ...thumbs), make("span", "", make("b", "", names[true_]), " taken for ", make("b", "", names[said]),
      make("span", "quiet", ` ${count} of ${images[true_]} images`)));
  });
  const most = Math.max(1, ...matrix.flat());
  const grid = make("table", "matrix", make("tr", "", make("td", "quiet", "true \\ said"), ...among.map(index => make("th", "", make("span", "", names[index])))),
    ...among.map((index, i) => make("tr", "", make("th", "left", names[index]), ...matrix[i].map((count, j) => {
      const cell = make("td", i === j ? "right" : "", String(count || ""));
      cell.style.setProperty("--share", `${Math.round(60 * count / most)}%`);
      return cell;
    }))));
  const classes = right.map((count, index) => [index, count / images[index]]).filter(([index]) => images[index]).sort((a, b) => b[1] - a[1]);
  const bars = list => make("ol", "bars", ...list.map(([index, accuracy]) => {
    const bar = make("i");
    bar.style.width = `${100 * accuracy}%`;
    return make("li", "", make("span", "name", names[index]), make("span", "track", bar), make("span", "", `${(100 * accuracy).toFixed(0)} %`));
  }));
  const many = classes.length > 16;
  return [
    ...(pairs.length ? [make("h3", "", "Most confused"), make("ul", "confused", ...items), make("div", "wide", grid)] : []),
    make("h3", "", "Accuracy by class"),
    make("div", "pair", ...(many ? [make("div", "", make("p", "quiet", "Best"), bars(classes.slice(0, 8))), make("div", "", make("p", "quiet", "Worst"), bars(classes.slice(-8).reverse()))] : [bars(classes)])),
    ...(many ? [details("all-classes", `All ${classes.length} classes`, bars(classes))] : []),
  ];
}

function nearest(data, run) {
  if (!run.neighbours.length) return [];
  return [make("h3", "", "Its neighbours, and what they differ in (± one standard error, paired by image)"), make("div", "wide", make("table", "neighbours", ...run.neighbours.map(other => {
    const theirs = data.runs[other.run].state, ended = theirs === "finished" && run.state === "finished";
    const difference = ended && known(run.best) && known(other.accuracy) ? run.best - other.accuracy : null;
    return make("tr", "", make("td", "left", runLink(other.run, other.differs.map(([key, value]) => `${key} ${value}`).join(", ") || "the same")),
      make("td", "left quiet", other.differs.map(([, , own]) => `here ${own}`).join(", ")),
      make("td", "", share(other.accuracy) + (theirs === "finished" ? "" : ` (${theirs})`)), make("td", direction(difference), known(difference) ? `${signed(difference)}${known(other.error) ? ` ± ${share(other.error)}` : ""} here` : ""));
  })))];
}

function command(text, note) {
  const button = make("button", "copy", "Copy");
  button.type = "button";
  button.addEventListener("click", () => navigator.clipboard?.writeText(text).then(() => { button.textContent = "Copied"; }));
  return [make("div", "command", make("code", "", text), button), ...(note ? [make("p", "quiet", note)] : [])];
}

function configuration(data, run) {
  const config = { ...data.common, ...run.config };
  run.without.forEach(key => delete config[key]);
  if (!Object.keys(config).length) return [];
  const rows = Object.entries({ ...run.config, ...config }).map(([key, value]) =>
    make("tr", key in run.config ? "differs" : "", make("td", "left", key), make("td", "left", String(value))));
  const own = Object.keys(run.config).length;
  return [details("configuration", `Configuration${own ? `, with ${own} ${own === 1 ? "value" : "values"} that most runs here do not have` : ""}`, make("div", "wide", make("table", "config", ...rows)))];
}

function details(id, summary, content) {
  const element = make("details", "", make("summary", "", summary), content);
  element.id = id;
  return element;
}
