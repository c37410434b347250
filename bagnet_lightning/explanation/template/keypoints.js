// Every keypoint of an image, its share of the chosen class's score, and what it spoke for most.

const at = id => document.getElementById(id);
const stage = at("stage"), hidden = at("hidden");
const state = { image: 0, next: 0, asked: data.asked, chosen: null, point: null };
let view; // of the image: {image, source, grey, zoom}, and of the class: place, order (the strongest first)

const one = data.patches ? "patch" : "keypoint", many = data.patches ? "patches" : "keypoints";
const [X, Y, SIZE, ANGLE] = [0, 1, 2, 3]; // of a keypoint, px and degrees; 0 is the middle of the first pixel
const OUTLINED = 16; // more hide each other
const share = point => view.image.shares[view.place][point];
const shown = () => view.order.slice(0, Math.ceil(view.order.length * (1 - hidden.value / 100)));

async function showImage(index) {
  const image = data.images[state.next = index];
  const pixels = await pixelsOf(image);
  if (state.next !== index) return; // another image was chosen meanwhile
  view = { image, ...pixels, zoom: Math.ceil(500 / Math.max(image.width, image.height)) };
  state.image = index;
  state.point = null;
  showClasses(image, index => index === image.predicted ? "predicted" : "");
  for (const canvas of [at("plain"), at("drawn")]) Object.assign(canvas, { width: image.width * view.zoom, height: image.height * view.zoom });
  at("name").textContent = image.name;
  at("badge").textContent = `exact: ${image.keypoints.length} ${image.keypoints.length === 1 ? one : many}`;
  at("verdict").textContent = `says ${data.classes[image.predicted]}`
    + (image.label === null ? "" : image.label === image.predicted ? " ✓" : ` ✗ (it is ${data.classes[image.label]})`);
  view.digits = Math.max(2, digitsFor(image.limit));
  document.querySelector(".ends").replaceChildren(...[signed(-image.limit, view.digits), "0", signed(image.limit, view.digits)].map(text => make("span", "", text)));
  showClass(image.classes.includes(state.asked) ? state.asked : image.predicted);
}

function showClass(chosen) {
  const { image } = view, name = data.classes[chosen];
  state.chosen = chosen;
  classSelect.value = chosen;
  view.place = image.classes.indexOf(chosen);
  view.order = image.keypoints.map((_, point) => point).sort((a, b) => Math.abs(share(b)) - Math.abs(share(a)));
  const score = image.scores[view.place], bias = image.biases[view.place], count = image.keypoints.length;
  at("sum").textContent = count
    ? `${name}: score ${signed(score, view.digits)}, of which the bias is ${signed(bias, view.digits)} and ${count} ${count === 1 ? one : many} add ${signed(score - bias, view.digits)} (off by ${image.error.toExponential(0)} at most, over all classes).`
    : `${name}: score ${signed(score, view.digits)}. Nothing was found in this image to describe, so that all it has is the bias.`;
  at("of").textContent = `for ${name}`;
  at("drawn").setAttribute("aria-label", `${many} for ${name}`);
  showStrongest(name);
  show(state.point ?? view.order[0] ?? null);
}

function showStrongest(name) {
  const titles = [`Most for ${name}`, "Most against it"];
  document.querySelector(".strongest").replaceChildren(...view.image.strongest[view.place].map((points, i) => {
    const group = make("section"), row = make("div");
    row.append(...points.map(point => {
      const button = make("button"), canvas = make("canvas");
      cutOut(canvas, point);
      button.type = "button";
      button.setAttribute("aria-label", `Go to ${one} ${point}: ${signed(share(point), view.digits)}`);
      button.dataset.point = point;
      button.append(canvas, signed(share(point), view.digits));
      button.addEventListener("click", () => show(point, true));
      return button;
    }));
    group.append(make("h3", "", titles[i]), row);
    return points.length ? group : "";
  }));
}

// The upright square about the described region; grey beyond the image.
function cutOut(canvas, point) {
  const [x, y, size] = view.image.keypoints[point], zoom = Math.max(1, Math.round(200 / size)), side = size * zoom;
  Object.assign(canvas, { width: side, height: side });
  const context = canvas.getContext("2d");
  context.fillStyle = "#808080";
  context.fillRect(0, 0, side, side);
  context.imageSmoothingEnabled = false;
  context.drawImage(view.source, (size / 2 - x - .5) * zoom, (size / 2 - y - .5) * zoom, view.image.width * zoom, view.image.height * zoom);
}

function show(point, aloud = false) {
  const { image } = view;
  state.point = point;
  draw();
  document.querySelector(".inspector").hidden = point === null;
  for (const button of document.querySelectorAll(".strongest button")) button.setAttribute("aria-pressed", +button.dataset.point === point);
  if (point === null) return;
  const [x, y, size] = image.keypoints[point], word = image.words?.[point];
  const others = word === undefined ? 0 : image.words.filter(other => other === word).length - 1;
  at("where").textContent = `${data.patches ? "Patch" : "Keypoint"} at (${x.toFixed(1)}, ${y.toFixed(1)}), ${size.toFixed(0)} px`
    + (word === undefined ? "" : `: word ${word}${others ? `, as ${others} more here` : ""}`);
  cutOut(at("patch"), point);
  const best = image.top[point];
  showScores(document.querySelector(".scores"), best.some(([index]) => index === state.chosen) ? best : [...best, [state.chosen, share(point)]], state.chosen, view.digits);
  if (aloud) at("spoken").textContent = `${at("where").textContent}; ${data.classes[state.chosen]} ${signed(share(point), view.digits)}, `
    + `number ${view.order.indexOf(point) + 1} of ${view.order.length}.`;
}

// On the canvas: its middle and its size.
const place = point => view.image.keypoints[point].slice(0, ANGLE).map((value, i) => (i < SIZE ? value + .5 : value) * view.zoom);

function outline(context, point) {
  const [x, y, size] = place(point);
  context.beginPath();
  if (data.patches) context.rect(x - size / 2, y - size / 2, size, size);
  else context.arc(x, y, size / 2, 0, 2 * Math.PI);
}

function draw() {
  const visible = shown();
  at("share").textContent = `${visible.length} of ${view.order.length} shown`;
  const plain = backdrop("plain", view.source, 1), drawn = backdrop("drawn", view.grey, .55);
  visible.slice(0, OUTLINED).reverse().forEach(point => drawRegion(drawn, point));
  [...visible].reverse().forEach(point => drawMiddle(drawn, point));
  if (state.point !== null) [plain, drawn].forEach(mark);
}

function backdrop(id, picture, alpha) {
  const canvas = at(id), context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.globalAlpha = 1;
  context.fillStyle = "#fff";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.globalAlpha = alpha;
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  return context;
}

function drawRegion(context, point) {
  const { limit, width, keypoints } = view.image, strength = Math.min(1, Math.abs(share(point)) / limit);
  context.strokeStyle = context.fillStyle = css(colour(share(point) / limit));
  outline(context, point);
  context.globalAlpha = .3 * strength ** 2 * Math.min(1, (.25 * width / keypoints[point][SIZE]) ** 2); // what covers half the image must not hide the rest
  context.fill();
  context.globalAlpha = .15 + .85 * strength;
  context.lineWidth = 1 + 3 * strength;
  context.stroke();
}

function drawMiddle(context, point) {
  const [x, y] = place(point);
  context.globalAlpha = 1;
  context.beginPath();
  context.arc(x, y, 4.5, 0, 2 * Math.PI);
  context.fillStyle = css(colour(share(point) / view.image.limit));
  context.strokeStyle = "#333";
  context.lineWidth = 1;
  context.fill();
  context.stroke();
}

// The chosen one: its region, and the direction that its descriptor starts from.
function mark(context) {
  const [x, y, size] = place(state.point), turned = Math.max(0, view.image.keypoints[state.point][ANGLE]) * Math.PI / 180;
  context.globalAlpha = 1;
  for (const [style, line] of [["#000", 5], ["#ffe600", 2.5]]) {
    context.strokeStyle = style;
    context.lineWidth = line;
    outline(context, state.point);
    if (!data.patches) {
      context.moveTo(x, y);
      context.lineTo(x + size / 2 * Math.cos(turned), y + size / 2 * Math.sin(turned));
    }
    context.stroke();
  }
}

// The one whose middle is nearest to the pointer; of several there, the strongest.
function nearest(event) {
  const box = event.target.getBoundingClientRect(), { image } = view;
  const [x, y] = [(event.clientX - box.left) / box.width * image.width - .5, (event.clientY - box.top) / box.height * image.height - .5];
  const away = point => Math.hypot(image.keypoints[point][X] - x, image.keypoints[point][Y] - y);
  return shown().reduce((best, point) => best === null || away(point) < away(best) - .25 ? point : best, null);
}

for (const canvas of [at("plain"), at("drawn")])
  for (const kind of ["pointermove", "pointerdown"])
    canvas.addEventListener(kind, event => { const point = nearest(event); if (point !== state.point) show(point); });
stage.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key], points = shown();
  if (!points.length || (!step && event.key !== "Home")) return;
  event.preventDefault();
  const next = step ? points.indexOf(state.point) + step : 0;
  show(points[Math.max(0, Math.min(points.length - 1, next))], true);
});
classSelect.addEventListener("change", () => showClass(state.asked = +classSelect.value));
hidden.addEventListener("input", draw);
at("title").textContent = `Which ${one} spoke for which class?`;
at("what").textContent = many;
at("system").textContent = data.system;
stage.setAttribute("aria-label", `${many} of the image; arrow keys go from the strongest to the weakest`);
document.querySelector(".bar").style.background = gradient;
for (const [name, word] of [["one", one], ["many", many]]) for (const element of document.querySelectorAll(`.${name}`)) element.textContent = word;
showStrip(image => image.predicted, showImage);
showImage(0);
