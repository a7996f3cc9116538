"""From a model to a checkpoint folder that either layout's own readers open."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from janus.files import require_folder, unfinished, write_whole
from janus.models.janusflow import JanusFlow
from janus.models.multimodal import MultimodalModel
from janus.models.quantized import unpacked
from janus.weights.config_files import format_config
from janus.weights.load import parameter_names, part_sizes
from janus.weights.names import LAYOUTS, Layout, naming_of, sources
from janus.weights.processor_config import SIDE_FILES
from janus.weights.side_files import convert_side_files, image_token_id
from janus.weights.vae import copy_vae, own_vae
from janus.weights.write import write_tensors

# Every name that saving gives to a file of weights: others in the folder are not ours to remove.
WEIGHTS = re.compile(r"model(-\d{5,}-of-\d{5,})?\.safetensors|model\.safetensors\.index\.json")
UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def save(
    model: MultimodalModel,
    path: str | Path,
    *,
    layout: Layout = "deepseek",
    max_shard_size: int | str | None = None,
) -> None:
    """Write the model's weights at their own dtype, its config, and the tokenizer's and processor's files.

    `max_shard_size`, bytes or like "2GB", splits the weights into several files with an index. Files are
    written beside their final names and moved there when all weights are whole. A quantized model is written
    quantized, and a JanusFlow's own autoencoder copied. ValueError as `require_savable` raises, and where the
    folder holds an autoencoder and the model has none.
    """
    limit = require_savable(model, layout, max_shard_size)
    side_files = convert_side_files(model.files, layout)
    config = format_config(
        model.config,
        layout,
        dtype=str(model.dtype).removeprefix("torch."),
        image_token_id=image_token_id(model.files),
    )
    if not str(path).strip():
        raise ValueError("the folder to save into has no name: give one")
    folder = Path(path).expanduser()
    require_folder(folder, "name a folder to save into")
    autoencoder = model.autoencoder if isinstance(model, JanusFlow) else None
    if autoencoder is None and (other := own_vae(folder)) is not None:
        raise ValueError(f"{other} is the autoencoder of another model: remove it, or save elsewhere")
    with unpacked(model):
        written = _write_weights(named_tensors(model, layout), folder, limit)
    for stale in {file for file in folder.iterdir() if WEIGHTS.fullmatch(file.name)} - written:
        stale.unlink()
    for name, content in {**side_files, "config.json": _json_bytes(config)}.items():
        write_whole(folder / name, content)
    if side_files:  # else the folder's own are all there are
        for name in set(SIDE_FILES) - set(side_files):
            (folder / name).unlink(missing_ok=True)  # another checkpoint's, which would speak for this one
    if autoencoder is not None:
        copy_vae(autoencoder, folder)


def require_savable(
    model: MultimodalModel, layout: Layout, max_shard_size: int | str | None = None
) -> int | None:
    """-> the bytes of a file at most, None for any number. No weight is looked at.

    ValueError for a layout or size that is none, for a layout that has no such model, and for a model split
    over several processes.
    """
    if model.language.mesh is not None:
        raise ValueError(
            f"this process holds one of {model.language.mesh.size()} shares of the model: save it from a "
            "process that loaded it whole"
        )
    if layout not in LAYOUTS:
        raise ValueError(f"layout {layout!r} is unknown: name one of {', '.join(LAYOUTS)}")
    naming_of(model.config, layout)  # raises where the layout has no such model
    if layout == "transformers" and model.config.quantization is not None:
        raise ValueError(
            f"this model is quantized to {model.config.quantization}, which transformers cannot read: name "
            "the layout deepseek, or convert the checkpoint that it was loaded from"
        )
    return None if max_shard_size is None else parse_size(max_shard_size)


def named_tensors(model: MultimodalModel, layout: Layout) -> dict[str, Tensor]:
    """The model's tensors under the layout's names; views where the layout splits what is one tensor here."""
    state = model.state_dict()
    named: dict[str, Tensor] = {}
    for name, source in sources(parameter_names(model), naming_of(model.config, layout)).items():
        tensor = state[name][0] if source.squeeze else state[name]
        sizes = part_sizes(model, name, len(tensor), len(source.names))
        named.update(zip(source.names, tensor.split(sizes), strict=True))
    return named


def parse_size(size: int | str) -> int:
    """Bytes of what is a number of them, or like "2GB"; ValueError for anything else."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMG]I?B)?", str(size).strip().upper())
    if found is None or float(found.group(1)) <= 0:
        raise ValueError(
            f"max_shard_size {size!r} is not a size: name bytes, or a string like '2GB' or '500MB'"
        )
    return int(float(found.group(1)) * UNITS[found.group(2) or ""])


def _shards(named: Mapping[str, Tensor], limit: int | None) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in named.items():
        if limit is not None and shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def _write_weights(named: Mapping[str, Tensor], folder: Path, limit: int | None) -> set[Path]:
    shards = _shards(named, limit)
    weight_map: dict[str, str] = {}
    partial: dict[Path, Path] = {}
    try:
        for number, shard in enumerate(shards, start=1):
            file = (
                "model.safetensors"
                if len(shards) == 1
                else f"model-{number:05}-of-{len(shards):05}.safetensors"
            )
            weight_map.update(dict.fromkeys(shard, file))
            temporary = partial[folder / file] = unfinished(folder / file)
            write_tensors(shard, temporary, metadata={"format": "pt"})
        # All shards are whole before the first takes its place: no failure mixes two checkpoints.
        for final, temporary in partial.items():
            os.replace(temporary, final)
    finally:
        for temporary in partial.values():
            temporary.unlink(missing_ok=True)
    written = set(partial)
    if len(shards) > 1:
        index = folder / "model.safetensors.index.json"
        total = sum(tensor.nbytes for tensor in named.values())
        write_whole(index, _json_bytes({"metadata": {"total_size": total}, "weight_map": weight_map}))
        written.add(index)
    return written


def _json_bytes(values: object) -> bytes:
    return (json.dumps(values, indent=2, ensure_ascii=False) + "\n").encode()
