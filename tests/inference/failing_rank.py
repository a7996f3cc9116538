"""A command of two ranks of which the last fails, for test_tensor_parallel.py: torchrun starts both.

`failing_rank.py CHECKPOINT KIND`: it runs out of memory with KIND "memory", and raises an error that nobody
foresaw with "bug".
"""

import sys

import torch
from torch import distributed

import janus
from janus.apps import cli

FAILURES = {"memory": RuntimeError("out of memory on this rank"), "bug": AssertionError("a bug on this rank")}


def main(checkpoint: str, kind: str) -> int:
    torch.set_num_threads(1)
    ask = janus.Pipeline.ask

    def fail(*arguments: object, **options: object) -> object:
        if distributed.get_rank() == distributed.get_world_size() - 1:
            raise FAILURES[kind]
        return ask(*arguments, **options)  # type: ignore[arg-type]

    janus.Pipeline.ask = fail  # type: ignore[method-assign, assignment]
    return cli.main(["ask", "Hi", "--tensor-parallel", "-m", checkpoint, "--device", "cpu"])


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
