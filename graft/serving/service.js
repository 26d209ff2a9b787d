"use strict";
// The service as the page's engine.
let key = "";

async function fetched(path, body) {
  const headers = key ? { "X-API-Key": key } : {};
  let answer;
  try {
    answer = await fetch(path, body ? { method: "POST", body, headers } : { headers });
  } catch {
    throw new Refused(0, "The service does not answer. Is it still running?");
  }
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new Refused(answer.status, said.error || "The service answered " + answer.status + ".");
}

function form(images) {
  const body = new FormData();
  for (const image of images) body.append("image", image, image.name || "pasted image");
  return body;
}

// The images in as many requests as the service's limits ask for; the margin is for what a form says of each.
function parts(images, { files, request_bytes }) {
  const made = [], margin = 2048;
  let room = 0;
  for (const image of images) {
    room -= image.size + margin;
    if (room < 0 || made.at(-1).length === files) {
      made.push([]);
      room = request_bytes - image.size - margin;
    }
    made.at(-1).push(image);
  }
  return made;
}

function instead(image, error) {
  if (![413, 415, 422].includes(error.status)) throw error;
  const unread = [{ file: image.name, error: error.message }];
  return { predictions: unread, results: unread };
}

async function inParts(path, images, facts) {
  const said = [];
  for (const part of parts(images, facts.limits)) {
    const answer = fetched(path, form(part)).then(answer => answer.json());
    // One image alone in a request is refused with a status of its own; here it is one of several.
    const alone = images.length > 1 && part.length === 1;
    said.push(await (alone ? answer.catch(error => instead(part[0], error)) : answer));
  }
  return said;
}

const asked = facts => "?model=" + encodeURIComponent(facts.model);

start({
  promise: "The images go to this service only, and it keeps none.",
  link: { text: "For programs", href: "docs" },
  use_key(given) { key = given; },
  async learn(model) {
    const said = await (await fetched("bundle" + (model ? "?model=" + encodeURIComponent(model) : ""))).json();
    const { labels, preprocess, unknown } = said.bundle;
    return { ...said, labels, preprocess, unknown_limit: unknown ? unknown.threshold : null };
  },
  async predict(images, facts) {
    return (await inParts("predict" + asked(facts), images, facts)).flatMap(said => said.predictions);
  },
  async explain(image, facts) {
    return (await (await fetched("predict" + asked(facts) + "&explain=1", form([image]))).json()).predictions[0].activation;
  },
  async similar(images, facts) {
    return (await inParts("similar" + asked(facts) + "&topk=8", images, facts)).flatMap(said => said.results);
  },
  async picture(address) { return URL.createObjectURL(await (await fetched(address)).blob()); },
  async sample(number) {
    const blob = await (await fetched("samples/" + number)).blob();
    return { url: URL.createObjectURL(blob), file: new File([blob], "sample " + (number + 1) + ".jpg", { type: blob.type }) };
  },
});
