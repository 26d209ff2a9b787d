"""The contact sheet in the report: shown if it is the study's own, left out if there is none or something else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from graft.images.augmentations import STILL
from graft.images.preview import MOST_BYTES, preview_of
from graft.report import page
from graft.report.preview import preview


def sheet(run: Path) -> None:
    pixels = np.zeros((2, 8, 8, 1), np.uint8)
    preview_of(pixels, np.array([0, 1]), np.arange(2), STILL, classes=["a", "b"], seed=0, folder=run)


def test_the_report_shows_what_the_training_saw(make_run: Callable[..., Path]) -> None:
    run = make_run(photos=False)
    assert "What the training saw" not in page.render(run)
    sheet(run)
    uri = preview(run)
    assert uri is not None and uri.startswith("data:image/jpeg;base64,/9j/")
    shown = page.render(run)
    assert "What the training saw" in shown and uri in shown


@pytest.mark.parametrize("content", [b"", b"<svg onload=alert(1)>", b"\xff\xd8\xff" + bytes(MOST_BYTES)])
def test_a_file_that_no_study_left_is_not_shown(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "preview.jpg").write_bytes(content)
    assert preview(tmp_path) is None


def test_a_folder_of_that_name_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "preview.jpg").mkdir()
    assert preview(tmp_path) is None
