"""What `janus eval` runs: each function measures, prints a table, writes files, returns the exit status."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from janus.evaluation.shapes import check_options, evaluate, held_out_sheet
from janus.files import require_place
from janus.training.worlds.shapes.stream import Split


def shapes(
    load: Callable[[], Any],
    *,
    samples: int = 1000,
    seed: int = 0,
    split: Split = "test",
    color: str | None = None,
    batch_size: int | None = None,
    json_path: Path | None = None,
    grid_path: Path | None = None,
) -> int:
    """Evaluate the pipeline that `load` gives; -> 0. The grid is of the first sixteen held-out captions.

    With a color nothing is held out, and there is no grid. Wrong options, and files that cannot be written,
    are told before anything is loaded: ValueError or OSError.
    """
    check_options(samples=samples, seed=seed, split=split, color=color, batch_size=batch_size)
    if color is not None and grid_path is not None:
        raise ValueError(f"--grid draws what is held out, and --color {color} leaves that out: give one")
    if json_path is not None:
        require_place(json_path, "--json")
    if grid_path is not None:
        require_place(grid_path, "--grid", ".png")
    pipe = load()
    scores = evaluate(pipe, samples=samples, seed=seed, split=split, color=color, batch_size=batch_size)
    print(scores.table())
    if json_path is not None:
        json_path.write_text(json.dumps(scores.to_json(), indent=2) + "\n", encoding="utf-8")
    if grid_path is not None:
        held_out_sheet(pipe, seed=seed, split=split).save(grid_path)
    return 0
