"use strict";
// The page: images in, cards out. Who answers is an engine, given to `start`:
//   promise                       a sentence about where the images go, and a link {text, href} or null
//   learn(model)                  {model, models, labels, preprocess, unknown_limit, explains, similar, samples}
//   predict(images, facts)        [{file, label, probability, probabilities, unknown, score, labels_90}], or {file, error}
//                                 for one of several that cannot be read
//   explain(image, facts)         {label, map}: rows of numbers over the part of the picture that the network sees
//   similar(images, facts)        [{matches: [{name, similarity, thumbnail}]}], or {error}
//   picture(address)              a URL to show; sample(number): {url, file}
//   use_key(key)                  the key that was asked for
const at = name => document.getElementById(name);
const element = (tag, text, name) => {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (name) made.className = name;
  return made;
};
const SHOWN = 8;
let engine = null, facts = null, waiting = null, current = 0;

const percent = share => (100 * share).toFixed(1) + " %";

function say(sentence, wrong) {
  at("says").textContent = sentence;
  at("says").className = wrong ? "wrong" : "";
}

class Refused extends Error {
  constructor(status, sentence) { super(sentence); this.status = status; }
}

async function learn() {
  try {
    facts = await engine.learn(at("model").value);
  } catch (error) {
    at("door").hidden = error.status !== 401;
    if (error.status === 401) at("key").focus();
    say(error.status !== 401 ? error.message : at("key").value ? "The service does not know this key." : "", true);
    return false;
  }
  at("door").hidden = true;
  if (!at("model").options.length) {
    for (const name of facts.models) at("model").append(new Option(name, name));
    at("choice").hidden = facts.models.length < 2;
    showSamples();
  }
  return true;
}

async function showSamples() {
  for (let number = 0; number < facts.samples; number++) {
    const sample = await engine.sample(number).catch(() => null);
    if (!sample) continue;
    const line = element("li"), button = element("button"), picture = element("img");
    button.type = "button";
    picture.src = sample.url;
    picture.alt = "Sample image " + (number + 1);
    button.append(picture);
    button.onclick = () => classify([sample.file]);
    line.append(button);
    at("samples").lastElementChild.append(line);
    at("samples").hidden = false;
  }
}

async function classify(images) {
  if (!images.length) return;
  const turn = ++current;
  let cards = [];
  waiting = images;
  if (!facts && !(await learn())) return;
  say(images.length === 1 ? "Looking …" : "Looking at " + images.length + " images …");
  try {
    const predictions = await engine.predict(images, facts);
    if (turn !== current) return;
    cards = predictions.map((prediction, place) => prediction.error ? refusal(prediction) : card(prediction, images[place]));
    show(cards);
    const first = predictions[0], lost = predictions.filter(prediction => prediction.error).length;
    say(lost ? lost + " of " + images.length + " images could not be read."
      : images.length > 1 ? images.length + " images are answered."
      : first.unknown ? "Unknown; if anything, " + first.label + "."
      : first.label + ", " + percent(first.probability), lost);
    if (facts.similar) {
      const found = await engine.similar(images, facts);
      if (turn === current) found.forEach((result, place) => {
        if (result.matches) cards[place].lastChild.append(...neighbours(result));
      });
    }
  } catch (error) {
    if (turn !== current) return;
    if (!cards.length) show([]);
    if (error.status === 401) { facts = null; await learn(); return; }
    say(error.message, true);
  }
}

function show(cards) {
  for (const image of document.querySelectorAll("#answers img")) URL.revokeObjectURL(image.src);
  at("answers").replaceChildren(...cards);
}

// The answer first, then the largest shares; the object's own order is lost where names are whole numbers.
function ranked({ label, probabilities }) {
  return Object.entries(probabilities).sort(([one, share], [other, its]) =>
    (other === label) - (one === label) || its - share || facts.labels.indexOf(one) - facts.labels.indexOf(other));
}

function card(prediction, image) {
  const whole = element("article", undefined, "answer"), left = element("div"), right = element("div");
  const frame = element("div", undefined, "picture"), picture = element("img");
  picture.alt = "";
  picture.src = URL.createObjectURL(image);
  frame.append(picture);
  left.append(frame);
  if (facts.explains) left.append(toggle(frame, picture, image));
  left.append(element("p", prediction.file || "", "soft name"));
  picture.onerror = () => { frame.hidden = true; for (const button of left.querySelectorAll("button")) button.remove(); };
  const list = element("dl"), rows = ranked(prediction).map(bar);
  list.append(...rows.slice(0, SHOWN));
  right.append(element("p", prediction.unknown ? "Unknown" : prediction.label, "label"));
  if (prediction.unknown) right.append(element("p", reason(prediction), "unknown"));
  right.append(list);
  if (rows.length > SHOWN) {
    const more = element("button", "All " + rows.length + " classes", "more");
    more.type = "button";
    more.onclick = () => { list.append(...rows.slice(SHOWN)); more.remove(); };
    right.append(more);
  }
  if (prediction.labels_90) {
    right.append(element("p", "In 90 % of cases it is one of: " + prediction.labels_90.join(", "), "soft likely"));
  }
  whole.append(left, right);
  return whole;
}

function refusal(prediction) {
  const whole = element("article", undefined, "answer"), said = element("div");
  said.append(element("p", "Not read", "label"), element("p", prediction.error, "unknown"));
  whole.append(element("p", prediction.file || "", "soft name"), said);
  return whole;
}

function reason(prediction) {
  const limit = facts.unknown_limit == null ? "" : ", above the limit " + facts.unknown_limit.toPrecision(3);
  return "This image is unlike those that the model was made from (score " + prediction.score.toPrecision(3) + limit +
    "). If it is one of its classes at all, then " + prediction.label + ".";
}

function bar([label, share]) {
  const row = element("div"), middle = element("dd"), line = element("div", undefined, "bar"), fill = element("span");
  fill.style.width = 100 * share + "%";
  line.append(fill);
  middle.append(line);
  const number = element("dd", percent(share), "share");
  number.dataset.value = share;
  row.append(element("dt", label), middle, number);
  return row;
}

function toggle(frame, picture, image) {
  const button = element("button", "Show what spoke for it", "more map");
  button.type = "button";
  button.setAttribute("aria-pressed", "false");
  let drawn = null;
  button.onclick = async () => {
    if (!drawn) {
      button.disabled = true;
      try {
        const said = await engine.explain(image, facts);
        drawn = overlay(said.map, picture);
        frame.append(drawn);
        drawn.hidden = true;
      } catch (error) {
        say(error.message, true);
      }
      button.disabled = false;
      if (!drawn) return;
    }
    drawn.hidden = !drawn.hidden;
    button.setAttribute("aria-pressed", String(!drawn.hidden));
    button.textContent = drawn.hidden ? "Show what spoke for it" : "Hide what spoke for it";
  };
  return button;
}

function overlay(map, picture) {
  const canvas = element("canvas"), high = map.length, wide = map[0].length;
  canvas.width = wide;
  canvas.height = high;
  const context = canvas.getContext("2d"), pixels = context.createImageData(wide, high);
  const most = Math.max(1e-9, ...map.flat());
  map.flat().forEach((value, place) => {
    pixels.data.set([255, 96, 0, 190 * Math.max(0, value) / most], 4 * place);
  });
  context.putImageData(pixels, 0, 0);
  const [left, top, width, height] = region(picture.naturalWidth, picture.naturalHeight, facts.preprocess);
  Object.assign(canvas.style, { left: 100 * left + "%", top: 100 * top + "%", width: 100 * width + "%", height: 100 * height + "%" });
  canvas.dataset.map = JSON.stringify(map);
  return canvas;
}

// Which part of the picture the network sees, in shares of its sides.
function region(wide, high, how) {
  if (how.fit === "squash") return [0, 0, 1, 1];
  const side = how.fit === "crop" ? Math.min(wide, high) * how.crop_share : Math.max(wide, high);
  return [(wide - side) / 2 / wide, (high - side) / 2 / high, side / wide, side / high];
}

function neighbours(result) {
  const list = element("ol", undefined, "gallery");
  for (const match of result.matches) {
    const line = element("li"), picture = element("img");
    picture.alt = "";
    picture.hidden = true;
    if (match.thumbnail) engine.picture(match.thumbnail).then(url => { picture.src = url; picture.hidden = false; }, () => {});
    line.append(picture, element("span", match.name + " "), element("span", match.similarity.toFixed(3), "soft"));
    list.append(line);
  }
  return [element("h2", "Similar images"), list];
}

at("choose").onclick = () => at("files").click();
at("photograph").onclick = () => at("camera").click();
for (const name of ["files", "camera"]) {
  at(name).onchange = event => { classify([...event.target.files]); event.target.value = ""; };
}
at("model").onchange = async () => { if (await learn() && waiting) classify(waiting); };
at("door").onsubmit = async event => {
  event.preventDefault();
  engine.use_key(at("key").value.trim());
  if (await learn()) { say(""); if (waiting) classify(waiting); else at("choose").focus(); }
};
document.ondragover = event => { event.preventDefault(); at("drop").classList.add("over"); };
document.ondragleave = event => { if (!event.relatedTarget) at("drop").classList.remove("over"); };
document.ondrop = event => {
  event.preventDefault();
  at("drop").classList.remove("over");
  classify([...event.dataTransfer.files]);
};
document.onpaste = event => {
  const images = [...event.clipboardData.files];
  if (images.length) { event.preventDefault(); classify(images); }
};

function start(given) {
  engine = given;
  at("promise").textContent = engine.promise + " ";
  if (engine.link) {
    const link = element("a", engine.link.text);
    link.href = engine.link.href;
    at("promise").append(link);
  }
  learn();
}
