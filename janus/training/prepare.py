"""What is done with data before training: they are checked, and pictures to be drawn turned into codes.

For a model that is named by its checkpoint, or by the recipe that will train it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from janus.checks import require_whole
from janus.config import AnyConfig, JanusConfig
from janus.training.data.check import check, format_report
from janus.training.data.open import REJECTS, open_source
from janus.training.data.outline import Geometry
from janus.training.data.pretokenize import pretokenize
from janus.training.data.rejects import write_rejects
from janus.training.recipe.file import read_recipe
from janus.training.recipe.sections import Start
from janus.training.start import start_config, start_processor, start_vae_config
from janus.training.vq_files import load_vq


@dataclass(frozen=True)
class Purpose:
    """The model that data are for, and the most tokens of a row that its recipe takes, if there is one."""

    start: Start
    limit: int | None = None

    @classmethod
    def of(cls, model: str | None, recipe: str | None) -> Purpose:
        """Of a checkpoint's hub id or folder, or of a recipe's file or name; ValueError for none or both."""
        if (model is None) == (recipe is None):
            raise ValueError(
                "name the model that the data are for: a hub id or a folder with -m, or the recipe that will "
                "train it with --recipe"
            )
        if model is not None:
            return cls(Start(checkpoint=model))
        assert recipe is not None
        read = read_recipe(recipe)
        if read.is_of_pictures:
            raise ValueError(f"{recipe} trains on pictures alone: name a recipe of a model that reads words")
        return cls(read.model, read.data.sequence_length)

    def config(self) -> AnyConfig:
        found = start_config(self.start)
        if not isinstance(found, AnyConfig):
            raise ValueError(f"{self.start.checkpoint} is no model that reads words: name a whole model")
        return found


def check_file(file: Path, purpose: Purpose, *, limit: int | None = None, skip_bad: bool = False) -> int:
    """Print what is wrong with JSON lines; -> the exit status, 1 where anything is.

    Without a limit it is the recipe's, else the model's window. With `skip_bad` the unusable rows are written
    to rejects.jsonl beside the file, which training passes over, and the status is 0.
    """
    config, processor = purpose.config(), start_processor(purpose.start)
    if limit is None:
        limit = purpose.limit or processor.window or config.language.window
    require_whole("limit", limit, least=1)
    geometry, lacking = None, ""
    if isinstance(config, JanusConfig):
        geometry = Geometry.of(config)
    else:
        try:
            geometry = Geometry.of_flow(config, start_vae_config(purpose.start))
        except OSError as error:  # without it all but drawings can be checked
            lacking = (
                f"drawings count as malformed, for without the autoencoder their length is unknown: {error}"
            )
    report = check(file, processor, limit, geometry=geometry)
    print(format_report(report))
    if lacking:
        print(lacking)
    if not skip_bad:
        return 1 if report.problems else 0
    target = report.path.parent / REJECTS
    messages = {line: [problem.message for problem in problems] for line, problems in report.unusable.items()}
    write_rejects(report.path, messages, target)
    print(f"{len(report.unusable)} rows are passed over: {target}")
    return 0


def tokenize_drawings(
    source: str,
    folder: Path,
    purpose: Purpose,
    *,
    device: torch.device,
    shard_rows: int = 1000,
    batch_size: int = 16,
    rank: int = 0,
    ranks: int = 1,
) -> None:
    """Write the codes of a source's pictures; the tokenizer computes in float32.

    Raises ValueError where the model has none that is trained, and as `pretokenize` does.
    """
    config = purpose.config()
    if not isinstance(config, JanusConfig):
        raise ValueError("a JanusFlow draws latents, not codes: its pictures cannot be turned into codes")
    rows = open_source(source)  # before any weight is read
    path = purpose.start.vq or purpose.start.checkpoint
    if path is None:
        raise ValueError("the recipe's tokenizer is of random weights: name a trained one as model.vq")
    pretokenize(
        rows,
        load_vq(path, config.vq).to(device),
        folder,
        processor=start_processor(purpose.start),
        geometry=Geometry.of(config),
        shard_rows=shard_rows,
        batch_size=batch_size,
        rank=rank,
        ranks=ranks,
    )
