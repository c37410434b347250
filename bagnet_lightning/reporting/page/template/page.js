// Puts the parts together, follows the #fragment, and where a server is behind the page, keeps it new.

let data = JSON.parse(at("data").textContent);
const state = { sorts: {}, hidden: new Set(), variant: null };
const STATES = ["finished", "running", "waiting", "stopped", "failed", "diverged", "unreadable"];

function show() {
  const chosen = chosenRun();
  const open = [...document.querySelectorAll("details[open]")].map(element => element.id), focus = document.activeElement?.id;
  at("title").textContent = data.title;
  document.title = `${chosen ? `${Object.hasOwn(data.runs, chosen) ? data.runs[chosen].title : chosen}: ` : ""}${data.title}`;
  at("counts").textContent = STATES.filter(name => data.states[name]).map(name => `${data.states[name]} ${name}`).join(", ") || "no runs";
  at("made").textContent = `· ${data.live ? "as of" : "made"} ${data.made.slice(0, 16).replace("T", " ")}`;
  at("overview").hidden = chosen !== null;
  at("run").hidden = chosen === null;
  if (chosen === null) showOverview();
  else showRun(data, chosen);
  for (const id of open) if (at(id)) at(id).open = true;
  if (focus && document.activeElement?.id !== focus) at(focus)?.focus({ preventScroll: true });
}

function chosenRun() {
  if (!location.hash.startsWith("#run=")) return null;
  try {
    return decodeURIComponent(location.hash.slice(5));
  } catch {
    return location.hash.slice(5); // not encoded
  }
}

function showOverview() {
  showProgress();
  at("tables").hidden = !data.rows.length && !data.sweeps.some(sweep => sweep.notes.length);
  at("table1").hidden = !data.rows.length && (data.related.length || data.pretrainings.length);
  at("related-part").hidden = !data.related.length;
  at("pretraining-part").hidden = !data.pretrainings.length;
  const epochs = onlyEpochs(data), compared = data.rows.some(row => row.entries.some(entry => known(entry?.difference)));
  const monitors = [...new Set(data.sweeps.flatMap(sweep => sweep.monitors))];
  const ofPaper = data.rows.some(row => known(row.paper));
  at("table1-name").textContent = ofPaper ? "Table 1, beside the paper" : "Networks";
  at("figure2-name").textContent = ofPaper ? "Figure 2" : "Accuracy by network and optimizer";
  at("legend").textContent = `Best validation accuracy${known(epochs) ? ` of ${epochs} epoch${epochs === 1 ? "" : "s"}` : ""}.`
    + (monitors.length ? ` Best epochs are chosen by ${monitors.join(", ")}.` : "")
    + (monitors.includes("balanced") ? " Balanced: each class counts the same." : "")
    + (compared ? " Green: above the paper; red: below." : "");
  showTable("results", columns(data), data, data.rows, state);
  showTable("related", relatedColumns(data), data, data.related, state);
  showTable("pretraining", pretrainingColumns(data), data, data.pretrainings, state);
  at("notes").replaceChildren(...data.sweeps.flatMap(sweep => sweep.notes.map(note =>
    make("li", "", data.sweeps.length > 1 ? make("b", "", `${sweep.name}: `) : "", note))));
  at("between").replaceChildren(...(data.between.length ? [make("h3", "", "What the sweeps differ in"),
    make("div", "wide", make("table", "config", make("tr", "", make("th", "left", ""), ...data.sweeps.map(sweep => make("th", "left", sweep.name))),
      ...data.between.map(cells => make("tr", "", ...cells.map(cell => make("td", "left", cell))))))] : []));
  showFigure2(data, state);
  showCurves(data, state);
  showGallery();
  for (const [name, source] of Object.entries(data.pictures))
    at(`${name}-picture`).replaceChildren(details(`${name}-still`, `As a picture (${name}.png)`, Object.assign(make("img"), { src: source, alt: `${name}.png` })));
}

function showProgress() {
  const of = (...names) => Object.entries(data.runs).filter(([, run]) => names.includes(run.state));
  const rows = of("running", "stopped", "failed", "diverged", "unreadable").map(([name, run]) => {
    const bar = Object.assign(make("progress"), { max: run.progress?.steps ?? run.epochs ?? 1, value: run.progress?.step ?? run.done });
    bar.setAttribute("aria-label", `progress of ${name}`);
    const told = run.state === "running" ? progressWords(run)
      : [run.done > 0 && known(run.epochs) ? `${run.done} of ${run.epochs} epochs` : "", run.error].filter(Boolean).join("; ");
    return make("tr", "", make("td", "left", runLink(name, run.title)), make("td", "left", make("span", `state ${run.state}`, run.state)),
      make("td", "left", bar.value ? bar : ""), make("td", "", known(run.best) ? share(run.best) : ""), make("td", "left told", told));
  });
  const waiting = of("waiting").map(([name]) => make("li", "path", name));
  at("progress").replaceChildren(...(rows.length || waiting.length ? [make("h2", "", "Not finished"),
    make("div", "wide", make("table", "running", ...rows)),
    waiting.length ? details("waiting", `${waiting.length} waiting`, make("ul", "quiet", ...waiting)) : null].filter(Boolean) : []));
}

function showGallery() {
  const { gallery } = data, heading = make("h2", "", "Evidence of the best BagNet");
  if (!gallery) {
    at("gallery").replaceChildren(...(data.without_gallery ? [heading, make("p", "quiet", data.without_gallery)] : []));
    return;
  }
  const picture = (source, alt) => Object.assign(make("img"), { src: source, alt });
  at("gallery").replaceChildren(heading,
    make("p", "quiet", "Validation images, and the logit of the patch centred on every pixel: red speaks for the class, blue against it. ",
      runLink(gallery.run, data.runs[gallery.run]?.title ?? gallery.run), "."),
    make("div", "gallery", ...gallery.items.map(item => make("div", "example",
      make("figure", "", picture(item.image, ""), make("figcaption", "", make("b", "", item.label))),
      ...item.maps.map((map, i) => make("figure", "", picture(map.png, `evidence for ${map.class}`),
        make("figcaption", "", i === 0 ? make("b", item.right ? "up" : "down", item.right ? "✓ " : "✗ ") : "", `${map.class} ${map.logit.toFixed(1)}`)))))),
    make("p", "quiet", "More of it: ", make("code", "", gallery.command)));
}

async function refresh() {
  try {
    const answer = await fetch("/data.json", { headers: { "If-None-Match": data.tag } });
    if (answer.status === 200) {
      const place = [scrollX, scrollY];
      data = await answer.json();
      show();
      scrollTo(...place);
    }
    document.body.classList.remove("lost");
  } catch {
    document.body.classList.add("lost");
    at("made").textContent = "· the program that serves this page has ended";
  }
  setTimeout(refresh, 3000);
}

// The overview, and what Back and Forward lead to, is shown where the reader left it; a run that a link leads to, from
// its top. The focus goes to a run's heading, and back to the link to it.
const places = {}; // fragment -> how far it was scrolled
let fragment = location.hash;

addEventListener("scroll", () => { if (location.hash === fragment) places[fragment] = scrollY; }, { passive: true });
addEventListener("hashchange", () => {
  const left = fragment, again = history.state !== null;
  fragment = location.hash;
  history.replaceState({}, "");
  show();
  scrollTo(0, again || chosenRun() === null ? places[fragment] ?? 0 : 0);
  const focused = chosenRun() === null ? [...document.querySelectorAll("#overview a")].find(link => link.hash === left) : at("run").querySelector("h2");
  focused?.focus({ preventScroll: true });
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", show);
matchMedia("print").addEventListener("change", show);
narrow.addEventListener("change", show);
addEventListener("beforeprint", () => Object.values(charts).forEach(chart => chart.resize()));
history.replaceState({}, "");
show();
if (data.live) setTimeout(refresh, 3000);
