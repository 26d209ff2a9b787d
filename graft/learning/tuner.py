"""A tail and its head while they learn: weights, their running average, and the optimiser.

In: a `Cut`, a ridge head, settings. Out: logits, steps, and the whole state as tensors. The head reads features of
length one, as the packed model does: `logits = unit(tail(x)) @ weight + bias`. It starts as the ridge head, so that the
first steps do not tear apart what the backbone knows (LP-FT: Kumar et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from graft.compute import Compute
from graft.learning.cutting import Cut
from graft.learning.loop import average, kept_share, rate_share
from graft.learning.ridge import RidgeHead

HEAD = ("head.weight", "head.bias")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates and the rest of what AdamW and the average want."""

    trunk: float
    head: float
    stage_decay: float
    weight_decay: float
    averaging: float


class Tuner:
    """`tensors` are the learned weights (and statistics) by name, `averaged` their running mean."""

    def __init__(
        self, cutting: Cut, head: RidgeHead, rates: Rates, compute: Compute, *, statistics: bool
    ) -> None:
        self.compute = compute
        self.rates = rates
        self.tail = cutting.tail.to(compute.device).to(memory_format=torch.channels_last).eval()
        self.tail.network.load_state_dict(cutting.initial)
        self.norms = cutting.batch_norms() if statistics else []
        own = dict(self.tail.network.named_parameters())
        self.tensors: dict[str, Tensor] = {name: own[name] for name in cutting.trained}
        self.tensors |= {
            HEAD[0]: nn.Parameter(torch.from_numpy(head.weight.copy()).to(compute.device)),
            HEAD[1]: nn.Parameter(torch.from_numpy(head.bias.copy()).to(compute.device)),
        }
        self.parameters = list(self.tensors.values())
        self.optimizer = torch.optim.AdamW(_groups(self.tensors, cutting.trained, rates))
        ids = {id(norm) for norm in cutting.batch_norms()}
        self.tensors |= {
            f"{name}.{buffer}": getattr(module, buffer)
            for name, module in self.tail.network.named_modules()
            if id(module) in ids
            for buffer in ("running_mean", "running_var")
            if getattr(module, buffer) is not None
        }
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}
        self.step = 0
        self.scale = 1.0

    def logits(self, maps: Tensor) -> Float[Tensor, "n k"]:
        """Of the learning weights, with gradients."""
        for norm in self.norms:
            norm.train()
        with torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16):
            features = self.tail(maps)
        return _headed(features, self.tensors)

    @torch.no_grad()
    def answers(self, maps: Tensor) -> Float[Tensor, "n k"]:
        """Of the averaged weights."""
        for norm in self.norms:
            norm.eval()
        state = {f"network.{name}": value for name, value in self.averaged.items() if name not in HEAD}
        with torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16):
            features = functional_call(self.tail, state, (maps,))
        return _headed(features, self.averaged)

    @torch.no_grad()
    def features(self, maps: Tensor) -> Float[Tensor, "n d"]:
        """At the tap, in float32."""
        with torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16):
            return self.tail(maps).float()

    @torch.no_grad()
    def begin_with(self, head: RidgeHead) -> None:
        """Start from this head instead."""
        for name, values in zip(HEAD, (head.weight, head.bias), strict=True):
            self.tensors[name].copy_(torch.from_numpy(values))
            self.averaged[name].copy_(self.tensors[name])

    def learn(self, loss: Tensor, *, total: int) -> None:
        """One step of the optimiser and of the average."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * self.scale * rate_share(self.step, total)
        self.optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.step += 1
        keep = kept_share(self.step, self.rates.averaging)
        average(self.averaged.values(), self.tensors.values(), keep=keep)

    @property
    def rate(self) -> float:
        """The learning rate of the topmost stage at the last step."""
        return float(self.optimizer.param_groups[0]["lr"])

    def state(self) -> dict[str, Tensor]:
        """Copies of everything that changes, `step` and `scale` apart."""
        found = {f"now.{name}": tensor for name, tensor in self.tensors.items()}
        found |= {f"mean.{name}": tensor for name, tensor in self.averaged.items()}
        for number, weight in enumerate(self.parameters):
            known = self.optimizer.state.get(weight, {})
            found |= {f"{moment}.{number}": known[moment] for moment in MOMENTS if moment in known}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor], *, step: int, scale: float) -> None:
        """Go back to a state."""
        self.step, self.scale = step, scale
        for name, tensor in self.tensors.items():
            tensor.copy_(state[f"now.{name}"])
            self.averaged[name].copy_(state[f"mean.{name}"])
        self.optimizer.state.clear()
        for number, weight in enumerate(self.parameters):
            if f"step.{number}" in state:
                moments = {moment: state[f"{moment}.{number}"].clone() for moment in MOMENTS}
                self.optimizer.state[weight] = {
                    name: value if name == "step" else value.to(weight.device)
                    for name, value in moments.items()
                }

    @torch.no_grad()
    def reestimate(self, batches: Iterable[Tensor], norms: Iterable[nn.Module]) -> None:
        """Take the statistics of the batch normalisations from these images (precise statistics), then keep them."""
        listed = [norm for norm in norms if isinstance(norm, nn.modules.batchnorm._BatchNorm)]
        before = [norm.momentum for norm in listed]
        for norm in listed:
            norm.reset_running_stats()
            norm.momentum = None
            norm.train()
        for maps in batches:
            with torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16):
                self.tail(maps)
        for norm, momentum in zip(listed, before, strict=True):
            norm.momentum = momentum
            norm.eval()
        self.averaged = {name: tensor.detach().clone() for name, tensor in self.tensors.items()}


def _headed(features: Tensor, tensors: Mapping[str, Tensor]) -> Float[Tensor, "n k"]:
    rows = nn.functional.normalize(features.float(), dim=1)
    return rows @ tensors[HEAD[0]] + tensors[HEAD[1]]


def _groups(
    tensors: Mapping[str, Tensor], depths: Mapping[str, int], rates: Rates
) -> list[dict[str, object]]:
    """The topmost stage first, the head last; biases and normalisation do not decay."""
    groups: list[dict[str, object]] = []
    for depth in sorted(set(depths.values())):
        own = [tensors[name] for name, found in depths.items() if found == depth]
        rate = rates.trunk * rates.stage_decay**depth
        for wide, decay in ((True, rates.weight_decay), (False, 0.0)):
            weights = [weight for weight in own if (weight.ndim > 1) == wide]
            if weights:
                groups.append({"params": weights, "weight_decay": decay, "full_rate": rate, "lr": rate})
    head = [tensors[name] for name in HEAD]
    groups.append({"params": head, "weight_decay": 0.0, "full_rate": rates.head, "lr": rates.head})
    return groups
