"""Checkpoints: whole or not there, read back exactly, and refused under another recipe."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from janus.training import checkpoint
from janus.training.checkpoint import newest, optimizer_tensors, random_state, save, set_random_state
from janus.training.parallel import Ranks
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Data, Optimizer, Parallel, Source, Start
from janus.training.recipe.watch import Checkpoints, Log

ALONE = Ranks(torch.device("cpu"))
Write = Callable[..., Path]


@pytest.fixture
def recipe() -> Recipe:
    return Recipe(
        task="sft",
        model=Start(checkpoint="anywhere"),
        train=("language",),
        data=Data(sources=(Source(task="text", path="texts.jsonl"),)),
        optimizer=Optimizer(lr=1e-3),
        steps=10,
        batch=2,
    )


def tensors(seed: int = 0) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return {
        "a": torch.randn(3, 4),
        "b": torch.randn(5).bfloat16(),
        "count": torch.tensor(7.0),
        "none": torch.zeros(0, 2),
    }


@pytest.fixture
def write(tmp_path: Path, recipe: Recipe) -> Write:
    def write(step: int, keep: int = 5) -> Path:
        own = {"loader": {"place": step}, "random": random_state(ALONE.device)}
        shared = {"files": {"a.json": b"{}\0"}, "of": step}
        return save(
            tmp_path, step, tensors(step), shared=shared, own=own, recipe=recipe, keep=keep, place=ALONE
        )

    return write


def test_all_is_read_back_as_it_was(write: Write, tmp_path: Path, recipe: Recipe) -> None:
    assert newest(tmp_path) is None
    folder = write(3)
    found = newest(tmp_path)
    assert (found.folder, found.step, found.ranks) == (folder, 3, 1)
    into = {name: torch.full_like(tensor, 9) for name, tensor in tensors().items()}
    found.load(into)
    for name, tensor in tensors(3).items():
        assert torch.equal(into[name], tensor), name
    assert found.recipe() == recipe
    assert found.shared() == {"files": {"a.json": b"{}\0"}, "of": 3}
    assert found.own()[0]["loader"] == {"place": 3}


def test_the_newest_stay_and_the_rest_goes(write: Write, tmp_path: Path) -> None:
    for step in (2, 4, 6, 10):
        write(step, keep=2)
    assert sorted(each.name for each in tmp_path.iterdir()) == ["step-00000006", "step-00000010"]
    assert newest(tmp_path).step == 10


def test_what_is_damaged_does_not_take_the_place_of_what_can_be_gone_on_from(
    write: Write, tmp_path: Path
) -> None:
    write(2, keep=1)
    (write(8, keep=2) / "state.json").write_bytes(b"{")
    write(4, keep=1)  # by a run that went on from step 2
    assert newest(tmp_path).step == 4
    assert not (tmp_path / "step-00000002").exists()


def test_a_disk_that_is_full_is_told_and_what_was_kept_stays(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(2)
    full = OSError(28, "No space left on device")
    monkeypatch.setattr(
        "torch.distributed.checkpoint.FileSystemWriter.write_data", lambda *_: (_ for _ in ()).throw(full)
    )
    with pytest.raises(
        OSError, match=r"step-00000004 cannot be written .*No space left.*: make room"
    ) as caught:
        write(4)
    assert "\n" not in str(caught.value)
    assert newest(tmp_path).step == 2


def test_the_newest_is_by_its_number_and_not_by_its_letters(write: Write, tmp_path: Path) -> None:
    for step in (99_999_999, 100_000_000):
        write(step, keep=1)
    assert [each.name for each in tmp_path.iterdir()] == ["step-100000000"]
    assert newest(tmp_path).step == 100_000_000


def test_a_step_that_is_done_again_is_written_again(write: Write, tmp_path: Path) -> None:
    write(2)
    write(2)
    assert [each.name for each in tmp_path.iterdir()] == ["step-00000002"]


@pytest.mark.parametrize("name", ["state.json", "shared.pt", "recipe.toml", ".metadata", "rank-00000.pt"])
def test_what_is_not_complete_is_passed_over(name: str, write: Write, tmp_path: Path) -> None:
    write(2)
    (write(4) / name).unlink()
    shutil.copytree(
        tmp_path / "step-00000002", tmp_path / "step-00000006.tmp"
    )  # a kill before it was renamed
    assert newest(tmp_path).step == 2
    write(8)
    assert not (tmp_path / "step-00000006.tmp").exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        *[b'{"ranks": %s}' % each for each in (b'"two"', b"0", b"-1", b"true")],
    ],
)
def test_a_state_that_is_damaged_is_passed_over(content: bytes, write: Write, tmp_path: Path) -> None:
    write(2)
    (write(4) / "state.json").write_bytes(content)
    assert newest(tmp_path).step == 2


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"task = ", b'task = "nothing"'])
def test_a_recipe_that_is_damaged_is_named(content: bytes, write: Write, tmp_path: Path) -> None:
    (write(2) / "recipe.toml").write_bytes(content)
    with pytest.raises(ValueError, match=r"recipe.toml cannot be read.*remove .*step-00000002") as caught:
        newest(tmp_path).recipe()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["shared.pt", "rank-00000.pt"])
def test_files_that_are_damaged_are_named(name: str, write: Write, tmp_path: Path) -> None:
    file = write(2) / name
    file.write_bytes(file.read_bytes()[:40])
    found = newest(tmp_path)
    with pytest.raises(ValueError, match=rf"{name} cannot be read.*remove .*step-00000002") as caught:
        found.shared() if name == "shared.pt" else found.own()
    assert "\n" not in str(caught.value)


def test_tensors_that_are_not_those_saved_are_refused(write: Write, tmp_path: Path) -> None:
    folder = write(2)
    found = newest(tmp_path)
    for wrong in ({"other": torch.zeros(1)}, {"a": torch.zeros(2, 2)}):
        with pytest.raises(ValueError, match="step-00000002 cannot be read") as caught:
            found.load(wrong)
        assert "\n" not in str(caught.value)
    (data,) = folder.glob("*.distcp")
    data.write_bytes(b"")
    with pytest.raises(ValueError, match="step-00000002 cannot be read"):
        found.load(tensors())


def test_another_recipe_is_refused_by_its_keys(write: Write, tmp_path: Path, recipe: Recipe) -> None:
    write(2)
    found = newest(tmp_path)
    harmless = {
        "steps": 99,
        "log": Log(every=1),
        "checkpoint": Checkpoints(keep=1),
        "parallel": Parallel(kind="fsdp"),
        "accumulate": 2,
        "activation_checkpointing": True,
        "compile": True,
        "data": replace(recipe.data, workers=0),
    }
    found.check(replace(recipe, **harmless))
    other = replace(recipe, **harmless, batch=4, optimizer=Optimizer(lr=2e-3))
    with pytest.raises(ValueError, match=r"differs in batch, optimizer\.lr: give the same, or begin"):
        found.check(other)


def test_moments_are_saved_by_name_and_go_on_as_they_were() -> None:
    torch.manual_seed(0)
    one, other = nn.Linear(3, 2), nn.Linear(3, 2)
    other.load_state_dict(one.state_dict())
    optimizers = [torch.optim.AdamW(each.parameters(), lr=0.1, fused=True) for each in (one, other)]

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        model(torch.ones(1, 3)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    step(one, optimizers[0])
    other.load_state_dict(one.state_dict())
    saved = optimizer_tensors(optimizers[0], one)
    blank = optimizer_tensors(optimizers[1], other)
    assert list(saved) == list(blank)
    assert list(saved)[:3] == [f"optimizer.weight.{key}" for key in ("step", "exp_avg", "exp_avg_sq")]
    assert not any(tensor.any() for tensor in blank.values())
    for name, tensor in saved.items():
        blank[name].copy_(tensor)
    for model, optimizer in zip((one, other), optimizers, strict=True):
        step(model, optimizer)
    assert torch.equal(one.weight, other.weight)


def test_random_numbers_go_on() -> None:
    kept = random_state(ALONE.device)
    first = torch.rand(3)
    set_random_state(kept, ALONE.device)
    assert torch.equal(torch.rand(3), first)


def test_a_kill_while_another_is_removed_leaves_nothing_that_looks_whole(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(2)

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        write(4, keep=1)
    assert newest(tmp_path).step == 4
    assert [each.name for each in tmp_path.glob("step-*") if checkpoint.NAME.fullmatch(each.name)] == [
        "step-00000004"
    ]
    assert json.loads((tmp_path / "step-00000004" / "state.json").read_text()) == {"step": 4, "ranks": 1}


def test_where_folders_cannot_be_opened_they_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On Windows, where every run would end at its first checkpoint."""
    monkeypatch.setattr(checkpoint, "os", SimpleNamespace(name="nt"))
    checkpoint._sync_folder(tmp_path)
    monkeypatch.setattr(checkpoint, "os", SimpleNamespace(name="posix"))
    with pytest.raises(AttributeError, match="open"):
        checkpoint._sync_folder(tmp_path)
