"""First convolutions take edges as they take grey and colour, and what was learned before is not lost."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from made_networks import HALF, IMAGENET, Normalisation, made, made_entry, noise
from test_trunks import PLAIN, SMALL, folder_of, made_trunk
from torch import nn

from graft.backbones.activations import openvino_rows
from graft.backbones.filters import Looking
from graft.backbones.inputs import Look, seen_edges
from graft.backbones.opening import tapped
from graft.backbones.taps import CLASSIFIER_INPUT
from graft.backbones.trunks import relative_error, reopened, torch_rows, trunk_of
from graft.errors import BackboneError
from graft.images.dataset import Preprocess
from graft.learning.cutting import cut_at
from graft.store import Store
from graft.studies.recipe import Recipe

LOOKS: tuple[Look, ...] = ("edges", "thin", "plain+edges", "plain+thin")


def first(network: nn.Module) -> nn.Conv2d:
    return next(module for module in network.modules() if isinstance(module, nn.Conv2d))


@pytest.mark.parametrize("normalisation", [HALF, IMAGENET])
@pytest.mark.parametrize(("channels", "reads"), [(3, 4), (1, 2)])
@pytest.mark.parametrize("architecture", [SMALL, "resnet18"])
@torch.no_grad()
def test_without_the_edge_kernel_the_answer_is_that_of_the_plain_image(
    architecture: str, channels: int, reads: int, normalisation: Normalisation
) -> None:
    entry = made_entry(architecture, normalisation=normalisation)
    plain = tapped(made(entry), entry, channels=channels, size=64)
    both = tapped(made(entry), entry, channels=channels, size=64, look="plain+edges")
    assert both.taps == plain.taps
    convolution, before = first(both.trunk.network), first(plain.trunk.network)
    assert len(both.trunk.mean) == reads
    assert convolution.weight.shape[1] == before.weight.shape[1] + 1
    colours = [index for index in range(convolution.weight.shape[1]) if index != reads - 1]
    assert torch.equal(convolution.weight[:, colours], before.weight)
    images = torch.from_numpy(noise(2, 64, channels=channels))
    told = both.trunk(images)[-2]
    convolution.weight[:, reads - 1] = 0.0
    for rows, wanted in zip(both.trunk(images), plain.trunk(images), strict=True):
        torch.testing.assert_close(rows, wanted, rtol=1e-5, atol=1e-5)
    assert float((told - both.trunk(images)[-2]).norm()) > 1e-3 * float(told.norm())


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("look", ["edges", "thin"])
@torch.no_grad()
def test_edges_alone_are_read_as_a_grey_photo(look: Look, channels: int) -> None:
    entry = made_entry(SMALL)
    images = noise(2, 64, channels=channels)
    seen = Looking(look)(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)
    network = made(entry)
    mean, std = (torch.tensor(part)[:, None, None] for part in IMAGENET)
    wanted = network((seen.expand(-1, 3, -1, -1) - mean) / std)
    opened = tapped(made(entry), entry, channels=channels, size=64, look=look)
    torch.testing.assert_close(opened.trunk(torch.from_numpy(images))[-1], wanted, rtol=1e-4, atol=1e-4)


def test_a_network_without_one_plain_first_convolution_takes_edges_alone_only() -> None:
    entry = made_entry("resnetv2_50x1_bit")
    network = made(entry)
    opened = tapped(network, entry, channels=1, size=64, look="edges")
    assert opened.trunk.repeat_grey
    assert len(opened.trunk(torch.from_numpy(noise(2, 64, channels=1)))) > 2
    with pytest.raises(BackboneError, match="--input edges or thin"):
        tapped(network, entry, channels=3, size=64, look="plain+edges")


@pytest.mark.parametrize(
    ("look", "channels"), [*((one, 3) for one in LOOKS), ("plain+edges", 1), ("thin", 1)]
)
def test_torch_and_openvino_agree_on_the_whole_trunk(
    look: Look, channels: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("looked")
    entry = made_entry(SMALL)
    folder, store = folder_of(place / "w", entry, made(entry).state_dict()), Store(place / "store")
    geometry = Preprocess(size=64, fit="squash", channels=channels)
    images = noise(8, 64, channels=channels)
    reach = made_trunk.__globals__["NOWHERE"]
    asked = {"folder": folder, "reach": reach, "store": store, "samples": images, "compute": PLAIN}
    trunk = trunk_of(entry, geometry, look=look, **asked)
    assert (trunk.look, trunk.runner, trunk.notice) == (look, "openvino-f32", "")
    assert trunk.graph is not None
    other = noise(5, 64, channels=channels)
    rows = openvino_rows(trunk.graph, other, runner="openvino-f32", threads=1)
    for index in range(len(trunk.taps)):
        wanted = torch_rows(trunk, index, other, store=store, folder=folder, reach=reach)
        assert relative_error(rows[index], wanted) < 1e-3
    again = trunk_of(entry, geometry, look=look, **asked)
    assert again == trunk
    assert reopened(trunk, folder=folder, reach=reach).trunk.looking.look == look
    plain = trunk_of(entry, geometry, **asked)
    assert plain.key != trunk.key
    assert plain.look == "plain"


def test_the_examples_of_a_filter_are_what_the_network_is_shown(tmp_path: object) -> None:
    images = noise(3, 64)
    kept = seen_edges("plain+edges", images, store=Store(tmp_path))  # type: ignore[arg-type]
    wanted = Looking("edges")(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)[:, 0].numpy()
    assert np.abs(kept / 255 - wanted).max() < 0.5 / 255 + 1e-6
    assert np.array_equal(kept, seen_edges("plain+edges", images, store=Store(tmp_path)))  # type: ignore[arg-type]


@pytest.mark.parametrize("look", ["edges", "plain+thin"])
@torch.no_grad()
def test_fine_tuning_looks_through_the_same_filter(look: Look) -> None:
    entry = made_entry(SMALL)
    opened = tapped(made(entry), entry, channels=3, size=64, look=look)
    raw = torch.from_numpy(noise(2, 64))
    wanted = opened.trunk(raw)[-2]
    images = raw.permute(0, 3, 1, 2).float() / 255
    cutting = cut_at(
        opened, architecture=entry.architecture, tap=CLASSIFIER_INPUT, cut=opened.taps[0].name, images=images
    )
    assert cutting.prefix is not None
    found = cutting.tail(cutting.prefix(cutting.normalised(images)))
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_plain_look_has_no_part_in_the_key_of_a_recipe() -> None:
    def recipe(look: Look) -> Recipe:
        return Recipe("a/b", "frozen", "a", "0" * 64, Preprocess(size=64), "b", "b", "settings", look=look)

    known = "47734ba5eccd321e9e6ba90cc6d453f4c987a288"
    assert recipe("plain").key == known
    assert len({recipe(look).key for look in ("plain", *LOOKS)}) == 1 + len(LOOKS)
