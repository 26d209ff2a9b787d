"""Backbones that come from the hub: a study downloads them once, and goes on without it afterwards."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
from hub_mirror import mirror
from made_sets import stripes
from safetensors.torch import save


@pytest.mark.slow
def test_a_study_takes_a_backbone_from_the_hub_and_then_from_its_cache(tmp_path: Path) -> None:
    photos = stripes(tmp_path / "photos", each=12)
    content = save(timm.create_model("test_resnet").state_dict())

    def studied(number: int, **variables: str) -> tuple[str, str]:
        command = [
            sys.executable,
            "-m",
            "graft.cli",
            "study",
            str(photos),
            "--out",
            str(tmp_path / f"run{number}"),
        ]
        environment = {
            **os.environ,
            "HF_HOME": str(tmp_path / "hf"),
            "TORCH_HOME": str(tmp_path / "torch"),
            "GRAFT_CACHE": str(tmp_path / f"cache{number}"),
            **variables,
        }
        options = ["--backbones", "test_resnet", "--only", "frozen", "--folds", "2", "--json"]
        done = subprocess.run(
            [*command, *options], env=environment, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        best = json.loads(done.stdout)["candidates"][0]
        return best["backbone"], best["weights_origin"]

    with mirror({"/timm/test_resnet.r160_in1k/resolve/main/model.safetensors": content}) as (address, asked):
        first = studied(1, HF_ENDPOINT=address)
    downloads = [line for line in asked if line.startswith("GET") and line.endswith(".safetensors")]
    assert first[0] == "test_resnet.r160_in1k" and first[0] in first[1] and len(downloads) == 1
    assert studied(2, HF_HUB_OFFLINE="1") == first
