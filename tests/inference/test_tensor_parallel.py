"""Two ranks on the CPU against one process; what each holds; how a run ends where one rank fails."""

import os
import runpy
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

import janus
from janus.config import PRESETS
from janus.inference.ranks import meet
from janus.inference.tensor_parallel import PLAN, ColumnParallel, RowParallel, tensor_parallel
from janus.models.janus import Janus
from janus.models.llama import JoinedLinear
from janus.weights.load import empty_model, load

RANK = Path(__file__).with_name("rank.py")
REPOSITORY = RANK.parents[2]
# Tensors that are split, by the end of their names; all others are whole on every rank.
SPLIT = (
    "attention.qkv.weight",
    "o_proj.weight",
    "gate_up.weight",
    "down_proj.weight",
    "image_head.out.weight",
)
SPLIT += ("image_head.out.bias", "language.head.weight")
NAMES = ("released", "grouped")


@pytest.fixture(scope="module")
def checkpoints(data: Path, model: Janus, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The small checkpoint, and one with 2 key-value heads for its 4 heads and with a tied head."""
    language = replace(model.config.language, kv_heads=2, tied_head=True)
    torch.manual_seed(0)
    grouped = Janus(replace(model.config, language=language))
    grouped.files = model.files
    # Small, so that the layers have a say in the next word besides the last, which the tied head repeats.
    grouped.language.embed.weight.data *= 0.02
    folder = tmp_path_factory.mktemp("grouped")
    grouped.bfloat16().save_pretrained(folder)
    return {"released": str(data / "januspro" / "checkpoint"), "grouped": str(folder)}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def run(checkpoints: dict[str, str], written: Path) -> subprocess.CompletedProcess[str]:
    """A run that ends well, of all checkpoints."""
    return torchrun(RANK, str(written), *checkpoints.values(), given="Hi\nAnd now?\n\nnever read\n")


def torchrun(program: Path, *arguments: str, given: str = "") -> subprocess.CompletedProcess[str]:
    """A run of two ranks, on a free port. One that hangs is ended, and the test fails."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [*start, str(program), *arguments],
        input=given,
        capture_output=True,
        text=True,
        errors="replace",
        env={**os.environ, **environment},
        timeout=200,
    )


@pytest.fixture(scope="module")
def ranks(
    checkpoints: dict[str, str], written: Path, run: subprocess.CompletedProcess[str]
) -> dict[str, list[Any]]:
    """What the two ranks of each checkpoint computed and held, in the order of the ranks."""
    files = [written / f"{rank}.pt" for rank in range(2)]
    assert all(file.exists() for file in files), run.stderr
    ranks = [torch.load(file) for file in files]
    return {name: [found[path] for found in ranks] for name, path in checkpoints.items()}


@pytest.fixture(scope="module")
def wholes(checkpoints: dict[str, str]) -> dict[str, janus.Pipeline]:
    return {name: janus.load(path, device="cpu", dtype="float32") for name, path in checkpoints.items()}


@pytest.mark.parametrize("name", NAMES)
def test_ranks_compute_what_one_process_does(
    name: str,
    ranks: dict[str, list[Any]],
    wholes: dict[str, janus.Pipeline],
    close: Callable[[Tensor, Tensor], None],
) -> None:
    expected = runpy.run_path(str(RANK))["outputs"](wholes[name])
    assert len(expected["greedy tokens"].unique()) > 2  # not one token over and over
    for found in ranks[name]:
        for what, tensor in expected.items():
            close(found["outputs"][what], tensor)  # tokens and codes exactly
        conversations = runpy.run_path(str(RANK))["CONVERSATIONS"]
        assert found["answers"] == wholes[name].chat(conversations, max_new_tokens=6)
    for what in expected:  # ranks that differ in a bit could part ways at a tie, and wait for each other
        assert torch.equal(*(found["outputs"][what] for found in ranks[name]))


@pytest.mark.parametrize("name", NAMES)
def test_sixteen_bits_lose_no_more_than_in_one_process(
    name: str, ranks: dict[str, list[Any]], wholes: dict[str, janus.Pipeline], checkpoints: dict[str, str]
) -> None:
    """Where the CPU packs the layers for bfloat16, packed ones take the place of those that were split."""
    logits = runpy.run_path(str(RANK))["logits"]
    exact = logits(wholes[name])
    allowed = 2 * (logits(janus.load(checkpoints[name], device="cpu", dtype="bfloat16")) - exact).abs().max()
    for found in ranks[name]:
        assert (found["bfloat16"] - exact).abs().max() <= allowed


@pytest.mark.parametrize("name", NAMES)
def test_each_rank_holds_its_share_and_no_more(
    name: str, ranks: dict[str, list[Any]], wholes: dict[str, janus.Pipeline]
) -> None:
    whole = wholes[name].model
    split = tuple(end for end in SPLIT if name == "released" or end != "language.head.weight")
    state = whole.state_dict()
    assert {end for end in split if any(key.endswith(end) for key in state)} == set(split)
    for found in ranks[name]:
        assert found["state"].keys() == state.keys()
        for key, tensor in state.items():
            parts = 2 if key.endswith(split) else 1
            assert found["state"][key].numel() * parts == tensor.numel(), key
        for storage in found["storage"]:  # nothing keeps the whole alive behind a view
            assert storage == {key: found["state"][key].nbytes for key in storage}
        config = whole.config.language
        assert found["kv_heads"] == (config.kv_heads, config.kv_heads // 2)


@pytest.mark.parametrize("name", NAMES)
def test_loading_a_share_is_splitting_what_was_loaded(name: str, ranks: dict[str, list[Any]]) -> None:
    for found in ranks[name]:
        for key, tensor in found["state"].items():
            assert torch.equal(found["split later"][key], tensor), key
            assert found["as stored"][key].dtype == torch.bfloat16
            assert torch.equal(found["as stored"][key].float(), tensor), key  # float32 of the stored bfloat16


def test_a_seed_that_nobody_named_is_the_same_on_all_ranks(
    ranks: dict[str, list[Any]], wholes: dict[str, janus.Pipeline]
) -> None:
    first, second = (found["unseeded"] for found in ranks["released"])
    assert first == second
    torch.manual_seed(0)  # as on rank 0; rank 1 had another
    assert wholes["released"].ask("Hi", temperature=1.0, max_new_tokens=8) == first


def test_a_split_model_says_what_it_cannot_do(ranks: dict[str, list[Any]]) -> None:
    for found in ranks["released"]:
        gradient, again, saving = found["refused"]
        assert "call under torch.no_grad()" in gradient
        assert "split over 2 ranks already" in again
        assert "one of 2 shares" in saving


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("memory", "janus: error: out of memory on this rank: take a smaller model"),
        ("bug", "a bug on this rank"),
    ],
)
def test_a_rank_that_fails_ends_the_run(kind: str, message: str, data: Path) -> None:
    """The other one waits for it in the middle of an answer."""
    run = torchrun(RANK.with_name("failing_rank.py"), str(data / "januspro" / "checkpoint"), kind)
    assert run.returncode == 1
    assert message in run.stderr
    assert not run.stdout


def test_the_command_line_shows_one_answer(
    run: subprocess.CompletedProcess[str], wholes: dict[str, janus.Pipeline]
) -> None:
    messages: list[dict[str, str]] = []
    expected = ""
    for line in ("Hi", "And now?"):
        messages.append({"role": "user", "content": line})
        answer = wholes["released"].chat(messages, max_new_tokens=5)
        messages.append({"role": "assistant", "content": answer})
        expected += answer.lstrip() + "\n"
    assert run.stdout == expected, run.stderr


def test_all_ranks_end_well(run: subprocess.CompletedProcess[str]) -> None:
    assert run.returncode == 0, run.stderr


def stub(ranks: int, rank: int = 0, dimensions: int = 1) -> Any:
    """As much of a mesh as splitting asks of it."""
    return SimpleNamespace(
        size=lambda: ranks,
        get_local_rank=lambda: rank,
        get_group=lambda: None,
        ndim=dimensions,
        shape=(ranks,) * dimensions,
    )


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_shares_are_the_whole_in_order(ranks: int) -> None:
    weight = torch.arange(18 * 12.0).view(18, 12)
    columns, rows = [], []
    for rank in range(ranks):
        joined, plain = JoinedLinear(12, (6, 12)), nn.Linear(12, 18, bias=False)
        joined.weight.data, plain.weight.data = weight.clone(), weight.clone()
        columns.append(ColumnParallel()._apply(joined, stub(ranks, rank)))
        rows.append(RowParallel()._apply(plain, stub(ranks, rank)))
    assert all(layer.sizes == (6 // ranks, 12 // ranks) for layer in columns)
    parts = zip(*(layer.weight.split(layer.sizes) for layer in columns), strict=True)
    assert torch.equal(torch.cat([torch.cat(part) for part in parts]), weight)
    assert torch.equal(torch.cat([layer.weight for layer in rows], dim=1), weight)


@pytest.mark.parametrize(("ranks", "gigabytes"), [(1, 14.8), (2, 8.3), (4, 5.0)])
def test_what_each_rank_of_the_largest_model_holds(ranks: int, gigabytes: float) -> None:
    """The figures of docs/architecture.md."""
    share = tensor_parallel(empty_model(PRESETS["Janus-Pro-7B"]), stub(ranks))
    assert round(sum(parameter.numel() for parameter in share.parameters()) * 2 / 1e9, 1) == gigabytes


@pytest.mark.parametrize(
    ("ranks", "changes", "named"),
    [
        (
            3,
            {},
            "3 ranks cannot share 4 heads, 4 key-value heads, 176 MLP width, 256 codes, 640 words evenly",
        ),
        (4, {"kv_heads": 2}, "4 ranks cannot share 2 key-value heads evenly"),
        (4, {"mlp_width": 178}, "4 ranks cannot share 178 MLP width evenly"),
        (4, {"vocabulary": 642}, "4 ranks cannot share 642 words evenly"),
    ],
)
def test_sizes_that_do_not_divide_are_named(
    ranks: int, changes: dict[str, int], named: str, model: Janus
) -> None:
    config = replace(model.config, language=replace(model.config.language, **changes))
    with pytest.raises(ValueError, match=named):
        tensor_parallel(empty_model(config), stub(ranks))


def test_layers_of_another_kind_are_refused(model: Janus) -> None:
    for name in PLAN:
        path = name.replace("*", "1")
        other = empty_model(model.config)
        other.set_submodule(path, nn.Identity())
        with pytest.raises(ValueError, match=f"{path} is a Identity, which cannot be split"):
            tensor_parallel(other, stub(2))
        assert other.language.config == model.config.language  # and nothing is split by half
    with pytest.raises(ValueError, match=r"one dimension, not \(2, 2\)"):
        tensor_parallel(empty_model(model.config), stub(2, dimensions=2))


def test_a_process_alone_is_told_how_to_start(monkeypatch: pytest.MonkeyPatch, model: Janus) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="torchrun --nproc-per-node 2"):
        meet()
    with pytest.raises(ValueError, match="no process group"):
        tensor_parallel(empty_model(model.config))


def test_each_rank_takes_the_device_of_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU only the choice is tested: which device each rank would be given."""
    from janus.inference import ranks

    monkeypatch.setattr(ranks.torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ranks, "resolve_device", torch.device)
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert ranks.own_device(None) == ranks.own_device("cuda") == torch.device("cuda:3")
    assert ranks.own_device("cuda:0") == torch.device("cuda:0")  # a process that sees one card only
    assert ranks.own_device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="'mps' cannot join"):
        ranks.own_device("mps")


def test_a_share_is_loaded_in_every_dtype(data: Path) -> None:
    """In float16 numbers are looked at for what it does not hold: those of the share, not of the whole."""
    folder = data / "januspro" / "checkpoint"
    torch.distributed.init_process_group("fake", rank=1, world_size=2, store=FakeStore())
    try:
        mesh = init_device_mesh("cpu", (2,))
        exact, half = (load(folder, device="cpu", dtype=dtype, mesh=mesh) for dtype in ("float32", "float16"))
    finally:
        torch.distributed.destroy_process_group()
    for name, tensor in exact.state_dict().items():
        assert torch.equal(half.state_dict()[name], tensor.half()), name
