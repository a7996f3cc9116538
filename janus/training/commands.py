"""What the command line runs of training: `janus train`, `janus plot`, `janus data`, `janus pretokenize`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from janus.devices import resolve_device
from janus.files import require_folder
from janus.inference.ranks import meet, own_device, several


def train(
    recipe: str,
    overrides: Sequence[str] = (),
    *,
    out: Path | None = None,
    dry: bool = False,
    device: str | None = None,
) -> int:
    """Train by a recipe into a folder, `runs/` and the recipe's name if left out; -> the exit status.

    With `dry` nothing is trained or written. Raises FileNotFoundError, or ValueError in one line, for
    whatever stops a run.
    """
    from janus.training import loop
    from janus.training.recipe.file import read_recipe

    read = read_recipe(recipe, overrides)
    folder = Path("runs", Path(recipe).stem) if out is None else out
    if not dry:
        require_folder(folder, "give a folder with --out")
    if several():  # the group is the whole command's: whoever fails must not leave the others waiting
        meet(device)
    try:
        if dry:
            from janus.training.costs.dry_run import dry_run

            dry_run(read, device=device)
            return 0
        loop.train(read, folder, device=device)
    except (FloatingPointError, ImportError) as error:
        raise ValueError(str(error)) from error
    print(folder)
    return 0


def plot(runs: Sequence[Path], output: Path) -> int:
    """Draw the curves of runs into a PNG; -> the exit status. Raises as `janus.training.plot.plot`."""
    from janus.training.plot import plot as draw

    print(draw(runs, output))
    return 0


def check(
    file: Path,
    *,
    model: str | None = None,
    recipe: str | None = None,
    limit: int | None = None,
    skip_bad: bool = False,
) -> int:
    """Tell all that is wrong with a file of training data; -> the exit status, 1 where anything is."""
    from janus.training.prepare import Purpose, check_file

    return check_file(file, Purpose.of(model, recipe), limit=limit, skip_bad=skip_bad)


def pretokenize(
    source: str,
    folder: Path,
    *,
    model: str | None = None,
    recipe: str | None = None,
    device: str | None = None,
    shard_rows: int = 1000,
    batch_size: int = 16,
) -> int:
    """Turn the pictures of drawings into codes in a folder; -> the exit status.

    Of several processes that `torchrun` started each does its share. What is there already stays.
    """
    from janus.training.prepare import Purpose, tokenize_drawings

    own = own_device(device) if several() and resolve_device(device).type == "cuda" else device
    tokenize_drawings(
        source,
        folder,
        Purpose.of(model, recipe),
        device=resolve_device(own),
        shard_rows=shard_rows,
        batch_size=batch_size,
        rank=int(os.environ.get("RANK", "0")),
        ranks=int(os.environ.get("WORLD_SIZE", "1")),
    )
    print(folder)
    return 0
