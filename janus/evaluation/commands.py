"""What `janus eval` runs: each function measures, prints a table, writes files, returns the exit status."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus.evaluation.shapes import evaluate, held_out_sheet
from janus.training.worlds.shapes.stream import Split


def shapes(
    load: Callable[[], Any],
    *,
    samples: int = 1000,
    seed: int = 0,
    split: Split = "test",
    batch_size: int | None = None,
    json_path: Path | None = None,
    grid_path: Path | None = None,
) -> int:
    """Evaluate the pipeline that `load` gives; -> 0. The grid is of the first sixteen held-out captions.

    Files that cannot be written are told before anything is loaded: ValueError or OSError.
    """
    if json_path is not None:
        _prepare(json_path, "--json")
    if grid_path is not None:
        _prepare(grid_path, "--grid", ending=".png")
    pipe = load()
    scores = evaluate(pipe, samples=samples, seed=seed, split=split, batch_size=batch_size)
    print(scores.table())
    if json_path is not None:
        json_path.write_text(json.dumps(scores.to_json(), indent=2) + "\n", encoding="utf-8")
    if grid_path is not None:
        held_out_sheet(pipe, seed=seed, split=split).save(grid_path)
    return 0


def _prepare(path: Path, option: str, ending: str = "") -> None:
    """Make the folder that a file will be written to."""
    if path.is_dir() or not path.name.lower().endswith(ending):
        wanted = f"a file that ends in {ending}" if ending else "a file"
        raise ValueError(f"{path} must be {wanted}: name another with {option}")
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise PermissionError(f"{path} cannot be written: name another with {option}")
