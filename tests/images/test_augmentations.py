"""Augmentations by name and by page: what is written is read again, and whatever is wrong is told in a sentence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graft.errors import SettingsError
from graft.images.augmentations import (
    FIELDS,
    RANGES,
    STILL,
    STRENGTHS,
    SYMMETRIES,
    Augmentation,
    Symmetry,
    named,
    page_of,
    settled,
    strengthened,
)

PHOTOS = Augmentation(("mirror",), 0.4, 0.3, 0.15)
SURFACES = Augmentation((), 0.85, 0.15, 0.0)


def fields() -> st.SearchStrategy[dict[str, Any]]:
    """The arguments of an `Augmentation`."""
    numbers = {name: st.floats(least, most) for name, (least, most) in RANGES.items()}
    chosen = st.lists(st.sampled_from(SYMMETRIES), unique=True).map(tuple)
    return st.fixed_dictionaries({"symmetries": chosen, "trivial": st.booleans(), **numbers})


def page(**changed: Any) -> str:
    return json.dumps({**json.loads(page_of(PHOTOS)), **changed})


@settings(max_examples=40, deadline=None)
@given(fields())
def test_a_page_is_read_as_what_was_written(given_fields: dict[str, Any]) -> None:
    augmentation = Augmentation(**given_fields)
    assert named(page_of(augmentation), suited=SURFACES) == augmentation
    again = settled(page_of(augmentation))
    assert settled(again) == again and named(again, suited=PHOTOS) == augmentation


@settings(max_examples=40, deadline=None)
@given(
    st.text() | st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists).map(json.dumps)
)
def test_anything_else_is_refused_in_a_sentence(text: str) -> None:
    if text in STRENGTHS:
        return
    with pytest.raises(SettingsError, match="none, light, medium, strong"):
        named("{" + text, suited=PHOTOS)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(FIELDS), st.recursive(st.none() | st.booleans() | st.floats() | st.text(), st.lists))
def test_a_field_is_sound_or_refused_by_name(field: str, value: Any) -> None:
    try:
        found = named(page(**{field: value}), suited=PHOTOS)
    except SettingsError as error:
        assert field in str(error)
    else:
        assert isinstance(found, Augmentation)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"format": 2}, "format 2; this version reads 1"),
        ({"format": True}, "format True"),
        ({"jitter": 1.5}, "jitter is 1.5; it must be a number from 0 to 0.9"),
        ({"jitter": True}, "jitter is True"),
        ({"erase": "often"}, "erase is 'often'"),
        ({"smallest_crop": 0}, "from 0.05 to 1"),
        ({"degrees": float("nan")}, "degrees is nan"),
        ({"degrees": 10**400}, "from 0 to 180"),
        ({"trivial": 1}, "it must be true or false"),
        ({"symmetries": ["sideways"]}, "mirror, upside_down, transpose"),
        ({"symmetries": ["mirror", "mirror"]}, "each at most once"),
        ({"symmetries": [["mirror"]]}, "mirror, upside_down, transpose"),
        ({"blur": 3}, "does not know blur: an augmentation has the fields format, symmetries"),
    ],
)
def test_each_mistake_is_named(tmp_path: Path, changed: dict[str, Any], told: str) -> None:
    file = tmp_path / "mine.json"
    file.write_text(page(**changed), encoding="utf-8")
    with pytest.raises(SettingsError) as refused:
        named(str(file), suited=PHOTOS)
    assert told in str(refused.value) and "mine.json" in str(refused.value)


def test_missing_and_repeated_fields_are_named() -> None:
    fields = json.loads(page_of(PHOTOS))
    del fields["hue"], fields["erase"]
    with pytest.raises(SettingsError, match="lacks hue, erase"):
        settled(json.dumps(fields))
    with pytest.raises(SettingsError, match="gives hue twice"):
        settled(page_of(PHOTOS).replace('"hue"', '"hue": 0.1, "hue"'))


@pytest.mark.parametrize("text", ["lots", "", "no/such.json", "a\0b", "None"])
def test_neither_a_strength_nor_a_file(text: str) -> None:
    with pytest.raises(SettingsError, match="none, light, medium, strong"):
        settled(text)


def test_a_file_that_is_no_text_and_a_folder(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00{")
    for path in (tmp_path / "binary", tmp_path):
        with pytest.raises(SettingsError, match="JSON file with the fields"):
            settled(str(path))


def test_a_file_means_the_same_after_it_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text("\ufeff" + page(symmetries="measured", degrees=12), encoding="utf-8")
    text = settled(str(file))
    file.unlink()
    assert named(text, suited=PHOTOS) == replace(PHOTOS, degrees=12.0)
    assert named(text, suited=SURFACES).symmetries == ()


@pytest.mark.parametrize("name", RANGES)
def test_the_record_checks_its_own_ranges(name: str) -> None:
    least, most = RANGES[name]
    for wrong in (least - 0.01, most + 0.01, float("nan")):
        with pytest.raises(SettingsError, match=f"{name} of an augmentation"):
            replace(PHOTOS, **{name: wrong})


def test_the_record_checks_its_symmetries() -> None:
    twice: tuple[Symmetry, ...] = ("mirror", "mirror")
    with pytest.raises(SettingsError, match="named once"):
        replace(PHOTOS, symmetries=twice)


@pytest.mark.parametrize("suited", [PHOTOS, SURFACES])
def test_strengths_are_ordered_and_never_add_a_symmetry(suited: Augmentation) -> None:
    weaker, same, stronger = (strengthened(suited, name) for name in ("light", "medium", "strong"))
    assert same == suited
    assert weaker.smallest_crop > suited.smallest_crop > stronger.smallest_crop
    assert weaker.jitter < suited.jitter < stronger.jitter
    assert weaker.symmetries == stronger.symmetries == suited.symmetries
    assert strengthened(suited, "none") == STILL and STILL.still
    assert not any(one.still for one in (weaker, same, stronger))


def test_trivial_augment_only_for_many_images_in_strong_views() -> None:
    assert named("strong", suited=PHOTOS, images=501).trivial
    assert not named("strong", suited=PHOTOS, images=500).trivial
    assert not named("strong", suited=PHOTOS).trivial
    assert not named("medium", suited=PHOTOS, images=10_000).trivial


def test_what_does_nothing_is_no_content() -> None:
    """Caches that earlier versions made keep their keys."""
    assert PHOTOS.content() == {
        "symmetries": ("mirror",),
        "smallest_crop": 0.4,
        "jitter": 0.3,
        "erase": 0.15,
    }
    assert replace(PHOTOS, hue=0.1).content() == {**PHOTOS.content(), "hue": 0.1}


@settings(max_examples=40, deadline=None)
@given(fields(), fields())
def test_different_augmentations_have_different_content(
    first: dict[str, Any], second: dict[str, Any]
) -> None:
    one, other = Augmentation(**first), Augmentation(**second)
    assert (one.content() == other.content()) == (one == other)
