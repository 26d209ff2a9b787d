"""The rows hold what they claim, names are found, and `auto` chooses what it promises."""

from __future__ import annotations

import dataclasses
import json
import random
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.backbones.catalogue import (
    DATA,
    Entry,
    cost_bucket,
    family_of,
    find,
    pretraining_of,
    resolve,
    rows,
    stratified,
)
from graft.backbones.weights import build
from graft.errors import BackboneError

REQUIRED = {
    "alexnet",
    "squeezenet1_1",
    "vgg16",
    "vgg19",
    "resnet18",
    "resnet50",
    "resnet152",
    "googlenet",
    "inception_v3",
    "mobilenetv1_100",
    "mobilenetv2_100",
    "mobilenetv3_small_100",
    "mobilenetv3_large_100",
    "mobilenetv4_conv_small",
    "mobilenetv4_conv_medium",
    "efficientnet_b0",
    "tf_efficientnetv2_s",
    "lcnet_050",
    "lcnet_075",
    "lcnet_100",
    "regnetx_004",
    "regnetx_016",
    "convnext_atto",
    "convnext_nano",
    "convnext_tiny",
    "vit_small_patch16_224",
    "vit_tiny_patch16_224",
    "swin_tiny_patch4_window7_224",
}


@dataclass(frozen=True)
class Folder:
    entries: tuple[Entry, ...]


def row(name: str) -> Entry:
    return next(entry for entry in rows() if entry.name == name)


def test_networks_that_must_be_there_are_there():
    assert REQUIRED - {entry.architecture for entry in rows()} == set()
    assert len({entry.name for entry in rows()}) == len(rows())


def test_every_row_is_complete_and_plausible():
    for entry in rows():
        assert hash(entry)
        assert entry.source.startswith("https://"), entry.name
        assert entry.parameters and entry.bytes and entry.bytes >= 4 * entry.parameters, entry.name
        assert entry.gmacs and 0.01 < entry.gmacs < 25, entry.name
        assert entry.licence and entry.published, entry.name
        assert len(entry.input.mean) == len(entry.input.std) == entry.input.channels == 3
        assert 0.8 < entry.input.crop <= 1 and 128 <= entry.input.size <= 320
        reductions = [stage.reduction for stage in entry.stages]
        assert len(reductions) >= 3 and reductions == sorted(reductions), entry.name
        if entry.top1 is None:
            assert entry.top5 is None and entry.published.startswith("no figures"), entry.name
        else:
            assert entry.top5 is not None and 40 < entry.top1 < entry.top5 < 100, entry.name


def test_accuracies_and_costs_agree_with_what_torchvision_publishes():
    published = {"alexnet": "alexnet", "squeezenet1_1": "squeezenet1_1", "googlenet": "googlenet"}
    for architecture in published:
        meta = torchvision.models.get_model_weights(architecture).IMAGENET1K_V1.meta
        entry = find(architecture, None)
        figures = meta["_metrics"]["ImageNet-1K"]
        assert (entry.top1, entry.top5) == (figures["acc@1"], figures["acc@5"])
        assert entry.gmacs == pytest.approx(meta["_ops"], rel=0.01)
    for name, counterpart in (("vgg16.tv_in1k", "vgg16"), ("resnet18.tv_in1k", "resnet18")):
        meta = torchvision.models.get_model_weights(counterpart).IMAGENET1K_V1.meta
        assert row(name).parameters == meta["num_params"]
        assert row(name).gmacs == pytest.approx(meta["_ops"], rel=0.01)
        assert row(name).top1 == pytest.approx(meta["_metrics"]["ImageNet-1K"]["acc@1"], abs=0.02)


@pytest.mark.parametrize("name", ["googlenet.tv_in1k", "lcnet_050.ra2_in1k", "vit_small_patch16_224.dino"])
def test_parameters_are_those_of_the_network(name):
    with torch.device("meta"):
        network = build(row(name))
    assert sum(parameter.numel() for parameter in network.parameters()) == row(name).parameters


def test_names_follow_the_library_and_the_words_follow_the_names():
    for entry in rows():
        assert entry.name.split(".")[0] == entry.architecture
        assert family_of(entry.architecture) == entry.family
        if entry.name != "edgenext_small.usi_in1k":  # its recipe distils, its tag does not say so
            assert pretraining_of(entry.name.split(".")[1]) == entry.pretraining


def test_commercial_use_follows_the_licence():
    entry = rows()[0]
    allowed = {
        "Apache-2.0 (ONNX model zoo)": True,
        "mit": True,
        "cc-by-nc-4.0": False,
        "fair-noncommercial-research-license": False,
        "dinov3-license": None,
        "unknown": None,
    }
    for licence, expected in allowed.items():
        assert dataclasses.replace(entry, licence=licence).commercial is expected, licence


def test_listing_needs_neither_torch_nor_timm():
    code = (
        "import sys; from graft.backbones.catalogue import rows, stratified\n"
        "from graft.backbones.weights import Reach, locate\n"
        "locate(rows(), folder=None, reach=Reach(False, False)); stratified(rows())\n"
        "print([name for name in ('torch', 'timm', 'torchvision') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_an_architecture_means_its_most_accurate_row():
    assert find("resnet50", None).name == "resnet50.a1_in1k"
    assert find("resnet50.tv_in1k", None).name == "resnet50.tv_in1k"
    assert find("vit_small_patch14_dinov2", None).top1 is None


def test_names_of_the_weights_folder_win():
    own = dataclasses.replace(row("resnet50.a1_in1k"), licence="mine")
    assert find("resnet50.a1_in1k", Folder((own,))).licence == "mine"
    assert find("resnet50", Folder((own,))).licence == "mine"
    assert find("vgg16", Folder((own,))).licence == "bsd-3-clause"


def test_several_files_of_one_architecture_are_named_in_a_notice():
    base = row("mobilenetv2_100.ra_in1k")
    files = [dataclasses.replace(base, name=f"mobilenetv2_100.{tag}") for tag in "abc"]
    folder = Folder(
        (files[0], dataclasses.replace(files[1], top1=99.0), dataclasses.replace(files[2], top1=None))
    )
    entry, notice = resolve("mobilenetv2_100", folder)
    assert entry.name == "mobilenetv2_100.b"
    assert notice is not None and "mobilenetv2_100.a" in notice and "mobilenetv2_100.c" in notice
    assert resolve("mobilenetv2_100.c", folder)[1] is None
    assert resolve("mobilenetv2_100", Folder(tuple(files[:1])))[1] is None


def test_any_other_name_of_timm_makes_a_row():
    entry = find("mobilenetv3_large_100.miil_in21k", None)
    assert (entry.library, entry.family, entry.pretraining) == ("timm", "mobilenet", "in21k")
    assert dict(entry.arguments) == {"num_classes": 11221}
    assert entry.source == "https://huggingface.co/timm/mobilenetv3_large_100.miil_in21k"
    assert entry.gmacs is None and entry.top1 is None and len(entry.stages) == 5
    assert find("test_resnet", None).name == "test_resnet.r160_in1k"


@pytest.mark.parametrize("name", ["resnet50.no_such_tag", "resnet5O", "", "mobilnetv2_100", "a/b"])
def test_an_unknown_name_is_refused(name):
    with pytest.raises(BackboneError, match="There is no network called"):
        find(name, None)


def test_a_misspelt_name_brings_the_closest_ones():
    with pytest.raises(BackboneError, match="mobilenetv2_100"):
        find("mobilnetv2_100", None)
    with pytest.raises(BackboneError, match=r"closest names are .*mnasnet.*; graft models lists the names\."):
        find("nosuchnet", None)


def test_auto_on_the_whole_catalogue_covers_families_pretraining_and_costs():
    chosen = stratified(rows())
    names = [entry.name for entry, _ in chosen]
    assert len(chosen) == len(set(names)) == 12
    assert len({entry.family for entry, _ in chosen}) >= 8
    assert {entry.pretraining for entry, _ in chosen} >= {"in1k", "in12k", "in21k", "ssl", "distilled"}
    assert {cost_bucket(entry) for entry, _ in chosen} == {"tiny", "small", "medium", "large"}
    best_by_accuracy = sorted(rows(), key=lambda entry: -(entry.top1 or 0))[:12]
    assert set(names) != {entry.name for entry in best_by_accuracy}
    assert names[0] == "convnext_tiny.in12k_ft_in1k"
    assert all(reason for _, reason in chosen)


@settings(max_examples=50, deadline=None)
@given(st.sets(st.sampled_from(range(len(rows())))), st.integers(0, 2**32), st.sampled_from([None, 3e6, 1e7]))
def test_auto_is_a_function_of_the_set(places, seed, limit):
    most_parameters = None if limit is None else int(limit)
    candidates = [rows()[place] for place in sorted(places)]
    chosen = stratified(candidates, max_parameters=most_parameters)
    within = [e for e in candidates if limit is None or e.parameters <= limit]
    assert min(8, len(within)) <= len(chosen) <= 12
    assert {entry.name for entry, _ in chosen} <= {entry.name for entry in within}
    random.Random(seed).shuffle(candidates)
    assert stratified(candidates * 2, max_parameters=most_parameters) == chosen
    alone = [e for e in within if not any(_beats(other, e) for other in within)]
    if alone and all(e.top1 is not None for e in alone):
        first = chosen[0][0]
        assert not any(e.top1 > first.top1 and e.parameters > first.parameters for e in alone)


def _beats(other: Entry, entry: Entry) -> bool:
    if other.pretraining != entry.pretraining or other.top1 is None or entry.top1 is None:
        return False
    return other.top1 > entry.top1 and other.parameters < entry.parameters and other.gmacs < entry.gmacs


def test_auto_takes_all_of_a_few_and_none_of_unknown_size_under_a_limit():
    few = rows()[:5]
    assert {entry.name for entry, _ in stratified(few)} == {entry.name for entry in few}
    unknown = dataclasses.replace(few[0], parameters=None, bytes=None, gmacs=None)
    assert len(stratified([unknown])) == 1
    assert stratified([unknown], max_bytes=10**12) == []
    assert stratified([]) == []


def test_the_file_is_one_line_per_network():
    lines = [
        line for line in DATA.read_text(encoding="utf-8").splitlines() if line.lstrip().startswith('{"name"')
    ]
    assert len(lines) == len(rows())
    assert all(json.loads(line.rstrip().rstrip(","))["name"] for line in lines)
