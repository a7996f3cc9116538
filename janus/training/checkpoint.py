"""Checkpoints of a run: written whole or not at all, and read by any number of processes.

A folder of them holds `step-00001000/`, each with the tensors in the format of torch.distributed.checkpoint
(every process writes its shares, and any number of processes reads theirs), `recipe.toml`, `shared.pt` (what
all processes have in common), `rank-00000.pt` of each process (its place in the data, its random numbers) and
`state.json`. A folder is written as `step-00001000.tmp` and renamed when all of it is on the disk, so that
one with a final name is complete.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException

from janus.checks import one_line
from janus.training.optimizer import begin_states
from janus.training.parallel import Ranks
from janus.training.parts import trained
from janus.training.recipe.file import dump, parse_recipe
from janus.training.recipe.recipe import Recipe, differences

NAME = re.compile(r"step-(\d{8,})")
UNFINISHED = ".tmp"
STATE, SHARED, RECIPE, TENSORS = "state.json", "shared.pt", "recipe.toml", ".metadata"
# What may be another when a run goes on: how long, what is shown and kept of it, and who computes it, how.
# (In other turns, as on other numbers of processes, rows are packed otherwise: the same documents come.)
HARMLESS = (
    "steps",
    "log",
    "checkpoint",
    "evaluate",
    "defaults",
    "parallel",
    "accumulate",
    "activation_checkpointing",
    "compile",
    "data.workers",
    "data.unreadable",
)


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint: after how many steps, and by how many processes, it was written."""

    folder: Path
    step: int
    ranks: int

    def recipe(self) -> Recipe:
        """The recipe that it was written under."""
        file = self.folder / RECIPE
        try:
            return parse_recipe(file.read_text(encoding="utf-8"), str(file))
        except (OSError, ValueError) as error:
            raise _unreadable(file, error) from error

    def shared(self) -> dict[str, Any]:
        """What all processes had in common beside the tensors."""
        return _read(self.folder / SHARED)

    def own(self) -> list[dict[str, Any]]:
        """What each process had for itself, in the order of ranks."""
        return [_read(self.folder / _rank_file(rank)) for rank in range(self.ranks)]

    def check(self, recipe: Recipe) -> None:
        """ValueError, naming the keys, where a recipe cannot go on from here."""
        keys = [key for key in differences(self.recipe(), recipe) if not _is_harmless(key)]
        if keys:
            raise ValueError(
                f"{self.folder} was written under another recipe, which differs in {', '.join(keys)}: give "
                "the same, or begin in another folder"
            )

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Fill tensors, in place, each process its own shares; ValueError where they are not those saved."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that there is one process only
                dcp.load(dict(tensors), checkpoint_id=self.folder)
        except (CheckpointException, RuntimeError, ValueError, KeyError, OSError, EOFError) as error:
            raise ValueError(
                f"{self.folder} cannot be read ({one_line(_cause(error))}): remove it to go on from the "
                "checkpoint before it"
            ) from error


def _is_harmless(key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in HARMLESS)


def _cause(error: BaseException) -> BaseException:
    """Of an error of several processes, that of one."""
    failures = getattr(error, "failures", None)
    return next(iter(failures.values()))[0] if failures else error


def newest(root: Path) -> Checkpoint | None:
    """The newest complete checkpoint of a folder, if there is one."""
    found = [
        (int(match[1]), folder) for folder in root.glob("step-*") if (match := NAME.fullmatch(folder.name))
    ]
    for step, folder in sorted(found, reverse=True):
        ranks = _writers(folder)
        if ranks is not None:
            return Checkpoint(folder, step, ranks)
    return None


def _writers(folder: Path) -> int | None:
    """How many processes wrote a checkpoint; None where any of it is missing."""
    try:
        ranks = json.loads((folder / STATE).read_bytes())["ranks"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if type(ranks) is not int or ranks < 1:
        return None
    names = [TENSORS, SHARED, RECIPE, *map(_rank_file, range(ranks))]
    return ranks if all((folder / name).is_file() for name in names) else None


def save(
    root: Path,
    step: int,
    tensors: Mapping[str, Tensor],
    *,
    shared: Mapping[str, Any],
    own: Mapping[str, Any],
    recipe: Recipe,
    keep: int,
    place: Ranks,
) -> Path:
    """Write a checkpoint, together with all other processes, and remove all but the newest `keep`.

    `shared` and `own` hold tensors, numbers, texts, lists and tables; of `shared`, the first process's count.
    Raises OSError where it cannot be written; those before it stay.
    """
    final = root / f"step-{step:08d}"
    unfinished = final.with_name(final.name + UNFINISHED)
    if place.first:
        for left in root.glob(f"step-*{UNFINISHED}"):  # by runs that were killed
            shutil.rmtree(left)
        unfinished.mkdir(parents=True)
    place.wait()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.save(dict(tensors), checkpoint_id=unfinished)
        except CheckpointException as error:  # which is no Exception
            raise OSError(
                f"{final} cannot be written ({one_line(_cause(error))}): make room there, and give the same "
                "command again; the checkpoints before it are whole"
            ) from error
    _write(unfinished / _rank_file(place.rank), own)
    if place.first:
        _write(unfinished / SHARED, shared)
        _flush(unfinished / RECIPE, dump(recipe).encode())
        _flush(unfinished / STATE, json.dumps({"step": step, "ranks": place.size}).encode())
    place.wait()
    if place.first:
        _publish(unfinished, final)
        _remove_old(root, keep)
    place.wait()
    return final


def _publish(unfinished: Path, final: Path) -> None:
    """Give a folder that is whole its final name, for good."""
    if final.exists():  # of the same step, by a run that went on from an older one
        _remove(final)
    _sync_folder(unfinished)
    unfinished.rename(final)
    _sync_folder(final.parent)


def _remove_old(root: Path, keep: int) -> None:
    """Of the complete ones: what is damaged may be of a later step than those that can be gone on from."""
    named = ((NAME.fullmatch(folder.name), folder) for folder in root.glob("step-*"))
    complete = sorted((int(name[1]), folder) for name, folder in named if name and _writers(folder))
    for _, folder in complete[:-keep]:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Under another name first, so that half of one is never taken for whole."""
    leaving = folder.with_name(f"{folder.name}.old{UNFINISHED}")
    folder.rename(leaving)
    shutil.rmtree(leaving)


def _rank_file(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def _write(file: Path, values: Mapping[str, Any]) -> None:
    with file.open("wb") as stream:
        torch.save(dict(values), stream)
        stream.flush()
        os.fsync(stream.fileno())


def _flush(file: Path, content: bytes) -> None:
    with file.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":  # where a folder cannot be opened, nor need it be
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _read(file: Path) -> dict[str, Any]:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    # Any class of exception: what torch raises depends on the damage.
    except Exception as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: Exception) -> ValueError:
    return ValueError(
        f"{file} cannot be read ({one_line(error)}): remove {file.parent} to go on from the one before it"
    )


def model_tensors(model: nn.Module, name: str = "model") -> dict[str, Tensor]:
    """All parameters of a model, or of its part of that `name`, whether they learn or not."""
    return {f"{name}.{own}": parameter.detach() for own, parameter in model.named_parameters()}


def optimizer_tensors(optimizer: torch.optim.Optimizer, model: nn.Module) -> dict[str, Tensor]:
    """The moments and step counts by the names of what learns; zeros, where there are none yet."""
    begin_states(optimizer)
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter in trained(model).items()
        for key, value in optimizer.state[parameter].items()
    }


def random_state(device: torch.device) -> dict[str, Tensor]:
    """What torch's default generators stand at."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        state["mps"] = torch.mps.get_rng_state()
    return state


def set_random_state(state: Mapping[str, Tensor], device: torch.device) -> None:
    """Go on from what `random_state` gave; a device of another kind goes on with its own."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"], device)
    if device.type == "mps" and "mps" in state:
        torch.mps.set_rng_state(state["mps"])
