"""Weights folders are read strictly, real files really work, and no network ever costs more than five seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import http.server
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from hub_mirror import Mirror, mirror
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save, save_file

from graft.backbones import hub
from graft.backbones.catalogue import Entry, find, rows
from graft.backbones.hub import PROBE_SECONDS, Reach, probe, reach_hub
from graft.backbones.weights import WeightsFolder, build, folder_from, load_state, locate
from graft.errors import BackboneError

NOWHERE = Reach(False, False, "No answer from anybody.")
EVERYWHERE = Reach(True, True)
INPUT = {
    "size": 32,
    "channels": 3,
    "mean": [0, 0, 0],
    "std": [1, 1, 1],
    "interpolation": "bicubic",
    "crop": 1,
}
INSECTS = range(300, 327)  # ImageNet-1k: tiger beetle .. lycaenid; 309 bee, 310 ant


@pytest.fixture(autouse=True)
def empty_caches(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch-home"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    for name in ("HF_ENDPOINT", "HF_HUB_OFFLINE", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.delenv(name, raising=False)


def made_folder(place: Path, **changes: object) -> Path:
    """A weights folder with one network, `test_resnet.mine`, of half a million random weights in float16."""
    place.mkdir(exist_ok=True)
    state = timm.create_model("test_resnet", num_classes=7).half().state_dict()
    content = save(state)
    (place / "mine.safetensors").write_bytes(content)
    row = {
        "name": "test_resnet.mine",
        "file": "mine.safetensors",
        "library": "timm",
        "architecture": "test_resnet",
        "arguments": {},
        "classes": 7,
        "input": INPUT,
        "trained_on": "ImageNet-1k",
        "licence": "MIT",
        "source": "made up",
        "dtype": "float16",
        "sha256": hashlib.sha256(content).hexdigest(),
    }
    row = {name: value for name, value in (row | changes).items() if value is not None}
    (place / "weights.json").write_text(json.dumps({"format": 1, "weights": [row]}))
    return place


# ---- a weights folder -------------------------------------------------------------------------------------------


def test_a_folder_gives_entries_and_float32_states(tmp_path):
    folder = WeightsFolder.open(made_folder(tmp_path / "w"))
    (entry,) = folder.entries
    assert (entry.name, entry.pretraining, entry.licence) == ("test_resnet.mine", "in1k", "MIT")
    assert entry.arguments == (("num_classes", 7),)
    assert folder.files[0].dtype == "float16"
    loaded = load_state(entry, folder=folder, reach=NOWHERE)
    assert loaded.digest == folder.files[0].sha256
    assert {part.dtype for part in loaded.state.values()} == {torch.float32, torch.int64}
    network = build(entry)
    network.load_state_dict(loaded.state, strict=True)
    assert entry.parameters == sum(part.numel() for part in network.parameters())
    assert entry.bytes == 4 * sum(part.numel() for part in loaded.state.values() if part.is_floating_point())


def test_the_folder_is_found_by_option_before_environment(tmp_path, monkeypatch):
    assert folder_from(None) is None
    monkeypatch.setenv("GRAFT_WEIGHTS", str(made_folder(tmp_path / "environment")))
    assert folder_from(None).path == tmp_path / "environment"
    assert folder_from(str(made_folder(tmp_path / "option"))).path == tmp_path / "option"


def test_an_altered_file_is_refused_with_both_digests(tmp_path):
    folder = WeightsFolder.open(made_folder(tmp_path / "w", sha256="0123456789abcdef" * 4))
    with pytest.raises(BackboneError, match=r"mine\.safetensors.*sha256.*[0-9a-f]{12}.*0123456789ab"):
        load_state(folder.entries[0], folder=folder, reach=NOWHERE)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": None}, "entry 1 .*sha256.* is missing"),
        ({"file": None}, "file.* is missing"),
        ({"name": None}, "entry 1: 'name' is missing"),
        ({"file": "other.safetensors"}, "there is no file"),
        ({"file": "../mine.safetensors"}, "inside the folder"),
        ({"file": "/etc/mine.safetensors"}, "inside the folder"),
        ({"file": "mine.pth"}, "inside the folder"),
        ({"library": "keras"}, "unknown library 'keras'"),
        ({"input": {"size": 3}}, "is missing"),
        ({"input": 3}, "of the wrong kind"),
        ({"classes": "many"}, "of the wrong kind"),
        ({"arguments": [1]}, "of the wrong kind"),
    ],
)
def test_a_wrong_entry_is_named(tmp_path, changes, words):
    with pytest.raises(BackboneError, match=words):
        WeightsFolder.open(made_folder(tmp_path / "w", **changes))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "needs 'format'"),
        ('{"format": 1}', "needs 'format'"),
        ('{"weights": []}', "needs 'format'"),
        ('{"format": 2, "weights": []}', "of format 2; this Graft reads format 1"),
        ('{"format": 1, "weights": [5]}', "'name' is missing"),
    ],
)
def test_a_broken_list_is_refused(tmp_path, content, words):
    (tmp_path / "weights.json").write_text(content)
    with pytest.raises(BackboneError, match=words):
        WeightsFolder.open(tmp_path)


def test_a_folder_without_a_list_is_refused(tmp_path):
    with pytest.raises(BackboneError, match="is no weights folder"):
        WeightsFolder.open(tmp_path)
    with pytest.raises(BackboneError, match="is no weights folder"):
        WeightsFolder.open(tmp_path / "nowhere")


def test_a_file_that_is_no_safetensors_and_a_name_given_twice_are_refused(tmp_path):
    place = made_folder(tmp_path / "w")
    table = json.loads((place / "weights.json").read_text())
    table["weights"] *= 2
    (place / "weights.json").write_text(json.dumps(table))
    with pytest.raises(BackboneError, match=r"has test_resnet\.mine twice"):
        WeightsFolder.open(place)
    (place / "mine.safetensors").write_bytes(b"GIF89a, certainly")
    with pytest.raises(BackboneError, match="no readable safetensors file"):
        WeightsFolder.open(place)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
FIELDS = (
    "name",
    "file",
    "library",
    "architecture",
    "arguments",
    "classes",
    "input",
    "sha256",
    "dtype",
    "licence",
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON, max_size=4), st.sets(st.sampled_from(sorted(INPUT))))
def test_whatever_stands_in_an_entry_it_is_read_or_named(tmp_path_factory, changes, dropped):
    place = tmp_path_factory.getbasetemp() / "any"
    made = place / "made.json"
    if not made.exists():
        made_folder(place)
        (place / "weights.json").replace(made)
    table = json.loads(made.read_text())
    table["weights"][0] |= {"input": {k: v for k, v in INPUT.items() if k not in dropped}} | changes
    (place / "weights.json").write_text(json.dumps(table))
    with contextlib.suppress(BackboneError):
        assert len(WeightsFolder.open(place).entries) == 1


# ---- the real files ---------------------------------------------------------------------------------------------


def test_every_given_file_fits_its_network(shared_weights):
    folder = WeightsFolder.open(shared_weights)
    assert len(folder.entries) == 7
    for entry in folder.entries:
        network = build(entry)
        network.load_state_dict(load_state(entry, folder=folder, reach=NOWHERE).state, strict=True)
        assert entry.parameters == sum(part.numel() for part in network.parameters()), entry.name
        assert entry.gmacs and entry.stages and entry.commercial, entry.name


@pytest.fixture(scope="module")
def photos(shared_data) -> list[Image.Image]:
    """Twelve photos of ants, then twelve of bees."""
    found = []
    for kind in ("ants", "bees"):
        for path in sorted((shared_data / "hymenoptera" / "val" / kind).iterdir())[:12]:
            with Image.open(path) as opened:
                opened.draft("RGB", (448, 448))
                found.append(opened.convert("RGB"))
    return found


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("mobilenetv2_100.coral_in1k", 0.7),
        ("mobilenetv2_100.coral_qat_in1k", 0.7),
        ("mobilenetv1_100.coral_in1k", 0.7),
        ("mobilenetv1_050.coral_in1k", 0.6),
        ("squeezenet1_1.onnx_in1k", 0.6),
    ],
)
def test_the_given_networks_see_insects_in_photos_of_insects(shared_weights, photos, name, share):
    folder = WeightsFolder.open(shared_weights)
    entry = find(name, folder)
    network = build(entry).eval()
    network.load_state_dict(load_state(entry, folder=folder, reach=NOWHERE).state)
    with torch.inference_mode():
        seen = network(torch.stack([prepared(photo, entry) for photo in photos])).argmax(1).tolist()
    assert sum(label in INSECTS for label in seen) >= share * len(seen), seen
    assert seen[:12].count(310) > seen[:12].count(309) and seen[12:].count(309) > seen[12:].count(310)


def prepared(image: Image.Image, entry: Entry) -> torch.Tensor:
    spec = entry.input
    scale = round(spec.size / spec.crop) / min(image.size)
    width, height = (round(side * scale) for side in image.size)
    left, top = (width - spec.size) // 2, (height - spec.size) // 2
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = np.asarray(image.crop((left, top, left + spec.size, top + spec.size)), dtype=np.float32) / 255
    return torch.from_numpy(((pixels - spec.mean) / spec.std).astype(np.float32)).permute(2, 0, 1)


# ---- networks ---------------------------------------------------------------------------------------------------


def test_googlenet_without_its_own_rescaling_sees_the_same_image():
    entry = find("googlenet", None)
    network = build(entry).eval()
    original = torchvision.models.googlenet(aux_logits=False, init_weights=False, transform_input=True).eval()
    original.load_state_dict(network.state_dict())
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(part).view(3, 1, 1) for part in ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]))
    ours_mean, ours_std = (torch.tensor(part).view(3, 1, 1) for part in (entry.input.mean, entry.input.std))
    with torch.inference_mode():
        expected, got = original((image - mean) / std), network((image - ours_mean) / ours_std)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    "changes",
    [{"architecture": "no_such_net"}, {"arguments": (("depths", 3),)}, {"library": "torchvision"}],
)
def test_a_network_that_cannot_be_built_is_named(changes):
    entry = dataclasses.replace(find("lcnet_050", None), **changes)
    with pytest.raises(BackboneError, match=f"cannot build {entry.architecture}"):
        build(entry)


# ---- the hub ----------------------------------------------------------------------------------------------------


HUB_PROGRAM = """
import json
from graft.backbones import hub
from graft.backbones.catalogue import find
from graft.backbones.weights import build, load_state, locate
from graft.errors import BackboneError
hub.TORCHVISION_HOST = hub.hub_endpoint()
reach, entry, other = hub.reach_hub(), find("test_resnet", None), find("test_vit", None)
places = [locate([entry], folder=None, reach=reach)[entry.name]]
loaded = load_state(entry, folder=None, reach=reach)
build(entry).load_state_dict(loaded.state, strict=True)
nowhere = hub.Reach(False, False)
places.append(locate([entry], folder=None, reach=nowhere)[entry.name])
again = load_state(entry, folder=None, reach=nowhere)
try:
    refused = load_state(other, folder=None, reach=reach).origin
except BackboneError as error:
    refused = str(error)
print(json.dumps([reach.hub, places, loaded.digest, again.digest, loaded.origin, refused]))
"""


def test_the_hub_is_asked_once_and_its_cache_then_serves(tmp_path):
    content = save(timm.create_model("test_resnet").state_dict())
    with mirror({"/timm/test_resnet.r160_in1k/resolve/main/model.safetensors": content}) as (address, asked):
        environment = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf")}
        done = subprocess.run(
            [sys.executable, "-c", HUB_PROGRAM], env=environment, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    reached, places, digest, again, origin, refused = json.loads(done.stdout.splitlines()[-1])
    assert reached and places == ["hub", "here"]
    assert digest == again == hashlib.sha256(content).hexdigest()
    assert origin == "https://huggingface.co/timm/test_resnet.r160_in1k"
    assert "There are no weights at" in refused and "test_vit" in refused
    assert sum(line.startswith("GET") and line.endswith(".safetensors") for line in asked) == 1, asked
    assert "B/s" not in done.stderr  # no progress bar across our own
    others = [line for line in asked if line != f"HEAD /{hub.TORCHVISION_FILE}"]
    assert not any(line.endswith((".bin", ".pth")) for line in others), asked


def served_by_torchvision(address: str, name: str) -> Entry:
    return dataclasses.replace(find("squeezenet1_1", None), source=f"{address}/{name}")


def pickled(state: object, place: Path) -> tuple[bytes, str]:
    torch.save(state, place)
    content = place.read_bytes()
    return content, f"net-{hashlib.sha256(content).hexdigest()[:8]}.pth"


def test_torchvision_files_are_fetched_checked_and_kept(tmp_path):
    content, name = pickled(torchvision.models.squeezenet1_1().state_dict(), tmp_path / "a.pth")
    with mirror({f"/{name}": content}) as (address, asked):
        entry = served_by_torchvision(address, name)
        assert locate([entry], folder=None, reach=EVERYWHERE) == {entry.name: "hub"}
        loaded = load_state(entry, folder=None, reach=EVERYWHERE)
        assert loaded.digest == hashlib.sha256(content).hexdigest()
        build(entry).load_state_dict(loaded.state, strict=True)
        assert locate([entry], folder=None, reach=NOWHERE) == {entry.name: "here"}
        assert load_state(entry, folder=None, reach=NOWHERE).digest == loaded.digest
        assert sum(line.startswith("GET") for line in asked) == 1
    kept = tmp_path / "torch-home" / "hub" / "checkpoints" / name
    kept.write_bytes(content[:-1] + b"?")
    with pytest.raises(BackboneError, match="is damaged"):
        load_state(entry, folder=None, reach=NOWHERE)


def test_googlenets_side_branches_are_left_out(tmp_path):
    whole = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    content, name = pickled(whole.state_dict(), tmp_path / "a.pth")
    with mirror({f"/{name}": content}) as (address, _):
        entry = dataclasses.replace(find("googlenet", None), source=f"{address}/{name}")
        build(entry).load_state_dict(load_state(entry, folder=None, reach=EVERYWHERE).state, strict=True)


class Trap:
    """What a malicious file would hold: code that runs when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (os.environ["TORCH_HOME"] + "-sprung",)


def test_a_malicious_or_altered_file_is_not_run(tmp_path):
    content, name = pickled({"weight": Trap()}, tmp_path / "a.pth")
    with mirror({f"/{name}": content, "/net-00000000.pth": content}) as (address, _):
        for wrong in (name, "net-00000000.pth", "net-11111111.pth"):
            with pytest.raises(BackboneError, match="squeezenet1_1"):
                load_state(served_by_torchvision(address, wrong), folder=None, reach=EVERYWHERE)
    assert not Path(os.environ["TORCH_HOME"] + "-sprung").exists()


# ---- no network -------------------------------------------------------------------------------------------------


@pytest.fixture
def black_hole() -> Iterator[str]:
    """An address that accepts a connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def test_a_silent_firewall_costs_less_than_five_seconds(black_hole, monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", black_hole)
    monkeypatch.setattr(hub, "TORCHVISION_HOST", black_hole)
    reach_hub.cache_clear()
    began = time.monotonic()
    reach = reach_hub()
    assert time.monotonic() - began < 5
    assert not reach.hub and not reach.torchvision and black_hole in reach.reason
    began = time.monotonic()
    assert reach_hub() is reach
    for name in ("resnet50", "alexnet", "vgg16"):
        entry = find(name, None)
        assert locate([entry], folder=None, reach=reach) == {entry.name: "unreachable"}
        with pytest.raises(
            BackboneError, match=f"{entry.name} are not here and cannot be had.*No answer from"
        ):
            load_state(entry, folder=None, reach=reach)
    assert time.monotonic() - began < 0.5
    reach_hub.cache_clear()


def test_a_name_server_that_hangs_is_not_waited_for(monkeypatch):
    released = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        released.wait(60)
        raise socket.gaierror("too late")

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    began = time.monotonic()
    reach = probe(seconds=0.5)
    seconds = time.monotonic() - began
    released.set()
    assert seconds < 1.5 and PROBE_SECONDS <= 4
    assert not reach.hub and not reach.torchvision


def test_a_network_lost_on_the_way_costs_one_question(black_hole, monkeypatch):
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.5)
    monkeypatch.setenv("HF_ENDPOINT", black_hole)
    began = time.monotonic()
    for entry in (find("resnet50", None), served_by_torchvision(black_hole, "net-00000000.pth")):
        with pytest.raises(BackboneError, match="does not answer"):
            load_state(entry, folder=None, reach=EVERYWHERE)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize(
    ("answer", "expected"), [(200, True), (404, True), (401, True), (403, False), (407, False), (502, False)]
)
def test_an_answer_counts_unless_it_is_a_refusal(monkeypatch, answer, expected):
    class Answering(Mirror):
        def do_HEAD(self) -> None:
            self.send_response(answer)
            self.end_headers()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answering) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("HF_ENDPOINT", address)
        monkeypatch.setattr(hub, "TORCHVISION_HOST", address)
        reach = probe()
        server.shutdown()
    assert (reach.hub, reach.torchvision, not reach.reason) == (expected, expected, expected)


def test_offline_by_choice_asks_nobody(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(hub, "_status", lambda *_: pytest.fail("somebody was asked"))
    assert not probe().hub and "HF_HUB_OFFLINE" in probe().reason


def test_a_row_of_a_weights_folder_is_never_looked_for_on_the_hub(tmp_path):
    folder = WeightsFolder.open(made_folder(tmp_path / "w"))
    (entry,) = folder.entries
    assert locate([entry, *rows()[:2]], folder=folder, reach=EVERYWHERE)[entry.name] == "here"
    assert locate([entry], folder=None, reach=EVERYWHERE) == {entry.name: "unreachable"}
    with pytest.raises(BackboneError, match="No host has them"):
        load_state(entry, folder=None, reach=EVERYWHERE)


def test_a_file_exchanged_after_the_folder_was_opened_is_refused(tmp_path):
    place = made_folder(tmp_path / "w")
    folder = WeightsFolder.open(place)
    save_file({"only": torch.zeros(2)}, place / "mine.safetensors")
    with pytest.raises(BackboneError, match="sha256"):
        load_state(folder.entries[0], folder=folder, reach=NOWHERE)
