"""The student while it learns: its network with taps, the running average of its weights, and the optimiser.

In: a row for the student and how it begins. Out: a `Learner`, whose whole state is a dictionary of tensors that can be
written and read back, bit for bit. AdamW (Loshchilov & Hutter 2019) without decay for norms and biases, an exponential
moving average of all weights that forgets faster at first, the gradient cut at a norm of 2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor, nn

from graft.backbones.catalogue import Arguments, Entry, InputSpec, family_of
from graft.backbones.inheritance import inherit
from graft.backbones.opening import tapped
from graft.backbones.students import STUDENTS, student_cost
from graft.backbones.taps import Trunk
from graft.backbones.weights import build
from graft.compute import Compute
from graft.errors import BackboneError, SettingsError
from graft.learning.loop import rate_share
from graft.pretraining.settings import OWN, PretrainSettings

CLIP = 2.0
WARM_STEPS = 100
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclass(slots=True, eq=False)
class Learner:
    """`student` in training mode, `average` in eval mode, `bridge` from its embedding to the teacher's."""

    entry: Entry
    student: Trunk
    average: Trunk
    bridge: nn.Module
    widths: tuple[int, ...]
    inherited: int
    optimizer: torch.optim.AdamW

    def state(self) -> dict[str, Tensor]:
        """Everything that changes, on the CPU."""
        parts = {f"student.{name}": value for name, value in self.student.network.state_dict().items()}
        parts |= {f"average.{name}": value for name, value in self.average.network.state_dict().items()}
        parts |= {f"bridge.{name}": value for name, value in self.bridge.state_dict().items()}
        for index, weight in enumerate(self._weights()):
            parts |= {f"moment.{index}.{name}": value for name, value in self.optimizer.state[weight].items()}
        return {name: value.detach().cpu().contiguous() for name, value in parts.items()}

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Back to a state that was written. Raises RuntimeError or KeyError if it is another network's."""
        for name, module in (
            ("student.", self.student.network),
            ("average.", self.average.network),
            ("bridge.", self.bridge),
        ):
            own = {key[len(name) :]: value for key, value in state.items() if key.startswith(name)}
            module.load_state_dict(own)
        for index, weight in enumerate(self._weights()):
            begin = f"moment.{index}."
            kept = {key[len(begin) :]: value for key, value in state.items() if key.startswith(begin)}
            if kept:
                self.optimizer.state[weight] = {key: _laid_out(value, weight) for key, value in kept.items()}

    def learn(self, loss: Float[Tensor, ""], *, rate: float, keep: float) -> None:
        """One step at the learning rate `rate`; the average keeps the share `keep` of itself."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights(), CLIP)
        self.optimizer.step()
        with torch.no_grad():
            means = [x for x in self.average.network.state_dict().values() if x.is_floating_point()]
            fresh = [x for x in self.student.network.state_dict().values() if x.is_floating_point()]
            torch._foreach_lerp_(means, fresh, 1 - keep)

    def _weights(self) -> list[nn.Parameter]:
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


def student_entry(settings: PretrainSettings, classes: int, teacher: Entry | None) -> Entry:
    """A row for the student; it sees images normalised as its teacher does. Raises SettingsError if it is unknown."""
    own = settings.student in STUDENTS
    if not own:
        _refuse_unknown(settings.student)
    mean, std = (teacher.input.mean, teacher.input.std) if teacher else HALF
    gmacs, stages = student_cost(settings.student, {"num_classes": 0, "head": 0}, settings.size)
    return Entry(
        name=settings.name,
        library="graft" if own else "timm",
        architecture=settings.student,
        arguments=(("num_classes", classes),),
        family=family_of(settings.student),
        pretraining="distilled" if teacher else "labels",
        source="random weights",
        licence="unknown",
        parameters=None,
        bytes=None,
        gmacs=gmacs,
        input=InputSpec(settings.size, mean, std, "bicubic", 0.875),
        top1=None,
        top5=None,
        published="",
        stages=stages,
    )


def new_learner(
    settings: PretrainSettings,
    entry: Entry,
    *,
    teacher_network: nn.Module | None,
    teacher_width: int | None,
    compute: Compute,
) -> Learner:
    """The student before its first step, begun as its pruned teacher where `--init` and the layouts allow it.

    Raises BackboneError where `--init teacher` was asked for and the layouts differ.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(settings.seed)
        network, copy = build(entry), build(entry)
        inherited = 0
        if teacher_network is not None and settings.init != "random":
            inherited = inherit(network, teacher_network)
            if not inherited and settings.init == "teacher":
                raise BackboneError(
                    f"--init teacher: {settings.student} has not the layout of {settings.teacher}, so nothing can be "
                    "inherited. Use --init auto or random, or --student small with a MobileNetV2 as teacher."
                )
        if not inherited:
            _undecided(network)
        opened = tapped(network.eval(), entry, channels=3, size=settings.size)
        widths = tuple(tap.features for tap in opened.taps)
        same = teacher_width is None or teacher_width == widths[-1]
        bridge = nn.Identity() if same or teacher_width is None else nn.Linear(widths[-1], teacher_width)
    copy.load_state_dict(network.state_dict())
    average = tapped(copy.eval(), entry, channels=3, size=settings.size).trunk.requires_grad_(False)
    student = opened.trunk.train()
    for module in (student, average, bridge):
        module.to(compute.device)
    for trunk in (student, average):
        trunk.to(memory_format=torch.channels_last)
    optimizer = _optimizer([*student.parameters(), *bridge.parameters()], settings, compute)
    return Learner(entry, student, average, bridge, widths, inherited, optimizer)


def _undecided(network: nn.Module) -> None:
    """A new classifier gives all classes alike, so that the first loss is that of guessing, not several times more."""
    classifier = network.get_submodule("classifier") if hasattr(network, "classifier") else None
    if isinstance(classifier, nn.Linear):
        nn.init.zeros_(classifier.weight)
        nn.init.zeros_(classifier.bias)


def rate_at(step: int, total: int, peak: float) -> float:
    """Up in a line over 100 steps (a tenth of a short training), then down to zero along a cosine."""
    return peak * rate_share(step, total, longest_warm=WARM_STEPS)


def headless(entry: Entry) -> Entry:
    """The row of the student as it is published: without its classifier and, if it is one of ours, its head."""
    own: Arguments = (("head", 0),) if entry.library == "graft" else ()
    return replace(entry, arguments=(*own, ("num_classes", 0)))


def _laid_out(value: Tensor, weight: Tensor) -> Tensor:
    """`value` in memory as `weight` is: the fused optimiser walks over both in the order of their memory."""
    if value.shape != weight.shape:
        return value.to(weight.device)
    return torch.empty_like(weight, requires_grad=False).copy_(value)


def _optimizer(
    weights: list[nn.Parameter], settings: PretrainSettings, compute: Compute
) -> torch.optim.AdamW:
    groups = [
        {"params": [w for w in weights if w.ndim > 1], "weight_decay": settings.weight_decay},
        {"params": [w for w in weights if w.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=settings.learning_rate, fused=compute.device != "mps")


def _refuse_unknown(name: str) -> None:
    import difflib

    import timm

    if not timm.is_model(name):
        close = difflib.get_close_matches(name, [*OWN, *timm.list_models()], n=4)
        near = f" The closest names are {', '.join(close)}." if close else ""
        raise SettingsError(
            f"--student {name}: choose {', '.join(OWN)} or an architecture of timm such as mobilenetv3_small_050.{near}"
        )
