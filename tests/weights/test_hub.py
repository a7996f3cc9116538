"""Finding a model: folders, the choice of files, the cache offline, the message of every failure."""

import errno
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from janus.weights import hub

ID = "deepseek-ai/Janus-Pro-1B"
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SIDES = ["config.json", "tokenizer.json", "preprocessor_config.json", "processor_config.json"]
SHARDS = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
BIN_SHARDS = ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"]
INDEX = "model.safetensors.index.json"


# What the hub's HTTP client raises where there is no network.
Broken: Any = type("Broken", (hub.LISTING_FAILURES[0],), {})


def answer(kind: type[Exception], status: int) -> Exception:
    """An error of `kind` as the hub's answer with that HTTP status gives it."""
    error = kind.__new__(kind, "text")
    error.args = (f"{status} Client Error.\n\nat some address",)
    error.response = SimpleNamespace(status_code=status)  # type: ignore[attr-defined]
    return error


class FakeHub:
    """Stands for the hub: a listing (name: bytes) and what its calls raise; remembers what was asked for."""

    def __init__(self, cache: Path) -> None:
        self.cache = cache
        self.listing: Mapping[str, int | None] = {}
        self.listing_error: Exception | None = None
        self.download_error: Exception | None = None
        self.asked: list[dict[str, Any]] = []

    def model_info(self, *_: Any, **__: Any) -> SimpleNamespace:
        if self.listing_error is not None:
            raise self.listing_error
        files = [SimpleNamespace(rfilename=name, size=size) for name, size in self.listing.items()]
        return SimpleNamespace(siblings=files)

    def snapshot_download(self, repository: str, **options: Any) -> str:
        self.asked.append({"repository": repository, **options})
        if self.download_error is not None:
            raise self.download_error
        return str(fill_cache(self.cache, options["allow_patterns"]))


def fill_cache(cache: Path, files: list[str], *, revision: str = "main", commit: str = COMMIT) -> Path:
    """The layout of the Hugging Face cache with these files of ID; an index names SHARDS."""
    root = cache / "models--deepseek-ai--Janus-Pro-1B"
    snapshot = root / "snapshots" / commit
    for folder in (root / "refs", root / "blobs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(commit)
    for name in files:
        index = name.endswith(".index.json")
        content = json.dumps({"weight_map": dict(enumerate(SHARDS))}) if index else name
        (snapshot / name).write_text(content)
    return snapshot


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def fake(cache: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """The online hub, faked; `find` meets it in place of huggingface_hub's two calls."""
    double = FakeHub(cache)
    monkeypatch.setattr(hub.HfApi, "model_info", double.model_info)
    monkeypatch.setattr(hub, "snapshot_download", double.snapshot_download)
    return double


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real huggingface_hub with HF_HUB_OFFLINE=1, which it reads from here on import."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


@pytest.fixture
def unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real huggingface_hub where listing finds no network."""

    def fail(*_: Any, **__: Any) -> None:
        raise Broken("[Errno -2] Name or service not known")

    monkeypatch.setattr(hub.HfApi, "model_info", fail)


def one_line(error: BaseException) -> str:
    text = str(error)
    assert "\n" not in text
    return text


# Local folders


def test_folder_is_returned_as_it_is(tmp_path: Path) -> None:
    assert hub.find(tmp_path) == tmp_path
    assert hub.find(str(tmp_path)) == tmp_path


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "model").mkdir()
    assert hub.find("~/model") == tmp_path / "model"


def test_local_folder_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path(ID).mkdir(parents=True)
    assert hub.find(ID) == Path(ID)


@pytest.mark.parametrize(
    "source",
    [
        "/no/such/folder",
        "./model",
        "../org/model",
        "~/no-such-model",
        "a/b/c",
        "org/name/",
        "model",
        r"C:\models\janus",
        "https://huggingface.co/deepseek-ai/Janus-Pro-1B",
        Path("/no/such"),
        Path("model"),
    ],
)
def test_missing_folder(source: str | Path) -> None:
    with pytest.raises(FileNotFoundError, match="no such folder") as caught:
        hub.find(source)
    text = one_line(caught.value)
    assert str(source) in text
    assert "config.json, tokenizer.json" in text


@pytest.mark.parametrize("source", ["", " ", "x" * 5000, "model\0"])
def test_nonsense_for_a_name(source: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        hub.find(source)
    one_line(caught.value)


def test_file_instead_of_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.touch()
    with pytest.raises(FileNotFoundError, match="is a file: give the folder that holds it") as caught:
        hub.find(path)
    one_line(caught.value)


@pytest.mark.parametrize("source", ["deepseek-ai/Janus Pro", "deepseek-ai/Janus@main", "org/-name", "a--b/c"])
def test_malformed_id(source: str) -> None:
    with pytest.raises(ValueError, match="neither a folder nor a valid hub id") as caught:
        hub.find(source)
    assert source in one_line(caught.value)
    assert ID in str(caught.value)


# The choice of files


@pytest.mark.parametrize(
    ("listing", "expected"),
    [
        (["model.safetensors"], ["model.safetensors"]),
        (["model.safetensors", "pytorch_model.bin"], ["model.safetensors"]),
        ([INDEX, *SHARDS], [*SHARDS, INDEX]),
        ([INDEX, *SHARDS, "consolidated.safetensors", "pytorch_model.bin"], [*SHARDS, INDEX]),
        (["model.safetensors", "model.fp16.safetensors", "model.gguf"], ["model.safetensors"]),
        (["adapter_model.safetensors", "pytorch_model.bin"], ["pytorch_model.bin"]),
        (["model.safetensors", INDEX, *SHARDS], ["model.safetensors"]),
        (["pytorch_model.bin", "training_args.bin", "optimizer.bin"], ["pytorch_model.bin"]),
        ([*BIN_SHARDS, "pytorch_model.bin.index.json"], [*BIN_SHARDS, "pytorch_model.bin.index.json"]),
        (["onnx/model.onnx", "onnx/model.safetensors", "original/pytorch_model.bin", "model.gguf"], []),
    ],
)
def test_one_representation_of_the_weights(listing: list[str], expected: list[str]) -> None:
    clutter = ["README.md", ".gitattributes", "images/teaser.png", "logo.svg", "janus_pro_teaser.png"]
    assert hub.needed([*clutter, *listing, *SIDES]) == SIDES + expected
    assert hub.needed([*clutter, *listing, *SIDES], weights=False) == SIDES


@pytest.mark.parametrize("weights", [True, False])
def test_only_the_needed_files_are_asked_for(fake: FakeHub, cache: Path, weights: bool) -> None:
    fake.listing = dict.fromkeys([*SIDES, "model.safetensors", "pytorch_model.bin", "README.md", "a.png"], 8)
    folder = hub.find(ID, weights=weights, token="secret", revision="main", cache_dir=cache)
    (call,) = fake.asked
    assert call["repository"] == ID
    assert call["allow_patterns"] == SIDES + ["model.safetensors"] * weights
    assert (call["token"], call["revision"], call["cache_dir"]) == ("secret", "main", cache)
    assert sorted(path.name for path in folder.iterdir()) == sorted(call["allow_patterns"])


def test_sizes_may_be_unknown(fake: FakeHub, cache: Path) -> None:
    fake.listing = dict.fromkeys([*SIDES, INDEX, *SHARDS])
    assert hub.find(ID, cache_dir=cache).name == COMMIT


def test_progress_bars_stay_silent_off_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    with hub._TerminalBar(total=2) as bar:
        bar.update(2)
    assert capsys.readouterr().err == ""


# Repositories that are no model


def test_repository_without_a_model(fake: FakeHub, cache: Path) -> None:
    fake.listing = {"README.md": 1, "janus-pro-q4.gguf": 2}
    with pytest.raises(FileNotFoundError) as caught:
        hub.find(ID, cache_dir=cache)
    text = one_line(caught.value)
    assert "no config.json and no weights" in text
    assert "README.md, janus-pro-q4.gguf" in text
    with pytest.raises(FileNotFoundError, match=r"has no config\.json; it has README\.md"):
        hub.find(ID, weights=False, cache_dir=cache)
    assert not fake.asked


@pytest.mark.parametrize(
    ("listing", "lack"),
    [
        (["config.json", "model.onnx"], "no weights"),
        (["model.safetensors"], r"no config\.json"),
        ([], "no files"),
    ],
)
def test_repository_with_half_a_model(fake: FakeHub, cache: Path, listing: list[str], lack: str) -> None:
    fake.listing = dict.fromkeys(listing, 1)
    with pytest.raises(FileNotFoundError, match=lack):
        hub.find(ID, cache_dir=cache)


def test_long_listings_are_cut(fake: FakeHub, cache: Path) -> None:
    fake.listing = {f"file{number:02d}.gguf": 1 for number in range(25)}
    with pytest.raises(FileNotFoundError, match="and 15 more"):
        hub.find(ID, cache_dir=cache)


def test_repository_that_lacks_a_shard(fake: FakeHub, cache: Path) -> None:
    fake.listing = dict.fromkeys([*SIDES, INDEX, SHARDS[0]], 1)
    with pytest.raises(FileNotFoundError, match=rf"the repository lacks {re.escape(SHARDS[1])}"):
        hub.find(ID, cache_dir=cache)


# The cache, with the real library


@pytest.mark.usefixtures("offline")
class TestOffline:
    @pytest.mark.parametrize("files", [["model.safetensors"], [INDEX, *SHARDS], ["pytorch_model.bin"]])
    def test_cached(self, cache: Path, files: list[str]) -> None:
        snapshot = fill_cache(cache, SIDES + files)
        assert hub.find(ID, cache_dir=cache) == snapshot
        assert hub.find(ID, weights=False, cache_dir=cache) == snapshot

    def test_cache_of_the_environment(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
        snapshot = fill_cache(cache, SIDES)
        assert hub.find(ID, weights=False) == snapshot

    def test_revision(self, cache: Path) -> None:
        snapshot = fill_cache(cache, [*SIDES, "model.safetensors"], revision="v1")
        assert hub.find(ID, revision="v1", cache_dir=cache) == snapshot
        assert hub.find(ID, revision=COMMIT, cache_dir=cache) == snapshot
        with pytest.raises(FileNotFoundError, match="at revision v2: no copy in"):
            hub.find(ID, revision="v2", cache_dir=cache)

    def test_not_cached(self, cache: Path) -> None:
        with pytest.raises(
            FileNotFoundError, match=r"no copy in .* HF_HUB_OFFLINE is set; unset it"
        ) as caught:
            hub.find(ID, cache_dir=cache)
        assert str(cache) in one_line(caught.value)
        assert isinstance(caught.value.__cause__, OfflineModeIsEnabled)

    @pytest.mark.parametrize(
        ("files", "lack"),
        [
            (SIDES, "lacks the weights"),
            ([*SIDES, INDEX], f"lacks {SHARDS[0]}, {SHARDS[1]}"),
            ([*SIDES, INDEX, SHARDS[0]], f"lacks {SHARDS[1]}"),
            ([*SIDES, SHARDS[1]], f"lacks {SHARDS[0]}"),
            (["model.safetensors"], "lacks config.json"),
        ],
    )
    def test_incomplete(self, cache: Path, files: list[str], lack: str) -> None:
        fill_cache(cache, files)
        with pytest.raises(FileNotFoundError, match="HF_HUB_OFFLINE is set") as caught:
            hub.find(ID, cache_dir=cache)
        assert lack in one_line(caught.value)

    def test_dangling_link(self, cache: Path) -> None:
        snapshot = fill_cache(cache, SIDES)
        (snapshot / "model.safetensors").symlink_to(cache / "blobs" / "gone")
        with pytest.raises(FileNotFoundError, match="lacks the weights"):
            hub.find(ID, cache_dir=cache)

    def test_unreadable_index(self, cache: Path) -> None:
        snapshot = fill_cache(cache, [*SIDES, INDEX])
        (snapshot / INDEX).write_text("{")
        with pytest.raises(FileNotFoundError, match=rf"lacks a readable {re.escape(INDEX)}"):
            hub.find(ID, cache_dir=cache)

    def test_known_incomplete_by_the_library(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        errors = pytest.importorskip("huggingface_hub.errors")
        if not hasattr(errors, "IncompleteSnapshotError"):
            pytest.skip("this huggingface_hub keeps no listing beside a snapshot")

        def incomplete(*_: Any, **__: Any) -> None:
            raise errors.IncompleteSnapshotError(
                "2 file(s) are missing", snapshot_path=str(cache / "partial")
            )

        monkeypatch.setattr(hub, "snapshot_download", incomplete)
        with pytest.raises(FileNotFoundError, match=r"partial is incomplete, and HF_HUB_OFFLINE is set"):
            hub.find(ID, cache_dir=cache)


@pytest.mark.usefixtures("unplugged")
class TestNoNetwork:
    def test_cached(self, cache: Path) -> None:
        snapshot = fill_cache(cache, [*SIDES, "model.safetensors"])
        assert hub.find(ID, cache_dir=cache) == snapshot

    def test_not_cached(self, cache: Path) -> None:
        with pytest.raises(ConnectionError, match=r"no copy in .* the Hub cannot be reached") as caught:
            hub.find(ID, cache_dir=cache)
        assert "Name or service not known" in one_line(caught.value)
        assert isinstance(caught.value.__cause__, Broken)

    def test_only_side_files(self, cache: Path) -> None:
        snapshot = fill_cache(cache, SIDES)
        assert hub.find(ID, weights=False, cache_dir=cache) == snapshot
        with pytest.raises(ConnectionError, match="lacks the weights, and the Hub cannot be reached"):
            hub.find(ID, cache_dir=cache)


def test_hub_out_of_order_is_like_no_network(fake: FakeHub, cache: Path) -> None:
    fake.listing_error = answer(HfHubHTTPError, 503)
    assert hub.find(ID, weights=False, cache_dir=cache).name == COMMIT
    assert fake.asked[0]["local_files_only"] is True


@pytest.mark.parametrize(
    "error",
    [
        json.JSONDecodeError("Expecting value", "<html>Log in here</html>", 0),
        KeyError("id"),
        TypeError("argument after ** must be a mapping, not list"),
        AttributeError("'str' object has no attribute 'get'"),
    ],
    ids=["page", "other-object", "list", "text"],
)
def test_what_answers_in_place_of_the_hub_is_like_no_network(
    fake: FakeHub, cache: Path, error: Exception
) -> None:
    """As where a network first wants a log-in: any address answers with its page."""
    fake.listing_error = error
    with pytest.raises(ConnectionError, match=r"the weights, and the Hub cannot be reached") as caught:
        hub.find(ID, cache_dir=cache)
    assert "what answers is not the Hub" in one_line(caught.value)
    fill_cache(cache, [*SIDES, "model.safetensors"])
    assert hub.find(ID, cache_dir=cache).name == COMMIT


# Refusals: the same wherever the hub gives them


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (answer(GatedRepoError, 403), PermissionError, ["gated", f"license at http.*{ID}", "auth login"]),
        (answer(RepositoryNotFoundError, 404), FileNotFoundError, ["no such model", "private", "auth login"]),
        (answer(RevisionNotFoundError, 404), FileNotFoundError, ["no revision 'v9'", "branches, tags"]),
        (answer(HfHubHTTPError, 401), PermissionError, ["token as invalid", "hf auth login", "HF_TOKEN"]),
        (answer(HfHubHTTPError, 403), PermissionError, ["forbids access", "token="]),
    ],
    ids=["gated", "not-found", "revision", "bad-token", "forbidden"],
)
@pytest.mark.parametrize("stage", ["listing", "download"])
def test_refusal(
    fake: FakeHub, cache: Path, stage: str, error: Exception, kind: type[Exception], words: list[str]
) -> None:
    fake.listing = dict.fromkeys([*SIDES, "model.safetensors"], 1)
    setattr(fake, f"{stage}_error", error)
    with pytest.raises(kind) as caught:
        hub.find(ID, revision="v9", cache_dir=cache)
    text = one_line(caught.value)
    assert ID in text
    for word in words:
        assert re.search(word, text), (word, text)
    assert caught.value.__cause__ is error


def test_file_gone_from_the_hub(fake: FakeHub, cache: Path) -> None:
    fake.listing = dict.fromkeys([*SIDES, "model.safetensors"], 1)
    kind = getattr(
        pytest.importorskip("huggingface_hub.errors"), "RemoteEntryNotFoundError", EntryNotFoundError
    )
    fake.download_error = answer(kind, 404)
    with pytest.raises(FileNotFoundError, match="a file is missing on the Hub"):
        hub.find(ID, cache_dir=cache)


# The download itself


@pytest.mark.parametrize(
    "error",
    [
        Broken("peer closed connection without sending complete message body"),
        ConnectionResetError(errno.ECONNRESET, "Connection reset by peer"),
        RuntimeError("Data processing error: CAS service error : ReqwestMiddleware Error"),
        answer(HfHubHTTPError, 502),
    ],
    ids=["client", "system", "xet", "gateway"],
)
def test_broken_download(fake: FakeHub, cache: Path, error: Exception) -> None:
    fake.listing = dict.fromkeys([*SIDES, "model.safetensors"], 1)
    fake.download_error = error
    with pytest.raises(ConnectionError, match=r"broke off .* run it again to resume") as caught:
        hub.find(ID, cache_dir=cache)
    assert ID in one_line(caught.value)
    assert caught.value.__cause__ is error


def nested(number: int) -> Exception:
    error = RuntimeError("could not write")
    error.__cause__ = OSError(number, "of the system")
    return error


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), OSError, "is full: make room"),
        (nested(errno.ENOSPC), OSError, "is full: make room"),
        (RuntimeError(f"IO Error: No space left on device (os error {errno.ENOSPC})"), OSError, "is full"),
        (PermissionError(errno.EACCES, "Permission denied"), PermissionError, "cannot be written"),
        (OSError(errno.EROFS, "Read-only file system"), PermissionError, "cannot be written"),
    ],
    ids=["full", "full-nested", "full-xet", "denied", "read-only"],
)
def test_disk_refuses(
    fake: FakeHub, cache: Path, error: Exception, kind: type[Exception], words: str
) -> None:
    fake.listing = dict.fromkeys([*SIDES, "model.safetensors"], 1)
    fake.download_error = error
    with pytest.raises(kind, match=words) as caught:
        hub.find(ID, cache_dir=cache)
    text = one_line(caught.value)
    assert str(cache) in text
    assert "HF_HOME" in text


@pytest.fixture
def free(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Sets the free bytes of every disk."""

    def set_free(count: int) -> None:
        monkeypatch.setattr(hub.shutil, "disk_usage", lambda _: SimpleNamespace(free=count))

    return set_free


def test_disk_too_small(fake: FakeHub, cache: Path, free: Callable[[int], None]) -> None:
    fake.listing = {
        "config.json": 1_000,
        "model.safetensors": 4_178_700_000,
        "pytorch_model.bin": 9_000_000_000,
    }
    free(3_000_000_000)
    with pytest.raises(OSError, match=r"needs 4\.2 GB more in .* has 3\.0 GB free: make room") as caught:
        hub.find(ID, cache_dir=cache)
    assert str(cache) in one_line(caught.value)
    assert not fake.asked
    assert hub.find(ID, weights=False, cache_dir=cache).name == COMMIT
    free(5_000_000_000)
    assert hub.find(ID, cache_dir=cache).name == COMMIT


def test_what_is_cached_needs_no_room(fake: FakeHub, cache: Path, free: Callable[[int], None]) -> None:
    fake.listing = {"config.json": 1_000, INDEX: 1_000} | dict.fromkeys(SHARDS, 1_000_000)
    fill_cache(cache, ["config.json", INDEX, SHARDS[0]])
    free(999_000)
    with pytest.raises(OSError, match="make room"):
        hub.find(ID, cache_dir=cache)
    (cache / "models--deepseek-ai--Janus-Pro-1B" / "blobs" / "abc.incomplete").write_bytes(bytes(2_000))
    assert hub.find(ID, cache_dir=cache).name == COMMIT
