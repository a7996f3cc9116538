"""From a checkpoint to a model: built without memory, then filled tensor by tensor, at its device and dtype.

Strict: a missing, unexpected or misshapen name raises before any weight is read. What is to be quantized is,
as soon as it has been read. `load` returns the model in evaluation mode.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, overload

import torch
from torch import Tensor, nn

from janus.config import AnyConfig, JanusConfig, JanusFlowConfig
from janus.devices import resolve_device, resolve_dtype
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.llama import JoinedLinear
from janus.models.meta import on_meta
from janus.models.multimodal import MultimodalModel
from janus.models.quantized import (
    Quantization,
    QuantizedLinear,
    check_quantization,
    make_quantized,
    quantize_weight,
)
from janus.weights.config_files import read_config
from janus.weights.hub import find
from janus.weights.names import Layout, Naming, Source, is_dropped, naming_of, source, sources
from janus.weights.processor_config import read_side_files
from janus.weights.read import FLOATS, TensorInfo, contents, read, weight_files, windows
from janus.weights.vae import own_vae

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

# The file is mapped anew for each run of this many bytes: pages that were read stay resident as long as a
# mapping lives, and the source would come on top of the model.
WINDOW = 128 << 20
_FLOATS = set(FLOATS.values())


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found and checked; no weight has been read, and `model` has no memory yet."""

    folder: Path
    model: Janus | JanusFlow
    stored: dict[str, TensorInfo]
    plan: dict[str, Source]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the word table, which stands for all."""
        dtype = self.stored[self.plan["language.embed.weight"].names[0]].dtype
        assert dtype is not None  # else `inspect` would have raised
        return dtype

    @property
    def widest(self) -> torch.dtype:
        """The dtype that holds the numbers of all weights, whatever each is stored in."""
        own = dtypes(self.model)  # integers and their scales
        names = [each for name, source in self.plan.items() if name not in own for each in source.names]
        return reduce(torch.promote_types, {self.stored[name].dtype or torch.float32 for name in names})


def load(
    path: str | Path,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    mesh: "DeviceMesh | None" = None,
    kind: type[MultimodalModel] = MultimodalModel,
) -> Janus | JanusFlow:
    """The model of a local folder or hub id, of the class and in the layout that its `config.json` names.

    Without a device: cuda, mps or cpu, the first there is. Without a dtype: that of the weights where the
    device computes it well, else float32 (`janus.devices.resolve_dtype`). `quantize`, "int8" or "int4", makes
    the language model's weights integers (`janus.models.quantized`) while they are read; leave it out for a
    checkpoint that is quantized already.
    With a `mesh` of processes, this one reads and holds only its share of the language model
    (`janus.inference.tensor_parallel`); a quantized one is not split. Raises as `janus.load`, before any
    weight is read where the model is of another class than `kind`.
    """
    target_device = resolve_device(device)
    resolve_dtype(dtype, target_device)  # a wrong name raises before anything is fetched
    wanted = None if quantize is None else check_quantization(quantize)
    checkpoint = inspect(path, revision=revision, token=token)
    model = checkpoint.model
    if not isinstance(model, kind):
        raise ValueError(f"{path} holds a {type(model).__name__}, not a {kind.__name__}")
    if wanted is not None:
        _make_quantized(checkpoint, wanted)
    if mesh is not None:
        if model.config.quantization is not None:
            raise ValueError(
                "a quantized model is not split over processes: leave tensor_parallel or quantize"
            )
        if not isinstance(model, Janus):
            raise ValueError("a JanusFlow is not split over processes: leave tensor_parallel")
        from janus.inference.tensor_parallel import tensor_parallel  # half a second that others need not wait

        tensor_parallel(model, mesh)
    rank = 0 if mesh is None else mesh.get_local_rank()
    quantized = model.config.quantization is not None
    target_dtype = resolve_dtype(dtype, target_device, checkpoint.dtype, quantized=quantized)
    fill(checkpoint, target_device, target_dtype, rank)
    model.files = read_side_files(checkpoint.folder)
    if isinstance(model, JanusFlow):
        model.autoencoder = own_vae(checkpoint.folder)
    return model.eval()


def inspect(path: str | Path, *, revision: str | None = None, token: str | None = None) -> Checkpoint:
    """Find a checkpoint and check that its files hold just what its config asks for."""
    folder = find(path, revision=revision, token=token)
    config, layout = read_config(folder)
    stored = contents(weight_files(folder))
    config = settle_tie(config, layout, stored)
    model = empty_model(config)
    if config.quantization is not None:
        make_quantized(model, check_quantization(config.quantization))
    naming = naming_of(config, layout)
    plan = sources(parameter_names(model), naming)
    check_names(stored, plan, naming, model, folder)
    return Checkpoint(folder, model, stored, plan)


def _make_quantized(checkpoint: Checkpoint, quantization: Quantization) -> None:
    """Have the weights quantized that `fill` will read; nothing where the checkpoint holds them so."""
    held = checkpoint.model.config.quantization
    if held is None:
        make_quantized(checkpoint.model, quantization)
    elif held != quantization:
        raise ValueError(
            f"{checkpoint.folder} is quantized to {held}: for {quantization} name the checkpoint it came from"
        )


def settle_tie(config: AnyConfig, layout: Layout, names: Container[str]) -> AnyConfig:
    """The config with its head tied to the word table or not, as the names in the files have it.

    Transformers' config ties them by default, and its loader unties them where a file holds both.
    """
    if layout == "transformers" and "lm_head.weight" in names:
        return replace(config, language=replace(config.language, tied_head=False))
    return config


@overload
def empty_model(config: JanusConfig) -> Janus: ...
@overload
def empty_model(config: JanusFlowConfig) -> JanusFlow: ...
def empty_model(config: AnyConfig) -> Janus | JanusFlow:
    """The model of a config on the meta device: shapes, and no memory.

    ValueError where no tensor can be so large.
    """
    try:
        with on_meta():
            return JanusFlow(config) if isinstance(config, JanusFlowConfig) else Janus(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"the config asks for tensors of a size that torch cannot hold: {reason}") from error


def parameter_names(model: MultimodalModel) -> list[str]:
    """The names of the model's own tensors; a head that is the embedding table itself is none."""
    tied = {"language.head.weight"} if model.config.language.tied_head else set()
    return [name for name in model.state_dict() if name not in tied]


def part_sizes(model: nn.Module, name: str, length: int, parts: int) -> tuple[int, ...]:
    """How long the parts are that a layout keeps of a tensor: all alike, unless its module says otherwise."""
    module = model.get_submodule(name.rpartition(".")[0])
    sizes = module.sizes if isinstance(module, JoinedLinear | QuantizedLinear) else None
    return (length // parts,) * parts if sizes is None else sizes


def check_names(
    stored: Mapping[str, TensorInfo],
    plan: Mapping[str, Source],
    naming: Naming,
    model: MultimodalModel,
    folder: Path,
) -> None:
    """Raise ValueError, naming up to ten of each kind, unless the files hold just what the model needs."""
    state = model.state_dict()
    exact = dtypes(model)
    expected: dict[str, tuple[int, ...]] = {}
    kinds: dict[str, torch.dtype | None] = {}
    for name, place in plan.items():
        shape = tuple(state[name].shape[1:] if place.squeeze else state[name].shape)
        sizes = part_sizes(model, name, shape[0], len(place.names))
        expected.update((part, (size, *shape[1:])) for part, size in zip(place.names, sizes, strict=True))
        kinds.update(dict.fromkeys(place.names, exact.get(name)))
    missing = [name for name in expected if name not in stored]
    tied = source("language.head.weight", naming).names if model.config.language.tied_head else ()
    unexpected = [
        name
        for name in stored
        if name not in expected and name not in tied and not is_dropped(name, naming, model.config.vision)
    ]
    problems = []
    for what, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            more = f" and {len(names) - 10} more" if len(names) > 10 else ""
            shown = [name if name.isprintable() else repr(name) for name in names[:10]]
            problems.append(f"{what}: {', '.join(shown)}{more}")
    misshapen = [
        f"{name} is {stored[name].shape}, not {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    not_floats = [
        name for name in kinds if name in stored and not kinds[name] and stored[name].dtype not in _FLOATS
    ]
    other = [
        f"{name} is {stored[name].dtype}, not {kind}"
        for name, kind in kinds.items()
        if name in stored and kind is not None and stored[name].dtype != kind
    ]
    if misshapen:
        problems.append(f"misshapen: {'; '.join(misshapen[:10])}")
    if not_floats:
        problems.append(f"not floating-point: {', '.join(not_floats[:10])}")
    if other:
        problems.append(f"of another dtype: {'; '.join(other[:10])}")
    if problems:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {'. '.join(problems)}")


@torch.no_grad()
def fill(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype, rank: int = 0) -> None:
    """Put every tensor of the plan into the model, holding at most one window of the files besides.

    Of a tensor that the model holds a share of, it is that of `rank`. Weights that the model wants quantized
    and the files do not hold so are quantized from their stored precision, on the device,
    once they are whole.
    """
    model, stored, plan = checkpoint.model, checkpoint.stored, checkpoint.plan
    owner = {part: name for name, source in plan.items() for part in source.names}
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    kept = dtypes(model)
    unassigned: dict[str, Tensor] = {}
    begun: dict[
        str, dict[str, Tensor]
    ] = {}  # of tensors that are not whole yet, the places of the parts to come
    for file, names in windows(stored, list(owner), limit=WINDOW):
        for part, tensor in read(file, names):
            name, source = owner[part], plan[owner[part]]
            if name not in begun:
                if name in kept:  # with the columns that it has in the files, and quantized when it is whole
                    whole = torch.empty(
                        (shapes[name][0], *tensor.shape[1:]), device=device, dtype=tensor.dtype
                    )
                    unassigned[name] = whole
                else:
                    whole = torch.empty(shapes[name], device=device, dtype=dtype)
                    _assign(model, name, whole)
                rows = whole[0] if source.squeeze else whole
                sizes = part_sizes(model, name, len(rows), len(source.names))
                begun[name] = dict(zip(source.names, rows.split(sizes), strict=True))
            place = begun[name].pop(part)
            own = _share(tensor, place.shape, rank)
            if dtype == torch.float16 != own.dtype and bool((own.half().isinf() & own.isfinite()).any()):
                raise ValueError(f"{part} holds numbers that float16 does not: name bfloat16 or float32")
            place.copy_(own)
            if not begun[name]:
                del begun[name]
                if name in kept:
                    _assign(model, name, unassigned.pop(name))
            del tensor
    model.language.tie()


def _share(tensor: Tensor, shape: torch.Size, rank: int) -> Tensor:
    """The rank's share of a tensor that is longer than `shape` in one dimension; of others all."""
    for dim, size in enumerate(shape):
        if size < tensor.shape[dim]:
            return tensor.narrow(dim, rank * size, size)
    return tensor


def dtypes(model: nn.Module) -> dict[str, torch.dtype]:
    """The dtypes of those tensors of the model that have one of their own: integers and their scales."""
    return {
        f"{name}.{leaf}": tensor.dtype
        for name, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
        for leaf, tensor in module.named_buffers()
    }


@torch.no_grad()
def _assign(model: nn.Module, name: str, tensor: Tensor) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if not isinstance(module, QuantizedLinear) or leaf == "bias":
        setattr(module, leaf, nn.Parameter(tensor))
    elif tensor.is_floating_point() and leaf == "weight":
        module.set(*quantize_weight(tensor, module.quantization))
    else:
        setattr(module, leaf, tensor)
        module.pack()
