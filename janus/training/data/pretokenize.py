"""Pictures to codes once and for all: shards that training reads instead of pictures.

A folder holds manifest.json and, for every `shard_rows` rows, 00000.safetensors with `codes` (rows, T) int32
and 00000.jsonl with their prompts. T: codes of a picture.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from hashlib import sha256
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from janus.checks import one_line, require_whole
from janus.files import write_whole
from janus.models.vq import VQ
from janus.processing.processor import Processor
from janus.progress import Progress, Report
from janus.training.data.example import picture_target
from janus.training.data.mixture import Source
from janus.training.data.outline import Geometry
from janus.training.data.rows import Drawing, Row, located
from janus.training.data.sources import JsonLines
from janus.weights.write import write_tensors

MANIFEST = "manifest.json"
CODING_PARTS = ("encoder", "quant_conv", "codebook")  # of a VQ tokenizer; its decoder may go on learning


def fingerprint(vq: VQ) -> str:
    """A sha256 of all that the codes of a picture depend on: the weights that encode, and their geometry.

    Weights count as they are in bfloat16, so that a tokenizer is itself in every dtype it is trained beside.
    """
    digest = sha256(json.dumps({"factor": vq.config.factor, "codes": vq.config.codes}).encode())
    for name, tensor in sorted(vq.state_dict().items()):
        if name.split(".")[0] in CODING_PARTS:
            values = tensor.detach().cpu().bfloat16().float().numpy().astype("<f4")
            digest.update(f"{name} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def pretokenize(
    rows: Source,
    vq: VQ,
    folder: str | PathLike[str],
    *,
    processor: Processor,
    geometry: Geometry,
    shard_rows: int = 1000,
    batch_size: int = 16,
    rank: int = 0,
    ranks: int = 1,
    progress: bool | Report | None = None,
) -> None:
    """Write the codes of all drawings of a source; shards that are there already are kept.

    Of several ranks each writes its own shards. Raises ValueError where the folder was begun from other rows
    or with another tokenizer, and for a row that is no drawing with a picture; what it wrote by then stays.
    Rows are known by their prompts: that a picture has become another one is not seen.
    """
    require_whole("shard_rows", shard_rows, least=1)
    require_whole("batch_size", batch_size, least=1)
    if rows.size is None:
        raise ValueError(f"{rows.name} is endless: only rows that can be counted are tokenized beforehand")
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    manifest = {
        "fingerprint": fingerprint(vq),
        **asdict(geometry),
        "source": rows.name,
        "rows": rows.size,
        "shard_rows": shard_rows,
    }
    _begin(target, manifest)
    with Progress(rows.size, "picture", progress) as bar:
        for shard in range(rank, _shards(manifest), ranks):
            numbers = range(shard * shard_rows, min((shard + 1) * shard_rows, rows.size))
            if _path(target, shard).exists():
                _check_kept(target, shard, rows, numbers)
            else:
                codes, prompts = _encode(rows, numbers, vq, processor, geometry, batch_size)
                _write(target, shard, codes, prompts)
            bar.advance(len(numbers))


class Codes:
    """The drawings in a folder that `pretokenize` wrote, codes in place of pictures.

    Raises ValueError where another tokenizer wrote it, where shards are missing or damaged.
    """

    def __init__(
        self, folder: str | PathLike[str], *, fingerprint: str, geometry: Geometry, name: str | None = None
    ) -> None:
        self.folder = Path(folder)
        self.name = name or str(folder)
        self.manifest = _read_manifest(self.folder)
        wanted = {"fingerprint": fingerprint, **asdict(geometry)}
        for key, value in wanted.items():
            if self.manifest[key] != value:
                raise ValueError(
                    f"{self.folder} was tokenized with the {key} {self.manifest[key]}, and the model's is "
                    f"{value}: tokenize the pictures again"
                )
        shards = range(_shards(self.manifest))
        missing = [shard for shard in shards if not _path(self.folder, shard).is_file()]
        if missing:
            raise ValueError(
                f"{self.folder} lacks {len(missing)} of {len(shards)} shards, the first {missing[0]:05}: "
                "run janus pretokenize to its end"
            )
        self.tokens = geometry.tokens
        self.size: int | None = self.manifest["rows"]
        self._prompts: dict[int, JsonLines] = {}

    def row(self, index: int, seed: int = 0) -> Row:
        shard, number = divmod(index, self.manifest["shard_rows"])
        if shard not in self._prompts:
            self._prompts[shard] = JsonLines(_path(self.folder, shard).with_suffix(".jsonl"))
        prompts, path = self._prompts[shard], _path(self.folder, shard)
        try:
            with safe_open(path, framework="pt") as file:
                codes = file.get_slice("codes")
                count, tokens = codes.get_shape()
                if (count, tokens) != (prompts.size, self.tokens):
                    raise ValueError(f"{count} x {tokens} codes for {prompts.size} prompts")
                own = codes[number]
            return Drawing(prompts.raw(number)["prompt"], codes=own, where=f"{path}:{number}")
        except (SafetensorError, ValueError, TypeError, KeyError, IndexError) as error:
            raise ValueError(
                f"{path} is damaged ({one_line(error)}): remove it and run janus pretokenize again"
            ) from error


def _encode(
    rows: Source,
    numbers: range,
    vq: VQ,
    processor: Processor,
    geometry: Geometry,
    batch_size: int,
) -> tuple[Tensor, list[dict[str, str]]]:
    """The codes (rows, T) of a shard, and what stands beside them."""
    codes, prompts = [], []
    for start in range(numbers.start, numbers.stop, batch_size):
        drawings = [_drawing(rows, number) for number in range(start, min(start + batch_size, numbers.stop))]
        targets = torch.stack([_target(drawing, processor, geometry) for drawing in drawings])
        with torch.no_grad():
            codes.append(vq.encode(targets.to(vq.codebook.device)).flatten(1).int().cpu())
        prompts += [{"prompt": drawing.prompt, "from": drawing.where} for drawing in drawings]
    return torch.cat(codes), prompts


def _drawing(rows: Source, number: int) -> Drawing:
    row = rows.row(number, 0)
    if not isinstance(row, Drawing) or row.picture is None:
        raise ValueError(f"{row.where}: no prompt with an image: only drawings are tokenized, leave it out")
    return row


def _target(drawing: Drawing, processor: Processor, geometry: Geometry) -> Tensor:
    try:
        return picture_target(drawing.picture, processor, geometry.size)
    except (ValueError, FileNotFoundError) as error:
        raise located(error, drawing.where) from error


def _begin(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, or see that the one there says the same."""
    if (folder / MANIFEST).exists():
        begun = _read_manifest(folder)
        for key, value in manifest.items():
            if key != "source" and begun[key] != value:
                raise ValueError(
                    f"{folder} was begun with the {key} {begun[key]}, not {value}: give the same, or another "
                    "folder"
                )
        return
    text = json.dumps(manifest, indent=1) + "\n"
    write_whole(folder / MANIFEST, text.encode())


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give a folder that janus pretokenize wrote")
    remedy = "run janus pretokenize into another folder"
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({one_line(error, 60)}): {remedy}") from error
    whole = ("grid", "factor", "codebook", "rows", "shard_rows")
    if not isinstance(manifest, dict) or not {"fingerprint", "source", *whole} <= set(manifest):
        raise ValueError(f"{path} is no manifest of codes: {remedy}")
    for key in whole:
        require_whole(f"{path}: {key}", manifest[key], least=0 if key == "rows" else 1)
    return manifest


def _check_kept(folder: Path, shard: int, rows: Source, numbers: range) -> None:
    """Raise where a shard that is kept has not the prompts of the rows that it should."""
    lines = JsonLines(_path(folder, shard).with_suffix(".jsonl"))
    for place, number in enumerate(numbers):
        row = _drawing(rows, number)
        kept = lines.raw(place) if place < len(lines.lines) else None
        if not isinstance(kept, dict) or kept.get("prompt") != row.prompt:
            raise ValueError(
                f"{row.where} is not what {_path(folder, shard)} was made of: the rows changed; "
                "give another folder"
            )


def _write(folder: Path, shard: int, codes: Tensor, prompts: list[dict[str, str]]) -> None:
    """The two files of a shard; the codes come last, for what has them is whole."""
    path = _path(folder, shard)
    lines = "".join(json.dumps(entry) + "\n" for entry in prompts)
    write_whole(path.with_suffix(".jsonl"), lines.encode())
    write_whole(path, lambda path: write_tensors({"codes": codes}, path))


def _shards(manifest: Mapping[str, Any]) -> int:
    return int(-(-manifest["rows"] // manifest["shard_rows"]))


def _path(folder: Path, shard: int) -> Path:
    return folder / f"{shard:05}.safetensors"
