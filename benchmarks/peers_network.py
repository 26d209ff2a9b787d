"""The network that the peers of `versus_peers.py` train: MobileNetV1 at half width, as Graft opens it, from the same file.

Runs in the peers' environment; imports neither Graft nor anything of the other benchmarks. Inputs have mean and
deviation 0.5 and 160 pixels a side.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from timm.models.efficientnet import _gen_mobilenet_v1
from torch import nn

SIZE = 160
HALF = (0.5, 0.5, 0.5)
FEATURES = 512


def network(weights: Path) -> nn.Module:
    """With its classifier of ImageNet."""
    made = _gen_mobilenet_v1("mobilenetv1_100", 0.5, fix_stem_head=False, pretrained=False, pad_type="same")
    made.load_state_dict({name: value.float() for name, value in load_file(weights).items()})
    return made
