"""The peak of host memory while a checkpoint is loaded, against the memory of its weights.

    python benchmarks/load_memory.py FOLDER [--dtype bfloat16] [--with plain|janus|transformers] [--json]

`plain` is `janus.weights.load`; `janus` is the model that `janus.load` gives, prepared for inference. The
weights are counted as the model holds them, whatever the files do. Every one is touched, so that a lazily
mapped file counts in full. The peak is the growth of the process's largest resident set (VmHWM in /proc, so
Linux only) from just before loading; each run needs a process of its own.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import janus
from janus.inference.prepare import prepare
from janus.models.packed import PackedLinear
from janus.weights.load import inspect
from machine import resident


def plain(folder: Path, dtype: str | None, device: str) -> nn.Module:
    return janus.weights.load(folder, dtype=dtype, device=device)


def prepared(folder: Path, dtype: str | None, device: str) -> nn.Module:
    return prepare(janus.weights.load(folder, dtype=dtype, device=device))


def transformers(folder: Path, dtype: str | None, device: str) -> nn.Module:
    """Its `from_pretrained`; the folder must be in its layout."""
    from transformers import JanusForConditionalGeneration
    from transformers.utils import logging

    logging.disable_progress_bar()
    return JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype or "auto").to(device)


LOADERS: dict[str, Callable[[Path, str | None, str], nn.Module]] = {
    "plain": plain,
    "janus": prepared,
    "transformers": transformers,
}


def held(model: nn.Module) -> list[Tensor]:
    """A model's tensors: quantized weights are buffers. Those that were packed are not among them."""
    return [tensor.detach() for tensor in (*model.parameters(), *model.buffers())]


def bytes_of_weights(model: nn.Module) -> int:
    """What a model's weights take; in another order those that were packed take what they took before."""
    packed = (module for module in model.modules() if isinstance(module, PackedLinear))
    return sum(tensor.nbytes for tensor in held(model)) + sum(layer.weight.nbytes for layer in packed)


def touch(model: nn.Module) -> None:
    """Read a number of every page of the weights; what was packed has just been written."""
    for tensor in held(model):
        tensor.reshape(-1)[:: 4096 // tensor.itemsize].sum(dtype=torch.float32)


def measure(folder: Path, dtype: str | None, name: str, device: str = "cpu") -> dict[str, Any]:
    inspect(folder)  # what is imported for it is no part of the figure
    if name == "transformers":
        import transformers  # noqa: F401 - nor is this
    before = resident("VmHWM")
    start = time.perf_counter()
    model = LOADERS[name](folder, dtype, device)
    loaded = time.perf_counter()
    touch(model)
    touched = time.perf_counter()
    peak = resident("VmHWM") - before
    return {
        "weights": bytes_of_weights(model),  # which unpacks them, one by one
        "peak": peak,
        "load": loaded - start,
        "touch": touched - loaded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument(
        "--dtype", help="as stored, where the device computes it well; with transformers always as stored"
    )
    parser.add_argument("--with", dest="loader", choices=LOADERS, default="plain", help="default: plain")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="print one line of JSON")
    options = parser.parse_args()
    found = measure(options.folder, options.dtype, options.loader, options.device)
    if options.json:
        print(json.dumps(found))
        return
    peak, weights = found["peak"], found["weights"]
    print(f"weights          {weights / 1e9:.3f} GB")
    print(f"peak of loading  {peak / 1e9:.3f} GB, {peak / weights:.3f} of the weights")
    print(f"seconds          {found['load']:.2f} to load, {found['touch']:.2f} to touch every page")


if __name__ == "__main__":
    main()
