"""Files of weights: which a folder holds, what is in them, and their tensors one window at a time.

safetensors, or PyTorch's zip files through `torch.load(weights_only=True, mmap=True)`: no code in a file is
ever run. Tensors come as views of the mapped file, so that nothing is in memory before it is touched.
"""

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from janus.checks import one_line
from janus.files import shortened
from janus.progress import Progress

FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
DTYPES = {**FLOATS, "I8": torch.int8, "U8": torch.uint8}  # integers are weights that were quantized
MEGABYTE = 1 << 20
SHOWN_FROM = 1024  # megabytes whose reading takes long enough to be shown
# How files of weights are called: a model's, and an autoencoder's in diffusers' layout.
STEMS = (
    ("model", "safetensors"),
    ("diffusion_pytorch_model", "safetensors"),
    ("pytorch_model", "bin"),
    ("diffusion_pytorch_model", "bin"),
)


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a file, unread."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype | None  # None: none of DTYPES

    @property
    def bytes(self) -> int:
        return torch.Size(self.shape).numel() * (self.dtype.itemsize if self.dtype else 1)


def choose_weights(names: Iterable[str]) -> list[str]:
    """Of a folder's or repository's files those that hold its weights, with their index: one representation.

    safetensors before PyTorch's, and a single file before shards; without any, an empty list.
    """
    held = set(names)
    for stem, suffix in STEMS:
        single = f"{stem}.{suffix}"
        if single in held:
            return [single]
        shard = re.compile(rf"{stem}-\d{{5}}-of-\d{{5}}\.{suffix}")
        shards = sorted(name for name in held if name == f"{single}.index.json" or shard.fullmatch(name))
        if shards:
            return shards
    return []


def weight_files(folder: Path) -> list[Path]:
    """The files of weights in a checkpoint folder, as its index names them if there is one.

    Raises FileNotFoundError if there are none or an index names absent ones, ValueError for an index that is
    broken or points outside the folder, OSError for one that cannot be read.
    """
    held = {path.name for path in folder.iterdir() if path.is_file()}
    names = choose_weights(held)
    for name in names:
        if name.endswith(".index.json"):
            shards = indexed_names(folder / name)
            missing = [shortened(shard) for shard in shards if shard not in held]
            if missing:
                raise FileNotFoundError(
                    f"{folder} lacks {len(missing)} of the {len(shards)} files that {name} names: "
                    f"{', '.join(missing[:10])}; fetch them again"
                )
            return [folder / shard for shard in shards]
    if not names:
        raise FileNotFoundError(
            f"{folder} holds no weights: no model.safetensors, no pytorch_model.bin, no shards of either"
        )
    return [folder / name for name in names]


def indexed_names(index: Path) -> list[str]:
    """The files that an index names; raises as `weight_map`."""
    return sorted(set(weight_map(index).values()))


def weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor that an index names.

    ValueError where it is broken, empty, or points outside its folder, OSError where it cannot be read.
    """
    try:
        files = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        names = sorted(set(files.values()))
    except OSError as error:
        raise _unreadable(index, error) from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights ({error!r}): fetch it again") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name:
            raise ValueError(f"{index} points outside its folder, to {name!r}: such a file is never opened")
    if not names:
        raise ValueError(f"{index} names no files: fetch it again")
    return files


def _require_readable(file: Path) -> None:
    """OSError where it may not be opened: libraries that read weights call such a file absent, or broken."""
    try:
        file.open("rb").close()
    except OSError as error:
        raise _unreadable(file, error) from error


def _unreadable(file: Path, error: OSError) -> OSError:
    """The system's refusal in one line that names the file."""
    reason = error.strerror or one_line(error)
    return type(error)(f"{file} cannot be read ({reason}): mend its permissions")


def contents(files: Sequence[Path]) -> dict[str, TensorInfo]:
    """What the files hold together, by name.

    ValueError for a broken file or a name that two files hold, OSError for a file that cannot be read.
    """
    found: dict[str, TensorInfo] = {}
    for file in files:
        for name, stored in _describe(file).items():
            if name in found:
                raise ValueError(
                    f"{name} is in {found[name].file} and in {file.name}: keep one checkpoint a folder"
                )
            found[name] = stored
    return found


def _describe(file: Path) -> dict[str, TensorInfo]:
    if file.suffix == ".safetensors":
        with _open_safetensors(file) as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118 (not a dict)
            return {
                name: TensorInfo(file, tuple(entry.get_shape()), DTYPES.get(entry.get_dtype()))
                for name, entry in slices.items()
            }
    return {
        name: TensorInfo(file, tuple(tensor.shape), tensor.dtype if tensor.dtype in DTYPES.values() else None)
        for name, tensor in _load_pickle(file).items()
    }


@contextmanager
def _open_safetensors(file: Path) -> Iterator[safe_open]:
    _require_readable(file)
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            yield handle
    except OSError as error:
        raise _unreadable(file, error) from error
    except SafetensorError as error:
        raise ValueError(f"{file} is not a whole safetensors file ({error}): fetch it again") from error


def _load_pickle(file: Path) -> dict[str, Tensor]:
    """The tensors of a `.bin`, mapped.

    Anything but a plain dict of names and dense tensors raises ValueError.
    """
    _require_readable(file)
    try:
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # the unpickler of a damaged file may raise anything, an OSError too
        reason = str(error).strip().split("\n")[0].split(". ")[0]
        raise ValueError(
            f"{file} is not a plain file of weights, or not a whole one ({type(error).__name__}: {reason}); "
            "no code in it was run: fetch it again, or convert it to safetensors where you trust it"
        ) from error
    if not isinstance(loaded, dict):
        raise ValueError(f"{file} holds a {type(loaded).__name__}, not a dict of tensors by name")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor) or not _is_dense(value):
            raise ValueError(f"{file}: {name!r} is a {type(value).__name__}, not a dense tensor under a name")
    return loaded


def _is_dense(tensor: Tensor) -> bool:
    """Whether every element has a place of its own in memory: no stride repeats what the file holds once."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_nested:
        return False
    return tensor.nbytes <= tensor.untyped_storage().nbytes()


def read(file: Path, names: Sequence[str]) -> Iterator[tuple[str, Tensor]]:
    """The named tensors of a file, in that order, as views of its mapping.

    Closing happens when the last view is gone.
    """
    if file.suffix == ".safetensors":
        with _open_safetensors(file) as handle:
            for name in names:
                yield name, handle.get_tensor(name)
    else:
        loaded = _load_pickle(file)
        for name in names:
            yield name, loaded[name]


def windows(
    stored: dict[str, TensorInfo], names: Sequence[str], limit: int
) -> Iterator[tuple[Path, list[str]]]:
    """The names file by file, in runs of at most `limit` bytes (or one tensor), to be read one by one.

    Of a large model a terminal shows how far the reading is.
    """
    megabytes = sum(stored[name].bytes for name in names) // MEGABYTE
    with Progress(megabytes, "MB", None if megabytes >= SHOWN_FROM else False) as bar:
        for file in sorted({stored[name].file for name in names}):
            run: list[str] = []
            size = 0
            for name in (name for name in names if stored[name].file == file):
                if run and size + stored[name].bytes > limit:
                    yield file, run
                    bar.advance(size // MEGABYTE)
                    run, size = [], 0
                run.append(name)
                size += stored[name].bytes
            yield file, run
            bar.advance(size // MEGABYTE)
