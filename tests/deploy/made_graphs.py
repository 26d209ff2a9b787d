"""A small MobileNet-like graph from raw pixels, made of NumPy's random numbers alone."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

SIZE = 32
OUTPUT = "tap0"


def images(count: int = 24, *, size: int = SIZE, seed: int = 0) -> np.ndarray:
    """Waves in noise, uint8 `[n, h, w, 3]`."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size
    found = []
    for _ in range(count):
        angle, phase = random.uniform(0, 3), random.uniform(0, 6)
        wave = np.sin(20 * (x * np.cos(angle) + y * np.sin(angle)) + phase)
        found.append(128 + 60 * wave[..., None] + random.normal(0, 20, (size, size, 3)))
    return np.clip(np.stack(found), 0, 255).astype(np.uint8)


def mobile(*, hidden: int = 32, doubled: bool = False, tap: int = 24, size: int = SIZE) -> ModelProto:
    """Stem, two blocks (one with a shortcut), mean. `doubled`: every second inner channel repeats the one before."""
    random = np.random.default_rng(3)
    constants: list[TensorProto] = []
    nodes: list[NodeProto] = [
        helper.make_node("Cast", ["image"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Div", ["floats", "most"], ["unit"]),
        helper.make_node("Transpose", ["unit"], ["planes"], perm=[0, 3, 1, 2]),
    ]
    constants.append(numpy_helper.from_array(np.float32(255), "most"))

    def convolution(
        name: str, given: str, shape: tuple[int, ...], *, stride: int = 1, relu: bool = True
    ) -> str:
        group = shape[0] if shape[1] == 1 and shape[2] == 3 else 1
        fan = int(np.prod(shape[1:]))
        weights = random.normal(0, np.sqrt(2 / fan), shape).astype(np.float32)
        weights *= np.exp(random.normal(0, 1.0, (shape[0], 1, 1, 1))).astype(np.float32)  # uneven channels
        bias = random.normal(0, 0.1, shape[0]).astype(np.float32)
        if doubled and shape[0] == hidden:
            weights[1::2], bias[1::2] = weights[::2], bias[::2]
        constants.extend(
            [numpy_helper.from_array(weights, f"{name}.w"), numpy_helper.from_array(bias, f"{name}.b")]
        )
        pad = shape[2] // 2
        nodes.append(
            helper.make_node(
                "Conv",
                [given, f"{name}.w", f"{name}.b"],
                [f"{name}.raw"],
                name=name,
                group=group,
                strides=[stride, stride],
                pads=[pad] * 4,
                kernel_shape=list(shape[2:]),
            )
        )
        if not relu:
            return f"{name}.raw"
        nodes.append(helper.make_node("Relu", [f"{name}.raw"], [f"{name}.out"], name=f"{name}.relu"))
        return f"{name}.out"

    stem = convolution("stem", "planes", (16, 3, 3, 3), stride=2)
    wide = convolution("expand", stem, (hidden, 16, 1, 1))
    deep = convolution("depth", wide, (hidden, 1, 3, 3))
    low = convolution("project", deep, (16, hidden, 1, 1), relu=False)
    nodes.append(helper.make_node("Add", [stem, low], ["sum"], name="add"))
    last = convolution("last", "sum", (tap, 16, 1, 1))
    nodes.append(helper.make_node("ReduceMean", [last], [OUTPUT], name="mean", axes=[2, 3], keepdims=0))
    graph = helper.make_graph(
        nodes,
        "mobile",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["n", size, size, 3])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n", tap])],
        constants,
    )
    return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 17)])
