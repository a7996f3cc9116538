"""The peak of host memory while a checkpoint is loaded, against the memory of its weights.

    python benchmarks/load_memory.py FOLDER [--dtype bfloat16] [--with plain|janus|transformers] [--json]

`plain` is `janus.weights.load`; `janus` is the model that `janus.load` gives, prepared for inference. Every
weight is touched, so that a lazily mapped file counts in full. The peak is the growth of the process's
largest resident set (VmHWM in /proc, so Linux only) from just before loading; each run needs a process of
its own.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

import janus
from janus.inference.prepare import prepare
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


def touch(model: nn.Module) -> None:
    """Read a number of every page of the weights; what was packed has just been written."""
    for parameter in model.parameters():
        parameter.detach().reshape(-1)[:: 4096 // parameter.itemsize].sum(dtype=torch.float32)


def measure(folder: Path, dtype: str | None, name: str, device: str = "cpu") -> dict[str, Any]:
    checkpoint = inspect(folder)
    kept = getattr(torch, dtype) if dtype else checkpoint.dtype
    weights = sum(parameter.numel() for parameter in checkpoint.model.parameters()) * kept.itemsize
    if name == "transformers":
        import transformers  # noqa: F401 - the imports are no part of the figure
    before = resident("VmHWM")
    start = time.perf_counter()
    model = LOADERS[name](folder, dtype, device)
    loaded = time.perf_counter()
    touch(model)
    touched = time.perf_counter()
    return {
        "weights": weights,
        "peak": resident("VmHWM") - before,
        "load": loaded - start,
        "touch": touched - loaded,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", help="as stored if left out")
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
