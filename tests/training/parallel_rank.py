"""One of two processes that learn from a batch each: `parallel_rank.py FOLDER CHECKPOINT`.

It reads FOLDER/run.pt and FOLDER/whole/, which one process wrote, and writes what it has after a step of each
kind of run to FOLDER/<kind>-<rank>.pt, and each run to FOLDER/<kind>/.
"""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from janus.models.janus import Janus
from janus.training import checkpoint
from janus.training.data.packing import Batch
from janus.training.ema import EMA
from janus.training.objectives import Objective, Sums, total
from janus.training.optimizer import build_optimizer
from janus.training.parallel import (
    Ranks,
    clip,
    computing,
    exchanging,
    gathered,
    parallelize,
    ranks,
    whole,
)
from janus.training.parts import STAGE_3, freeze, trained
from janus.training.recipe import Recipe
from janus.training.recipe_sections import Parallel
from janus.training.run import learning, tensors

KINDS = {
    "ddp": {"parallel": Parallel(kind="ddp")},
    "fsdp": {"parallel": Parallel(kind="fsdp")},
    "hsdp": {"parallel": Parallel(kind="fsdp", shards=1, replicas=2)},
    "ddp-bfloat16": {"parallel": Parallel(kind="ddp"), "precision": "bfloat16"},
    "fsdp-autocast": {"parallel": Parallel(kind="fsdp"), "precision": "autocast"},
}


def one_step(recipe: Recipe, path: str, batches: list[list[Batch]], place: Ranks) -> dict[str, Any]:
    """A step of the process, of the batches of its number in turn; -> what it ends with.

    With one process, all batches are its own.
    """
    dtype = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
    model = Janus.from_pretrained(path, device="cpu", dtype=dtype)
    freeze(model, STAGE_3)
    objective = parallelize(Objective(model), recipe, place)
    optimizer = build_optimizer(model, recipe.optimizer)
    average = EMA(model, 0.5)
    turns = batches[place.rank] if place.size > 1 else [each for own in batches for each in own]
    labels = sum(each.text_labels + each.code_labels for own in batches for each in own)
    losses = torch.zeros(2)
    for turn in turns:
        with exchanging(objective, turn is turns[-1]):
            with computing(recipe, place):
                text, picture = objective(turn)
            total(Sums(text, picture), recipe.loss, labels / place.size).backward()
        losses += torch.stack((text.detach(), picture.detach()))
    gradients = {name: whole(weight.grad).float().clone() for name, weight in trained(model).items()}
    norm = clip(learning(model), 0.5)
    optimizer.step()
    average.update()
    copy = gathered(model, place)
    return {
        "losses": place.summed(losses),
        "norm": norm,
        "gradients": gradients,
        "tensors": tensors(model, optimizer, average),
        "split": sorted(name for name, weight in model.named_parameters() if weight is not whole(weight)),
        "copy": None if copy is None else plain(dict(copy.named_parameters())),
    }


def plain(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor).clone() for name, tensor in values.items()}


def main(folder: Path, path: str) -> None:
    torch.set_num_threads(1)
    given = torch.load(folder / "run.pt", weights_only=False)  # the test's own file
    with ranks("cpu") as place:
        for kind, changes in KINDS.items():
            recipe = replace(given["recipe"], **changes)
            ended = one_step(recipe, path, given["batches"], place)
            if recipe.precision == "float32":
                own = {"loader": {"place": place.rank}, "random": {}}
                checkpoint.save(
                    folder / kind,
                    1,
                    ended["tensors"],
                    shared={"words": "both"},
                    own=own,
                    recipe=recipe,
                    keep=1,
                    place=place,
                )
            saved = plain(ended["tensors"])
            found = checkpoint.newest(folder / "whole")
            assert found is not None
            if recipe.precision == "float32":
                for tensor in ended["tensors"].values():
                    tensor.zero_()
                found.load(ended["tensors"])
            loaded = plain(ended["tensors"])
            ended |= {"tensors": saved, "loaded": loaded, "place": (place.rank, place.size, place.first)}
            torch.save(ended, folder / f"{kind}-{place.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
