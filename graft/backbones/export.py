"""From an opened backbone to its ONNX graph.

Exporting takes 0.9 s for a MobileNetV2 through the TorchScript exporter; the newer one took 6.6 s and, for the same
speed in OpenVINO, kept the weights in a second file (torch 2.15, 2 cores).
"""

from __future__ import annotations

import io
import warnings
from typing import Any

import torch

from graft.backbones.graph import INPUT, LOGITS, tap_output
from graft.backbones.opening import Opened

OPSET = 17


def export(opened: Opened, *, size: int) -> bytes:
    """The serialised graph with every tap. Raises whatever the exporter raises for a network it cannot follow."""
    names = [tap_output(tap.index) for tap in opened.taps] + [LOGITS] * opened.has_logits
    example = torch.zeros((2, size, size, opened.trunk.channels), dtype=torch.uint8)
    buffer: Any = io.BytesIO()  # typed as a path only, but a buffer is accepted
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore"
        )  # tracing warns about every shape that becomes a constant; sizes are fixed here
        torch.onnx.export(
            opened.trunk,
            (example,),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=names,
            dynamic_axes={name: {0: "n"} for name in [INPUT, *names]},
        )
    return buffer.getvalue()
