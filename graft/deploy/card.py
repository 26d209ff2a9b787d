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
- Outputs: `probabilities` (softmax with a temperature fitted on leave-one-out or held-back predictions), `embedding`

## How good it is

{about["headline"]}

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

## Limits

- It answers with one of its classes for any picture whatever, also for one that shows none of them.
- The figures hold for images like those it was made from; another camera, light or place must be measured again.
"""


def _cell(text: str) -> str:
    """A name of the user's so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*<>|\[\]&]|\b_|_\b)", r"\\\1", re.sub(r"\s+", " ", text))
