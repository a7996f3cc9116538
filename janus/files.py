"""Files that are written whole or not at all, and paths that are tried before the work."""

import os
import secrets
from collections.abc import Callable
from pathlib import Path

UNFINISHED = ".partial"


def write_whole(file: Path, content: bytes | Callable[[Path], object]) -> None:
    """Write a file, or have it written, under another name, and let it take the place of `file` then.

    A failure leaves what was there, and nothing beside it; of processes that write at once the last counts.
    """
    temporary = unfinished(file)
    try:
        if isinstance(content, bytes):
            temporary.write_bytes(content)
        else:
            content(temporary)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def unfinished(file: Path) -> Path:
    """Where this process writes what is to become `file`: no other does, and nobody takes it for a file."""
    return file.with_name(f".{file.name}.{os.getpid()}-{secrets.token_hex(4)}{UNFINISHED}")


def is_unfinished(file: Path) -> bool:
    """Whether a process that was killed left it."""
    return file.name.startswith(".") and file.name.endswith(UNFINISHED)


def require_place(file: Path, option: str, ending: str = "") -> None:
    """Make the folder that a file will be written to; what cannot be written is told before the work.

    Raises ValueError for a folder, or another ending, and OSError; `option` is where another is named.
    """
    try:
        is_folder = file.is_dir()
        if not is_folder:
            file.parent.mkdir(parents=True, exist_ok=True)
        writable = os.access(file if file.exists() else file.parent, os.W_OK)
    except OSError as error:  # a name too long, a file where a folder should be, a disk that is read only
        raise type(error)(
            f"{shortened(file)} cannot be written ({_reason(error)}): name another with {option}"
        ) from error
    if is_folder or (ending and file.suffix.lower() != ending):
        wanted = f"a file that ends in {ending}" if ending else "a file"
        raise ValueError(f"{file} must be {wanted}: name another with {option}")
    if not writable:
        raise PermissionError(f"{file} cannot be written: name another with {option}")


def require_folder(folder: Path, remedy: str) -> None:
    """Make a folder that files will be written to; ValueError for a file, OSError where they cannot be."""
    if folder.is_file():
        raise ValueError(f"{folder} is a file: {remedy}")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(f"{shortened(folder)} cannot be made ({_reason(error)}): {remedy}") from error
    if not os.access(folder, os.W_OK):
        raise PermissionError(f"{shortened(folder)} cannot be written to: {remedy}")


def is_file(path: str | Path) -> bool:
    """Whether there is a file of this name, or could be: any text will do."""
    try:
        return Path(path).expanduser().is_file()
    except (OSError, RuntimeError, ValueError):  # too long for a name, a home of nobody, a null byte
        return False


def require_picture(picture: str | Path, where: str = "") -> None:
    """FileNotFoundError, beginning with `where`, for a picture that is no file, nor a data: URI."""
    if not (str(picture).startswith("data:") or is_file(picture)):
        shown = shortened(picture) if str(picture) else repr(picture)
        raise FileNotFoundError(f"{where}{shown} is not a file: give the path of a picture")


def shortened(path: str | os.PathLike[str], limit: int = 120) -> str:
    """A path as messages show it: what was taken for one may be a text of any length."""
    text = os.fspath(path)
    return text if len(text) <= limit else f"{text[:limit]}…"


def _reason(error: OSError) -> str:
    is_file = isinstance(error, FileExistsError | NotADirectoryError)
    return "there is a file where a folder should be" if is_file else error.strerror or "it fails"
