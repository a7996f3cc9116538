"""Rows in tar files of the webdataset layout: files of one name, up to its first dot, are one row."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

from janus.checks import one_line
from janus.training.data.rows import Row, parse_row, picture_from_bytes

TEXTS = ("txt", "caption")
ENDING = 2 * tarfile.BLOCKSIZE  # zeros, at least so many, with which a tar file ends
PICTURES = ("png", "jpg", "jpeg", "webp", "bmp", "gif", "tif", "tiff")


@dataclass
class Sample:
    """The files of one row: from the ending of a name to where its content begins, and its bytes."""

    shard: int
    key: str
    files: dict[str, tuple[int, int]] = field(default_factory=dict)

    def pictures(self) -> list[str]:
        """The endings of the pictures, in order of their names."""
        return sorted(each for each in self.files if each.rpartition(".")[2].lower() in PICTURES)


class TarShards:
    """Uncompressed tar files; their headers are read once, and contents where they are wanted.

    A sample is a `.json` with a row (its `images` and `image` name files of the sample, by ending or whole
    name; left out, they are the sample's pictures in the order of their names), or a `.txt` with a prompt and
    the picture that it should become. Raises ValueError naming file and sample.
    """

    def __init__(self, paths: Sequence[str | PathLike[str]], name: str | None = None) -> None:
        self.paths = [Path(path) for path in paths]
        self.name = name or ", ".join(map(str, self.paths[:1])) + (" …" if len(self.paths) > 1 else "")
        self.samples: list[Sample] = []
        for shard, path in enumerate(self.paths):
            self.samples += _samples(path, shard)
        self.size: int | None = len(self.samples)

    def row(self, index: int, seed: int = 0) -> Row:
        sample = self.samples[index]
        where = self.where(index)
        raw = self._raw(sample, where)
        if isinstance(raw, Mapping):
            raw = _with_pictures(raw, sample.pictures())
        return parse_row(raw, where, lambda picture: self._picture(sample, picture, where))

    def where(self, index: int) -> str:
        """File and sample of a row."""
        return f"{self.paths[self.samples[index].shard]}:{self.samples[index].key}"

    def _raw(self, sample: Sample, where: str) -> Any:
        if "json" in sample.files:
            content = self._content(sample, "json")
            try:
                return json.loads(content)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{where}.json is not JSON ({one_line(error, 60)}): write one object"
                ) from error
        text = next((each for each in TEXTS if each in sample.files), None)
        if text is None or len(sample.pictures()) != 1:
            raise ValueError(
                f"{where} has the files {', '.join(sorted(sample.files))}: give a .json, or a .txt and one "
                "picture"
            )
        try:
            prompt = self._content(sample, text).decode()
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{where}.{text} is not UTF-8 ({one_line(error, 60)}): encode it anew"
            ) from error
        return {"prompt": prompt.strip()}

    def _picture(self, sample: Sample, picture: Any, where: str) -> Any:
        if not isinstance(picture, str) or picture.startswith("data:"):
            return picture
        stems = ("", f"{sample.key}.", f"{sample.key.rpartition('/')[2]}.")
        endings = [picture.removeprefix(stem) for stem in stems]
        ending = next((each for each in endings if each in sample.files), None)
        if ending is None:
            raise ValueError(
                f"{where} has no file {picture!r}: name one of {', '.join(sorted(sample.files))}"
            )
        return picture_from_bytes(self._content(sample, ending), f"{where}.{ending}")

    def _content(self, sample: Sample, ending: str) -> bytes:
        start, count = sample.files[ending]
        with self.paths[sample.shard].open("rb") as file:
            file.seek(start)
            return file.read(count)


def _samples(path: Path, shard: int) -> list[Sample]:
    """The samples of a shard, in the order of their first files."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: give an uncompressed tar file")
    samples: dict[str, Sample] = {}
    try:
        with tarfile.open(path, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                folder, slash, base = member.name.rpartition("/")
                stem, _, ending = base.partition(".")
                sample = samples.setdefault(folder + slash + stem, Sample(shard, folder + slash + stem))
                if ending in sample.files:
                    raise ValueError(f"{path} holds {member.name} twice: write the shard again")
                sample.files[ending] = (member.offset_data, member.size)
            _check_end(path, archive.offset)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(
            f"{path} is no whole, uncompressed tar file ({one_line(error)}): write or unpack it again"
        ) from error
    size = path.stat().st_size
    for sample in samples.values():
        if any(start + count > size for start, count in sample.files.values()):
            raise ValueError(f"{path} ends inside the sample {sample.key}: copy the shard again")
    return list(samples.values())


def _check_end(path: Path, end: int) -> None:
    """ValueError unless a shard's headers end with its end: what is damaged reads like one."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(end)
        blocks = iter(partial(file.read, 1 << 20), b"")
        if size < end + ENDING or any(block.count(0) < len(block) for block in blocks):
            raise ValueError(
                f"{path} is damaged or cut at byte {min(end, size)} of {size}: write or copy the shard again"
            )


def _with_pictures(raw: Mapping[str, Any], pictures: list[str]) -> Mapping[str, Any]:
    """A row that names no pictures, with those of its sample."""
    if raw.get("messages") is not None and raw.get("images") is None and pictures:
        return {**raw, "images": pictures}
    drawn = raw.get("prompt") is not None and raw.get("image") is None and raw.get("codes") is None
    return {**raw, "image": pictures[0]} if drawn and len(pictures) == 1 else raw
