"""Where a model's files are: a local folder as it is, or a hub id by way of the Hugging Face cache."""

import contextlib
import errno
import re
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, NoReturn

from huggingface_hub import HfApi, constants, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import tqdm, validate_repo_id

from janus.checks import one_line
from janus.weights.processor_config import SIDE_FILES
from janus.weights.read import choose_weights, indexed_names
from janus.weights.write import system_errno

AUTOENCODER = "vae"  # the folder of a JanusFlow's own, as diffusers nests it
SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})(\.safetensors|\.bin)")

# The hub's HTTP client was requests, then httpx, then httpx2. HfHubHTTPError derives from the client's own
# error, so that its base names the failures of whichever is installed (requests' own are OSErrors besides).
LISTING_FAILURES: tuple[type[Exception], ...] = (HfHubHTTPError.__bases__[0], OSError)
DOWNLOAD_FAILURES: tuple[type[Exception], ...] = (*LISTING_FAILURES, RuntimeError)  # the last is hf_xet's

LISTING_TIMEOUT = 10.0  # seconds

EXPECTED = "config.json, tokenizer.json and *.safetensors or pytorch_model*.bin"
EXAMPLE = "deepseek-ai/Janus-Pro-1B"

SHAPES = Path(__file__).parent / "shapes"  # the model that comes with the package


def find(
    source: str | PathLike[str],
    *,
    weights: bool = True,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: Path | None = None,
) -> Path:
    """The folder that holds a model: `source` itself if it is one, else the cached snapshot of that hub id.

    "shapes" is the model that comes with the package, where no folder of that name is in the way.

    Only what loading needs is fetched, side files alone if `weights` is False; offline, the cache serves.
    Raises ValueError (malformed id), FileNotFoundError (absent, not cached), PermissionError (refused),
    ConnectionError (no network, broken download) or OSError (full disk).
    """
    folder = _local_folder(source)
    if folder is not None:
        if revision is not None:
            raise ValueError(
                f"revision {revision!r} is of models on the hub, and {source} is a folder: leave it out"
            )
        return folder
    repository = _Repository(
        _checked_id(source), revision, token, Path(cache_dir or constants.HF_HUB_CACHE).expanduser()
    )
    try:
        sizes = repository.sizes()
    except LISTING_FAILURES as error:
        repository.raise_if_refused(error)
        return repository.cached_folder(error, weights=weights)
    files = needed(sizes, weights=weights)
    repository.raise_if_useless(sizes, files, weights=weights)
    repository.raise_if_too_large({name: sizes[name] for name in files})
    return repository.download(files, weights=weights)


def needed(names: Iterable[str], *, weights: bool = True) -> list[str]:
    """The files among `names` that loading takes: the side files and, if `weights`, one representation of the
    weights with its index; of a JanusFlow's own autoencoder, in `vae`, the same. Other subfolders (original
    releases, onnx, pictures) never count."""
    by_folder: dict[str, set[str]] = {"": set(), AUTOENCODER: set()}
    for name in names:
        folder, _, own = name.rpartition("/")
        by_folder.setdefault(folder, set()).add(own)
    top, nested = by_folder[""], by_folder[AUTOENCODER]
    found = [name for name in ("config.json", *SIDE_FILES) if name in top]
    found += choose_weights(top) if weights else []
    if "config.json" in nested:
        of_vae = ["config.json", *(choose_weights(nested) if weights else ())]
        found += [f"{AUTOENCODER}/{name}" for name in of_vae]
    return found


def missing(folder: Path, *, weights: bool = True) -> list[str]:
    """What `folder` lacks to be loaded, as far as its own files tell: config.json, the weights, some shards;
    without `weights`, only whether it holds any side file at all."""
    # A link to a blob that is gone is not a file.
    names = {path.name for path in folder.iterdir() if path.is_file()}
    if not weights:
        return [] if needed(names, weights=False) else ["config.json"]
    lacking = [] if "config.json" in names else ["config.json"]
    files = choose_weights(names)
    if not files:
        return [*lacking, "the weights"]
    shards: set[str] = set()
    for name in files:
        if name.endswith(".index.json"):
            try:
                shards.update(indexed_names(folder / name))
            except (ValueError, OSError):
                lacking.append(f"a readable {name}")
        elif match := SHARD.fullmatch(name):
            stem, _, count, suffix = match.groups()
            shards.update(f"{stem}-{number:05d}-of-{count}{suffix}" for number in range(1, int(count) + 1))
    return lacking + sorted(shards - names)


def _local_folder(source: str | PathLike[str]) -> Path | None:
    """The folder that `source` names, or None if it can only be a hub id."""
    if not isinstance(source, str | PathLike):
        raise ValueError(f"a model is named by a folder or a hub id such as {EXAMPLE}, not {source!r}")
    text = source if isinstance(source, str) else Path(source).as_posix()
    if not text.strip():
        raise ValueError(f"the model's name is empty: give a folder or a hub id such as {EXAMPLE}")
    try:
        path = Path(source).expanduser()
        if path.is_dir():
            return path
        is_file = path.exists()
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a name too long, a home that is unknown, a null byte
        raise FileNotFoundError(f"{text!r} names no folder: {one_line(error)}") from error
    if is_file:
        raise FileNotFoundError(f"{text} is a file: give the folder that holds it, with {EXPECTED}")
    if text == SHAPES.name:
        return SHAPES
    if path.is_absolute() or text[0] in ".~" or "\\" in text or text.count("/") != 1:
        raise FileNotFoundError(
            f"{text}: no such folder (expected one with {EXPECTED}); a hub id looks like {EXAMPLE}"
        )
    return None


def _checked_id(source: str | PathLike[str]) -> str:
    name = source if isinstance(source, str) else Path(source).as_posix()
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise ValueError(
            f"{name!r} is neither a folder nor a valid hub id ({one_line(error)}): one looks like {EXAMPLE}"
        ) from error
    return name


@dataclass(frozen=True)
class _Repository:
    """One model on the hub, at one revision, with the cache that it is kept in."""

    id: str
    revision: str | None
    token: str | None
    cache: Path

    def __str__(self) -> str:
        return self.id if self.revision is None else f"{self.id} at revision {self.revision}"

    def sizes(self) -> dict[str, int]:
        """Bytes of every file on the hub (0 where the hub does not say).

        LISTING_FAILURES where it cannot be had; ConnectionError for the answer of something else.
        """
        try:
            # Not list_repo_files: without a network it retries for 23 seconds before it gives up.
            info = HfApi(token=self.token).model_info(
                self.id, revision=self.revision, files_metadata=True, timeout=LISTING_TIMEOUT
            )
            return {file.rfilename: file.size or 0 for file in info.siblings or ()}
        except HFValidationError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError) as error:  # a page to log in at, say
            raise ConnectionError(f"what answers is not the Hub: {one_line(error)}") from error

    def download(self, files: list[str], *, weights: bool) -> Path:
        try:
            folder = Path(self._snapshot(files))
        except DOWNLOAD_FAILURES as error:
            self.raise_if_refused(error)
            self._raise_broken_download(error)
        if lacking := missing(folder, weights=weights):
            raise FileNotFoundError(
                f"{self}: the repository lacks {_listed(lacking)}: its upload is incomplete"
            )
        return folder

    def cached_folder(self, error: Exception, *, weights: bool) -> Path:
        """The cached snapshot, complete; else an error that tells why the hub could not supply it."""
        if isinstance(error, OfflineModeIsEnabled):
            kind: type[OSError] = FileNotFoundError
            reason, remedy = "HF_HUB_OFFLINE is set", "unset it once to download, or give a local folder"
        else:
            kind = ConnectionError
            reason, remedy = (
                f"the Hub cannot be reached ({one_line(error)})",
                "check the network, or give a local folder",
            )
        try:
            folder = Path(self._snapshot(list(SIDE_FILES), local_files_only=True))
        except LocalEntryNotFoundError as absent:
            # Newer releases of huggingface_hub remember what belongs to a snapshot and notice what it lacks.
            if partial := getattr(absent, "snapshot_path", None):
                raise kind(
                    f"{self}: the cached copy in {partial} is incomplete, and {reason}; {remedy}"
                ) from error
            raise kind(f"{self}: no copy in {self.cache}, and {reason}; {remedy}") from error
        if lacking := missing(folder, weights=weights):
            raise kind(
                f"{self}: the cached copy in {folder} lacks {_listed(lacking)}, and {reason}; {remedy}"
            ) from error
        return folder

    def raise_if_refused(self, error: Exception) -> None:
        """Raise the one-line form of an answer by the hub that neither waiting nor the cache can mend."""
        status = getattr(getattr(error, "response", None), "status_code", None)
        log_in = "`hf auth login` or token="
        if isinstance(error, GatedRepoError):
            page = f"{HfApi().endpoint}/{self.id}"
            raise PermissionError(
                f"{self} is gated: accept its license at {page}, then {log_in} of that account"
            ) from error
        if isinstance(error, RepositoryNotFoundError):
            raise FileNotFoundError(
                f"{self}: no such folder here and no such model on the Hub: check the spelling; "
                f"if it is private, {log_in}"
            ) from error
        if isinstance(error, RevisionNotFoundError):
            raise FileNotFoundError(
                f"{self.id} has no revision {self.revision!r}: give one of its branches, tags or commits"
            ) from error
        if status == 401:
            raise PermissionError(
                f"{self}: the Hub rejects the access token as invalid: give another by {log_in}, "
                "or unset HF_TOKEN (public models need none)"
            ) from error
        if status == 403:
            raise PermissionError(
                f"{self}: the Hub forbids access with this token: give one that may read it by {log_in}"
            ) from error
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise FileNotFoundError(f"{self}: a file is missing on the Hub: {one_line(error)}") from error

    def raise_if_useless(self, names: Iterable[str], files: list[str], *, weights: bool) -> None:
        """Raise if the repository is no model that can be loaded, naming what it has instead."""
        lacking = []
        if weights and not choose_weights(name for name in files if "/" not in name):
            lacking.append("weights (*.safetensors or pytorch_model*.bin)")
        if "config.json" not in files and (weights or not files):
            lacking.insert(0, "config.json")
        if lacking:
            raise FileNotFoundError(
                f"{self} has no {' and no '.join(lacking)}; it has {_listed(sorted(names)) or 'no files'}. "
                f"A model to load looks like {EXAMPLE}"
            )

    def raise_if_too_large(self, sizes: dict[str, int]) -> None:
        """Raise if the disk of the cache cannot take the files (name: bytes) that are not there yet."""
        required = sum(size for name, size in sizes.items() if not self._is_cached(name))
        # Releases of huggingface_hub that resume in mid-file continue what they find here.
        blobs = self.cache / f"models--{self.id.replace('/', '--')}" / "blobs"
        for path in blobs.glob("*.incomplete"):
            with contextlib.suppress(FileNotFoundError):  # another process has finished it meanwhile
                required -= path.stat().st_size
        existing = next(path for path in (self.cache, *self.cache.absolute().parents) if path.exists())
        if required > (free := shutil.disk_usage(existing).free):
            raise OSError(
                f"{self} needs {required / 1e9:.1f} GB more in {self.cache} and its disk has "
                f"{free / 1e9:.1f} GB free: make room, or move the cache by HF_HOME"
            )

    def _is_cached(self, name: str) -> bool:
        found = try_to_load_from_cache(self.id, name, cache_dir=self.cache, revision=self.revision)
        return isinstance(found, str)

    def _snapshot(self, files: list[str], *, local_files_only: bool = False) -> str:
        return snapshot_download(
            self.id,
            revision=self.revision,
            token=self.token,
            cache_dir=self.cache,
            allow_patterns=files,
            local_files_only=local_files_only,
            tqdm_class=_TerminalBar,
        )

    def _raise_broken_download(self, error: Exception) -> NoReturn:
        code = system_errno(error)
        if code in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(
                f"{self}: the disk of {self.cache} is full: make room, or move the cache by HF_HOME, "
                "and run it again to resume (finished files are kept)"
            ) from error
        if code in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise PermissionError(
                f"{self}: the cache {self.cache} cannot be written ({one_line(error)}): "
                "mend its permissions, or move it by HF_HOME"
            ) from error
        raise ConnectionError(
            f"{self}: the download broke off ({one_line(error)}): run it again to resume "
            "(finished files are kept)"
        ) from error


class _TerminalBar(tqdm):
    """The hub's progress bar, silent where the output is not a terminal."""

    def __init__(self, *args: Any, **options: Any) -> None:
        options.setdefault("disable", None)
        super().__init__(*args, **options)


def _listed(names: list[str], *, limit: int = 10) -> str:
    rest = len(names) - limit
    return ", ".join(names[:limit]) + (f" and {rest} more" if rest > 0 else "")
