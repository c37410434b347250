// What the pages of networks and of keypoints share.

const data = JSON.parse(document.getElementById("data").textContent);
const classSelect = document.getElementById("class");

const make = (tag, className, text) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
};
const signed = (value, digits = 2) => (value < 0 ? "−" : "+") + Math.abs(value).toFixed(digits);
const percent = share => `${(100 * share).toFixed(1)} %`;
const digitsFor = limit => Math.min(5, Math.max(0, 2 - Math.floor(Math.log10(limit))));

const colour = share => data.colours[Math.round(127 * (1 + Math.max(-1, Math.min(1, share))))];
const css = ([r, g, b]) => `rgb(${r} ${g} ${b})`;
const gradient = `linear-gradient(90deg, ${[-1, -.75, -.5, -.25, 0, .25, .5, .75, 1].map(s => css(colour(s))).join(", ")})`;

function layer(width, height, paint) {
  const canvas = Object.assign(document.createElement("canvas"), { width, height });
  const context = canvas.getContext("2d"), pixels = context.createImageData(width, height);
  paint(pixels.data);
  context.putImageData(pixels, 0, 0);
  return canvas;
}

// The image and the same in grey, as canvases of its size.
async function pixelsOf(image) {
  const picture = new Image();
  picture.src = image.png;
  await picture.decode();
  const source = Object.assign(document.createElement("canvas"), { width: image.width, height: image.height });
  const context = source.getContext("2d");
  context.drawImage(picture, 0, 0);
  const rgb = context.getImageData(0, 0, image.width, image.height).data;
  const grey = layer(image.width, image.height, out => {
    for (let i = 0; i < out.length; i += 4) {
      out[i] = out[i + 1] = out[i + 2] = .299 * rgb[i] + .587 * rgb[i + 1] + .114 * rgb[i + 2];
      out[i + 3] = 255;
    }
  });
  return { source, grey };
}

// The row of images to choose from. predicted: image -> the class that its thumbnail's mark is of.
function showStrip(predicted, choose) {
  document.querySelector(".strip").append(...data.images.map((image, i) => {
    const label = make("label"), radio = make("input"), thumb = make("img");
    const right = image.label === null ? "" : predicted(image) === image.label ? "right" : "wrong";
    Object.assign(radio, { type: "radio", name: "image", value: i, checked: i === 0 });
    thumb.src = image.png;
    thumb.alt = image.name + (right && `, ${data.classes[image.label]}, ${right}ly classified`);
    label.title = thumb.alt;
    label.className = right;
    radio.addEventListener("change", () => choose(i));
    label.append(radio, thumb);
    return label;
  }));
}

// The classes to choose from. predicted: class -> who predicts it, in words, or "".
function showClasses(image, predicted) {
  classSelect.replaceChildren(...image.classes.map(index => {
    const notes = [predicted(index), image.label === index && "true class", data.asked === index && "asked"].filter(Boolean);
    const option = make("option", "", data.classes[index] + (notes.length ? ` (${notes.join("; ")})` : ""));
    option.value = index;
    return option;
  }));
}

// Scores of classes as bars, and the chosen one marked. scores: [[class, score], ...]
function showScores(list, scores, chosen, digits) {
  const most = Math.max(...scores.map(([, score]) => Math.abs(score)), 1e-9);
  list.replaceChildren(...scores.map(([index, score]) => {
    const item = make("li", index === chosen ? "chosen" : ""), line = make("i", score < 0 ? "negative" : "");
    const name = make("span", "", data.classes[index]);
    name.title = `${data.classes[index]} (${data.identifiers[index]})`;
    line.style.width = `${100 * Math.abs(score) / most}%`;
    item.dataset.class = index;
    item.append(name, line, make("span", "", signed(score, digits)));
    return item;
  }));
}

document.getElementById("for").style.background = css(colour(.8));
document.getElementById("against").style.background = css(colour(-.8));
