"use strict";
// The bundle's own graphs, run in this browser, as the page's engine. RUNTIME comes from runtime.js.
const session = {};
let bundle = null, ort = null;
const MOST_PIXELS = 4e6;

async function file(name) {
  let answer;
  try {
    answer = await fetch(name);
  } catch {
    throw new Refused(0, "This folder wants to be opened through a web server: run  python3 -m http.server  in it.");
  }
  if (!answer.ok) throw new Refused(answer.status, "The folder lacks its file " + name + ".");
  return answer;
}

// Whether bytes have the hash that was written down. Only secure pages (https, or this machine) can compute hashes.
async function same(bytes, wanted) {
  if (!crypto.subtle || !wanted) return true;
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return [...found].map(byte => byte.toString(16).padStart(2, "0")).join("") === wanted;
}

async function graph(name) {
  const bytes = new Uint8Array(await (await file(name)).arrayBuffer());
  if (!(await same(bytes, bundle.files[name]))) throw new Refused(0, "The file " + name + " was altered. Export the folder again.");
  return ort.InferenceSession.create(bytes, { executionProviders: ["wasm"] });
}

async function runtime() {
  try {
    const made = await import("./runtime/" + RUNTIME.script);
    made.env.wasm.numThreads = 1;
    made.env.wasm.wasmPaths = { wasm: new URL("runtime/" + RUNTIME.binary, document.baseURI).href };
    return made;
  } catch (error) {
    console.warn(error);
    throw new Refused(0, "The folder runtime/ lacks " + RUNTIME.script + " or " + RUNTIME.binary +
      " of the npm package onnxruntime-web " + RUNTIME.version + "; put them there.");
  }
}

// The picture's pixels, upright and without a change of colours. One that is much larger than any network looks at is
// made smaller first: the graphs would need a gigabyte for a photo of a modern phone.
async function pixels(image) {
  let picture;
  try {
    picture = await createImageBitmap(image, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new Refused(0, (image.name || "This") + " is no image that this browser can read.");
  }
  const scale = Math.min(1, Math.sqrt(MOST_PIXELS / (picture.width * picture.height)));
  const canvas = document.createElement("canvas");
  canvas.width = Math.max(1, Math.round(scale * picture.width));
  canvas.height = Math.max(1, Math.round(scale * picture.height));
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.imageSmoothingQuality = "high";
  context.drawImage(picture, 0, 0, canvas.width, canvas.height);
  picture.close();
  const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
  return new ort.Tensor("uint8", new Uint8Array(data.buffer), [canvas.height, canvas.width, 4]);
}

async function seen(image) {
  return (await session.preprocess.run({ picture: await pixels(image) })).image;
}

function decided(shares) {
  const thresholds = Object.entries(bundle.thresholds || {});
  if (thresholds.length) {
    const [label, least] = thresholds[0], column = bundle.labels.indexOf(label);
    return shares[column] >= least ? column : 1 - column;
  }
  return shares.indexOf(Math.max(...shares));
}

async function answered(image) {
  const wanted = session.unknown ? ["probabilities", "embedding"] : ["probabilities"];
  const said = await session.model.run({ image: await seen(image) }, wanted);
  const shares = [...said.probabilities.data], order = shares.map((_, place) => place), answer = decided(shares);
  order.sort((one, other) => shares[other] - shares[one] || one - other);
  const most = order[0];
  order.sort((one, other) => (other === answer) - (one === answer));
  const label = bundle.labels[answer], probability = shares[answer];
  const probabilities = Object.fromEntries(order.map(place => [bundle.labels[place], shares[place]]));
  const made = { file: image.name || "pasted image", label, probability, probabilities };
  if (session.unknown) {
    const given = Object.fromEntries(session.unknown.inputNames.map(name => [name, said[name]]));
    made.score = (await session.unknown.run(given)).score.data[0];
    made.unknown = !(made.score <= bundle.unknown.threshold);
  }
  if (bundle.conformal) {
    const least = bundle.conformal.least_probability;
    const likely = order.filter(place => place === answer || place === most || shares[place] >= least);
    made.labels_90 = likely.map(place => bundle.labels[place]);
  }
  return made;
}

start({
  promise: "The images stay in this browser: nothing is sent anywhere.",
  link: null,
  use_key() {},
  async learn() {
    if (!bundle) {
      const read = await (await file("bundle.json")).json(), labels = new TextEncoder().encode(JSON.stringify(read.labels));
      if (!(await same(labels, read.labels_sha256))) throw new Refused(0, "The classes in bundle.json were altered. Export the folder again.");
      bundle = read;
    }
    ort = ort || await runtime();
    session.preprocess = session.preprocess || await graph("preprocess.onnx");
    session.model = session.model || await graph("model.onnx");
    if (bundle.unknown) session.unknown = session.unknown || await graph(bundle.unknown.file);
    const name = document.title;
    return {
      model: name, models: [name], labels: bundle.labels, preprocess: bundle.preprocess, similar: false, samples: 0,
      unknown_limit: bundle.unknown ? bundle.unknown.threshold : null,
      explains: session.model.outputNames.includes("activation"),
    };
  },
  async predict(images) {
    const made = [];
    for (const image of images) {
      made.push(await answered(image).catch(error => {
        if (images.length === 1 || !(error instanceof Refused)) throw error;
        return { file: image.name, error: error.message };
      }));
    }
    return made;
  },
  async explain(image) {
    const said = await session.model.run({ image: await seen(image) }, ["probabilities", "activation"]);
    // As Bundle.explain: against the average class, with what has no place spread evenly.
    const shares = [...said.probabilities.data], column = decided(shares), [, classes, high, wide] = said.activation.dims;
    const logits = shares.map(share => Math.log(Math.max(share, 1.1754944e-38)));
    const mean = values => values.reduce((sum, value) => sum + value, 0) / values.length;
    const cells = Array.from({ length: high * wide }, (_, place) => {
      const here = Array.from({ length: classes }, (_, row) => said.activation.data[row * high * wide + place]);
      return here[column] - mean(here);
    });
    const more = logits[column] - mean(logits) - mean(cells);
    const map = Array.from({ length: high }, (_, row) => cells.slice(row * wide, (row + 1) * wide).map(cell => cell + more));
    return { label: bundle.labels[column], map };
  },
});
