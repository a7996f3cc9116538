"""The moving average of the parameters that learn, in float32 beside them."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from janus.training.parts import trained


class EMA:
    """Averages of what learns in `model`: after each step average = decay * average + (1 - decay) * weight.

    They begin at the weights. Of a sharded model each process averages its own shards. The parameters named
    in `without` have none, and stay as they are where averages are shown.
    """

    def __init__(self, model: nn.Module, decay: float, *, without: Collection[str] = ()) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"the decay of a moving average must be at least 0 and below 1, not {decay!r}")
        self.decay = decay
        self.weights: Mapping[str, nn.Parameter] = {
            name: weight for name, weight in trained(model).items() if name not in without
        }
        self.averages: dict[str, Tensor] = {
            name: weight.detach().float().clone() for name, weight in self.weights.items()
        }

    @torch.no_grad()
    def update(self) -> None:
        """Take in the weights as they are after a step."""
        for name, weight in self.weights.items():
            self.averages[name].lerp_(weight.detach().float(), 1 - self.decay)

    @contextmanager
    def swapped(self) -> Iterator[None]:
        """Within it the model computes with the averages; afterwards its weights are, bit by bit, as before.

        Training inside would be lost, so no parameter may be changed there.
        """
        kept = {name: weight.detach().clone() for name, weight in self.weights.items()}
        try:
            self._write(self.averages)
            yield
        finally:
            self._write(kept)

    @torch.no_grad()
    def _write(self, values: Mapping[str, Tensor]) -> None:
        """In place: an optimizer, a compiled graph or a process group may hold the very tensors."""
        for name, weight in self.weights.items():
            weight.copy_(values[name])

    def state_dict(self) -> dict[str, Any]:
        """The averages themselves, by the names of their parameters; they are no copies."""
        return dict(self.averages)

    @torch.no_grad()
    def load_state_dict(self, averages: Mapping[str, Tensor]) -> None:
        """Go on from what `state_dict` gave. Raises ValueError unless it is of the same parameters."""
        differing = sorted(set(averages) ^ set(self.averages))
        if differing:
            raise ValueError(
                f"the averages differ from what learns in {len(differing)} names, such as {differing[0]}: "
                "go on with the recipe they were saved under"
            )
        for name, average in self.averages.items():
            if average.shape != averages[name].shape:
                raise ValueError(
                    f"the average of {name} is {tuple(averages[name].shape)}, and the parameter "
                    f"{tuple(average.shape)}: go on with the model it was saved with"
                )
            average.copy_(averages[name])
