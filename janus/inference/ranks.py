"""The processes of a tensor-parallel run, its ranks: how they meet, and how they learn of one another.

`torchrun` starts a process for each device and tells it its rank by environment variables.
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, NoReturn

import torch
from torch import distributed

from janus.devices import resolve_device
from janus.models.multimodal import MultimodalModel

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def meet(device: str | torch.device | None = None) -> tuple[torch.device, DeviceMesh]:
    """This process's own device, and the mesh of all processes; their group is begun if there is none.

    Without a device, or with 'cuda', it is the CUDA device of this process's number on its machine, or the
    CPU where there is no CUDA. Raises ValueError where the process was started alone, or its device is
    absent.
    """
    if not distributed.is_available():
        raise ValueError("this build of torch has no torch.distributed, which tensor parallelism needs")
    if not distributed.is_initialized() and "WORLD_SIZE" not in os.environ:
        raise ValueError(
            "tensor parallelism needs a process for each device: start them with "
            "`torchrun --nproc-per-node 2 SCRIPT`"
        )
    own = own_device(device)
    if own.type == "cuda":
        torch.cuda.set_device(own)  # collectives of objects, and much of others' code, go by it
    if not distributed.is_initialized():
        if own.type == "cuda":
            distributed.init_process_group("nccl", device_id=own)
        else:
            distributed.init_process_group("gloo")
    from torch.distributed.device_mesh import init_device_mesh

    return own, init_device_mesh(own.type, (distributed.get_world_size(),))


def several() -> bool:
    """Whether `torchrun` started more processes than this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def own_device(device: str | torch.device | None) -> torch.device:
    """The device of this process, one of several; see `meet`."""
    if device is None and not torch.cuda.is_available():
        return torch.device("cpu")
    if device is None or str(device) == "cuda":
        device = f"cuda:{os.environ.get('LOCAL_RANK', os.environ.get('RANK', '0'))}"
    own = resolve_device(device)
    if own.type not in ("cuda", "cpu"):
        raise ValueError(f"device {str(own)!r} cannot join other processes: name cuda or cpu")
    return own


def from_all_ranks(model: MultimodalModel, value: Any) -> list[Any]:
    """What each rank passes here, rank 0's first: ranks must agree on whatever shapes their work.

    Of a model that one process holds alone it is `[value]`.
    """
    mesh = model.language.mesh
    if mesh is None:
        return [value]
    values: list[Any] = [None] * mesh.size()
    distributed.all_gather_object(values, value, group=mesh.get_group())
    return values


def abort(status: int) -> NoReturn:
    """End this process at once, as one of several that has failed.

    The others wait for it in a collective, and the destructors of an ordinary exit would wait for them:
    `torchrun` ends them only when this one is gone.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
