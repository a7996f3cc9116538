"""Files that are written whole or not at all, and places to write to that are tried before the work."""

import os
from collections.abc import Callable
from pathlib import Path


def write_whole(file: Path, content: bytes | Callable[[Path], object], mark: str = "") -> None:
    """Write a file, or have it written, under another name, and let it take the place of `file` then.

    A failure leaves what was there, and nothing beside it. Several processes that may write one file give
    each a `mark` of its own.
    """
    unfinished = file.with_name(f".{file.name}{mark}.partial")
    try:
        if isinstance(content, bytes):
            unfinished.write_bytes(content)
        else:
            content(unfinished)
        unfinished.replace(file)
    finally:
        unfinished.unlink(missing_ok=True)


def require_place(file: Path, option: str, ending: str = "") -> None:
    """Make the folder that a file will be written to; what cannot be written is told before the work.

    Raises ValueError for a folder, or another ending, and OSError; `option` is where another is named.
    """
    if file.is_dir() or (ending and file.suffix.lower() != ending):
        wanted = f"a file that ends in {ending}" if ending else "a file"
        raise ValueError(f"{file} must be {wanted}: name another with {option}")
    file.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise PermissionError(f"{file} cannot be written: name another with {option}")
