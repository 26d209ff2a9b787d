"""A trunk as an ONNX graph: one file per backbone, weights and input, cut for every use. Needs no torch.

Input `image` (uint8 `[n, h, w, c]`, n free), outputs `tap0`, `tap1`, ... (`[n, d]`) and, where the network came with a
classifier, `logits`. OpenVINO runs the whole graph for the feature pass, ONNX Runtime times each cut, and the bundle
is a cut of the same graph, so what was measured is what is delivered. Cutting a MobileNetV2 takes about 30 ms.
"""

from __future__ import annotations

import math

import onnx
import onnx.shape_inference
from onnx import ModelProto
from onnx.utils import Extractor

INPUT = "image"
LOGITS = "logits"


def tap_output(index: int) -> str:
    """The name of the graph's output for the tap with this index."""
    return f"tap{index}"


def cut(model: ModelProto, output: str) -> ModelProto:
    """The part of `model` that computes `output` and nothing else."""
    part: ModelProto = Extractor(model).extract_model([INPUT], [output])
    part.ir_version = model.ir_version
    return part


def shapes_of(model: ModelProto) -> dict[str, list[int]]:
    """The shape of every value for one image; 0 where it is not known."""
    single = ModelProto()
    single.CopyFrom(model)
    # With the batch open, padding that is computed from the shape would leave the sides open, too.
    single.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del single.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(single, data_prop=True).graph
    infos = [*inferred.value_info, *inferred.input, *inferred.output]
    return {info.name: [side.dim_value for side in info.type.tensor_type.shape.dim] for info in infos}


def parameters(model: ModelProto) -> int:
    """The number of weights in the graph: the elements of its floating-point initialisers with more than one element.

    Batch norms are folded into the convolutions before them by then, which leaves one offset per channel of theirs;
    mean and std of the input count, and Swin's position biases count once per pair of positions.
    """
    return sum(
        math.prod(tensor.dims)
        for tensor in model.graph.initializer
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
        and math.prod(tensor.dims) > 1
    )
