"""What a trunk reads is what the network computes there: every stage, before and after the last convolution."""

from __future__ import annotations

import functools

import pytest
import timm
import torch
from made_networks import SIZES, made_entry, noise, opened
from torch import Tensor, nn

from graft.backbones.opening import tapped
from graft.backbones.taps import CLASSIFIER_INPUT, MOST_STAGES, Trunk, pool, stages_of

# The channels after each stage, from the papers and the libraries' tables; the last one feeds the classifier.
FEATURES = {
    "alexnet": (64, 192, 256, 4096, 4096),
    "convnext_atto": (40, 80, 160, 320, 320),
    "edgenext_xx_small": (24, 48, 88, 168, 168),
    "efficientnet_b0": (16, 24, 40, 112, 320, 1280),
    "googlenet": (64, 192, 480, 832, 1024),
    "inception_v3": (64, 192, 288, 768, 2048),
    "lcnet_050": (16, 32, 64, 128, 256, 1280),
    "levit_128s": (128, 256, 384),
    "mobilenetv2_100": (16, 24, 32, 96, 320, 1280),
    "mobilenetv3_small_050": (16, 8, 16, 24, 288, 1024),
    "mobilenetv4_conv_small_050": (32, 16, 32, 48, 480, 1280),
    "regnetx_002": (32, 24, 56, 152, 368),
    "resnet18": (64, 64, 128, 256, 512),
    "squeezenet1_1": (64, 128, 256, 512),
    "swin_tiny_patch4_window7_224": (24, 48, 96, 192, 192),
    "vgg11": (64, 128, 256, 512, 512, 512, 4096, 4096),
    "vit_tiny_patch16_224": (192,) * 7,
}
SHARING_INTERMEDIATES = (
    "convnext_atto",
    "edgenext_xx_small",
    "efficientnet_b0",
    "mobilenetv2_100",
    "regnetx_002",
    "resnet18",
    "swin_tiny_patch4_window7_224",
    "vgg11",
)


@pytest.fixture(params=sorted(FEATURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return request.param


@functools.cache
@torch.no_grad()
def run(architecture: str) -> tuple[Tensor, ...]:
    """The outputs of the trunk for two images."""
    return opened(architecture).trunk(images_of(architecture))


def images_of(architecture: str) -> Tensor:
    return torch.from_numpy(noise(2, SIZES[architecture]))


def as_trained(images: Tensor) -> Tensor:
    """The ImageNet normalisation, written down once more."""
    x = images.permute(0, 3, 1, 2).double() / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    return ((x - mean[:, None, None]) / std[:, None, None]).float()


def close(a: Tensor, b: Tensor, *, error: float = 1e-4) -> bool:
    return a.shape == b.shape and bool((a - b).norm() <= error * b.norm())


def test_taps_are_found_in_order_with_their_number_of_features(architecture: str) -> None:
    taps = opened(architecture).taps
    assert tuple(tap.features for tap in taps) == FEATURES[architecture]
    assert [tap.index for tap in taps] == list(range(len(taps)))
    assert len({tap.name for tap in taps}) == len(taps)
    assert [rows.shape for rows in run(architecture)[: len(taps)]] == [(2, tap.features) for tap in taps]


def test_a_row_does_not_depend_on_the_other_rows(architecture: str) -> None:
    together = run(architecture)
    with torch.no_grad():
        alone = opened(architecture).trunk(images_of(architecture)[1:])
    for rows, row in zip(together, alone, strict=True):
        assert close(rows[1:], row, error=1e-5)
    assert not close(together[0][:1], alone[0], error=1e-2), "the other image is another row"


def test_the_logits_are_those_of_the_network(architecture: str) -> None:
    trunk = opened(architecture).trunk
    *_, logits = run(architecture)
    with torch.no_grad():
        assert opened(architecture).has_logits
        assert close(logits, trunk.network(as_trained(images_of(architecture))))
    assert logits.shape == (2, 1000)


def test_the_last_tap_is_what_goes_into_the_classifier(architecture: str) -> None:
    network = opened(architecture).trunk.network
    *_, last, logits = run(architecture)
    with torch.no_grad():
        if architecture == "squeezenet1_1":  # its classifier is a convolution; what follows it is not linear
            assert close(last, network.features(as_trained(images_of(architecture))).mean((2, 3)))
            return
        _, name = stages_of(network, architecture)
        assert name is not None
        heads = network.get_classifier() if architecture == "levit_128s" else network.get_submodule(name)
        answers = [head(last) for head in heads] if isinstance(heads, tuple) else [heads(last)]
    assert close(torch.stack(answers).mean(0), logits)


@pytest.mark.parametrize("architecture", SHARING_INTERMEDIATES)
def test_stages_are_those_of_timm(architecture: str) -> None:
    network = opened(architecture).trunk.network
    with torch.no_grad():
        maps = network.forward_intermediates(as_trained(images_of(architecture)), intermediates_only=True)
    rows = dict(zip((tap.name for tap in opened(architecture).taps), run(architecture), strict=False))
    stages = [row["module"] for row in network.feature_info]
    assert stages == [name for name in rows if name in stages]
    for name, expected in zip(stages, maps, strict=True):
        assert close(rows[name], expected.mean((2, 3)))


def test_the_mean_over_tokens_leaves_the_class_token_out() -> None:
    architecture = "vit_tiny_patch16_224"
    network = opened(architecture).trunk.network
    with torch.no_grad():
        tokens = network.forward_intermediates(
            as_trained(images_of(architecture)), indices=[1, 11], output_fmt="NLC", intermediates_only=True
        )
    rows = run(architecture)
    assert close(rows[0], tokens[0].mean(1))
    assert close(rows[MOST_STAGES - 1], tokens[1].mean(1))


@pytest.mark.parametrize(
    "architecture", ["mobilenetv2_100", "efficientnet_b0", "lcnet_050", "mobilenetv3_small_050"]
)
def test_both_sides_of_the_last_convolution_are_taps(architecture: str) -> None:
    network = opened(architecture).trunk.network
    seen: dict[str, Tensor] = {}
    hook = network.conv_head.register_forward_pre_hook(lambda _module, inputs: seen.update(before=inputs[0]))
    with torch.no_grad():
        rows = opened(architecture).trunk(images_of(architecture))
    hook.remove()
    assert close(rows[-3], seen["before"].mean((2, 3)))
    assert opened(architecture).taps[-1].name == CLASSIFIER_INPUT
    assert rows[-2].shape[1] == network.conv_head.out_channels != rows[-3].shape[1]


def test_the_hidden_layers_of_vgg_and_alexnet_are_taps() -> None:
    *_, hidden, last, _ = run("vgg11")
    layers = opened("vgg11").trunk.network.pre_logits
    with torch.no_grad():
        assert close(layers.act2(layers.fc2(hidden[:, :, None, None])).flatten(1), last)
    *_, hidden, last, _ = run("alexnet")
    with torch.no_grad():
        assert close(opened("alexnet").trunk.network.classifier[4](hidden).relu(), last)


def test_long_rows_of_blocks_are_thinned_out_to_the_last_block() -> None:
    stages, classifier = stages_of(opened("vit_tiny_patch16_224").trunk.network, "vit_tiny_patch16_224")
    assert (len(stages), stages[-1], classifier) == (MOST_STAGES, "blocks.11", "head")


def chain(*layers: nn.Module) -> nn.Sequential:
    return nn.Sequential(*layers).eval()


def trunk_over(network: nn.Module, modules: list[str]) -> Trunk:
    return Trunk(
        network, modules, classifier_input=None, mean=(0.0,), std=(1.0,), channels=1, classifier=False
    ).eval()


def convolution(*, gain: float) -> nn.Conv2d:
    layer = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.constant_(layer.weight, gain)
    return layer


def test_a_tap_that_equals_another_is_dropped_and_a_nearly_equal_one_is_not() -> None:
    trunk = trunk_over(chain(nn.Identity(), convolution(gain=1.0), convolution(gain=1.001)), ["0", "1", "2"])
    assert list(trunk.tap_names(8)) == ["0", "2"]
    assert CLASSIFIER_INPUT not in [tap.name for tap in opened("resnet18").taps], "it equals the last stage"


def test_taps_with_tiny_numbers_are_told_apart() -> None:
    trunk = trunk_over(chain(convolution(gain=1e-8), convolution(gain=-0.5)), ["0", "1"])
    assert list(trunk.tap_names(8)) == ["0", "1"]


@torch.no_grad()
def test_an_activation_in_place_does_not_change_what_was_read() -> None:
    trunk = trunk_over(chain(convolution(gain=-1.0), nn.ReLU(inplace=True)), ["0", "1"])
    before, after = trunk(torch.full((1, 4, 4, 1), 255, dtype=torch.uint8))
    assert (before.item(), after.item()) == (-1.0, 0.0)


@torch.no_grad()
def test_a_module_that_is_used_twice_is_read_where_it_is_used_last() -> None:
    shared = convolution(gain=0.5)
    trunk = trunk_over(chain(shared, convolution(gain=3.0), shared), ["0", "1"])
    assert list(trunk.tap_names(4)) == ["1", "0"]
    rows = trunk(torch.full((1, 4, 4, 1), 255, dtype=torch.uint8))
    assert [row.item() for row in rows] == [1.5, 0.75]


@pytest.mark.parametrize(
    ("shape", "axes", "about"),
    [
        ((2, 5, 4, 4), (2, 3), {}),
        ((2, 4, 4, 5), (1, 2), {}),
        ((2, 1, 1, 5), (1, 2), {}),
        ((2, 5, 1, 1), (2, 3), {}),
        ((2, 4, 4, 4), (2, 3), {}),
        ((2, 4, 4, 4), (1, 2), {"channels_last": True}),
        ((2, 5, 4, 4), (2, 3), {"channels_last": True}),
        ((2, 7, 5), (1,), {}),
    ],
)
def test_pooling_is_the_mean_over_positions(
    shape: tuple[int, ...], axes: tuple[int, ...], about: dict
) -> None:
    maps = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool(maps, **about), maps.mean(axes))


def test_pooling_leaves_rows_alone_and_prefix_tokens_out() -> None:
    tokens = torch.rand((2, 7, 5), generator=torch.Generator().manual_seed(0))
    assert torch.equal(pool(tokens, prefix_tokens=2), tokens[:, 2:].mean(1))
    assert torch.equal(pool(tokens[:, 0]), tokens[:, 0])


def test_a_swin_stage_as_wide_as_it_has_channels_is_pooled_over_its_positions() -> None:
    trunk = opened("swin_tiny_patch4_window7_224").trunk
    seen: list[Tensor] = []
    hook = trunk.network.layers[0].register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    with torch.no_grad():
        first, *_ = trunk(images_of("swin_tiny_patch4_window7_224"))
    hook.remove()
    assert seen[0].shape == (2, 24, 24, 24)
    assert close(first, seen[0].mean((1, 2)))


def test_any_timm_network_without_a_classifier_ends_with_its_features() -> None:
    network = timm.create_model("resnet18", num_classes=0).eval()
    read = tapped(network, made_entry("resnet18"), channels=3, size=64)
    assert (read.has_logits, read.taps[-1].features) == (False, 512)
