"""The networks that the peers of `versus_peers.py` train, as Graft opens them, from the same files.

Runs in the peers' environment; imports neither Graft nor anything of the other benchmarks. Inputs have mean and
deviation 0.5.
"""

from __future__ import annotations

from pathlib import Path

import timm
from safetensors.torch import load_file
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn

HALF = (0.5, 0.5, 0.5)
SIZES = {"mobilenetv1_050.coral_in1k": 160, "mobilenetv2_100.coral_in1k": 224}  # pixels a side


def size_of(weights: Path) -> int:
    """The side of the pictures that the network of this file was made for."""
    return SIZES[weights.stem]


def network(weights: Path) -> nn.Module:
    """With its classifier of ImageNet."""
    if weights.stem.startswith("mobilenetv1"):
        made = _gen_mobilenet_v1(
            "mobilenetv1_100", 0.5, fix_stem_head=False, pretrained=False, pad_type="same"
        )
    else:
        made = timm.create_model("mobilenetv2_100", pretrained=False, pad_type="same")
    made.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return made
