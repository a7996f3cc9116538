"""A source by its path: JSON lines, tar shards, or a folder of codes; or all files that fit a pattern."""

from __future__ import annotations

from glob import glob, has_magic
from pathlib import Path

from janus.models.vq import VQ
from janus.training.data.mixture import Source
from janus.training.data.outline import Geometry
from janus.training.data.pretokenize import MANIFEST, Codes, fingerprint
from janus.training.data.rejects import read_rejects
from janus.training.data.shards import TarShards
from janus.training.data.sources import Joined, JsonLines

REJECTS = "rejects.jsonl"


def open_source(path: str, *, vq: VQ | None = None, geometry: Geometry | None = None) -> Source:
    """The source that a path or a pattern with * names; a folder of codes must be of the tokenizer `vq`.

    Lines in the rejects.jsonl beside a file of JSON lines, which `janus data check --skip-bad` writes, are
    passed over. Raises FileNotFoundError or ValueError with the remedy.
    """
    is_pattern = has_magic(path) and not Path(path).exists()  # a name may have a [ of its own
    found = sorted(glob(path, recursive=True)) if is_pattern else [path]
    files = [each for each in map(Path, found) if each.name != REJECTS]
    if not files:
        raise FileNotFoundError(f"no file fits {path}: give the path of JSON lines, tar shards or codes")
    if len(files) == 1 and (files[0] / MANIFEST).is_file():
        if vq is None or geometry is None:
            raise ValueError(
                f"{path} holds codes, and there is no tokenizer to compare them with: name a model"
            )
        return Codes(path, fingerprint=fingerprint(vq), geometry=geometry, name=path)
    tars = [".tar" in file.suffixes for file in files]
    if any(tars) and not all(tars):
        raise ValueError(f"{path} is tar shards and other files: give a pattern for each")
    if all(tars):
        return TarShards(files, name=path)
    lines = [_lines(file) for file in files]
    return lines[0] if len(lines) == 1 else Joined(lines, path)


def _lines(path: Path) -> JsonLines:
    rejects = path.parent / REJECTS
    return JsonLines(path, read_rejects(path, rejects) if rejects.is_file() else ())
