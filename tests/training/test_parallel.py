"""Two processes, one of which has text alone and the other drawings, and four, against one with all of it."""

import runpy
import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch

from janus.models.vae import VAE
from janus.processing.processor import Processor
from janus.training import checkpoint
from janus.training.data.example import Example
from janus.training.data.packing import pad
from janus.training.flow import with_latents
from janus.training.parallel import Ranks, clip, mesh_shape, ranks, rows_of
from janus.training.parts import STAGE_1, STAGE_3
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Data, Optimizer, Parallel, Source, Start
from janus.training.run import begin

PROGRAM = Path(__file__).with_name("parallel_rank.py")
FLOAT32 = ("ddp", "fsdp", "hsdp", "fsdp-checkpointed")
Found = dict[str, list[dict[str, Any]]]


@pytest.fixture(scope="module")
def recipe(checkpoint: str) -> Recipe:
    source = Source(task="drawing", world="shapes")
    return Recipe(
        task="sft",
        model=Start(checkpoint=checkpoint),
        train=STAGE_3,
        data=Data(sources=(source,)),
        optimizer=Optimizer(lr=1e-2),
        steps=1,
        batch=4,
        precision="float32",
    )


@pytest.fixture(scope="module")
def written(
    recipe: Recipe,
    checkpoint: str,
    make: Callable[[str, int], Example],
    reads: Processor,
    flow_checkpoint: str,
    make_flow: Callable[[str, int], Example],
    flow_reads: Processor,
    flow_vae: VAE,
    tmp_path_factory: pytest.TempPathFactory,
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> tuple[Path, Found]:
    """One process, which writes a checkpoint, then two, then four; -> the folder, what they ended with."""
    folder = tmp_path_factory.mktemp("parallel")
    pad_id = reads.tokenizer.pad_id
    batches = [
        pad([make("text", 3)], pad_id),
        pad([make("text", 1), make("text", 2)], pad_id),
        pad([make("drawing", 4)], pad_id),
        pad([make("understanding", 5)], pad_id),
    ]
    # One process has words alone, the other all that is drawn and seen.
    tasks = ("text", "text"), ("text",), ("drawing", "dropped"), ("understanding",)
    numbers = count()
    flow = [
        with_latents(
            pad([make_flow(task, next(numbers)) for task in row], flow_reads.tokenizer.pad_id), flow_vae
        )
        for row in tasks
    ]
    torch.save({"recipe": recipe, "batches": batches, "flow": flow}, folder / "run.pt")
    alone = runpy.run_path(str(PROGRAM))["one_step"]
    found: Found = {}
    one = runpy.run_path(str(PROGRAM))["flow_step"](recipe, flow_checkpoint, flow, Ranks(torch.device("cpu")))
    found["flow"] = [one]
    for precision in ("float32", "bfloat16", "autocast"):
        found[precision] = [
            alone(replace(recipe, precision=precision), checkpoint, batches, Ranks(torch.device("cpu")))
        ]
    save(folder / "whole", found["float32"][0], recipe)
    program = runpy.run_path(str(PROGRAM))
    for size, kinds in ((2, "KINDS"), (4, "KINDS_OF_FOUR")):
        run = torchrun(PROGRAM, folder, checkpoint, flow_checkpoint, ranks=size)
        assert run.returncode == 0, run.stderr
        for kind in program[kinds]:
            found[kind] = [torch.load(folder / f"{kind}-{rank}.pt") for rank in range(size)]
    for kind in ("flow-ddp", "flow-fsdp"):
        found[kind] = [torch.load(folder / f"{kind}-{rank}.pt") for rank in range(2)]
    return folder, found


def save(folder: Path, ended: dict[str, Any], recipe: Recipe) -> None:
    own = {"loader": {"place": 9}, "random": {}}
    place = Ranks(torch.device("cpu"))
    checkpoint.save(folder, 1, ended["tensors"], shared={}, own=own, recipe=recipe, keep=1, place=place)


@pytest.mark.parametrize("kind", [*FLOAT32, "hsdp-of-four"])
def test_several_processes_learn_as_one(kind: str, written: tuple[Path, Found]) -> None:
    alone = written[1]["float32"][0]
    for ended in written[1][kind]:
        # In float32, summed in another order.
        torch.testing.assert_close(ended["losses"], alone["losses"], rtol=1e-6, atol=0)
        torch.testing.assert_close(ended["norm"], alone["norm"], rtol=1e-5, atol=0)
        for name, gradient in alone["gradients"].items():
            error = (ended["gradients"][name] - gradient).abs().max() / gradient.abs().max()
            assert error <= 3e-6, f"{name} is off by {error:.1e} of its largest"  # sums in another order


@pytest.mark.parametrize("kind", ["flow-ddp", "flow-fsdp"])
def test_two_processes_learn_a_flow_as_one(kind: str, written: tuple[Path, Found]) -> None:
    """Of which one draws nothing."""
    (alone,) = written[1]["flow"]
    for ended in written[1][kind]:
        # In float32, summed in another order.
        torch.testing.assert_close(ended["losses"], alone["losses"], rtol=1e-5, atol=0)
        assert ended["gradients"].keys() == alone["gradients"].keys()
        for name, gradient in alone["gradients"].items():
            error = (ended["gradients"][name] - gradient).abs().max() / gradient.abs().max()
            assert error <= 1e-5, f"{name} is off by {error:.1e} of its largest"  # sums in another order


def test_gradients_are_scaled_to_the_limit_and_no_further() -> None:
    gradients = [torch.randn(3, 4), torch.randn(5)]
    norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
    for limit in (0.5, 2 * float(norm), None):
        weights = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient.clone()
        torch.testing.assert_close(clip(weights, limit), norm)
        scale = 0.5 / float(norm) if limit == 0.5 else 1.0
        for weight, gradient in zip(weights, gradients, strict=True):
            # The norm has 1e-6 added before it divides.
            torch.testing.assert_close(weight.grad, gradient * scale, rtol=1e-5, atol=0)


def test_a_stage_that_trains_little_is_split_too(written: tuple[Path, Found]) -> None:
    alone = written[1]["float32"][0]["gradients"]
    for ended in written[1]["fsdp-stage-1"]:
        assert {name.split(".")[0] for name in ended["gradients"]} == set(STAGE_1)
        for name, gradient in ended["gradients"].items():
            assert (gradient - alone[name]).abs().max() <= 3e-6 * alone[name].abs().max(), name


def test_gradients_of_sixteen_bits_are_averaged_in_32(written: tuple[Path, Found]) -> None:
    exact = torch.tensor([(1 + 3 * 2.0**-9) / 4]).bfloat16()
    for rank in range(4):
        assert torch.equal(torch.load(written[0] / f"mean-{rank}.pt"), exact)
    assert exact != torch.tensor([0.25]).bfloat16()


def test_the_first_step_of_four_processes_sums_in_the_order_of_all_others(
    written: tuple[Path, Found],
) -> None:
    """A run that goes on begins with a first step where the run that it continues has another one."""
    assert all(torch.load(written[0] / f"twice-{rank}.pt") for rank in range(4))


@pytest.mark.parametrize("kind", [*FLOAT32, "ddp-bfloat16", "fsdp-autocast"])
def test_both_processes_end_with_the_same_weights(kind: str, written: tuple[Path, Found]) -> None:
    one, other = written[1][kind]
    assert one["place"] == (0, 2, True)
    assert other["place"] == (1, 2, False)
    for name, tensor in one["tensors"].items():
        assert torch.equal(tensor, other["tensors"][name]), name
    assert other["copy"] is None
    for name, tensor in one["copy"].items():
        assert torch.equal(tensor, one["tensors"][f"model.{name}"]), name


def test_what_is_split(written: tuple[Path, Found]) -> None:
    split = written[1]["fsdp"][0]["split"]
    everything = set(written[1]["fsdp"][0]["copy"])
    assert split == sorted(name for name in everything if not name.startswith("vq."))
    assert written[1]["ddp"][0]["split"] == []


@pytest.mark.parametrize("kind", ["ddp-bfloat16", "fsdp-autocast"])
def test_sixteen_bits_lose_no_more_than_in_one_process(kind: str, written: tuple[Path, Found]) -> None:
    """Against float32, over all gradients; twice what one process loses, for other sums are rounded.

    One process loses nothing on a CPU that computes autocast in float32: then two sum in another order only.
    """
    exact = written[1]["float32"][0]["gradients"]
    alone = written[1][kind.partition("-")[2]][0]["gradients"]

    def lost(gradients: dict[str, torch.Tensor]) -> float:
        return float(sum((gradients[name] - exact[name]).square().sum() for name in exact).sqrt())

    order = 3e-6 * lost({name: torch.zeros_like(gradient) for name, gradient in exact.items()})
    assert 0 < lost(written[1][kind][0]["gradients"]) <= 2 * lost(alone) + order


@pytest.mark.parametrize("kind", FLOAT32)
def test_shards_of_two_load_into_one(kind: str, written: tuple[Path, Found], recipe: Recipe) -> None:
    folder, found = written
    saved = found[kind][0]["tensors"]
    tensors = {name: torch.full_like(tensor, torch.nan) for name, tensor in saved.items()}
    newest = checkpoint.newest(folder / kind)
    newest.load(tensors)
    for name, tensor in saved.items():
        assert torch.equal(tensors[name], tensor), name
    assert newest.ranks == 2
    assert [each["loader"] for each in newest.own()] == [{"place": 0}, {"place": 1}]
    newest.check(recipe)  # which has other processes, and that alone


@pytest.mark.parametrize("kind", FLOAT32)
def test_what_one_wrote_loads_into_shards_of_two(kind: str, written: tuple[Path, Found]) -> None:
    whole = written[1]["float32"][0]["tensors"]
    for ended in written[1][kind]:
        for name, tensor in whole.items():
            assert torch.equal(ended["loaded"][name], tensor), name


@pytest.mark.parametrize(
    ("parallel", "size", "shape"),
    [
        (Parallel(kind="fsdp"), 8, (1, 8)),
        (Parallel(kind="fsdp", shards=8), 8, (1, 8)),
        (Parallel(kind="fsdp", shards=4, replicas=2), 8, (2, 4)),
    ],
)
def test_meshes(parallel: Parallel, size: int, shape: tuple[int, int]) -> None:
    assert mesh_shape(parallel, size) == shape


def test_a_mesh_of_other_processes_is_refused() -> None:
    with pytest.raises(ValueError, match="4 shards x 1 replicas are not the 8 processes"):
        mesh_shape(Parallel(kind="fsdp", shards=4), 8)


def test_shards_of_a_process_that_is_alone_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    split = replace(recipe, parallel=Parallel(kind="fsdp", shards=4))
    with pytest.raises(ValueError, match="4 shards x 1 replicas are not the 1 processes of this run"):
        begin(split, tmp_path, Ranks(torch.device("cpu")))


def test_rows_of_a_process(recipe: Recipe) -> None:
    assert rows_of(replace(recipe, batch=24, accumulate=3), 4) == 2
    with pytest.raises(ValueError, match=r"batch 4 cannot be shared out to 3 processes.*a multiple of 3"):
        rows_of(recipe, 3)


def test_a_process_started_alone_is_a_run_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    with ranks("cpu") as place:
        assert (place.rank, place.size, place.first, place.group) == (0, 1, True, None)
        assert place.agreed("mine") == "mine"
        values = torch.tensor([1.0, 2.0])
        assert torch.equal(place.summed(values), values)
        place.wait()
