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

const asked = facts => "?model=" + encodeURIComponent(facts.model);

start({
  promise: "The images go to this service only, and it keeps none.",
  link: { text: "For programs", href: "docs" },
  use_key(given) { key = given; },
  async learn(model) {
    const said = await (await fetched("bundle" + (model ? "?model=" + encodeURIComponent(model) : ""))).json();
    const { preprocess, unknown } = said.bundle;
    return { ...said, preprocess, unknown_limit: unknown ? unknown.threshold : null };
  },
  async predict(images, facts) {
    return (await (await fetched("predict" + asked(facts), form(images))).json()).predictions;
  },
  async explain(image, facts) {
    return (await (await fetched("predict" + asked(facts) + "&explain=1", form([image]))).json()).predictions[0].activation;
  },
  async similar(images, facts) {
    return (await (await fetched("similar" + asked(facts) + "&topk=8", form(images))).json()).results;
  },
  async picture(address) { return URL.createObjectURL(await (await fetched(address)).blob()); },
  async sample(number) {
    const blob = await (await fetched("samples/" + number)).blob();
    return { url: URL.createObjectURL(blob), file: new File([blob], "sample " + (number + 1) + ".jpg", { type: blob.type }) };
  },
});
