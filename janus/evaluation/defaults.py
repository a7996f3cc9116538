"""The guidance and temperature that a checkpoint is best drawn with, chosen and written down.

They belong to the checkpoint: guidance that helps a well-trained model makes a poor one draw too much.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from janus.checks import require_guidance, require_whole
from janus.evaluation.intervals import Tally
from janus.evaluation.shapes import draw, picture_sides
from janus.files import write_whole
from janus.inference.sampling import Sampling
from janus.progress import Progress, Report
from janus.training.worlds import shapes
from janus.weights.processor_config import read_object

FILE = "generation_config.json"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and how many drawings each pair of guidance and temperature had right.

    The temperature is None where it was none to choose.
    """

    guidance: float
    temperature: float | None
    tallies: Mapping[tuple[float, float | None], Tally]


def choose_defaults(
    pipe: Any,
    *,
    guidances: Sequence[float],
    temperatures: Sequence[float] | None = None,
    prompts: int,
    seed: int,
    batch_size: int | None = None,
    progress: bool | Report | None = None,
) -> Choice:
    """The pair that draws most prompts of a validation list right.

    Without `temperatures`, which are of codes, it is a guidance that is chosen. Of equal ones that of the
    lower guidance, then of the lower temperature. The list is of combinations that training sees: what is
    held out, of either split, has no say, nor has any prompt that `evaluate` judges unless told to. All pairs
    draw the same prompts with the same noise. ValueError for values that cannot be drawn with, and as in
    `evaluate`.
    """
    require_whole("prompts", prompts, least=1)
    require_whole("seed", seed, least=0)
    if not guidances or (temperatures is not None and not temperatures):
        raise ValueError("no guidance or no temperature to choose from: give at least one of each")
    for guidance in guidances:
        require_guidance(guidance)
    for each in temperatures or ():
        Sampling(temperature=each)
    side, _ = picture_sides(pipe)
    drawings = shapes.seen_prompts(prompts, seed, split="validation", side=side)
    pairs = sorted(set(product(guidances, (None,) if temperatures is None else temperatures)))
    tallies: dict[tuple[float, float | None], Tally] = {}
    with Progress(len(pairs) * prompts, "picture", progress) as bar:
        for pair in pairs:
            given = zip(("guidance", "temperature"), pair, strict=True)
            options = {name: value for name, value in given if value is not None}
            right = draw(pipe, drawings, seed, batch_size, bar.advance, **options)
            tallies[pair] = Tally(sum(right), prompts)
    # The first of equals, and the pairs are in order.
    guidance, temperature = max(pairs, key=lambda pair: tallies[pair].right)
    return Choice(guidance, temperature, tallies)


def write_defaults(folder: str | Path, *, guidance: float, temperature: float | None = None) -> Path:
    """State what to draw with in a checkpoint's generation_config.json, all else in it kept; -> its path.

    Of a temperature of None, nothing. A pipeline that is loaded from the folder afterwards draws with it. The
    file is replaced whole or not at all. FileNotFoundError for no such folder, ValueError for a file that is
    no JSON object.
    """
    guidance = require_guidance(guidance)
    if temperature is not None:
        temperature = Sampling(temperature=temperature).temperature
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: give the folder that holds a checkpoint's files")
    path = folder / FILE
    files = {FILE: path.read_bytes()} if path.is_file() else {}
    write_whole(path, stating(files, guidance=guidance, temperature=temperature, where=str(folder)))
    return path


def stating(
    files: Mapping[str, bytes],
    *,
    guidance: float,
    temperature: float | None = None,
    where: str = "the checkpoint",
) -> bytes:
    """The generation_config.json of these files, made to state what to draw with; ValueError as above."""
    stated = read_object(files, FILE, where=where).values
    chosen = {"guidance_scale": guidance} | ({} if temperature is None else {"temperature": temperature})
    values = {**stated, **chosen}
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
