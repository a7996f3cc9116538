"""The peak of host memory while a checkpoint is loaded, against the memory of its weights.

    python benchmarks/load_memory.py FOLDER [--dtype bfloat16]

Every weight is touched, so that a lazily mapped file counts in full. The peak is the growth of the process's
largest resident set (VmHWM in /proc, so Linux only) from just before loading; each run needs a process of its
own.
"""

import argparse
import time
from pathlib import Path

import torch

import janus


def peak_resident() -> int:
    """Bytes of the largest resident set that this process has had."""
    with open("/proc/self/status", encoding="ascii") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", help="as stored where the CPU computes it well")
    options = parser.parse_args()
    load = janus.weights.load  # the imports are no part of the figure
    before = peak_resident()
    start = time.perf_counter()
    model = load(options.folder, device="cpu", dtype=options.dtype)
    loaded = time.perf_counter()
    for parameter in model.parameters():
        parameter.detach().view(-1)[:: 4096 // parameter.itemsize].sum(dtype=torch.float32)
    touched = time.perf_counter()
    weights = sum(parameter.nbytes for parameter in model.parameters())
    growth = peak_resident() - before
    print(f"dtype            {str(model.dtype).removeprefix('torch.')}")
    print(f"weights          {weights / 1e9:.3f} GB")
    print(f"peak of loading  {growth / 1e9:.3f} GB, {growth / weights:.3f} of the weights")
    print(f"seconds          {loaded - start:.2f} to load, {touched - loaded:.2f} to touch every page")


if __name__ == "__main__":
    main()
