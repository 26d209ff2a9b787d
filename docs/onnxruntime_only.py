"""Use a packed model with nothing but ONNX Runtime and Pillow: python onnxruntime_only.py model.graft a.jpg b.png

The probabilities are those of `graft predict` within 0.00001 for 8-bit pictures without transparency. JPEGs more than
about four times as large as the network's input may differ by up to 0.001: there, Graft lets the decoder shrink them.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

folder, *photos = sys.argv[1:]
bundle = json.loads(Path(folder, "bundle.json").read_text(encoding="utf-8"))
session, how = onnxruntime.InferenceSession(f"{folder}/model.onnx"), bundle["preprocess"]
for photo in photos:
    image = ImageOps.exif_transpose(Image.open(photo)).convert("RGB" if how["channels"] == 3 else "L")
    side = min(image.size) * how["crop_share"]
    left, top = (image.width - side) / 2, (image.height - side) / 2
    box = (left, top, left + side, top + side) if how["fit"] == "crop" else None  # None: squash
    kernel = Image.Resampling[how["interpolation"].upper()]
    image = image.resize((how["size"], how["size"]), kernel, box=box, reducing_gap=4.0)
    pixels = np.asarray(image).reshape(1, how["size"], how["size"], how["channels"])
    (probabilities,) = session.run(["probabilities"], {"image": pixels})
    answer = dict(zip(bundle["labels"], probabilities[0].tolist(), strict=True))
    print(json.dumps({"file": photo, "probabilities": answer}))  # noqa: T201
