"""Lists of the lines that training passes over: a line of JSON for each, its file relative to the list."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from janus.checks import require_whole
from janus.files import write_whole
from janus.training.data.sources import JsonLines


def write_rejects(path: Path, problems: Mapping[int, Sequence[str]], target: Path) -> None:
    """Write a file's unusable lines, and why they are, into a list; what it says of other files stays."""
    name = os.path.relpath(path, target.parent)
    others = [entry for entry in _entries(target) if entry["file"] != name] if target.exists() else []
    entries = [
        {"file": name, "bytes": path.stat().st_size, "line": line, "problems": list(messages)}
        for line, messages in problems.items()
    ]
    text = "".join(json.dumps(entry) + "\n" for entry in [*others, *entries])
    write_whole(target, text.encode())


def read_rejects(path: Path, target: Path) -> list[int]:
    """The lines of a file that a list of rejects names: what `JsonLines` is to pass over.

    Raises ValueError where the file has changed since.
    """
    name = os.path.relpath(path, target.parent)
    entries = [entry for entry in _entries(target) if entry["file"] == name]
    if any(entry["bytes"] != path.stat().st_size for entry in entries):
        raise ValueError(f"{path} has changed since {target} was written: run janus data check again")
    return [entry["line"] for entry in entries]


def _entries(target: Path) -> list[dict[str, Any]]:
    source = JsonLines(target)
    entries = [source.raw(index) for index in range(len(source.lines))]
    for index, entry in enumerate(entries):
        if not isinstance(entry, dict) or not {"file", "bytes", "line"} <= set(entry):
            raise ValueError(f"{source.where(index)} is no reject: run janus data check again")
        require_whole(f"{source.where(index)}: line", entry["line"], least=1)
    return entries
