"""A process of two or four that learns from its share of batches: `parallel_rank.py FOLDER CHECKPOINT FLOW`.

It reads FOLDER/run.pt and FOLDER/whole/, which one process wrote, and writes what it has after a step of each
kind of run to FOLDER/<kind>-<rank>.pt, and each run to FOLDER/<kind>/.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.processing.processor import Processor
from janus.training import checkpoint
from janus.training.costs.weigh import checkpoint_blocks
from janus.training.data.packing import Batch
from janus.training.ema import EMA
from janus.training.flow import FlowObjective, add_alignment
from janus.training.objectives import Objective, Sums, total
from janus.training.optimizer import build_optimizer
from janus.training.parallel import (
    Ranks,
    _mean_in_float32,
    clip,
    computing,
    gathered,
    gradient_sync,
    parallelize,
    ranks,
    whole,
)
from janus.training.parts import FLOW_STAGE_3, STAGE_1, freeze, trained
from janus.training.recipe.learning import FlowLearning
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import LossWeights, Parallel
from janus.training.run import learning, tensors

KINDS = {
    "ddp": {"parallel": Parallel(kind="ddp")},
    "fsdp": {"parallel": Parallel(kind="fsdp")},
    "hsdp": {"parallel": Parallel(kind="fsdp", shards=1, replicas=2)},
    "ddp-bfloat16": {"parallel": Parallel(kind="ddp"), "precision": "bfloat16"},
    "fsdp-autocast": {"parallel": Parallel(kind="fsdp"), "precision": "autocast"},
    # As the recipes of the published stages have it, of which the first trains little.
    "fsdp-checkpointed": {"parallel": Parallel(kind="fsdp"), "activation_checkpointing": True},
    "fsdp-stage-1": {"parallel": Parallel(kind="fsdp"), "train": STAGE_1, "activation_checkpointing": True},
}
KINDS_OF_FOUR = {"hsdp-of-four": {"parallel": Parallel(kind="fsdp", shards=2, replicas=2)}}


def one_step(recipe: Recipe, path: str, batches: list[Batch], place: Ranks) -> dict[str, Any]:
    """A step of the process, of its share of the batches in turn; -> what it ends with."""
    dtype = torch.bfloat16 if recipe.precision == "bfloat16" else torch.float32
    model = Janus.from_pretrained(path, device="cpu", dtype=dtype)
    freeze(model, recipe.train)
    if recipe.activation_checkpointing:
        checkpoint_blocks(model)
    objective = parallelize(Objective(model), recipe, place)
    optimizer = build_optimizer(model, recipe.optimizer)
    average = EMA(model, 0.5)
    share = len(batches) // place.size
    turns = batches[place.rank * share : (place.rank + 1) * share]
    labels = sum(each.text_labels + each.code_labels for each in batches)
    losses = torch.zeros(2)
    for turn in turns:
        with gradient_sync(objective, turn is turns[-1]):
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


def flow_step(recipe: Recipe, path: str, batches: list[Batch], place: Ranks) -> dict[str, Any]:
    """The losses and gradients of a JanusFlow, of this process's share of the batches; nothing is changed."""
    model = JanusFlow.from_pretrained(path, device="cpu", dtype=torch.float32)
    freeze(model, FLOW_STAGE_3)
    add_alignment(model, 1, tokens=None)
    config = Processor.from_pretrained(path).config
    alone = FlowObjective(model, FlowLearning(aligned_after=1), config)
    objective = parallelize(alone, replace(recipe, train=FLOW_STAGE_3), place)
    share = len(batches) // place.size
    turns = batches[place.rank * share : (place.rank + 1) * share]
    losses = torch.zeros(3)
    for turn in turns:
        with gradient_sync(objective, turn is turns[-1]):
            found = objective(turn)
            total(Sums(*found), LossWeights(), 100 / place.size).backward()
        losses += torch.stack([loss.detach() for loss in found])
    return {
        "losses": place.summed(losses),
        "gradients": {name: whole(weight.grad).clone() for name, weight in trained(model).items()},
    }


def twice_the_same(recipe: Recipe, path: str, batches: list[Batch], place: Ranks) -> bool:
    """Whether what DDP makes of the same batches, of a step that changes nothing, is the same to the bit."""
    model = Janus.from_pretrained(path, device="cpu", dtype=torch.float32)
    freeze(model, recipe.train)
    objective = parallelize(Objective(model), recipe, place)
    found = []
    for _ in range(2):
        total(Sums(*objective(batches[place.rank])), recipe.loss, 1.0).backward()
        found.append([weight.grad.clone() for weight in learning(model)])
        objective.zero_grad(set_to_none=True)
    return all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def mean_of_sixteen_bits(place: Ranks) -> Tensor:
    """The mean over processes of 1 and three times 2 ** -9, which bfloat16 loses beside it one by one."""
    own = torch.tensor([1.0 if place.first else 2.0**-9], dtype=torch.bfloat16)
    bucket: Any = SimpleNamespace(buffer=lambda: own)
    return _mean_in_float32(place, bucket).wait()


def plain(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: whole(tensor).clone() for name, tensor in values.items()}


def main(folder: Path, path: str, flow: str) -> None:
    torch.set_num_threads(1)
    given = torch.load(folder / "run.pt", weights_only=False)  # the test's own file
    with ranks("cpu") as place:
        if place.size == 4:
            torch.save(mean_of_sixteen_bits(place), folder / f"mean-{place.rank}.pt")
            same = twice_the_same(given["recipe"], path, given["batches"], place)
            torch.save(same, folder / f"twice-{place.rank}.pt")
        if place.size == 2:
            for kind in ("ddp", "fsdp"):
                recipe = replace(given["recipe"], **KINDS[kind])
                ended = flow_step(recipe, flow, given["flow"], place)
                torch.save(ended, folder / f"flow-{kind}-{place.rank}.pt")
        for kind, changes in (KINDS if place.size == 2 else KINDS_OF_FOUR).items():
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
    main(Path(sys.argv[1]), *sys.argv[2:])
