"""graft models: the catalogue of backbones, where their weights are, and the layers of one of them."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from graft.commands.lines import as_json
from graft.errors import SettingsError

if TYPE_CHECKING:
    from graft.backbones.layers import Freeze, Layer
    from graft.backbones.opening import Opened

SCRATCH = ("scratch", "small_cnn")
SCRATCH_SIZE = 96
SCRATCH_WIDTH = 32


def add(commands: Any) -> None:
    models = commands.add_parser(
        "models",
        help="the catalogue of backbones, where their weights are now, and the layers of one of them",
    )
    models.add_argument("name", nargs="?", metavar="NAME", help="one network; scratch is the small CNN")
    models.add_argument(
        "--layers", action="store_true", help="with NAME: its layers one by one; no weights needed"
    )
    models.add_argument(
        "--freeze",
        metavar="N|STAGE|all|none",
        help="with --layers: mark what this would keep as it is: the first N layers, or up to and including a stage",
    )
    models.add_argument(
        "--size", type=int, metavar="PX", help="with --layers: the side of the input (default: its own)"
    )
    models.add_argument("--weights", metavar="DIR", help="a folder with weights.json (or GRAFT_WEIGHTS)")
    models.add_argument("--sort", default="name", help="name, size, gmacs or top1 (default: name)")
    models.add_argument("--max-params", metavar="N", help="at most so many parameters, such as 5M")
    models.add_argument("--json", action="store_true", help="print JSON")
    models.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    if options.layers:
        return _layers(options)
    for name in ("freeze", "size"):
        if getattr(options, name) is not None:
            raise SettingsError(f"--{name} belongs to the layers of one network: graft models NAME --layers.")
    return _catalogue(options)


def _catalogue(options: argparse.Namespace) -> int:
    from graft import console
    from graft.backbones.catalogue import find, rows
    from graft.backbones.hub import reach_hub
    from graft.backbones.weights import folder_from, held, locate, shelf

    folder = folder_from(options.weights)
    here = held(folder)
    names = {entry.name for entry in here}
    entries = [*here, *(row for row in rows() if row.name not in names)]
    if options.name:
        entries = [find(options.name, shelf(folder))]
    listed = console.model_rows(
        entries,
        locate(entries, folder=folder, reach=reach_hub()),
        sort=options.sort,
        most=console.parameter_count(options.max_params) if options.max_params else None,
    )
    if options.json:
        print(as_json(listed))
    else:
        console.show_models(listed)
    return 0


def _layers(options: argparse.Namespace) -> int:
    if not options.name:
        raise SettingsError(
            "--layers needs the name of a network: graft models NAME --layers. `graft models` lists them."
        )
    if options.size is not None and not 8 <= options.size <= 2048:
        raise SettingsError(f"--size {options.size}: give the side of the input in pixels, 8 to 2048.")
    from graft.backbones.layers import frozen_by, layers_of

    name, opened, size = _opened(options.name, options.size, options.weights)
    stages = [tap.name for tap in opened.taps]
    layers = layers_of(opened.trunk.network, stages=stages, size=size, channels=3)
    freeze = frozen_by(options.freeze, layers, stages) if options.freeze is not None else None
    facts = layer_facts(name, layers, stages, freeze, size=size)
    if options.json:
        print(as_json(facts))
    else:
        show_layers(facts)
    return 0


def _opened(name: str, size: int | None, weights: str | None) -> tuple[str, Opened, int]:
    """The network with random weights, its full name and the side of its input."""
    import torch

    from graft.backbones.catalogue import find
    from graft.backbones.opening import open_scratch, tapped
    from graft.backbones.scratch import ScratchDesign, build
    from graft.backbones.weights import build as build_entry
    from graft.backbones.weights import folder_from, shelf

    if name in SCRATCH:
        design = ScratchDesign(SCRATCH_WIDTH, 3, size or SCRATCH_SIZE, classes=2)
        return SCRATCH[0], open_scratch(build(design, seed=0), design), design.size
    entry = find(name, shelf(folder_from(weights)))
    with torch.random.fork_rng(devices=[]):
        network = build_entry(entry).eval()
    side = size or entry.input.size
    return entry.name, tapped(network, entry, channels=3, size=side), side


def layer_facts(
    name: str, layers: list[Layer], stages: list[str], freeze: Freeze | None, *, size: int
) -> dict[str, Any]:
    """Layers, stages and totals as JSON. The old classifier, which a new head replaces, is told apart."""
    frozen = freeze.parameters if freeze else frozenset()

    def stays(layer: Layer) -> bool:
        return bool(frozen) and set(layer.tensors) <= frozen

    kept = [layer for layer in layers if layer.stage]
    facts: dict[str, Any] = {
        "name": name,
        "size": size,
        "layers": [
            {
                "number": layer.number if layer.stage else None,
                "name": layer.name,
                "kind": layer.kind,
                "stage": layer.stage or None,
                "parameters": layer.parameters,
                "output": list(layer.output),
                "frozen": stays(layer) if freeze else None,
            }
            for layer in layers
        ],
        "stages": [
            {
                "name": stage,
                "layers": sum(layer.stage == stage for layer in layers),
                "parameters": sum(layer.parameters for layer in layers if layer.stage == stage),
            }
            for stage in stages
        ],
        "parameters": sum(layer.parameters for layer in layers),
        "classifier": sum(layer.parameters for layer in layers if not layer.stage),
    }
    if freeze:
        still = sum(layer.parameters for layer in kept if stays(layer))
        facts["frozen"], facts["trainable"] = still, sum(layer.parameters for layer in kept) - still
        facts["cut"] = freeze.cut or None
    return facts


def show_layers(facts: Mapping[str, Any]) -> None:
    """The layers for people."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(highlight=False)
    console = console if console.is_terminal else Console(highlight=False, width=120)
    chosen = "frozen" in facts
    table = Table(
        title=escape(f"{facts['name']} at {facts['size']} px"), title_justify="left", title_style="dim"
    )
    table.add_column("layer", justify="right", no_wrap=True)
    for name in ("name", "kind", "stage"):
        table.add_column(name, overflow="fold")
    table.add_column("parameters", justify="right", no_wrap=True)
    table.add_column("output", justify="right", no_wrap=True)
    if chosen:
        table.add_column("frozen", no_wrap=True)
    rows = facts["layers"]
    for row, after in zip(rows, [*rows[1:], {"stage": None}], strict=True):
        cells = [
            str(row["number"] or ""),
            escape(row["name"] or "(the network's own)"),
            escape(row["kind"]),
            escape(row["stage"] or "replaced by the head"),
            f"{row['parameters']:,}",
            " x ".join(str(side) for side in row["output"]),
        ]
        table.add_row(
            *cells,
            *(["yes" if row["frozen"] else ""] if chosen else []),
            end_section=row["stage"] != after["stage"],
        )
    console.print(table)
    counted = sum(row["number"] is not None for row in rows)
    console.print(
        f"{counted} layers that can be frozen; {facts['parameters']:,} parameters, {facts['classifier']:,} of them in the "
        "old classifier"
    )
    if chosen:
        cut = (
            f"the stage {facts['cut']} is the highest that is wholly frozen"
            if facts["cut"]
            else "no stage is wholly frozen"
        )
        console.print(
            escape(f"frozen {facts['frozen']:,}, trainable {facts['trainable']:,} and the head; {cut}")
        )
