"""Training runs that say nothing, and what they logged."""

import json
from pathlib import Path
from typing import Any

from PIL import Image

from janus.training import train
from janus.training.log import read_log
from janus.training.recipe.recipe import Recipe

OF_THE_CLOCK = {"tokens_per_second", "share_of_peak", "memory"}


def whole_log(folder: Path) -> list[dict[str, Any]]:
    """What a run logged, but for what clock and machine say."""
    return [
        {name: value for name, value in record.items() if name not in OF_THE_CLOCK}
        for record in read_log(folder / "log.jsonl")
    ]


def records(folder: Path) -> list[dict[str, Any]]:
    """What it logged of each step."""
    return [record for record in whole_log(folder) if "loss" in record]


def quietly(recipe: Recipe, folder: Path) -> list[dict[str, Any]]:
    """The records of a run on the CPU."""
    train(recipe, folder, device="cpu", show=lambda line: None)
    return records(folder)


def write_rows(folder: Path, prompts: list[str]) -> Path:
    """JSON lines of drawings, each a picture of one color, no two alike in color or size."""
    rows = []
    for number, prompt in enumerate(prompts):
        name = f"{number}.png"
        Image.new("RGB", (20, 17 + number), (40 * number, 90, 200)).save(folder / name)
        rows.append({"prompt": prompt, "image": name})
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file
