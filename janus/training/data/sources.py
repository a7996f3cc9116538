"""Where rows come from: lines of JSON, Hugging Face datasets, and worlds that make them up."""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from itertools import accumulate
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from janus.checks import one_line
from janus.training.data.outline import Task
from janus.training.data.rows import KINDS, Drawing, Row, beside, parse_row, picture_from_bytes

OWN: Mapping[Task, str] = {"understanding": "messages", "text": "text", "drawing": "prompt"}


class JsonLines:
    """A file with a row a line; relative paths of pictures are relative to the file's folder.

    Blank lines are passed over, and those whose numbers (from 1) are among `rejects`. Only the places of the
    lines are kept in memory.
    """

    def __init__(
        self, path: str | PathLike[str], rejects: Iterable[int] = (), name: str | None = None
    ) -> None:
        self.path = Path(path)
        self.name = name or str(path)
        self.lines, self.starts = _index(self.path, frozenset(rejects))
        self.size: int | None = len(self.lines)

    def row(self, index: int, seed: int = 0) -> Row:
        return parse_row(self.raw(index), self.where(index), beside(self.path.parent))

    def where(self, index: int) -> str:
        """File and line of a row."""
        return f"{self.path}:{self.lines[index]}"

    def raw(self, index: int) -> Any:
        """The JSON value of a row. Raises ValueError naming its line where it is none."""
        with self.path.open("rb") as file:
            file.seek(int(self.starts[index]))
            line = file.readline()
        try:
            return json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.where(index)}: {line.decode(errors='replace').strip()!r:.60} is not JSON "
                f"({one_line(error, 60)}): write one object a line"
            ) from error


class Table:
    """Any list of dictionaries: a Hugging Face dataset, whose pictures may be decoded or not.

    `columns` says where the keys of a row (messages, images, prompt, image, codes, text) are to be read
    from, where their columns are called otherwise. Of a row that has messages, a prompt and a text, or two of
    them, those of the `task` count.
    """

    def __init__(
        self, rows: Any, name: str, columns: Mapping[str, str] | None = None, task: Task | None = None
    ) -> None:
        self.rows, self.name, self.columns, self.task = rows, name, dict(columns or {}), task
        self.size: int | None = len(rows)
        known = getattr(rows, "column_names", None)
        for column in self.columns.values():
            if known is not None and column not in known:
                raise ValueError(
                    f"{name} has no column {column!r}: name one of {', '.join(map(str, known)) or 'none'}"
                )

    def row(self, index: int, seed: int = 0) -> Row:
        where = f"{self.name}:{index}"
        try:
            raw = self.rows[index]
        # Any class of exception: a dataset decodes pictures here, and what that raises depends on the damage.
        except Exception as error:
            raise ValueError(f"{where}: the row cannot be read ({one_line(error)}): check it") from error
        if isinstance(raw, Mapping):
            renamed = set(self.columns.values())
            kept = {key: value for key, value in raw.items() if key not in renamed}
            raw = kept | {key: raw.get(column) for key, column in self.columns.items()}
            own = None if self.task is None else OWN[self.task]
            if own is not None and raw.get(own) is not None:
                raw = {key: value for key, value in raw.items() if key == own or key not in KINDS}
        return parse_row(raw, where, lambda picture: _undecoded(picture, where))


def hugging_face(
    path: str,
    *,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    task: Task | None = None,
    **options: Any,
) -> Table:
    """A split of a dataset on the hub or on disk, as a `Table`; `options` are of `datasets.load_dataset`.

    Raises ValueError where the package `datasets` is missing, or cannot load it.
    """
    try:
        datasets = import_module("datasets")
    except ImportError as error:
        raise ValueError(
            f"{path} is a Hugging Face dataset, and the package datasets is missing: pip install datasets"
        ) from error
    try:
        if (Path(path) / "dataset_dict.json").is_file():
            loaded = datasets.load_from_disk(path)[split]
        elif (Path(path) / "state.json").is_file():
            loaded = datasets.load_from_disk(path)
            held = getattr(loaded, "split", None) or "train"
            if str(held) != split:
                raise ValueError(f"it holds the split {held} alone: give that one")
        else:
            loaded = datasets.load_dataset(path, split=split, **options)
    # Any class of exception: the package raises its own, and those of what it fetches and parses with.
    except Exception as error:
        raise ValueError(
            f"{path}[{split}] cannot be loaded as a Hugging Face dataset ({one_line(error)}): check its name "
            "and splits, and the network"
        ) from error
    read_as = ", ".join(f"{key} = {column}" for key, column in sorted((columns or {}).items()))
    return Table(loaded, f"{path}[{split}]" + (f" ({read_as})" if read_as else ""), columns, task)


class World:
    """Endless rows that `make` invents: a function, at a module's top level, from a generator to a row.

    The row is what a line of JSON would say, its pictures as `PIL.Image` or arrays, and to a drawing its
    `meaning` besides, if it has one.
    """

    def __init__(self, make: Callable[[np.random.Generator], Mapping[str, Any]], name: str) -> None:
        self.make, self.name = make, name
        self.size: int | None = None

    def row(self, index: int, seed: int) -> Row:
        made = self.make(np.random.default_rng(seed))
        row = parse_row(made, f"{self.name}[seed {seed}]")
        return replace(row, meaning=made.get("meaning")) if isinstance(row, Drawing) else row


class Joined:
    """Several sources of a size, one after another, as one."""

    def __init__(self, sources: Sequence[JsonLines], name: str) -> None:
        self.sources, self.name = list(sources), name
        self.ends = list(accumulate(len(source.lines) for source in sources))
        self.size: int | None = self.ends[-1]

    def row(self, index: int, seed: int = 0) -> Row:
        number = bisect_right(self.ends, index)
        return self.sources[number].row(index - (self.ends[number - 1] if number else 0), seed)


def _index(path: Path, rejects: frozenset[int]) -> tuple[np.ndarray, np.ndarray]:
    """The numbers, from 1, and first bytes of the lines that hold something and are not rejected."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give a file with one JSON object a line")
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist: give a file with one JSON object a line")
    numbers, starts, start = [], [], 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip() and number not in rejects:
                numbers.append(number)
                starts.append(start)
            start += len(line)
    return np.array(numbers, dtype=np.int64), np.array(starts, dtype=np.int64)


def _undecoded(picture: Any, where: str) -> Any:
    """What a dataset holds of a picture that it does not decode: its bytes, or its path."""
    if not isinstance(picture, Mapping):
        return picture
    path, content = picture.get("path"), picture.get("bytes")
    if content is not None:
        return picture_from_bytes(content, f"{where}: {path or 'a picture'}")
    if path is None:
        raise ValueError(f"{where}: a picture has neither bytes nor a path: leave the row out")
    return path
