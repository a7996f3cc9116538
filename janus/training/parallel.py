"""Several processes that train one model: how they meet, share the model out and agree on numbers.

`torchrun` starts them; a process that was started alone is a run of one. DDP gives each all of the model,
FSDP2 (`fully_shard`; Zhao et al., "PyTorch FSDP", 2023) splits it block by block, and HSDP does so within
groups that each hold all of it.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from janus.devices import resolve_device
from janus.inference.ranks import meet, several
from janus.models.janusflow import JanusFlow
from janus.models.llama import Block
from janus.models.siglip import Block as VisionBlock
from janus.training.costs.weigh import computing_dtype, precision
from janus.training.flow import FlowObjective
from janus.training.objectives import Objective
from janus.training.parts import ALIGNMENT, AnyModel
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Parallel
from janus.training.siglip import ContrastObjective

PATIENCE = timedelta(hours=12)  # that the others have while the first process draws, or writes a model


@dataclass(frozen=True)
class Ranks:
    """This process among those of a run: its own device, its number, and how many there are."""

    device: torch.device
    rank: int = 0
    size: int = 1
    patient: distributed.ProcessGroup | None = None  # of all of them, for what takes longer than a collective

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and shows what all have in common."""
        return self.rank == 0

    @property
    def group(self) -> distributed.ProcessGroup | None:
        return distributed.group.WORLD if self.size > 1 else None

    def summed(self, values: Tensor) -> Tensor:
        """The sums of a tensor over all processes, which exchange it on their devices; it stays where it is.

        Counts in float64 are best on the CPU: not every device has such numbers.
        """
        if self.size == 1:
            return values
        summed = values.to(self.device, copy=True)
        distributed.all_reduce(summed)
        return summed.to(values.device)

    def agreed(self, value: Any) -> Any:
        """What the first process says: files, for one, need not look the same to all at once."""
        if self.size == 1:
            return value
        told = [value]
        distributed.broadcast_object_list(told, src=0)
        return told[0]

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            distributed.barrier(self.patient)


@contextmanager
def ranks(device: str | torch.device | None = None) -> Iterator[Ranks]:
    """This process's place in its run; the group of processes is begun, and ended, if there is none yet.

    On a CPU the processes share the cores: threads beyond them cost several times what they bring. Raises
    ValueError for a device that is absent or cannot join others.
    """
    if not several() and not distributed.is_initialized():
        yield Ranks(resolve_device(device))
        return
    begun = not distributed.is_initialized()
    own, _ = meet(device)
    if own.type == "cpu":
        sharing = int(os.environ.get("LOCAL_WORLD_SIZE", distributed.get_world_size()))
        most = max(1, (os.cpu_count() or 1) // sharing)
        torch.set_num_threads(min(torch.get_num_threads(), most))
    patient = distributed.new_group(backend="gloo", timeout=PATIENCE)
    yield Ranks(own, distributed.get_rank(), distributed.get_world_size(), patient)
    # After a failure others wait in a collective, which ends when this process does.
    distributed.destroy_process_group(None if begun else patient)


def rows_of(recipe: Recipe, size: int) -> int:
    """How many rows a process reads at once. ValueError where the batch cannot be shared out evenly."""
    rows, rest = divmod(recipe.batch, recipe.accumulate * size)
    if rest:
        raise ValueError(
            f"batch {recipe.batch} cannot be shared out to {size} processes in accumulate = "
            f"{recipe.accumulate} turns: make it a multiple of {recipe.accumulate * size}"
        )
    return rows


def is_split(recipe: Recipe, place: Ranks) -> bool:
    """Whether the processes hold shares of the model, and none holds all of it."""
    return recipe.parallel.kind == "fsdp" and place.size > 1


def parallelize(
    objective: Objective | FlowObjective | ContrastObjective, recipe: Recipe, place: Ranks
) -> nn.Module:
    """The objective as this process calls it; of a model that is split, in place.

    What learns is to be settled before, and the optimizer built afterwards. Raises ValueError for a mesh that
    does not fit the number of processes.
    """
    if place.size == 1:
        if recipe.parallel.shards or recipe.parallel.replicas:
            mesh_shape(recipe.parallel, place.size)  # which refuses what one process is not
        return objective
    if is_split(recipe, place):
        assert not isinstance(objective, ContrastObjective)  # the recipe was checked
        return _split(objective, recipe, place)
    wrapped = DistributedDataParallel(
        objective,
        device_ids=[place.device] if place.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
    )
    if recipe.precision == "bfloat16":
        # (DDP compares a hook's annotations, and takes none that are texts.)
        wrapped.register_comm_hook(place, lambda state, bucket: _mean_in_float32(state, bucket))
    _settle_buckets(wrapped, objective)
    return wrapped


def _settle_buckets(wrapped: DistributedDataParallel, objective: nn.Module) -> None:
    """Have DDP order its buckets for good, which it does after its first backward pass.

    The last bits of sums over three processes and more depend on where in a bucket a number lies: a run that
    goes on would take its first step in another order than the run that it continues.
    """
    learns = [weight for weight in objective.parameters() if weight.requires_grad]
    setattr(objective, "forward", lambda: sum(weight.flatten()[0] for weight in reversed(learns)))  # noqa: B010
    wrapped().backward()
    del objective.forward  # that of its class is seen again
    wrapped.zero_grad(set_to_none=True)


def _mean_in_float32(place: Ranks, bucket: distributed.GradBucket) -> torch.futures.Future[Tensor]:
    """Gradients of 16 bits, averaged in 32."""
    gradients = bucket.buffer()
    sent = distributed.all_reduce(gradients.float(), async_op=True)
    assert sent is not None
    return sent.get_future().then(lambda done: gradients.copy_(done.value()[0] / place.size))


def mesh_shape(parallel: Parallel, size: int) -> tuple[int, int]:
    """Groups that hold all of the model, and the processes that each splits it over.

    ValueError unless these are all processes there are.
    """
    shards = parallel.shards or size
    replicas = parallel.replicas or 1
    if shards * replicas != size:
        raise ValueError(
            f"parallel: {shards} shards x {replicas} replicas are not the {size} processes of this run: "
            f"give shards and replicas whose product is {size}, or start as many processes"
        )
    return replicas, shards


def _split(objective: Objective | FlowObjective, recipe: Recipe, place: Ranks) -> nn.Module:
    """FSDP2: each block by itself, all else together; gradients are averaged in float32.

    The tokenizer of pictures stays whole: nothing in it learns, and only processes that have pictures run it.
    """
    from torch.distributed.device_mesh import init_device_mesh

    replicas, shards = mesh_shape(recipe.parallel, place.size)
    if replicas == 1:
        mesh = init_device_mesh(place.device.type, (shards,), mesh_dim_names=("shard",))
    else:
        names = ("replicate", "shard")
        mesh = init_device_mesh(place.device.type, (replicas, shards), mesh_dim_names=names)
    computes = computing_dtype(recipe, place.device.type)
    policy = MixedPrecisionPolicy(param_dtype=computes, reduce_dtype=torch.float32)
    for block in objective.modules():
        if isinstance(block, Block | VisionBlock):
            fully_shard(block, mesh=mesh, mp_policy=policy)
    whole = set(objective.model.vq.parameters()) if isinstance(objective, Objective) else set()
    options: dict[str, Any] = {"ignored_params": whole} if whole else {}
    if not options.keys() <= inspect.signature(fully_shard).parameters.keys():
        raise ValueError(
            f'parallel.kind: "fsdp" needs torch 2.7 or later, not {torch.__version__}: upgrade, or give "ddp"'
        )
    fully_shard(objective, mesh=mesh, mp_policy=policy, **options)
    return objective


def computing(recipe: Recipe, place: Ranks) -> AbstractContextManager[Any]:
    """How a forward pass is computed; a model that is split has its precision with it."""
    return nullcontext() if is_split(recipe, place) else precision(recipe, place.device.type)


def gradient_sync(objective: nn.Module, exchange: bool) -> AbstractContextManager[Any]:
    """Whether gradients of a backward pass within it go to the other processes, or wait for a later one's."""
    if isinstance(objective, DistributedDataParallel):
        return nullcontext() if exchange else objective.no_sync()
    if isinstance(objective, FSDPModule):
        objective.set_requires_gradient_sync(exchange)
    return nullcontext()


def split_again(objective: nn.Module) -> None:
    """Bring a model that is split to where a step leaves it: of a forward pass alone its root stays whole.

    What then reads parameters, or swaps them, would meet copies of them.
    """
    if isinstance(objective, FSDPModule):
        objective.reshard()


def clip(parameters: Sequence[nn.Parameter], limit: float | None) -> Tensor:
    """Scale gradients to a norm of `limit` at most, of all processes' shares together; -> what it was."""
    norm = nn.utils.clip_grad_norm_(parameters, torch.inf if limit is None else limit)
    return whole(norm)


def whole(tensor: Tensor) -> Tensor:
    """A tensor of which processes hold shares, put together on each of them; others are as they are."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(model: AnyModel, place: Ranks) -> AnyModel | None:
    """A model that is split, put together on the CPU of the first process; on the others None.

    What it has for learning only is left out.
    """
    from janus.weights.load import empty_model

    copy: AnyModel | None = empty_model(model.config) if place.first else None
    for name, parameter in model.named_parameters():
        tensor = whole(parameter.detach())
        if copy is not None and not name.startswith(f"{ALIGNMENT}."):
            owner = copy.get_submodule(name.rpartition(".")[0])
            setattr(owner, name.rpartition(".")[2], nn.Parameter(tensor.cpu(), requires_grad=False))
    if copy is not None:
        copy.language.tie()
        copy.files = model.files
    if isinstance(copy, JanusFlow) and isinstance(model, JanusFlow):
        copy.autoencoder = model.autoencoder
    return copy


def near(model: AnyModel, recipe: Recipe, place: Ranks) -> AnyModel:
    """A model to draw with: of one that was `gathered`, a copy on the GPU, as precise as it computes.

    It stays on the CPU where a GPU's free memory is less than twice what it takes; others are as they are.
    """
    if not is_split(recipe, place) or place.device.type != "cuda":
        return model
    dtype = computing_dtype(recipe, place.device.type)
    torch.cuda.empty_cache()
    free, _ = torch.cuda.mem_get_info(place.device)
    takes = sum(weight.numel() for weight in model.parameters()) * dtype.itemsize
    return model.to(device=place.device, dtype=dtype) if free > 2 * takes else model
