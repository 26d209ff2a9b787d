"""When each module of a network runs in a forward pass, and what it puts out.

In: a network and a few normalised images. Out: `Calls`. Costs one forward pass. Not covered: which of a module's several
calls put out what.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Calls:
    """When each module first began and last ended in one forward pass, and what it put out for the first image."""

    def __init__(self, network: nn.Module, images: Tensor) -> None:
        self.begin: dict[str, int] = {}
        self.end: dict[str, int] = {}
        self.outputs: dict[str, Any] = {}
        self._clock = 0
        handles = []
        for name, module in network.named_modules():
            handles.append(module.register_forward_pre_hook(self._beginning(name)))
            handles.append(module.register_forward_hook(self._ending(name)))
        try:
            with torch.no_grad():
                network.eval()(images)
        finally:
            for handle in handles:
                handle.remove()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock

    def _beginning(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any) -> None:
            self.begin.setdefault(name, self._tick())

        return hook

    def _ending(self, name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            self.end[name] = self._tick()
            self.outputs[name] = output[:1].clone() if isinstance(output, Tensor) else output

        return hook

    def began(self, name: str) -> int:
        """When the module, or the one around it that is called in its place, first began."""
        while name not in self.begin:
            name = name.rpartition(".")[0]
        return self.begin[name]
