"""The one candidate of `graft train`, opened: from the page to a network, a tap, what is frozen, and how to train it.

In: a frame and a page. Out: a `Candidate`, and from it a `Bench` for each run (a training with a seed of its own). What
the page leaves to `auto` is decided here. Cost: opening the network (2 s, if the cache lacks it 5 s), the frozen features
of all images where a ridge head needs them, and the frozen prefix over the views of all images, unless the cache holds
them; every run of the candidate reads the same ones.

Not covered: the training itself (`graft.studies.single.training`).
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, cast

from graft.backbones.catalogue import Entry
from graft.backbones.inputs import Look, read_as
from graft.backbones.trunks import TapRow, TrunkFile, reopened, trunk_of, untrained_entry
from graft.errors import BackboneError, SettingsError
from graft.images.dataset import Preprocess
from graft.images.pixels import open_pixels, pixels_key
from graft.store import content_key
from graft.studies.frame import Event, Frame
from graft.studies.plan import geometry_of
from graft.studies.probe import activating, samples_of
from graft.studies.recipe import Recipe, Strategy
from graft.studies.rungs import prepare
from graft.studies.single.page import AUTO, FIND, SCRATCH, Page, refuse_equal_members
from graft.studies.symmetry import augmenting, shown
from graft.studies.tuning.bench import Bench, source_of, told_by

if TYPE_CHECKING:
    from graft.backbones.opening import Opened
    from graft.images.augmentations import Augmentation
    from graft.learning.tune_settings import TuneSettings
else:
    Augmentation = Opened = TuneSettings = Any

NO_LIMIT = 10**9
TOGETHER = "depths"  # as a tap: all stages that learn (`graft.backbones.together`)


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """`settings`: of one training. `trunk` is None where the weights are random. `frozen`: names of weights above
    `settings.cut` that do not learn either. `tap` feeds the head; `top` is the last stage that it reads, the tap itself but
    where it reads `together` all stages that learn. `layers`: what is frozen, in words. `normalises`: whether
    anything that learns is a batch normalisation. `closed`: a ridge head on frozen features, for which nothing is trained
    step by step."""

    page: Page
    entry: Entry
    recipe: Recipe
    settings: TuneSettings
    tap: TapRow
    top: TapRow
    together: tuple[str, ...]
    taps: int
    trunk: TrunkFile | None
    frozen: frozenset[str]
    layers: str
    normalises: bool
    closed: bool

    @property
    def geometry(self) -> Preprocess:
        """What the images are decoded to."""
        return self.recipe.geometry

    def network(self, frame: Frame, run: int) -> Opened:
        """The network as this run begins with it."""
        if self.trunk is not None:
            return reopened(self.trunk, folder=frame.folder, reach=frame.reach)
        seed = 1000 * self.page.seed + run
        return random_network(self.entry, self.geometry, self.recipe.look, seed=seed)

    def as_read(self, frame: Frame, run: int) -> Opened:
        """The same, with the tap that feeds the head."""
        return _as_read(self.network(frame, run), self.together, self.geometry.size)


def _as_read(opened: Opened, together: tuple[str, ...], size: int) -> Opened:
    from graft.backbones.opening import read_together

    return read_together(opened, together, size=size) if together else opened


def candidate_of(frame: Frame, page: Page, entry: Entry | None) -> Generator[Event, None, Candidate]:
    """Decode the images, open the network, and settle what the page leaves open. `entry` is None for the small CNN."""
    entry, geometry, look = _seen(frame, page, entry)
    yield from prepare(frame, [geometry])
    yield Event("progress", f"{entry.name}: opening", remaining_seconds=frame.remaining_seconds())
    trunk: TrunkFile | None = None
    if page.random:
        opened = random_network(entry, geometry, look, seed=1000 * page.seed)
        taps = [TapRow(tap.name, tap.index, tap.features) for tap in opened.taps]
    else:
        trunk = trunk_of(
            entry,
            geometry,
            folder=frame.folder,
            reach=frame.reach,
            store=frame.store,
            samples=samples_of(frame, geometry),
            compute=frame.compute,
            look=look,
        )
        if trunk.graph is None:
            raise BackboneError(
                f"{entry.name} cannot be exported, so it cannot be packed. Choose another backbone (graft models)."
            )
        opened = reopened(trunk, folder=frame.folder, reach=frame.reach)
        taps = list(trunk.taps)
    top = _tap(page, entry, taps)
    depth = _depth(page, opened, [one.name for one in taps], top, geometry.size)
    together = _together(page, [one.name for one in taps], top, depth.cut)
    read = _as_read(opened, together, geometry.size).taps[-1]
    tap = TapRow(read.name, read.index, read.features) if together else top
    head = page.head if page.head != AUTO else "linear" if page.random else "ridge"
    settings = _settings(page, head, cut=depth.cut, tap=top.name)
    if not depth.normalises:
        settings = replace(settings, batch_norm="frozen")
    recipe = _recipe(page, entry, geometry, look, top, together, settings, trunk, depth.frozen)
    closed = depth.cut == top.name and head == "ridge"
    return Candidate(
        page=page,
        entry=entry,
        recipe=recipe,
        settings=settings,
        tap=tap,
        top=top,
        together=together,
        taps=len(taps),
        trunk=trunk,
        frozen=depth.frozen,
        layers=depth.layers,
        normalises=depth.normalises,
        closed=closed,
    )


def refuse_depth(page: Page, entry: Entry) -> None:
    """Whatever is wrong with `--freeze` and `--tap`, before an image is decoded: the network is built without weights.

    Raises SettingsError, also for an ensemble of heads that would be equal.
    """
    if page.freeze in ("all", "none") and page.tap == AUTO:
        return
    geometry = Preprocess(_size(page, entry.input.size), "crop", 1.0, "bilinear", 3)
    opened = random_network(entry, geometry, "plain", seed=0)
    taps = [TapRow(tap.name, tap.index, tap.features) for tap in opened.taps]
    tap, names = _tap(page, entry, taps), [one.name for one in taps]
    cut = _depth(page, opened, names, tap, geometry.size).cut
    _together(page, names, tap, cut)
    if cut == tap.name:
        refuse_equal_members(page)


def random_network(entry: Entry, geometry: Preprocess, look: Look, *, seed: int) -> Opened:
    """The network with random weights, a function of the seed, in eval mode."""
    import torch

    from graft.backbones.opening import open_scratch, tapped
    from graft.backbones.scratch import ScratchDesign, build
    from graft.backbones.trunks import UNTRAINED
    from graft.backbones.weights import build as build_entry

    if entry.architecture == UNTRAINED:
        arguments: dict[str, Any] = {name: value for name, value in entry.arguments if name != "seed"}
        made = ScratchDesign(**arguments)
        return open_scratch(build(made, seed=seed), made)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = build_entry(entry)
    return tapped(network.eval(), entry, channels=geometry.channels, size=geometry.size, look=look)


def bench_for(
    frame: Frame, candidate: Candidate, augmentation: Augmentation
) -> Generator[Event, None, Bench]:
    """The cut network, its batches and what a ridge head starts from; for the first run of the candidate."""
    import torch

    from graft.learning.cutting import cut_at
    from graft.learning.lessons import mixable

    geometry, settings, trunk = candidate.geometry, candidate.settings, candidate.trunk
    pixels = open_pixels(frame.dataset, geometry, store=frame.store)
    features, closed_form = None, trunk is not None and settings.head == "ridge"
    if trunk is not None and closed_form and not candidate.together:
        features = (yield from activating(frame, trunk, pixels)).tap(candidate.tap.index)
    images = torch.from_numpy(samples_of(frame, geometry)).permute(0, 3, 1, 2).float() / 255
    cutting = cut_at(
        candidate.network(frame, 0),
        architecture=candidate.entry.architecture,
        tap=candidate.top.name,
        cut=settings.cut,
        images=images,
        frozen=candidate.frozen,
        together=candidate.together,
    )
    if cutting.notice:
        yield Event("notice", cutting.notice)
    key = content_key(pixels_key(frame.dataset, geometry), trunk.key if trunk else "", settings.cut)
    source = yield from source_of(
        frame,
        candidate.recipe,
        cutting,
        pixels,
        key=key,
        augmentation=augmentation,
        wanted=settings.views if settings.cut else 0,
    )
    if settings.cutmix > 0 and not mixable(source.plain(frame.rows[:1])):
        raise SettingsError(
            f"--cutmix {settings.cutmix:g}: what {candidate.entry.name} puts out at {settings.cut} has no height and "
            "width to cut a part out of. Use --mixup instead, or --freeze none."
        )
    if candidate.together and closed_form:
        features = told_by(frame, cutting, source, key=content_key(key, list(candidate.together)))
    return Bench(cutting, source, trunk, features)


def bench_of_run(frame: Frame, candidate: Candidate, bench: Bench, run: int) -> Bench:
    """The same for another run: of a network of random weights these are others."""
    if candidate.trunk is not None or run == 0:
        return bench
    state = candidate.network(frame, run).trunk.network.state_dict()
    initial = {name: state[name].detach().clone() for name in bench.cutting.initial}
    return replace(bench, cutting=replace(bench.cutting, initial=initial))


def augmentation_for(frame: Frame, candidate: Candidate) -> Generator[Event, None, Augmentation]:
    """What `--augment` means for these images; a pre-trained network is asked about mirrored ones."""
    from graft.images.augmentations import named
    from graft.images.views import suited

    pixels = open_pixels(frame.dataset, candidate.geometry, store=frame.store)
    wanted = candidate.settings.augment
    if candidate.trunk is None:
        plain = suited(pixels, frame.dataset.targets, frame.rows)
        return named(wanted, suited=plain, images=len(frame.rows))
    activations = yield from activating(frame, candidate.trunk, pixels)
    return (
        yield from augmenting(
            frame,
            candidate.trunk,
            pixels,
            activations.tap(candidate.top.index),
            tap=candidate.top.index,
            wanted=wanted,
        )
    )


def show_views(frame: Frame, candidate: Candidate, augmentation: Augmentation) -> None:
    """Write `preview.jpg`: images beside their views."""
    pixels = open_pixels(frame.dataset, candidate.geometry, store=frame.store)
    shown(frame, pixels, augmentation, title=candidate.recipe.name)


def _seen(frame: Frame, page: Page, entry: Entry | None) -> tuple[Entry, Preprocess, Look]:
    """The row of the network, and what it is shown of the images."""
    dataset = frame.dataset
    if entry is None:
        from graft.backbones.scratch import design

        made, geometry = design(dataset, development=len(frame.rows))
        word = page.input if page.input != AUTO else "gray" if dataset.mostly_grey else "rgb"
        channels: Literal[1, 3] = 1 if word == "gray" else 3
        made = replace(made, channels=channels, size=_size(page, made.size))
        entry = untrained_entry(made, seed=page.seed)
        fit = cast("Literal['crop', 'squash', 'pad']", page.fit if page.fit != AUTO else "squash")
        share = 0.875 if fit == "crop" else 1.0
        return entry, replace(geometry, channels=channels, size=made.size, fit=fit, crop_share=share), "plain"
    fit = cast("Literal['crop', 'squash', 'pad']", page.fit if page.fit != AUTO else "crop")
    geometry = geometry_of(entry, dataset, fit)
    geometry = replace(geometry, size=_size(page, geometry.size))
    if page.input == AUTO:
        return entry, geometry, "plain"
    geometry, look = read_as(page.input, replace(geometry, channels=3))
    return entry, geometry, look


def _size(page: Page, usual: int) -> int:
    return usual if page.size == AUTO else int(page.size)


def _tap(page: Page, entry: Entry, taps: list[TapRow]) -> TapRow:
    if page.tap in (AUTO, TOGETHER):
        return taps[-1]
    for tap in taps:
        if tap.name == page.tap:
            return tap
    listed = ", ".join(tap.name for tap in taps)
    raise SettingsError(
        f"--tap {page.tap}: {entry.name} has the taps {listed}. Choose one of them, depths, or auto."
    )


def _together(page: Page, names: list[str], top: TapRow, cut: str) -> tuple[str, ...]:
    """The stages that learn, where the head reads them together."""
    from graft.backbones.together import stages_read

    if page.tap != TOGETHER:
        return ()
    if cut == top.name:
        raise SettingsError(
            "--tap depths reads all stages that learn, and none does. Leave some open with --freeze, or use another tap."
        )
    return stages_read(names, tap=top.name, cut=cut)


@dataclass(frozen=True, slots=True)
class _Depth:
    """The cut, the names of the frozen weights, what is frozen in words, and whether a batch normalisation learns."""

    cut: str
    frozen: frozenset[str]
    layers: str
    normalises: bool


def _depth(page: Page, opened: Opened, names: list[str], tap: TapRow, size: int) -> _Depth:
    from torch.nn.modules.batchnorm import _BatchNorm

    from graft.backbones.layers import frozen_by, layers_of

    trunk = opened.trunk
    if page.freeze == "none":
        normalises = any(isinstance(module, _BatchNorm) for module in trunk.network.modules())
        return _Depth("", frozenset(), "nothing is frozen", normalises)
    stages = names[: names.index(tap.name) + 1]
    layers = layers_of(trunk.network, stages=names, size=size, channels=len(trunk.mean))
    freeze = frozen_by(page.freeze, layers, stages)
    below = [layer for layer in layers if layer.stage in stages]
    count = sum(all(name in freeze.parameters for name in layer.tensors) for layer in below)
    cut = tap.name if freeze.everything else freeze.cut
    words = f"{count} of {len(below)} layers are frozen" + (f", up to {cut}" if cut else "")
    normalises = any(
        isinstance(trunk.network.get_submodule(layer.name), _BatchNorm)
        and not freeze.parameters.issuperset(layer.tensors)
        for layer in below
    )
    return _Depth(cut, freeze.parameters, words, normalises)


def _settings(page: Page, head: str, *, cut: str, tap: str) -> TuneSettings:
    """How to train once; see docs/train.md for the reasons."""
    from graft.learning.range_test import with_rate
    from graft.learning.tune_settings import TuneSettings

    if page.backbone == SCRATCH:
        base = TuneSettings(epochs=300, patience=40, batch_size=16, trunk_rate=2e-3, head_rate=2e-3)
    elif page.random:
        base = TuneSettings(epochs=300, patience=40, batch_size=16, trunk_rate=1e-3, head_rate=1e-3)
    elif cut == tap:
        base = TuneSettings(epochs=100, patience=10, steps=5_000, trunk_rate=0.0, start_temperature=1.0)
    else:
        base = TuneSettings()
    if page.random:
        base = replace(
            base,
            least_epochs=30,
            stage_decay=1.0,
            label_smoothing=0.1,
            unit_length=False,
            batch_norm="train",
            augment="medium",
            start_penalty=0.0,
        )
    epochs: Any = {} if page.epochs == AUTO else {"epochs": int(page.epochs), "steps": NO_LIMIT}
    given: dict[str, Any] = {
        "patience": page.patience,
        "batch_size": page.batch_size,
        "batch_norm": page.batch_norm,
        "augment": page.augment,
    }
    base = replace(
        base,
        cut=cut,
        head=cast(Any, head),
        balance=cast(Any, "root" if page.balance == "weights" else page.balance),
        mixup=page.mixup,
        cutmix=page.cutmix,
        averaging=base.averaging if page.ema else 0.0,
        generations=page.generations,
        **epochs,
        **{name: value for name, value in given.items() if value != AUTO},
    )
    return base if page.lr in (AUTO, FIND) else with_rate(base, float(page.lr), default=base)


def _recipe(
    page: Page,
    entry: Entry,
    geometry: Preprocess,
    look: Look,
    tap: TapRow,
    together: tuple[str, ...],
    settings: TuneSettings,
    trunk: TrunkFile | None,
    frozen: frozenset[str],
) -> Recipe:
    strategy: Strategy = "partial" if settings.cut or frozen else "full"
    if settings.cut == tap.name:
        strategy = "frozen"
        ending = "" if settings.head == "ridge" else f"+{settings.head}"
    else:
        depth = settings.cut if settings.cut == page.freeze else "" if page.freeze == "none" else page.freeze
        ending = f"{'+depths+quarters' if together else ''}+tuned:{depth or 'all'}"
    name = f"{entry.name}/{tap.name}{ending}"
    if page.random:
        strategy = "scratch"
        name = f"{entry.name}/scratch"
    name += f"@{page.input}" if page.input != AUTO else ""
    name += f" x{page.ensemble}" if page.ensemble > 1 else ""
    training = asdict(settings) | ({"together": list(together)} if together else {})
    if page.augment.startswith("{"):
        training["augment"] = json.loads(page.augment)
    return Recipe(
        name=name,
        strategy=strategy,
        backbone=entry.name,
        weights=trunk.digest if trunk is not None else f"random:{page.seed}",
        geometry=geometry,
        tap=tap.name,
        cut=settings.cut,
        settings=content_key("train.v2", training, sorted(frozen), page.ensemble, page.lr, page.seed),
        look=look,
    )
