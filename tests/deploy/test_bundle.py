"""A bundle opens with the answers it was packed with or is refused by name, and reads every kind of picture."""

from __future__ import annotations

import copy
import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_models import FEATURES, LABELS, features_of, model, packed, probabilities_of
from PIL import Image

from graft.deploy.bundle import BATCH, Bundle, digest, load
from graft.errors import BundleError, DatasetError
from graft.images.dataset import Preprocess
from graft.images.preprocess import prepare
from graft.learning.ridge import unit

SCRIPT = Path(__file__).parents[2] / "docs" / "onnxruntime_only.py"
Change = Callable[[dict[str, Any]], None]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that no test changes."""
    return packed(tmp_path_factory.mktemp("made") / "model.graft")


@pytest.fixture
def copied(made: Path, tmp_path: Path) -> Path:
    """A bundle of the test's own."""
    return Path(shutil.copytree(made, tmp_path / "model.graft"))


def change(folder: Path, how: Change) -> None:
    """By somebody who removes the seal, so that what is changed must be found out by itself."""
    facts = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    facts.pop("facts_sha256", None)
    how(facts)
    (folder / "bundle.json").write_text(json.dumps(facts), encoding="utf-8")


def replace_model(folder: Path, content: bytes) -> None:
    """Another file under the same name, whose hash is right."""
    (folder / "model.onnx").write_bytes(content)
    change(folder, lambda facts: facts["files"].update({"model.onnx": hashlib.sha256(content).hexdigest()}))


def picture(seed: int = 0, size: tuple[int, int] = (40, 30)) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


class TestRefusals:
    def test_a_place_without_a_bundle(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")
        for place in (tmp_path, tmp_path / "nowhere", tmp_path / "file"):
            with pytest.raises(BundleError, match=r"is no bundle: it has no bundle\.json"):
                load(place)

    def test_truncated_json(self, copied: Path) -> None:
        content = (copied / "bundle.json").read_bytes()
        for end in (0, 1, len(content) // 2, len(content) - 2):
            (copied / "bundle.json").write_bytes(content[:end])
            with pytest.raises(BundleError, match="cannot be read"):
                load(copied)

    @pytest.mark.parametrize("text", ["[]", "3", "null", '"format"', "[" * 100_000, "\udcff"])
    def test_json_that_is_no_manifest(self, text: str, copied: Path) -> None:
        (copied / "bundle.json").write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(BundleError, match=r"bundle\.json"):
            load(copied)

    def test_a_newer_major_format_is_refused_and_a_newer_minor_one_is_read(self, copied: Path) -> None:
        change(copied, lambda facts: facts.update({"format": "2.0"}))
        with pytest.raises(BundleError, match=r"format 2\.0; this Graft reads 1\.x\. Update Graft"):
            load(copied)
        change(copied, lambda facts: facts.update({"format": "1.9", "news": {"a": 1}}))
        assert load(copied).labels == LABELS

    @pytest.mark.parametrize("text", ["", "1", "1.0.0", "one", "-1.0", "1.-1", "٣.٠"])
    def test_a_format_that_is_no_number(self, text: str, copied: Path) -> None:
        change(copied, lambda facts: facts.update({"format": text}))
        with pytest.raises(BundleError, match="of which format"):
            load(copied)

    def test_an_altered_model(self, copied: Path) -> None:
        content = bytearray((copied / "model.onnx").read_bytes())
        content[len(content) // 2] ^= 1
        (copied / "model.onnx").write_bytes(bytes(content))
        with pytest.raises(BundleError, match=r"model\.onnx was altered"):
            load(copied)

    def test_an_altered_hash(self, copied: Path) -> None:
        change(copied, lambda facts: facts["files"].update({"card.md": "0" * 64}))
        with pytest.raises(BundleError, match=r"card\.md was altered"):
            load(copied)

    @pytest.mark.parametrize(
        "labels",
        [["bee", "ant", "a wasp"], ["ant", "bee"], ["ant", "bee", "a wasp "], ["ant\nbee", "a wasp"], []],
    )
    def test_altered_labels(self, labels: list[str], copied: Path) -> None:
        change(copied, lambda facts: facts.update({"labels": labels}))
        with pytest.raises(BundleError, match="labels"):
            load(copied)

    @pytest.mark.parametrize("name", ["model.onnx", "card.md", "bundle.json"])
    def test_a_missing_file(self, name: str, copied: Path) -> None:
        (copied / name).unlink()
        with pytest.raises(BundleError, match=name):
            load(copied)

    @pytest.mark.parametrize("name", ["labels.txt", "preprocess.onnx", "card.md"])
    def test_a_file_of_the_format_that_is_not_listed(self, name: str, copied: Path) -> None:
        change(copied, lambda facts: facts["files"].pop(name))
        (copied / name).write_text("bees\nants\n")
        with pytest.raises(BundleError, match=f"{name} is not in the list of files"):
            load(copied)

    def test_a_link_out_of_the_folder(self, copied: Path, made: Path) -> None:
        (copied / "model.onnx").unlink()
        (copied / "model.onnx").symlink_to(made.resolve() / "model.onnx")
        with pytest.raises(BundleError, match=r"model\.onnx is a link that leads out"):
            load(copied)

    def test_links_within_the_folder_and_to_it_are_read(self, copied: Path, tmp_path: Path) -> None:
        (copied / "..data").mkdir()
        (copied / "model.onnx").rename(copied / "..data" / "model.onnx")
        (copied / "model.onnx").symlink_to("..data/model.onnx")
        (tmp_path / "link.graft").symlink_to(copied)
        assert load(tmp_path / "link.graft").labels == LABELS

    @pytest.mark.parametrize("gone", [True, False])
    def test_a_decision_that_was_taken_away(self, gone: bool, copied: Path) -> None:
        def forget(facts: dict[str, Any]) -> None:
            facts["decision_sha256"] = "0" * 64
            for name in ("thresholds", "unknown", "conformal"):
                facts[name] = None
                if gone:
                    del facts[name]

        change(copied, forget)
        with pytest.raises(BundleError, match="altered where it says how to decide"):
            load(copied)

    @pytest.mark.parametrize("news", [{"headline": "always right"}, {"metrics": {"macro_f1": 1.0}}])
    def test_altered_facts_that_change_no_answer(self, news: dict[str, Any], copied: Path) -> None:
        facts = json.loads((copied / "bundle.json").read_text(encoding="utf-8"))
        (copied / "bundle.json").write_text(json.dumps({**facts, **news}), encoding="utf-8")
        with pytest.raises(BundleError, match=r"bundle\.json was altered"):
            load(copied)
        change(copied, lambda facts: None)
        assert load(copied).facts["headline"] == news.get("headline", facts["headline"])

    def test_numbers_that_json_does_not_know(self, copied: Path) -> None:
        text = (
            (copied / "bundle.json")
            .read_text(encoding="utf-8")
            .replace('"conformal": null', '"conformal": NaN')
        )
        (copied / "bundle.json").write_text(text, encoding="utf-8")
        with pytest.raises(BundleError, match="NaN is no JSON"):
            load(copied)

    @pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\0b", "\ud800"])
    def test_files_outside_the_folder_are_never_read(self, name: str, copied: Path) -> None:
        (copied.parent / "x").write_bytes(b"secret")
        change(copied, lambda facts: facts["files"].update({name: hashlib.sha256(b"secret").hexdigest()}))
        with pytest.raises(BundleError, match="lacks its file"):
            load(copied)

    @pytest.mark.parametrize(
        "news",
        [
            {"size": 32},
            {"fit": "squash"},
            {"channels": 1},
            {"crop_share": 1.0},
            {"interpolation": "bilinear"},
        ],
    )
    def test_an_altered_geometry_would_answer_otherwise(self, news: dict[str, Any], copied: Path) -> None:
        change(copied, lambda facts: facts["preprocess"].update(news))
        with pytest.raises(BundleError, match="how images are prepared"):
            load(copied)

    @pytest.mark.parametrize(
        "news",
        [{"version": 2}, {"fit": "swirl"}, {"size": "16"}, {"size": 0}, {"crop_share": 0.0}, {"blur": 1}],
    )
    def test_a_geometry_of_another_graft(self, news: dict[str, Any], copied: Path) -> None:
        def renew(facts: dict[str, Any]) -> None:
            facts["preprocess"].update(news)
            facts["preprocess_sha256"] = digest(facts["preprocess"])

        change(copied, renew)
        with pytest.raises(BundleError, match="Update Graft"):
            load(copied)

    def test_another_task(self, copied: Path) -> None:
        change(copied, lambda facts: facts.update({"task": "multi-label"}))
        with pytest.raises(BundleError, match="multi-label"):
            load(copied)

    @pytest.mark.parametrize(
        "content", [b"", b"not an onnx", b"\x08\x08" * 40], ids=["empty", "text", "noise"]
    )
    def test_a_model_that_is_no_onnx(self, content: bytes, copied: Path) -> None:
        replace_model(copied, content)
        with pytest.raises(BundleError, match="ONNX Runtime cannot open"):
            load(copied)

    def test_a_model_of_other_pixels(self, copied: Path) -> None:
        replace_model(copied, model(Preprocess(24)))
        with pytest.raises(BundleError, match="is not the model"):
            load(copied)

    def test_a_model_of_other_classes(self, copied: Path) -> None:
        def renew(facts: dict[str, Any]) -> None:
            facts["labels"] = ["ant", "bee"]
            facts["labels_sha256"] = digest(["ant", "bee"])

        change(copied, renew)
        with pytest.raises(BundleError, match="is not the model"):
            load(copied)


def paths_in(value: Any, above: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [above] * bool(above) + [path for key, part in inside for path in paths_in(part, (*above, key))]


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_mutated_manifest_opens_with_the_same_answers_or_is_refused(
    made: Path, data: st.DataObject
) -> None:
    original = json.loads((made / "bundle.json").read_text(encoding="utf-8"))
    facts = copy.deepcopy(original)
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(paths_in(facts) or [("format",)]))
        place = facts
        for key in way:
            place = place[key]
        if data.draw(st.booleans()):
            place[last] = data.draw(ANYTHING)
        else:
            place.pop(last, None) if isinstance(place, dict) else place.pop(last)
    same_answers(made, json.dumps(facts).encode("utf-8", "surrogatepass"))


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(position=st.integers(0, 10_000), byte=st.integers(0, 255), cut=st.booleans())
def test_a_damaged_byte_in_the_manifest(made: Path, position: int, byte: int, cut: bool) -> None:
    content = bytearray((made / "bundle.json").read_bytes())
    position %= len(content)
    content[position : position + 1] = b"" if cut else bytes([byte])
    same_answers(made, bytes(content))


def same_answers(made: Path, manifest: bytes) -> None:
    """Open `made` with another manifest: BundleError and nothing else, or the labels and numbers of before."""
    image = picture(3)
    changed = made.parent / "changed.graft"
    if not changed.exists():
        shutil.copytree(made, changed)
    (changed / "bundle.json").write_bytes(manifest)
    try:
        answer = load(changed).predict(image)
    except BundleError as error:
        assert str(error).endswith(".")
        return
    assert answer == load(made).predict(image)


class TestPictures:
    def test_every_way_to_give_an_image_gives_the_same_answer(self, made: Path, tmp_path: Path) -> None:
        image = picture()
        place = tmp_path / "ä picture.png"
        image.save(place)
        bundle = load(made)
        ways = [place, str(place), place.read_bytes(), Image.open(place), image, np.asarray(image)]
        answers = bundle.predict(ways)
        assert isinstance(answers, list)
        assert [bundle.predict(way) for way in ways] == answers
        assert all(answer == answers[0] for answer in answers)
        expected = probabilities_of(prepare(image, bundle.preprocess)[None])[0]
        np.testing.assert_allclose([answers[0].probabilities[label] for label in LABELS], expected, atol=1e-5)

    def test_the_answer_is_ranked(self, made: Path) -> None:
        answer = load(made).predict(picture(1))
        shares = list(answer.probabilities.values())
        assert shares == sorted(shares, reverse=True) and sum(shares) == pytest.approx(1, abs=1e-5)
        assert (answer.label, answer.probability) == next(iter(answer.probabilities.items()))
        assert list(answer.top(2)) == list(answer.probabilities)[:2]

    @pytest.mark.parametrize("channels", [1, 3])
    @pytest.mark.parametrize(
        "mode", ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "LA", "I;16"]
    )
    def test_every_mode_of_pil(self, mode: str, channels: int, tmp_path: Path) -> None:
        bundle = load(packed(tmp_path / "m", Preprocess(16, channels=channels)))
        source = picture().convert("L" if mode == "I;16" else "RGB").convert(mode)
        answer = bundle.predict(source)
        assert set(answer.probabilities) == set(LABELS)

    @pytest.mark.parametrize("channels", [1, 3])
    def test_arrays_of_every_documented_shape(self, channels: int, tmp_path: Path) -> None:
        bundle = load(packed(tmp_path / "m", Preprocess(16, channels=channels)))
        grey = np.asarray(picture().convert("L"))
        answers = bundle.predict([grey, grey[:, :, None], np.repeat(grey[:, :, None], 3, axis=2)])
        for answer in answers[1:]:
            assert answer.probabilities == pytest.approx(answers[0].probabilities, abs=0.02)
        assert answers[0] == answers[1]
        clear = np.dstack([np.asarray(picture()), np.full(grey.shape, 255, np.uint8)])
        assert bundle.predict(clear) == bundle.predict(np.asarray(picture()))

    def test_a_grey_model_reads_colour_as_its_luminance(self, tmp_path: Path) -> None:
        geometry = Preprocess(16, channels=1)
        image = picture(4)
        answer = load(packed(tmp_path / "m", geometry)).probabilities(image)
        np.testing.assert_allclose(
            answer, probabilities_of(prepare(image.convert("L"), geometry)[None]), atol=1e-5
        )

    def test_more_images_than_a_batch_come_in_their_order(self, made: Path) -> None:
        bundle = load(made)
        images = [picture(seed) for seed in range(BATCH + 5)]
        rows = bundle.probabilities(images)
        assert rows.shape == (BATCH + 5, 3)
        for place in (0, BATCH - 1, BATCH, BATCH + 4):
            np.testing.assert_allclose(rows[place], bundle.probabilities(images[place])[0], atol=1e-6)

    def test_embeddings_are_of_length_one_and_feed_the_head(self, made: Path) -> None:
        bundle = load(made)
        images = [picture(seed) for seed in range(3)]
        rows = bundle.embed(images)
        pixels = np.stack([prepare(image, bundle.preprocess) for image in images])
        np.testing.assert_allclose(rows, unit(features_of(pixels)), atol=1e-5)
        np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-6)
        np.testing.assert_allclose(bundle.embed(images[1])[0], rows[1], atol=1e-6)

    def test_no_images_give_no_rows(self, made: Path) -> None:
        bundle = load(made)
        assert bundle.predict([]) == []
        assert bundle.probabilities([]).shape == (0, 3) and bundle.embed(()).shape == (0, FEATURES)

    @pytest.mark.parametrize(
        "given",
        [
            *(b"", b"no image", Path("nowhere.png"), "nowhere.png", 7, None, {"a": 1}, np.zeros((8, 8))),
            *(np.zeros((2, 4, 5, 3), np.uint8), np.zeros((8, 8, 2), np.uint8)),
        ],
        ids=repr,
    )
    def test_what_is_no_image_is_said_in_a_sentence(self, given: Any, made: Path) -> None:
        with pytest.raises(DatasetError, match=r"\.$"):
            load(made).predict(given)
        with pytest.raises(DatasetError):
            load(made).predict([picture(), given])

    def test_a_truncated_file_is_named(self, made: Path, tmp_path: Path) -> None:
        (tmp_path / "half.jpg").write_bytes(encoded(picture(size=(200, 100)), "JPEG")[:900])
        with pytest.raises(DatasetError, match=r"half\.jpg"):
            load(made).predict(tmp_path / "half.jpg")


class TestScriptWithoutGraft:
    """docs/onnxruntime_only.py, run by itself, says what `Bundle.predict` says."""

    @pytest.mark.parametrize(
        "geometry",
        [
            Preprocess(16, crop_share=0.9),
            Preprocess(24, fit="squash", interpolation="bilinear"),
            Preprocess(16, channels=1),
        ],
        ids=["crop", "squash", "grey"],
    )
    def test_probabilities(self, geometry: Preprocess, tmp_path: Path) -> None:
        folder = packed(tmp_path / "model.graft", geometry)
        turned = Image.Exif()
        turned[274] = 6
        picture(1, (400, 300)).save(tmp_path / "large.png")
        picture(2).save(tmp_path / "turned.jpg", exif=turned, quality=95)
        picture(3, (30, 90)).convert("L").save(tmp_path / "grey.png")
        picture(4, (1600, 1200)).save(tmp_path / "photo.jpg", quality=90)
        names = [str(tmp_path / name) for name in ("large.png", "turned.jpg", "grey.png", "photo.jpg")]
        lines = said_by_script(folder, names)
        bundle = Bundle(folder)
        for name, line in zip(names, lines, strict=True):
            expected = bundle.predict(name).probabilities
            tolerance = 1e-3 if "photo" in name else 1e-5
            assert line["file"] == name
            assert line["probabilities"] == pytest.approx(expected, abs=tolerance)

    def test_it_is_short_and_imports_nothing_else(self) -> None:
        lines = SCRIPT.read_text(encoding="utf-8").splitlines()
        imports = [line for line in lines if line.startswith(("import ", "from "))]
        assert [line.split()[1].split(".")[0] for line in imports] == [
            *("json", "sys", "pathlib", "numpy", "onnxruntime", "PIL")
        ]
        assert len(lines) < 40


def said_by_script(folder: Path, names: list[str]) -> list[dict[str, Any]]:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(folder), *names],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_the_graph_is_one_file_with_its_contract_inside(made: Path) -> None:
    session = onnxruntime.InferenceSession((made / "model.onnx").read_bytes())
    assert [(one.name, one.type) for one in session.get_inputs()] == [("image", "tensor(uint8)")]
    assert [one.name for one in session.get_outputs()] == ["probabilities", "embedding", "activation"]
    parts = ["bundle.json", "card.md", "labels.txt", "model.onnx", "preprocess.onnx"]
    assert sorted(path.name for path in made.iterdir()) == parts
