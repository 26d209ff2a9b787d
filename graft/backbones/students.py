"""The networks of our own that `graft pretrain` trains: MobileNetV2's layout with narrower blocks, in two sizes.

In: a name and the arguments that timm's networks take. Out: a timm `EfficientNet`, whose stages are found like those
of any other, and, without building it, its multiply-adds and the shapes of its stages. Inverted residuals with ReLU6
and no squeeze-and-excitation (Sandler et al. 2018, arXiv 1801.04381): cheap in bfloat16 and safe in int8. Keeping the
widths of MobileNetV2's stages, and narrowing only what lies between them, lets a student start from such a teacher
(`graft.backbones.inheritance`). Reads 64 px and more, with one or three channels.

Cost: this module loads neither torch nor timm; `build_student` does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from graft.backbones.catalogue import StageShape

if TYPE_CHECKING:
    from torch.nn import Module
else:  # looking up what a student costs must not wait for torch
    Module = object

STEM = 32
FIRST = 16
# Of each row of blocks after the first: how many, the stride of the first of them, and the channels they put out.
ROWS = ((2, 2, 24), (3, 2, 32), (4, 2, 64), (3, 1, 96), (3, 2, 160), (1, 1, 320))


@dataclass(frozen=True, slots=True)
class StudentLayout:
    """`expansion`: how many times wider a block is inside; `head`: channels of the last 1x1 convolution.

    The last convolution only serves the training: a student learns behind the head of its teacher (Chen et al. 2022,
    arXiv 2203.14001) and is published without it, with the argument `head=0`.
    """

    expansion: int
    head: int


STUDENTS = {
    "graft_small": StudentLayout(expansion=4, head=1280),
    "graft_tiny": StudentLayout(expansion=2, head=1280),
}


def build_student(
    architecture: str, *, num_classes: int = 1000, in_chans: int = 3, head: int | None = None
) -> Module:
    """The network with random weights; `head` instead of the layout's own, 0 for none. Raises ValueError for a name that is not in `STUDENTS`."""
    from timm.models._efficientnet_builder import decode_arch_def
    from timm.models.efficientnet import EfficientNet
    from torch import nn

    if architecture not in STUDENTS:
        raise ValueError(f"there is no student {architecture!r}; there are {', '.join(STUDENTS)}")
    layout = STUDENTS[architecture]
    rows = [[f"ds_r1_k3_s1_c{FIRST}"]]
    rows += [[f"ir_r{count}_k3_s{stride}_e{layout.expansion}_c{width}"] for count, stride, width in ROWS]
    return EfficientNet(
        block_args=decode_arch_def(rows),
        num_classes=num_classes,
        num_features=layout.head if head is None else head,
        in_chans=in_chans,
        stem_size=STEM,
        pad_type="same",
        act_layer=nn.ReLU6,
    )


def student_cost(
    architecture: str, arguments: Mapping[str, Any], size: int
) -> tuple[float | None, tuple[StageShape, ...]]:
    """10^9 multiply-adds of one image of `size` x `size` px, and the shapes of the stages; (None, ()) if unknown."""
    if architecture not in STUDENTS:
        return None, ()
    layout, side = STUDENTS[architecture], -(-size // 2)
    adds = side**2 * STEM * (9 * int(arguments.get("in_chans", 3)) + 9 + FIRST)
    reduction, width, stages = 2, FIRST, [StageShape(FIRST, 2)]
    for count, stride, out in ROWS:
        for index in range(count):
            hidden, before = width * layout.expansion, side
            if index == 0 and stride == 2:
                side, reduction = -(-side // 2), reduction * 2
            adds += before**2 * width * hidden + side**2 * hidden * (9 + out)
            width = out
        stages = [stage for stage in stages if stage.reduction != reduction] + [StageShape(out, reduction)]
    head = int(arguments.get("head", layout.head))
    features = head or width
    adds += side**2 * width * head + features * int(arguments.get("num_classes", 1000))
    return adds / 1e9, tuple(stages)
