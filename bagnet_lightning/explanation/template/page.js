const overlay = document.getElementById("overlay"), otherSelect = document.getElementById("other");
const state = { image: 0, next: 0, asked: data.asked, chosen: null, other: undefined, row: 0, column: 0 };
let views = []; // one a model: {explanation, field, panels, ...}, made anew for each image

const bytes = text => Uint8Array.from(atob(text), c => c.charCodeAt(0)).buffer;

// Numbers are 16-bit multiples of a step, little-endian.
const decode = packed => {
  const view = new DataView(bytes(packed.data));
  return Float32Array.from({ length: view.byteLength / 2 }, (_, i) => view.getInt16(2 * i, true) * packed.step);
};
const decodeClasses = top => {
  const view = new DataView(bytes(top.classes));
  const read = i => (top.bytes === 1 ? view.getUint8(i) : view.getUint16(2 * i, true));
  return Array.from({ length: view.byteLength / top.bytes }, (_, i) => read(i));
};

async function showImage(index) {
  const image = data.images[state.next = index];
  const { source, grey } = await pixelsOf(image);
  if (state.next !== index) return; // another image was chosen meanwhile
  state.image = index;

  const kept = image.classes.includes(state.asked) ? state.asked : image.explanations[0].predicted;
  showClasses(image, index => {
    const said = data.models.filter((_, m) => image.explanations[m].predicted === index).map(model => model.name);
    return said.length ? "predicted" + (data.models.length > 1 ? ` by ${said.join(", ")}` : "") : "";
  });
  const focused = views.findIndex(view => view.stage.contains(document.activeElement));
  views = data.models.map((model, m) => makeView(model, image.explanations[m], image, source, grey));
  document.getElementById("models").replaceChildren(...views.map(view => view.section));
  if (focused >= 0) views[focused].stage.focus();
  const strongest = image.explanations.find(explanation => explanation.strongest)?.strongest[image.classes.indexOf(kept)];
  [state.row, state.column] = strongest ? strongest[0][0] : [image.height >> 1, image.width >> 1];
  showClass(kept);
}

function makeView(model, explanation, image, source, grey) {
  const section = make("section", "model"), header = make("header"), columns = make("div", "columns");
  const exact = model.field !== null;
  const title = make("h2", "", model.name);
  title.title = model.checkpoint;
  const badge = make("span", exact ? "badge exact" : "badge",
    exact ? `exact: ${model.field} × ${model.field} px patches` : "approximations only");
  const place = image.classes.indexOf(explanation.predicted);
  const right = image.label === null ? "" : image.label === explanation.predicted ? " ✓"
    : ` ✗ (it is ${data.classes[image.label]})`;
  const verdict = make("span", "verdict",
    `says ${data.classes[explanation.predicted]}, ${percent(explanation.probabilities[place])}${right}`);
  header.append(title, badge, verdict);
  const logit = make("p", "quiet logit");
  section.append(header, logit, columns);

  const stage = make("div", "stage");
  stage.tabIndex = 0;
  stage.setAttribute("role", "application");
  stage.setAttribute("aria-label", `${model.name}: ${exact ? "patch" : "pixel"} under the pointer; arrow keys move it`);
  stage.style.setProperty("--panels", 1 + explanation.maps.length);
  const panels = [null, ...explanation.maps].map(map => makePanel(map, image));
  stage.append(...panels.map(panel => panel.figure));
  columns.append(stage);
  const view = { model, explanation, image, source, grey, section, stage, panels, logit, field: model.field };

  if (exact) {
    const inspector = make("div", "inspector"), under = make("div", "under");
    view.where = make("h3", "where");
    view.patch = Object.assign(make("canvas", "patch"), { width: model.field, height: model.field });
    view.scores = make("ol", "scores");
    under.append(view.patch, view.scores);
    inspector.append(view.where, under);
    columns.append(inspector);
    view.top = { classes: decodeClasses(explanation.top), scores: decode(explanation.top), count: explanation.top.count };
    view.strongest = make("div", "strongest");
    columns.append(view.strongest);
  } else {
    columns.classList.add("alone");
    view.where = make("p", "quiet where");
    section.append(view.where);
  }
  stage.addEventListener("keydown", event => {
    const step = event.shiftKey ? 8 : 1;
    const [down, across] = { ArrowUp: [-step, 0], ArrowDown: [step, 0], ArrowLeft: [0, -step], ArrowRight: [0, step] }[event.key]
      || [0, 0];
    if (!down && !across) return;
    event.preventDefault();
    moveTo(state.row + down, state.column + across, true);
  });
  for (const panel of panels) {
    const point = event => {
      const box = panel.canvas.getBoundingClientRect();
      moveTo(Math.floor((event.clientY - box.top) / box.height * image.height),
        Math.floor((event.clientX - box.left) / box.width * image.width));
    };
    panel.canvas.addEventListener("pointermove", point);
    panel.canvas.addEventListener("pointerdown", point);
  }
  return view;
}

function makePanel(map, image) {
  const figure = make("figure"), caption = make("figcaption"), zoom = Math.ceil(400 / Math.max(image.width, image.height));
  const canvas = Object.assign(make("canvas"), { width: image.width * zoom, height: image.height * zoom });
  canvas.setAttribute("role", "img");
  figure.append(caption, canvas);
  if (map) {
    const bar = make("div", "bar"), ends = make("div", "ends");
    bar.style.background = gradient;
    figure.append(bar, ends);
    return { figure, caption, canvas, map, zoom, ends, values: decode(map) };
  }
  return { figure, caption, canvas, zoom };
}

// Values of a panel's map for a class, (height * width), or null.
function valuesFor(index, panel, image) {
  const place = panel.map.classes.indexOf(index), size = image.width * image.height;
  return place < 0 ? null : panel.values.subarray(place * size, (place + 1) * size);
}

// What a panel shows: its map for a class, or the difference to that for another one. All methods are linear in the logit.
function choose(panel, image, chosen, other) {
  const values = valuesFor(chosen, panel, image), others = other === null ? null : valuesFor(other, panel, image);
  panel.shown = other === null || !values ? values : others && values.map((value, i) => value - others[i]);
  panel.limit = panel.map.limit;
  if (other !== null && panel.shown) panel.limit = panel.shown.map(Math.abs).sort()[Math.floor(.99 * (panel.shown.length - 1))] || 1;
  const digits = digitsFor(panel.limit);
  panel.ends.replaceChildren(...[signed(-panel.limit, digits), "0", signed(panel.limit, digits)].map(text => make("span", "", text)));
}

function showClass(chosen) {
  const { classes } = data.images[state.image];
  if (state.other === undefined) state.other = data.classes.length === 2 ? 1 - chosen : null;
  if (state.other === chosen) state.other = data.classes.length === 2 ? state.chosen : null;
  const other = classes.includes(state.other) ? state.other : null;
  state.chosen = chosen;
  classSelect.value = chosen;
  otherSelect.replaceChildren(new Option("no other class", ""),
    ...classes.filter(index => index !== chosen).map(index => new Option(data.classes[index], index)));
  otherSelect.value = other ?? "";
  for (const view of views) {
    const { image, explanation } = view, place = image.classes.indexOf(chosen);
    const logit = explanation.logits[place], name = data.classes[chosen];
    const named = name + (other === null ? "" : ` against ${data.classes[other]}`);
    view.logit.textContent = `${name}: logit ${signed(logit, 3)}, ${percent(explanation.probabilities[place])}` + (view.field
      ? `, the mean of ${explanation.patches} patches' logits (off by ${explanation.error.toExponential(0)} at most, over all classes).` : ".");
    if (other !== null)
      view.logit.textContent += ` ${named}: ${signed(logit - explanation.logits[image.classes.indexOf(other)], 3)}.`;
    for (const panel of view.panels) {
      const { map } = panel;
      if (map) choose(panel, image, chosen, other);
      panel.figure.classList.toggle("panel-off", Boolean(map) && !panel.shown);
      const about = !panel.shown ? "not computed for this class" : map.method.startsWith("exact") ? `for ${named}` : "approximation";
      panel.caption.replaceChildren(make("b", "", map ? map.method : "image"), make("span", "", map ? about : image.name));
      panel.canvas.setAttribute("aria-label", map ? `${map.method} for ${named}` : `the image ${image.name}`);
      panel.layer = panel.shown && layer(image.width, image.height, out => panel.shown.forEach((value, i) => {
        out.set(colour(value / panel.limit), 4 * i);
        out[4 * i + 3] = 255;
      }));
    }
    if (view.strongest) showStrongest(view, explanation.strongest[place], name);
  }
  moveTo(state.row, state.column);
}

function cutOut(view, canvas, row, column) {
  const before = (view.field - 1) >> 1, context = canvas.getContext("2d");
  context.fillStyle = view.model.grey;
  context.fillRect(0, 0, view.field, view.field);
  context.drawImage(view.source, before - column, before - row);
}

function showStrongest(view, [best, worst], name) {
  view.strongest.replaceChildren(...[[best, `Highest scores for ${name}`], [worst, "Lowest scores"]].map(([patches, title]) => {
    const group = make("section"), row = make("div");
    row.append(...patches.map(([y, x, score]) => {
      const button = make("button"), canvas = Object.assign(make("canvas"), { width: view.field, height: view.field });
      cutOut(view, canvas, y, x);
      button.type = "button";
      button.setAttribute("aria-label", `Go to the patch at row ${y}, column ${x}: ${signed(score)}`);
      Object.assign(button.dataset, { y, x });
      button.append(canvas, signed(score));
      button.addEventListener("click", () => moveTo(y, x, true));
      return button;
    }));
    group.append(make("h3", "", title), row);
    return group;
  }));
}

function moveTo(row, column, aloud = false) {
  const { width, height } = data.images[state.image];
  state.row = Math.max(0, Math.min(height - 1, row));
  state.column = Math.max(0, Math.min(width - 1, column));
  views.forEach(draw);
  if (aloud) document.getElementById("spoken").textContent = views.map(spoken).join(" ");
}

function draw(view) {
  const { image, field } = view, at = state.row * image.width + state.column;
  for (const panel of view.panels) {
    const context = panel.canvas.getContext("2d"), { zoom } = panel;
    context.imageSmoothingEnabled = false;
    context.globalAlpha = 1;
    context.drawImage(panel.map ? view.grey : view.source, 0, 0, panel.canvas.width, panel.canvas.height);
    if (panel.layer) {
      context.globalAlpha = overlay.value / 100;
      context.drawImage(panel.layer, 0, 0, panel.canvas.width, panel.canvas.height);
      context.globalAlpha = 1;
    }
    const side = field || 1, before = (side - 1) >> 1;
    for (const [style, line] of [["#000", 5], ["#ffe600", 2.5]]) {
      context.strokeStyle = style;
      context.lineWidth = line;
      context.strokeRect((state.column - before) * zoom, (state.row - before) * zoom, side * zoom, side * zoom);
    }
  }
  if (!field) {
    view.where.textContent = spoken(view);
    return;
  }
  view.where.textContent = `Patch at row ${state.row}, column ${state.column}`;
  cutOut(view, view.patch, state.row, state.column);
  const { count, classes, scores } = view.top;
  const best = Array.from({ length: count }, (_, i) => [classes[at * count + i], scores[at * count + i]]);
  if (!best.some(([index]) => index === state.chosen)) best.push([state.chosen, valuesFor(state.chosen, view.panels[1], image)[at]]);
  showScores(view.scores, best, state.chosen);
  for (const button of view.strongest.querySelectorAll("button"))
    button.setAttribute("aria-pressed", +button.dataset.y === state.row && +button.dataset.x === state.column);
}

function spoken(view) {
  const { image } = view, at = state.row * image.width + state.column;
  const maps = view.panels.filter(panel => panel.layer)
    .map(panel => `${panel.map.method} ${signed(panel.shown[at], digitsFor(panel.limit))}`);
  const best = view.top ? `, best class ${data.classes[view.top.classes[at * view.top.count]]}` : "";
  const other = otherSelect.value && ` against ${data.classes[otherSelect.value]}`;
  return `${view.model.name}, row ${state.row}, column ${state.column}, ${data.classes[state.chosen]}${other}: `
    + (maps.join(", ") || "not computed for this class") + `${best}.`;
}

classSelect.addEventListener("change", () => showClass(state.asked = +classSelect.value));
otherSelect.addEventListener("change", () => {
  state.other = otherSelect.value === "" ? null : +otherSelect.value;
  showClass(state.chosen);
});
overlay.addEventListener("input", () => views.forEach(draw));
const steps = data.images.flatMap(image => image.explanations.flatMap(e => e.top ? [e.maps[0].step, e.top.step] : []));
document.getElementById("rounding").textContent = steps.length ? (Math.max(...steps) / 2).toPrecision(2) : "0";
showStrip(image => image.explanations[0].predicted, showImage); // as the first network sees it
showImage(0);
