"""Makes the computed columns of `graft/backbones/catalogue.json` again, from random weights and without a network.

    python benchmarks/catalogue.py            # write them
    python benchmarks/catalogue.py --check    # only compare; exit code 1 and the names of rows that differ

Given by hand and left alone: name, library, arguments, family, pretraining, top1, top5, published. Read off timm's or
torchvision's description of the weights: source, licence, input. Computed: parameters, bytes (float32 of every
floating-point tensor of the state), gmacs (multiply-adds counted by torch.utils.flop_counter, half its operations,
one image at the input size), stages. Costs about 90 s of processor time.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from typing import Any

import timm
import torch
import torchvision
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from graft.backbones.catalogue import DATA, family_of
from graft.backbones.weights import build_network

# torchvision publishes its weights with the licence of its repository and says that terms of the data may apply.
TORCHVISION_LICENCE = "bsd-3-clause"
# GoogLeNet's own rescaling from ImageNet's mean and deviation to 0.5 and 0.5 is switched off by transform_input=False.
NORMALISED_BY_HALF = {"googlenet"}
COLUMNS = ("source", "licence", "parameters", "bytes", "gmacs", "input", "stages")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="compare, write nothing")
    check = parser.parse_args().check
    torch.manual_seed(0)
    table = json.loads(DATA.read_text(encoding="utf-8"))
    differing = [name for row in table["networks"] if (name := renew_network(row))]
    differing += [name for row in table["shapes"] if (name := renew_shape(row))]
    print(f"{len(table['networks'])} networks; changed: {', '.join(differing) or 'none'}")
    if check:
        return 1 if differing else 0
    DATA.write_text(written(table), encoding="utf-8")
    return 0


def renew_network(row: dict[str, Any]) -> str | None:
    """Fill the row's columns; its name if any of them changed."""
    before = {column: row.get(column) for column in COLUMNS}
    described = describe_timm(row) if row["library"] == "timm" else describe_torchvision(row)
    network = build_network(row["library"], row["architecture"], row["arguments"])
    size, channels = described["input"]["size"], described["input"]["channels"]
    row |= (
        described
        | sizes(network)
        | {"gmacs": gmacs(network, size, channels), "stages": stages(network, size)}
    )
    if not row.get("family"):
        row["family"] = family_of(row["architecture"])
    return row["name"] if before != {column: row[column] for column in COLUMNS} else None


def renew_shape(row: dict[str, Any]) -> str | None:
    """Fill the GMACs per input size and the stages of a network that only weights folders have."""
    before = json.dumps(row)
    network = build_network("timm", row["architecture"], row["arguments"])
    row["gmacs"] = {size: gmacs(network, int(size), 3) for size in row["gmacs"]}
    row["stages"] = stages(network, 224)
    return f"{row['architecture']} {row['arguments']}" if before != json.dumps(row) else None


def describe_timm(row: dict[str, Any]) -> dict[str, Any]:
    """Source, licence and input from timm's description; an `img_size` among the arguments is the input size."""
    config = timm.get_pretrained_cfg(row["name"])
    channels, size, _ = config.input_size
    return {
        "source": f"https://huggingface.co/{config.hf_hub_id}",
        "licence": config.license or "unknown",
        "input": {
            "size": row["arguments"].get("img_size", size),
            "channels": channels,
            "mean": list(config.mean),
            "std": list(config.std),
            "interpolation": config.interpolation,
            "crop": config.crop_pct,
        },
    }


def describe_torchvision(row: dict[str, Any]) -> dict[str, Any]:
    weights = torchvision.models.get_model_weights(row["architecture"]).IMAGENET1K_V1
    transform = weights.transforms()
    size = transform.crop_size[0]
    half = row["architecture"] in NORMALISED_BY_HALF
    return {
        "source": weights.url,
        "licence": TORCHVISION_LICENCE,
        "input": {
            "size": size,
            "channels": 3,
            "mean": [0.5] * 3 if half else list(transform.mean),
            "std": [0.5] * 3 if half else list(transform.std),
            "interpolation": transform.interpolation.value,
            "crop": round(size / transform.resize_size[0], 3),
        },
    }


def sizes(network: nn.Module) -> dict[str, int]:
    floats = [tensor for tensor in network.state_dict().values() if tensor.is_floating_point()]
    return {
        "parameters": sum(parameter.numel() for parameter in network.parameters()),
        "bytes": 4 * sum(tensor.numel() for tensor in floats),
    }


def gmacs(network: nn.Module, size: int, channels: int) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        network.eval()(torch.zeros(1, channels, size, size))
    return round(counter.get_total_flops() / 2e9, 4)


def stages(network: nn.Module, size: int) -> list[list[int]]:
    """Channels and reduction per stage: timm's own list, else the top-level blocks where the map's size changes."""
    listed = getattr(network, "feature_info", None)
    if listed:
        return [[stage["num_chs"], stage["reduction"]] for stage in listed]
    return [[channels, round(size / side)] for channels, side in block_ends(network, size)]


def block_ends(network: nn.Module, size: int) -> list[tuple[int, int]]:
    """(channels, side) of the last map of each side, over the blocks of the trunk in running order."""
    trunk = getattr(network, "features", network)
    seen: list[tuple[int, int]] = []

    def note(_: nn.Module, __: object, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4:
            seen.append((output.shape[1], output.shape[2]))

    blocks = [block for name, block in trunk.named_children() if name not in ("avgpool", "dropout", "fc")]
    hooks = [block.register_forward_hook(note) for block in blocks]
    with torch.inference_mode():
        network.eval()(torch.zeros(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return [shape for shape, after in zip(seen, [*seen[1:], (0, 0)], strict=True) if shape[1] != after[1]]


def written(table: dict[str, Any]) -> str:
    """JSON with one line per row, so that a change of one network is a change of one line."""
    parts = [f'"format": {table["format"]}', f'"published": {json.dumps(table["published"], indent=1)}']
    for name in ("networks", "shapes"):
        lines = ",\n  ".join(json.dumps(row, ensure_ascii=False) for row in table[name])
        parts.append(f'"{name}": [\n  {lines}\n ]')
    return "{\n " + ",\n ".join(parts) + "\n}\n"


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(main())
