"""Loading: from a folder on disk to a model that is ready to compute, every weight touched.

The folder is in the layout of transformers, which both read; its files are in the page cache, having been
read before. The peak memory is that of a process of its own that loads once: over `bytes`, which are the
weights', it says how many times their memory loading takes. Ours is the model as `janus.load` gives it.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from torch import nn

import compare
import load_memory
import models
from cases import LOAD, ModelCase
from janus.models.janus import Janus
from janus.weights.load import empty_model
from janus.weights.save import named_tensors
from measure import Cost
from timer import Call
from variants import Prepare

CASES = LOAD
BUDGET, CAPTURE = models.BUDGET, False


def cost(case: ModelCase) -> Cost:
    """Every weight is read; there is nothing to compute."""
    numbers = sum(parameter.numel() for parameter in empty_model(case.model).parameters())
    return Cost(numbers * case.dtype.itemsize, 1, case.dtype, uploads=True)


def inputs(case: ModelCase, device: torch.device) -> tuple[Path, ...]:
    return (models.checkpoint(case),)


def setup(case: ModelCase, device: torch.device) -> dict[str, Prepare]:
    dtype = str(case.dtype).removeprefix("torch.")

    def loading(name: str) -> Prepare:
        def prepare(folder: Path) -> Call:
            def call() -> nn.Module:
                model = load_memory.LOADERS[name](folder, dtype, str(device))
                load_memory.touch(model)
                return model

            return call

        return prepare

    return {name: loading(name) for name in ("transformers", "janus")}


def problem(
    case: ModelCase, given: tuple[Path], name: str, result: nn.Module, expected: nn.Module
) -> str | None:
    """Every weight is the same, under transformers' names."""
    ours, theirs = weights(result), weights(expected)
    if ours.keys() != theirs.keys():
        return f"other names: {sorted(ours.keys() ^ theirs.keys())[:10]}"
    for each, tensor in ours.items():
        if wrong := compare.problem(tensor, theirs[each], case.dtype, 0.0):
            return f"{each}: {wrong}"
    return None


def weights(model: nn.Module) -> dict[str, Any]:
    return named_tensors(model, "transformers") if isinstance(model, Janus) else model.state_dict()


def peak(case: ModelCase, given: tuple[Path], name: str, device: torch.device) -> int:
    """Of the host's memory, in a process of its own."""
    script = Path(load_memory.__file__)
    dtype = str(case.dtype).removeprefix("torch.")
    options = ["--with", name, "--dtype", dtype, "--device", str(device), "--json"]
    done = subprocess.run(
        [sys.executable, str(script), str(given[0]), *options], capture_output=True, text=True
    )
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"{script.name} ended with status {done.returncode}"]
        raise RuntimeError(said[-1])
    return json.loads(done.stdout)["peak"]
