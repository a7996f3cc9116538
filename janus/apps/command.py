"""What the commands share: their options, and how a model is loaded."""

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from janus.files import require_picture


@dataclass(frozen=True)
class Command:
    """One word of the command line: what it runs, its options, and what its help says and shows."""

    run: Callable[[argparse.Namespace], int]
    options: Callable[[argparse.ArgumentParser], None]
    summary: str
    example: str


def add_checkpoint_options(command: argparse.ArgumentParser) -> None:
    command.add_argument("-m", "--model", help="hub id or folder of a checkpoint (shapes, which is here)")
    command.add_argument("--revision", help="branch, tag or commit on the hub")


def add_quantize_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--quantize", choices=("int8", "int4"), help="make the language model's weights integers"
    )


def add_model_options(command: argparse.ArgumentParser, *, speaks: bool = True) -> None:
    """Those of loading a model; without those of its language model where the command does not use it."""
    add_checkpoint_options(command)
    command.add_argument("--device", help="cpu, cuda, cuda:1, mps (the best there is)")
    command.add_argument(
        "--dtype", help="bfloat16, float16 or float32 (the weights' own, where computed well)"
    )
    if speaks:
        add_quantize_option(command)
        command.add_argument(
            "--compile", action="store_true", help="give the language model's steps to torch.compile"
        )
    command.set_defaults(quantize=None, compile=False)
    command.add_argument(
        "--corrected-pictures",
        action="store_true",
        help="turn pictures upright, scale 16 bits, lay transparency on the background: not as the original",
    )


def add_vae_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--vae",
        metavar="NAME",
        help="hub id or folder of a JanusFlow's autoencoder (its own, else stabilityai/sdxl-vae)",
    )


def add_parallel_option(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tensor-parallel",
        action="store_true",
        help="split a Janus' language model over processes: torchrun --nproc-per-node 2 -m janus ...",
    )


def is_parallel(options: argparse.Namespace) -> bool:
    """Whether this is one of several processes that do the command's work together."""
    if getattr(options, "trains", False):
        return int(os.environ.get("WORLD_SIZE", "1")) > 1  # as `ranks.several`, without torch
    return getattr(options, "tensor_parallel", False)


def shows(options: argparse.Namespace) -> bool:
    """Whether this process shows and writes what comes out: of several that compute the same, the first."""
    return not is_parallel(options) or os.environ.get("RANK", "0") == "0"


def load_pipeline(options: argparse.Namespace, *pictures: str | Path) -> Any:
    """The pipeline; a picture that is not there is told before the model is loaded."""
    import janus

    for picture in pictures:
        require_picture(picture)
    return janus.load(
        options.model,
        device=options.device,
        dtype=options.dtype,
        quantize=options.quantize,
        vae=getattr(options, "vae", None),  # of commands that draw
        revision=options.revision,
        corrected_pictures=options.corrected_pictures,
        compile=options.compile,
        tensor_parallel=is_parallel(options),
    )
