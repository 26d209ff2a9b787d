"""The card of a bundle: what a person should know before using the model, as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from graft.images.dataset import Preprocess
from graft.version import VERSION

NAMED = 20  # class names in the list above the tables; all stand in the table


def card(labels: Sequence[str], preprocess: Preprocess, about: Mapping[str, Any], size_bytes: int) -> str:
    """The text of `card.md`. `about` holds `strategy`, `backbone`, `weights`, `data`, `headline`, `metrics`, `limits`."""
    weights, data = about["weights"], about["data"]
    names = ", ".join(_cell(label) for label in labels[:NAMED]) + (" ..." if len(labels) > NAMED else "")
    rows = "\n".join(
        f"| {name} | {value:.4f} |" for name, value in about["metrics"].items() if value is not None
    )
    per_class = "\n".join(
        f"| {_cell(row['class'])} | {row['precision']:.3f} | {row['recall']:.3f} | {row['f1']:.3f} | {row['support']} |"
        for row in about["per_class"]
    )
    return f"""# Image classifier: {_cell(data["name"])}

Made by Graft {VERSION}. {_cell(about["reason"])}

- Classes ({len(labels)}, in the order of the output): {names}
- Network: {about["backbone"]}, {about["strategy"]}, read at `{about["tap"]}`; {size_bytes / 1e6:.2f} MB
- Input: uint8 `[n, {preprocess.size}, {preprocess.size}, {preprocess.channels}]`, fit `{preprocess.fit}`; normalisation is inside
- Outputs: `probabilities` (softmax with a temperature fitted on leave-one-out or held-back predictions), `embedding`;
  `activation` (what spoke for each class, place by place) where `bundle.json` lists it
- `preprocess.onnx` makes the input of a decoded picture of any size

## How good it is

{_converted(about)}{about["headline"]}

Out-of-fold on {data["development"]} images (none of them seen by the model that judged it):

| metric | value |
|---|---|
{rows}

| class | precision | recall | F1 | images |
|---|---|---|---|---|
{per_class}

## What it was made from

- Images: {data["images"]} ({data["excluded"]} files left out), fingerprint `{data["fingerprint"]}`
- Weights: {weights["name"]}; source: {weights["source"]}; licence: {weights["licence"]}; digest `{weights["digest"]}`

{_reject(about)}## Limits

- Its label is one of its classes for any picture whatever, also for one that shows none of them{_warned(about)}.
- The figures hold for images like those it was made from; another camera, light or place must be measured again.
"""


def _converted(about: Mapping[str, Any]) -> str:
    """What the figures do not say of a model that was converted after they were measured."""
    done = about.get("conversion")
    if not done:
        return ""
    return (
        f"**This model was converted to 8 bits, calibrated on {done['calibrated_on']} photos; all scores here are those of "
        f"the float32 model it was made from.** On {done['checked_on']} other photos it decides as that one in "
        f"{100 * done['agreement']:.1f} % of cases; probabilities differ by at most {done['largest_difference']:.4f}.\n\n"
    )


def _reject(about: Mapping[str, Any]) -> str:
    """What it knows of its own limits, measured; nothing where it was not measured."""
    unknown, sets, thresholds = (about.get(name) for name in ("unknown", "conformal", "thresholds"))
    told = ""
    if unknown:
        told += f"A picture counts as unknown where its score is above {unknown['threshold']:.3f}.\n\n"
    if unknown and unknown.get("curve"):
        rows = "\n".join(
            f"| {100 * point['coverage']:.0f} % | {point['accuracy']:.4f} |" for point in unknown["curve"]
        )
        told += (
            f"Measured on {unknown['images']} training images, held out ({unknown['origin']}), of which "
            f"{100 * unknown['accepted']:.0f} % are not unknown:\n\n"
            f"| accepted | accuracy of the accepted |\n|---|---|\n{rows}\n\n"
        )
    if sets and sets.get("measured"):
        measured = sets["measured"]
        told += (
            f"Label sets at {100 * sets['coverage']:.0f} % (all classes from a probability of "
            f"{sets['least_probability']:.4f} on, and the most probable one) held the right class in "
            f"{100 * measured['coverage']:.1f} % of {sets['images']} images, with {measured['mean_size']:.2f} classes each.\n\n"
        )
    for label, least in (thresholds or {}).items():
        told += f"Decision: {_cell(label)} from a probability of {least:.4f} on, the other class below.\n\n"
    return f"## When it should not be believed\n\n{told}" if told else ""


def _warned(about: Mapping[str, Any]) -> str:
    return "; ask for `unknown`, too" if about.get("unknown") else ""


def _cell(text: str) -> str:
    """A name of the user's so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*<>|\[\]&]|\b_|_\b)", r"\\\1", re.sub(r"\s+", " ", text))
