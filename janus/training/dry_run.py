"""What a recipe will take: told first, and then tried on the longest batch there can be.

B rows of L positions, T codes of a drawn picture.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from janus.config import JanusConfig
from janus.training.data.outline import IGNORE
from janus.training.data.packing import PENDING, Batch
from janus.training.log import GIB, duration, process_memory
from janus.training.longest import Row, longest_row
from janus.training.loop import learn
from janus.training.memory import foretell, format_memory
from janus.training.parallel import Ranks, ranks, rows_of
from janus.training.recipe import Recipe
from janus.training.recipe_sections import KINDS
from janus.training.run import begin
from janus.training.start import start_config
from janus.training.vq import code, total, vq_losses
from janus.training.vq_loop import begin as begin_vq


def dry_run(
    recipe: Recipe, *, device: str | torch.device | None = None, show: Callable[[str], object] = print
) -> None:
    """Tell parameters, memory and tokens a step, then run forward and backward once; no weight moves.

    Weights and data are read as a run reads them, and raise as they would there. Of several processes the
    first tells; each has its own device.
    """
    with ranks(device) as place:
        tell = show if place.first else (lambda text: None)
        memory = foretell(start_config(recipe.model), recipe, ranks=place.size, device=place.device.type)
        tell(format_memory(memory))
        try_batch = _try_vq if recipe.task == "vq" else _try_janus
        with tempfile.TemporaryDirectory() as nothing:
            kind, loss, seconds = try_batch(recipe, Path(nothing), place, memory.by_row)
        tell(
            f"\nforward and backward of the longest batch ({kind}): loss {loss:.4g}, "
            f"{duration(seconds) if seconds >= 1 else f'{1000 * seconds:.0f} ms'}, "
            f"{process_memory() / GIB:.2f} GiB in all"
        )


def _try_janus(
    recipe: Recipe, folder: Path, place: Ranks, by_row: Mapping[str, int]
) -> tuple[str, float, float]:
    run = begin(recipe, folder, place)
    config = run.model.config
    kinds = [kind for kind in KINDS if kind in by_row]
    kind = max(kinds, key=lambda each: by_row[each])
    row = longest_row(config, recipe.data.sequence_length, kind)
    batch = longest_batch(config, row, rows_of(recipe, place.size))
    labels = batch.text_labels + batch.code_labels
    start = time.perf_counter()
    losses = learn(run, batch, labels * place.size, exchange=True)
    return f"{kind} rows", float(losses.sum()) / labels, time.perf_counter() - start


def longest_batch(config: JanusConfig, row: Row, rows: int) -> Batch:
    """Rows of one document each, with as many pictures as `longest_row` says; those drawn are grey.

    Pictures come first, each behind the token that begins it, and words after them.
    """
    seen, drawn, side = config.vision.tokens, config.picture_tokens, config.picture_size
    place = torch.arange(row.length).expand(rows, -1)
    taken = seen + 2 if row.seen else drawn + 1
    inside = (place - 1) % taken
    within = (place >= 1) & (place < 1 + row.seen * taken)
    code_mask = code_labels = torch.zeros_like(within)
    if row.drawn:
        inside = place % taken
        within = place < row.drawn * taken
        code_labels = within & (inside >= 1)
        code_mask = within & (inside >= 2)
    image_mask = within & (inside >= 1) & (inside <= seen) if row.seen else torch.zeros_like(within)
    labels = torch.full_like(place, IGNORE)
    if row.words:
        labels[:, row.length - row.words :] = 0
    size = config.vision.image_size
    return Batch(
        ids=torch.zeros_like(place),
        labels=labels,
        image_mask=image_mask,
        pixels=torch.zeros(rows * row.seen, 3, size, size),
        code_mask=code_mask,
        codes=torch.full((rows * row.drawn, drawn), PENDING),
        targets=torch.zeros(rows * row.drawn, 3, side, side),
        code_labels_mask=code_labels,
        document=torch.ones_like(place),
        positions=place,
        tasks=((row.kind,),) * rows,
    )


def _try_vq(
    recipe: Recipe, folder: Path, place: Ranks, by_row: Mapping[str, int]
) -> tuple[str, float, float]:
    run = begin_vq(recipe, folder, place)
    settings = recipe.vq_training()
    pixels: Tensor = next(iter(run.loader)).to(place.device)
    start = time.perf_counter()
    coded = code(run.vq, pixels, run.state.step, settings)
    loss = total(vq_losses(run.vq, coded, pixels, run.state, settings), settings)
    loss.backward()
    return f"{len(pixels)} pictures", float(loss.detach()), time.perf_counter() - start
