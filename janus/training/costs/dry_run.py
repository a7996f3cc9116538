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

from janus.config import AnyConfig, JanusFlowConfig
from janus.training.costs.longest import Row, drawn_geometry, longest_row
from janus.training.costs.memory import estimate_memory, format_memory
from janus.training.data.outline import IGNORE, Geometry
from janus.training.data.packing import PENDING, Batch
from janus.training.log import GIB, duration, process_memory
from janus.training.loop import learn
from janus.training.objectives import Sums, total
from janus.training.parallel import Ranks, ranks, rows_of
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import KINDS
from janus.training.run import begin, takes_autoencoder
from janus.training.siglip import Pairs
from janus.training.siglip_loop import compare
from janus.training.start import start_config, start_vae_config
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
        config = start_config(recipe.model, recipe.task)
        flow = isinstance(config, JanusFlowConfig) and takes_autoencoder(recipe)
        vae = start_vae_config(recipe.model) if flow else None
        memory = estimate_memory(config, recipe, ranks=place.size, device=place.device.type, vae=vae)
        tell(format_memory(memory))
        try_batch = {"siglip": _try_siglip, "vq": _try_vq, "vae": _try_vq}.get(recipe.task, _try_janus)
        with tempfile.TemporaryDirectory() as nothing:
            kind, loss, seconds = try_batch(recipe, Path(nothing), place, memory.by_row)
        tell(
            f"\nforward and backward of the longest batch ({kind}): loss {loss:.4g}, "
            f"{duration(seconds) if seconds >= 1 else f'{1000 * seconds:.0f} ms'}, "
            f"{process_memory(place.device) / GIB:.2f} GiB in all"
        )


def _try_janus(
    recipe: Recipe, folder: Path, place: Ranks, by_row: Mapping[str, int]
) -> tuple[str, float, float]:
    run = begin(recipe, folder, place)
    config = run.model.config
    kinds = [kind for kind in KINDS if kind in by_row]
    kind = max(kinds, key=lambda each: by_row[each])
    row = longest_row(config, recipe.data.sequence_length, kind, run.geometry)
    batch = longest_batch(config, row, rows_of(recipe, place.size), run.geometry)
    labels = batch.text_labels + batch.code_labels
    start = time.perf_counter()
    losses = learn(run, batch, labels * place.size, exchange=True)
    loss = float(total(Sums(*losses), recipe.loss, labels))
    return f"{kind} rows", loss, time.perf_counter() - start


def longest_batch(config: AnyConfig, row: Row, rows: int, geometry: Geometry | None = None) -> Batch:
    """Rows of one document each, with as many pictures as `longest_row` says; those drawn are gray.

    Pictures come first, each behind the token that begins it, and words after them. `geometry` is that of a
    JanusFlow's drawings.
    """
    seen, side = config.vision.tokens, config.picture_size
    flow = isinstance(config, JanusFlowConfig)
    drawn = drawn_geometry(config, geometry).tokens if row.drawn else 0
    place = torch.arange(row.length).expand(rows, -1)
    taken = seen + 2 if row.seen else drawn + (2 if flow else 1)
    inside = (place - 1) % taken
    within = (place >= 1) & (place < 1 + row.seen * taken)
    code_mask = code_labels = torch.zeros_like(within)
    if row.drawn:
        inside = place % taken
        within = place < row.drawn * taken
        first, second = within & (inside >= 1), within & (inside >= 2)
        # A code is predicted before it is read. A time is read before its latents, and nothing predicts it.
        code_mask, code_labels = (first, second) if flow else (second, first)
    # JanusFlow's first embedding of a picture stands on its begin tag.
    image_mask = torch.zeros_like(within)
    if row.seen:
        image_mask = within & (inside >= (0 if flow else 1)) & (inside <= seen)
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
        seeds=torch.zeros(rows * row.drawn, dtype=torch.long),
        tasks=((row.kind,),) * rows,
    )


def _try_siglip(
    recipe: Recipe, folder: Path, place: Ranks, by_row: Mapping[str, int]
) -> tuple[str, float, float]:
    run = begin(recipe, folder, place)
    pairs: Pairs = next(iter(run.loader))  # type: ignore[assignment]
    start = time.perf_counter()
    loss = float(compare(run, pairs)[0]) / len(pairs)
    return f"{len(pairs)} pictures and captions", loss, time.perf_counter() - start


def _try_vq(
    recipe: Recipe, folder: Path, place: Ranks, by_row: Mapping[str, int]
) -> tuple[str, float, float]:
    run = begin_vq(recipe, folder, place)
    pixels: Tensor = next(iter(run.loader)).to(place.device)
    start = time.perf_counter()
    loss = run.loss(pixels)
    loss.backward()
    return f"{len(pixels)} pictures", float(loss.detach()), time.perf_counter() - start
