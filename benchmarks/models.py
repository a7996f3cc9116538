"""Whole models with random weights. All implementations of a case share them, so that one memory holds all.

Only one size, dtype and device is kept at a time, with what was made of it; the next one takes its place.
"""

from __future__ import annotations

import atexit
import copy
import gc
import importlib
import tempfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import compare
from cases import Case, ModelCase
from janus.config import LanguageConfig
from janus.inference.cache import bytes_per_position
from janus.inference.prepare import prepare
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from make_checkpoint import random_weights, with_files
from measure import Cost
from timer import Budget, Call
from variants import Prepare

Model = Janus | JanusFlow

BUDGET = Budget(20.0, 5, 100)  # a call takes some tenths of a second to some seconds
PEERS = {
    "transformers": "peers.transformers_janus",
    "original": "peers.original",
    "original-flow": "peers.original_flow",
}
STEPPING = ("picture_step", "picture", "text_step")

# What a weight of a linear layer takes where it is kept in fewer bits: a scale for each output channel is
# nothing beside it; 4 bits come with two bfloat16 numbers for each group of 64.
QUANTIZED = {"janus-int8": 1.0, "janus-int4": 0.5 + 2 * 2 / 64}

cache: Path | None = None  # for checkpoints; `run.py --cache` sets it

_kept: dict[Any, Any] = {}


def shared(case: ModelCase, device: torch.device) -> Model:
    """The model of a case, as it came from its class: others are made of it, and it is never changed."""
    key = case.model, case.dtype, str(device)
    if key not in _kept:
        forget()
        _kept[key] = random_weights(case.model, 0, case.dtype, device)
    return _kept[key]


def forget() -> None:
    """Free the model that is kept, and all that was made of it."""
    _kept.clear()
    gc.collect()


def once(name: str, model: Model, make: Callable[[Model], Any]) -> Any:
    """What `make` makes of a model, kept as long as the model itself if that is the shared one."""
    if not any(model is kept for kept in _kept.values()):
        return make(model)
    if name not in _kept:
        _kept[name] = make(model)
    return _kept[name]


def twin(model: Model) -> Model:
    """Other modules around the same weights: what replaces modules in it leaves the model as it is."""
    return copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()})


def ready(name: str, task: str) -> Callable[[Model], Model]:
    """How one of our implementations is made of the shared model: see `setup`."""

    def make(model: Model) -> Model:
        if task == "train_step":
            return model  # what is prepared for inference cannot be trained
        if name in QUANTIZED:
            from janus.models.quantized import quantize

            quantize(model, name.removeprefix("janus-"))
        return prepare(model, compile=name == "janus-compiled")

    key = f"{name} {task}" if task == "train_step" else name
    return lambda model: once(key, model, lambda base: make(twin(base)))


def setup(case: ModelCase, ours: Prepare, peers: Sequence[str], **options: Any) -> dict[str, Prepare]:
    """The peers, the first of which the others are compared with, and our implementations.

    `ours` takes a model and the other inputs, and is what `janus` is, as `janus.load` gives the model.
    `janus-int8` and `janus-int4` keep the weights of linear layers in 8 and 4 bits; in `janus-compiled` steps
    of the language model go through torch.compile. What a peer does is the function of its module that is
    called as the case's task; `options` are its own. They are imported, and found missing, as late as that.
    """

    def own(name: str) -> Prepare:
        make = ready(name, case.task)
        return lambda model, *rest: ours(make(model), *rest)

    def peer(name: str) -> Prepare:
        def prepare(model: Model, *rest: Any) -> Call:
            module = importlib.import_module(PEERS[name])
            theirs = once(name, model, module.build)
            return getattr(module, case.task)(theirs, *rest, **options)

        return prepare

    names = ["janus"]
    if case.task in (*STEPPING, "prefill") and quantizes(case):
        names += QUANTIZED
    if case.task in STEPPING:
        names.append("janus-compiled")
    return {name: peer(name) for name in peers} | {name: own(name) for name in names}


def quantizes(case: ModelCase) -> bool:
    return find_spec("janus.models.quantized") is not None and case.dtype is torch.bfloat16


def checkpoint(case: ModelCase) -> Path:
    """A folder with the case's model in the layout of transformers; written if it is not there.

    In `cache` if that is set; else in a folder that goes when the process does.
    """
    global cache
    if cache is None:
        temporary = tempfile.TemporaryDirectory(prefix="janus-benchmarks-")
        atexit.register(temporary.cleanup)
        cache = Path(temporary.name)
    folder = cache / case.name
    if not (folder / "config.json").exists():
        forget()  # its memory serves to write
        model = with_files(random_weights(case.model, 0, case.dtype))
        model.save_pretrained(folder, layout="transformers")
    return folder


def past(case: ModelCase, device: torch.device, rows: int) -> tuple[Tensor, Tensor]:
    """Keys and values of all positions but the last, (layers, rows, G, K, d) each."""
    language = case.model.language
    shape = 2, language.layers, rows, language.kv_heads, case.keys - 1, language.head_width
    keys, values = torch.randn(shape, device=device, dtype=case.dtype)
    return keys, values


# --- what nothing can do without ---


def linear_weights(language: LanguageConfig) -> int:
    """Numbers in the linear layers of the language model's blocks."""
    attention = language.width * language.head_width * (2 * language.heads + 2 * language.kv_heads)
    return language.layers * (attention + 3 * language.width * language.mlp_width)


def language_cost(case: ModelCase, rows: int, positions: int, outside: int, name: str = "janus") -> Cost:
    """A call of the language model whose last positions see `case.keys`, each weight and key read once.

    `outside` are the weights of linear layers around it, for one position of each row.
    """
    language = case.model.language
    inside = linear_weights(language)
    size = QUANTIZED.get(name, case.dtype.itemsize)
    keys = case.keys if positions == 1 else (case.keys + 1) / 2  # each position sees those before it
    attended = 4 * rows * positions * keys * language.layers * language.heads * language.head_width
    stored = rows * case.keys * bytes_per_position(language, case.dtype)
    return Cost(
        bytes=round((inside + outside) * size) + stored,
        flop=round(2 * rows * (positions * inside + outside) + attended),
        arithmetic=case.dtype,
    )


# --- what must agree ---

# The decoder of pictures, made small, is off by up to 3.2e-2 of the largest magnitude in bfloat16, ours and
# transformers' alike, so that they differ by up to 5e-2; another code that is fed moves logits by 9e-1.
WHOLE = {torch.bfloat16: 0.1}
# The norm of the difference over that of what is expected. Random weights are the hardest to keep in few
# bits: after 24 layers 4 of them moved logits by half of the largest. Unrelated ones differ by 1.4.
FEWER_BITS = {"janus-int8": 0.1, "janus-int4": 0.8}


def problem(case: Case, name: str, result: Any, expected: Any) -> str | None:
    """How floats that come out of a whole model differ by more than they may, or None."""
    if name not in FEWER_BITS:
        return compare.problem(result, expected, case.dtype, WHOLE.get(case.dtype))
    for ours, theirs in zip(compare.tensors(result), compare.tensors(expected), strict=True):
        if ours.shape != theirs.shape:
            return f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
        error = ((ours.float() - theirs.float()).norm() / theirs.float().norm()).item()
        if not error <= FEWER_BITS[name]:
            return f"off by {error:.1e} of the norm, {FEWER_BITS[name]:.0e} allowed"
    return None
