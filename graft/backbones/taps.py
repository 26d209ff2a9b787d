"""A network with taps: one forward pass gives the pooled output of every stage.

In: any network of timm or torchvision. Out: a `Trunk`, a module from raw pixels (uint8 `[n, h, w, c]`) to one pooled
row per tap and, where the network has a pre-trained classifier, its logits. Taps are the ends of the stages (timm's
`feature_info`), the fully connected features of VGG and AlexNet, and what goes into the classifier, which differs
from the last stage where a final 1x1 convolution or a norm lies between them. A tap whose rows equal those of another
is dropped. Normalisation, the grey first convolution and edge filters (`look`) are inside, so whoever runs a trunk feeds
decoded pixels.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from graft.backbones.filters import Looking
from graft.backbones.inputs import Look, seen_channels

if TYPE_CHECKING:
    from graft.backbones.together import Together
else:
    Together = Any

MOST_STAGES = 6  # a ViT ends a "stage" with each of its 12 to 40 blocks; six show the curve
CLASSIFIER_INPUT = "head"

# torchvision's networks carry no feature_info: the modules after which the map shrinks, and the hidden layers of
# AlexNet's classifier.
TORCHVISION_STAGES: dict[str, tuple[str, ...]] = {
    "alexnet": ("features.1", "features.4", "features.11", "classifier.2"),
    "squeezenet1_0": ("features.1", "features.5", "features.10", "features.12"),
    "squeezenet1_1": ("features.1", "features.4", "features.7", "features.12"),
    "googlenet": ("conv1", "conv3", "inception3b", "inception4e", "inception5b"),
    "inception_v3": ("Conv2d_2b_3x3", "Conv2d_4a_3x3", "Mixed_5d", "Mixed_6e", "Mixed_7c"),
}
TORCHVISION_CLASSIFIERS = {
    "alexnet": "classifier.6",
    "squeezenet1_0": "classifier.1",
    "squeezenet1_1": "classifier.1",
}
HIDDEN_LAYERS = (
    "pre_logits.act1",
)  # VGG's first fully connected layer; the second one goes into the classifier


@dataclass(frozen=True, slots=True)
class Tap:
    """A place where features are read: the module's `name`, its `index` from the input, and `features` per image."""

    name: str
    index: int
    features: int


class Trunk(nn.Module):
    """`network` with taps. `forward` returns one `[n, d]` per tap in order (then, where it has one, that of `together`),
    then the logits if `classifier` is true."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        network: nn.Module,
        modules: Sequence[str],
        *,
        classifier_input: str | None,
        mean: Sequence[float],
        std: Sequence[float],
        channels: int,
        classifier: bool,
        look: Look = "plain",
    ) -> None:
        super().__init__()
        self.network = network
        self.classifier = classifier
        self.kept: tuple[str, ...] = ()
        self.together: Together | None = None
        self._pooled: dict[str, Tensor] = {}
        self.channels = channels
        self.looking = Looking(look)
        self.repeat_grey = seen_channels(channels, look) == 1 and len(mean) > 1
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32))
        for name in modules:
            self._hook(name, network.get_submodule(name))
        if classifier_input is not None:
            self._hook_input(CLASSIFIER_INPUT, network.get_submodule(classifier_input))

    def _hook(self, name: str, module: nn.Module) -> None:
        # Pooled inside the hook: an in-place activation that follows would otherwise change what was read.
        module.register_forward_hook(lambda _module, _inputs, output: self._keep(name, output))

    def _hook_input(self, name: str, module: nn.Module) -> None:
        module.register_forward_pre_hook(lambda _module, inputs: self._keep(name, inputs[0]))

    def _keep(self, name: str, output: Tensor | Sequence[Tensor]) -> None:
        maps = output if isinstance(output, Tensor) else output[0]
        self._pooled.pop(name, None)  # a module that is used twice counts where it is used last
        self._pooled[name] = pool(
            maps,
            prefix_tokens=getattr(self.network, "num_prefix_tokens", 0),
            channels_last=getattr(self.network, "output_fmt", None) == "NHWC",
        )

    def normalise(self, images: UInt8[Tensor, "n h w c"]) -> Float[Tensor, "n k y x"]:
        """Raw pixels to the network's input."""
        x = self.looking(images.permute(0, 3, 1, 2).to(torch.float32) / 255.0)
        if self.repeat_grey:
            x = x.expand(-1, self.mean.shape[0], -1, -1)
        return (x - self.mean[:, None, None]) / self.std[:, None, None]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self._pooled = {}
        output = self.network(self.normalise(images))
        pooled, self._pooled = self._pooled, {}
        rows = [pooled[name] for name in (self.kept or tuple(pooled))]
        if self.together is not None:
            rows.append(self.together.row(pooled.get(CLASSIFIER_INPUT)))
        return (*rows, output) if self.classifier else tuple(rows)

    @torch.no_grad()
    def tap_names(self, size: int) -> dict[str, int]:
        """Each tap that says something new, in the order of the forward pass, with its number of features."""
        probe = torch.randint(
            0, 256, (2, size, size, self.channels), generator=_generator(), dtype=torch.uint8
        )
        self._pooled = {}
        self.network(self.normalise(probe))
        pooled, self._pooled = self._pooled, {}
        fresh: dict[str, Tensor] = {}
        for name, rows in pooled.items():
            if not any(_same(rows, seen) for seen in fresh.values()):
                fresh[name] = rows
        return {name: rows.shape[1] for name, rows in fresh.items()}


def pool(maps: Tensor, *, prefix_tokens: int = 0, channels_last: bool = False) -> Float[Tensor, "n d"]:
    """The mean over positions of a map `[n, c, y, x]` or `[n, y, x, c]`, or over tokens `[n, t, d]` but the class token.

    Images are square, so a map whose first two sides alone are equal has its channels last. Where all three are equal
    the shape does not tell, and `channels_last`, what the network says of itself, decides.
    """
    if maps.ndim == 2:
        return maps
    if maps.ndim == 3:
        return maps[:, prefix_tokens:].mean(dim=1)
    return maps.mean(dim=(1, 2) if has_channels_last(maps, said=channels_last) else (2, 3))


def has_channels_last(maps: Tensor, *, said: bool) -> bool:
    """Whether maps are `[n, y, x, c]` (see `pool`); `said`: what the network says of itself."""
    first, second, third = (int(side) for side in maps.shape[1:])  # constants of an exported graph
    return first == second and (second != third or said)


def stages_of(network: nn.Module, architecture: str) -> tuple[list[str], str | None]:
    """The modules that end a stage, and the classifier module whose input is the last tap."""
    if architecture in TORCHVISION_STAGES:
        return list(TORCHVISION_STAGES[architecture]), TORCHVISION_CLASSIFIERS.get(architecture, "fc")
    modules = {name for name, _ in network.named_modules()}
    info = getattr(network, "feature_info", None) or []
    stages = [row["module"] for row in info if row["module"] in modules]
    if len(stages) > MOST_STAGES:
        step = len(stages) / MOST_STAGES
        stages = [stages[int((index + 1) * step) - 1] for index in range(MOST_STAGES)]
    stages += [name for name in HIDDEN_LAYERS if name in modules]
    return stages, _classifier_of(network)


def _classifier_of(network: nn.Module) -> str | None:
    find = getattr(network, "get_classifier", None)
    if find is None:
        return None
    classifier = find()
    if isinstance(classifier, tuple):  # a distilled network has two, and its logits are their mean
        classifier = classifier[0]
    return next((name for name, module in network.named_modules() if module is classifier), None)


def grey_first_convolution(
    network: nn.Module, name: str, *, mean: Sequence[float], std: Sequence[float]
) -> None:
    """Replace the first convolution by one that reads grey alone and computes what it did on grey repeated three times.

    With one mean and one std for all channels the kernels are summed. Otherwise channel c sees `(g - mean_c) / std_c`
    = `a_c z + b_c` of the first channel's z, and zero padding is not the same grey for each: a second, constant input
    channel carries `b_c`, so that the equality holds at the borders, too.
    """
    convolution = network.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    weight = convolution.weight.detach()
    scale = torch.tensor([std[0] / s for s in std])
    shift = torch.tensor([(mean[0] - m) / s for m, s in zip(mean, std, strict=True)])
    kernels = [torch.einsum("ocyx,c->oyx", weight, scale)]
    if bool((shift != 0).any()):
        kernels.append(torch.einsum("ocyx,c->oyx", weight, shift))
    grey = copy.deepcopy(convolution)
    grey.in_channels = len(kernels)
    grey.weight = nn.Parameter(torch.stack(kernels, dim=1))
    if len(kernels) == 2:
        # A hook, not a wrapping module: whoever asks the convolution for its weight or its stride still finds them.
        grey.register_forward_pre_hook(_with_constant_plane)
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, grey)


def _with_constant_plane(_module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Grey `[n, 1, y, x]` (or grey and edges) with one channel more, of ones."""
    images, *others = inputs
    return (torch.cat([images, torch.ones_like(images[:, :1])], dim=1), *others)


def further_channel(network: nn.Module, name: str, *, kernel: Float[Tensor, "o y x"], place: int) -> None:
    """Let the first convolution read one channel more, at `place`, through `kernel`; what it did stays as it was."""
    convolution = network.get_submodule(name)
    assert isinstance(convolution, nn.Conv2d)
    weight = convolution.weight.detach()
    wider = copy.deepcopy(convolution)  # with its hooks
    wider.in_channels += 1
    wider.weight = nn.Parameter(torch.cat([weight[:, :place], kernel[:, None], weight[:, place:]], dim=1))
    parent, _, child = name.rpartition(".")
    setattr(network.get_submodule(parent), child, wider)


def _same(rows: Tensor, seen: Tensor) -> bool:
    """Whether two taps read the same thing: equal but for the rounding of float32."""
    return rows.shape == seen.shape and bool((rows - seen).norm() <= 1e-5 * seen.norm())


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)
