"""A tail and its head while they learn: weights, their running average, and the optimiser.

In: a `Cut`, the head to start from, settings. Out: logits, steps, and the whole state as tensors. The head reads what
it will read in the packed model: `logits = unit(tail(x)) @ weight + bias`, with a hidden layer before the weight where
there is one. As a ridge head it starts so that the first steps do not tear apart what the backbone knows (LP-FT: Kumar
et al. 2022, arXiv 2202.10054).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call

from graft.compute import Compute
from graft.learning.cutting import Cut
from graft.learning.depthwise import FasterDepthwise
from graft.learning.heads import Head
from graft.learning.loop import average, kept_share, rate_share
from graft.learning.ridge import RidgeHead

HEAD = ("graft_head.weight", "graft_head.bias")
HIDDEN = ("graft_hidden.weight", "graft_hidden.bias")
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True, slots=True)
class Rates:
    """Learning rates and the rest of what AdamW and the average want.

    `first_layer`: how many times the head's rate is for the layer that reads the features. Those of length one are so
    small that a head which starts from nothing needs the root of their number here, to learn as if they were of size one.
    `head_decay`: the weight decay of the head; a ridge head has had its penalty.
    """

    trunk: float
    head: float
    stage_decay: float
    weight_decay: float
    averaging: float
    first_layer: float = 1.0
    head_decay: float = 0.0


class Tuner:
    """`tensors` are the learned weights (and statistics) by name, `averaged` their running mean."""

    def __init__(
        self,
        cutting: Cut,
        head: Head | RidgeHead,
        rates: Rates,
        compute: Compute,
        *,
        statistics: bool,
        dropout: float = 0.0,
    ) -> None:
        self.compute = compute
        self.rates = rates
        self.dropout = dropout
        start = head if isinstance(head, Head) else Head(head.weight, head.bias)
        self.unit_length = start.unit_length
        self.tail = cutting.tail.to(compute.device).to(memory_format=torch.channels_last).eval()
        self.tail.network.load_state_dict(cutting.initial)
        self.norms = cutting.batch_norms() if statistics else []
        own = dict(self.tail.network.named_parameters())
        self.tensors: dict[str, Tensor] = {name: own[name] for name in cutting.trained}
        self.tensors |= {
            name: nn.Parameter(torch.from_numpy(values.copy()).to(compute.device))
            for name, values in _arrays(start).items()
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

    def logits(self, maps: Tensor, generator: torch.Generator | None = None) -> Float[Tensor, "n k"]:
        """Of the learning weights, with gradients; `generator` draws which hidden units are forgotten."""
        for norm in self.norms:
            norm.train()
        with (
            FasterDepthwise(),
            torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16),
        ):
            features = self.tail(maps)
        rows = self._read(features, self.tensors)
        if self.dropout and generator is not None and HIDDEN[0] in self.tensors:
            kept = torch.rand(rows.shape, generator=generator) >= self.dropout
            rows = rows * (kept.to(rows.device) / (1 - self.dropout))
        return rows @ self.tensors[HEAD[0]] + self.tensors[HEAD[1]]

    def answers(self, maps: Tensor) -> Float[Tensor, "n k"]:
        """Of the averaged weights."""
        features = self.embeddings(maps)
        return self._read(features, self.averaged) @ self.averaged[HEAD[0]] + self.averaged[HEAD[1]]

    @torch.no_grad()
    def embeddings(self, maps: Tensor) -> Float[Tensor, "n d"]:
        """At the tap, of the averaged weights."""
        for norm in self.norms:
            norm.eval()
        own = (*HEAD, *HIDDEN)
        state = {f"network.{name}": value for name, value in self.averaged.items() if name not in own}
        with torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16):
            return functional_call(self.tail, state, (maps,)).float()

    def _read(self, features: Tensor, tensors: Mapping[str, Tensor]) -> Float[Tensor, "n w"]:
        """What the last layer is given: the features, of length one, behind the hidden layer, as the head has it."""
        rows = nn.functional.normalize(features.float(), dim=1) if self.unit_length else features.float()
        if HIDDEN[0] in tensors:
            rows = torch.relu(rows @ tensors[HIDDEN[0]] + tensors[HIDDEN[1]])
        return rows

    @torch.no_grad()
    def features(self, maps: Tensor) -> Float[Tensor, "n d"]:
        """At the tap, in float32."""
        with torch.autocast(self.compute.device, torch.bfloat16, enabled=self.compute.bf16):
            return self.tail(maps).float()

    @torch.no_grad()
    def begin_with(self, head: Head) -> None:
        """Start from this head instead."""
        for name, values in _arrays(head).items():
            self.tensors[name].copy_(torch.from_numpy(values))
            self.averaged[name].copy_(self.tensors[name])

    def learn(self, loss: Tensor, *, total: int) -> None:
        """One step of the optimiser and of the average, of `total` in all."""
        self.learn_at(loss, share=rate_share(self.step, total))

    def learn_at(self, loss: Tensor, *, share: float) -> None:
        """One step at this share of the full rates."""
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_rate"] * self.scale * share
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


def head_of(tensors: Mapping[str, Tensor], *, unit_length: bool) -> Head:
    """The head among these tensors, on the CPU."""
    arrays = [tensors[name].detach().cpu().numpy() if name in tensors else None for name in (*HEAD, *HIDDEN)]
    weight, bias, hidden_weight, hidden_bias = arrays
    assert weight is not None and bias is not None
    return Head(weight, bias, hidden_weight, hidden_bias, unit_length)


def _arrays(head: Head) -> dict[str, np.ndarray]:
    """The head's arrays by the names of their tensors."""
    found = dict(zip(HEAD, (head.weight, head.bias), strict=True))
    return found | (dict(zip(HIDDEN, head.hidden, strict=True)) if head.hidden is not None else {})


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
    layers = [names for names in (HIDDEN, HEAD) if names[0] in tensors]
    for number, (weight, bias) in enumerate(layers):
        rate = rates.head * (rates.first_layer if number == 0 else 1.0)
        # A layer that learns faster decays faster, unless it is told less of it.
        decay = rates.head_decay * rates.head / rate if rate else 0.0
        groups.append({"params": [tensors[weight]], "weight_decay": decay, "full_rate": rate, "lr": rate})
        groups.append(
            {"params": [tensors[bias]], "weight_decay": 0.0, "full_rate": rates.head, "lr": rates.head}
        )
    return groups
