"""Activations weighed without memory are, to the byte, those of the same step computed."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from janus.config import PRESETS, JanusConfig
from janus.models.janus import Janus
from janus.models.vq import VQ
from janus.training.costs.dry_run import longest_batch
from janus.training.costs.live_bytes import LiveBytes
from janus.training.costs.longest import Row, fake_batch, longest_row, rows_loss
from janus.training.costs.weigh import (
    DTYPES,
    checkpoint_blocks,
    precision,
    run,
    weigh,
    weigh_tokenizing,
    weigh_vq,
)
from janus.training.data.packing import Batch
from janus.training.objectives import Sums, sums
from janus.training.parts import STAGE_1, STAGE_2, STAGE_3, VQ_PARTS, freeze, trained
from janus.training.recipe.fields import build
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Kind
from janus.training.vq import VQState, code, total, vq_losses

LENGTH = 80


@pytest.fixture(scope="module")
def config(fewer_layers: Callable[[int], JanusConfig]) -> JanusConfig:
    return fewer_layers(2)


def recipe(**keys: Any) -> Recipe:
    tables = {
        "train": list(STAGE_3),
        "steps": 10,
        "batch": 2,
        "precision": "float32",
        "model": {"checkpoint": "x"},
        "data": {"sources": [{"task": "text", "path": "a"}], "ratio": {"text": 1}},
        "optimizer": {"lr": 1.0},
    }
    return build(Recipe, {**tables, **keys})


def vq_recipe(**keys: Any) -> Recipe:
    tables: dict[str, Any] = {
        "task": "vq",
        "train": list(VQ_PARTS),
        "steps": 10,
        "batch": 2,
        "model": {"checkpoint": "x"},
        "data": {"sources": [{"task": "drawing", "path": "a"}]},
        "optimizer": {"lr": 1.0},
    }
    return build(Recipe, {**tables, **keys})


def computed(config: JanusConfig, wanted: Recipe) -> Janus:
    """The model itself as the recipe has it, to be run."""
    fresh = Janus(config).to(DTYPES[wanted.precision])
    freeze(fresh, wanted.train)
    if wanted.activation_checkpointing:
        checkpoint_blocks(fresh)
    return fresh


# --- bytes alive ---


def test_bytes_come_and_go() -> None:
    with LiveBytes() as live:
        first = torch.zeros(100)
        assert (live.now, live.most) == (400, 400)
        view = first[10:20].view(2, 5)
        assert live.now == 400
        second = first + 1
        assert (live.now, live.most) == (800, 800)
        del first, second
        assert (live.now, live.most) == (400, 800)  # the view keeps the first
        del view
        assert (live.now, live.most) == (0, 800)


def test_what_was_there_before_is_not_counted() -> None:
    before = torch.zeros(100)
    with LiveBytes() as live:
        before.add_(1)
        _half = before[:50]
        assert live.now == 0


def test_fake_tensors_weigh_what_they_would() -> None:
    with FakeTensorMode(), LiveBytes() as live:
        huge = torch.zeros(1 << 20, 1 << 20)
        half = huge.to(torch.bfloat16)
        assert live.now == live.most == 6 << 40
        del huge
        assert half.shape == (1 << 20, 1 << 20)
        assert live.now == 2 << 40


def test_gradients_are_counted() -> None:
    layer = nn.Linear(8, 4)
    with LiveBytes() as live:
        layer(torch.zeros(2, 8)).sum().backward()
        assert live.now == sum(weight.nbytes for weight in layer.parameters())


# --- rows ---


def test_the_longest_rows_of_the_released_model() -> None:
    config = PRESETS["Janus-Pro-1B"]
    assert longest_row(config, 4096, "text") == Row(kind="text", length=4096, words=4096)
    seen = longest_row(config, 4096, "understanding")
    assert (seen.seen, seen.words, seen.codes) == (7, 4096 - 7 * 578, 0)
    drawn = longest_row(config, 4096, "drawing")
    assert (drawn.drawn, drawn.words, drawn.codes) == (7, 0, 7 * 576)


def test_a_row_without_room_for_a_picture() -> None:
    config = PRESETS["Janus-Pro-1B"]
    for kind, least in (("understanding", 579), ("drawing", 577)):
        assert longest_row(config, least, kind).length == least  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=f"^data.sequence_length {least - 1} has no room for the "):
            longest_row(config, least - 1, kind)  # type: ignore[arg-type]


# --- steps ---

# What is learned, how, and the task of the rows: all that a step's memory depends on.
STEPS: dict[str, tuple[dict[str, Any], Kind]] = {
    "stage-1": ({"train": list(STAGE_1)}, "text"),
    "stage-2": ({"train": list(STAGE_2), "precision": "bfloat16"}, "text"),
    "stage-2-autocast": ({"train": list(STAGE_2), "precision": "autocast"}, "drawing"),
    "stage-3": ({}, "understanding"),
    "checkpointing": ({"activation_checkpointing": True, "precision": "autocast"}, "understanding"),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_is_weighed_is_what_is_computed(step: str, config: JanusConfig) -> None:
    """To the byte where the very same is computed; the loss of training differs in how it picks positions."""
    keys, kind = STEPS[step]
    wanted, row = recipe(**keys), longest_row(config, LENGTH, kind)
    weighed = weigh(config, wanted, row, 2)
    fresh = computed(config, wanted)
    with LiveBytes() as live:
        batch = fake_batch(config, row, 2, "cpu")
        assert run(fresh, wanted, lambda: rows_loss(fresh, batch, row), "cpu", live) == weighed

    again = computed(config, wanted)
    codes = torch.zeros(2 * row.drawn, config.grid, config.grid, dtype=torch.long)
    with LiveBytes() as live:
        batch = longest_batch(config, row, 2).tokenized(lambda targets: codes)
        found = run(again, wanted, lambda: _sum(sums(again, batch)), "cpu", live)
    # A mask of a byte a position instead of a number of eight for each that is picked; and when what was
    # picked is freed, which is 2 % of so small a step.
    assert 0 <= weighed.held - found.held <= 8 * 2 * LENGTH * 2
    assert weighed.most == pytest.approx(found.most, rel=0.03)


def _sum(found: Sums) -> Tensor:
    return found.text + found.picture


@pytest.mark.parametrize("step", ["stage-1", "stage-2-autocast", "stage-3"])
def test_what_is_held_is_what_autograd_saved(step: str, config: JanusConfig) -> None:
    """An independent count: every tensor saved for the way back, once for each memory, beside the weights."""
    keys, kind = STEPS[step]
    wanted, row = recipe(**keys), longest_row(config, LENGTH, kind)
    fresh, batch = computed(config, wanted), fake_batch(config, row, 2, "cpu")
    inputs = [tensor for tensor in vars(batch).values() if isinstance(tensor, Tensor)]
    saved = {tensor.untyped_storage().data_ptr(): tensor for tensor in inputs}
    weights = {weight.untyped_storage().data_ptr() for weight in fresh.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor), precision(wanted, "cpu"):
        loss = rows_loss(fresh, batch, row)
    held = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    assert weigh(config, wanted, row, 2).held == held + loss.nbytes


def test_checkpointing_holds_less_and_changes_no_gradient(config: JanusConfig) -> None:
    row = longest_row(config, LENGTH, "understanding")
    plain = weigh(config, recipe(activation_checkpointing=True), row, 1, checkpointing=False)
    saving = weigh(config, recipe(), row, 1, checkpointing=True)
    assert saving.held < plain.held / 2
    assert saving.most < plain.most
    gradients = []
    for wanted in (recipe(), recipe(activation_checkpointing=True)):
        torch.manual_seed(0)
        fresh = computed(config, wanted)
        rows_loss(fresh, fake_batch(config, row, 1, "cpu"), row).backward()
        gradients.append([weight.grad for weight in trained(fresh).values()])
    for gradient, again in zip(*gradients, strict=True):
        assert torch.equal(gradient, again)


def test_gradients_of_turns_before_are_there(config: JanusConfig) -> None:
    row = longest_row(config, LENGTH, "text")
    once, again = (weigh(config, recipe(accumulate=turns), row, 1) for turns in (1, 2))
    learning = sum(weight.nbytes for weight in trained(computed(config, recipe())).values())
    assert again.held == once.held + learning
    assert once.most < again.most <= once.most + learning


def test_a_loss_of_ones_own(config: JanusConfig) -> None:
    """Such as one that applies the head to a part of the positions at a time."""

    def fewer(model: Janus, batch: Batch, row: Row) -> Tensor:
        return rows_loss(model, batch, replace(row, words=1))

    row = longest_row(config, LENGTH, "text")
    assert weigh(config, recipe(), row, 2, loss=fewer).held < weigh(config, recipe(), row, 2).held


def test_lora_takes_less_than_what_it_stands_for(config: JanusConfig) -> None:
    row = longest_row(config, LENGTH, "text")
    full = weigh(config, recipe(train=["language"]), row, 2)
    low = weigh(config, recipe(train=[], lora={"rank": 2}), row, 2)
    assert low.most < full.most


def test_a_device_that_is_not_there(config: JanusConfig) -> None:
    row = longest_row(config, LENGTH, "text")
    for device in ("gpu", "cuda"):
        if device == "gpu" or not torch.cuda.is_available():
            with pytest.raises(ValueError, match=rf"^device {device} is not there: weigh for cpu, or on the"):
                weigh(config, recipe(), row, 1, device=device)


# --- the tokenizer ---


def test_tokenizing_is_weighed_as_computed(config: JanusConfig) -> None:
    side = config.picture_size
    vq = VQ(config.vq)
    with torch.no_grad(), LiveBytes() as live:
        vq.encode(torch.zeros(3, 3, side, side))
    assert weigh_tokenizing(config, recipe(), 3) == live.most
    # In 16 bits a CPU takes them one by one.
    alone = weigh_tokenizing(config, recipe(), 1)
    assert weigh_tokenizing(config, recipe(precision="bfloat16"), 3) == alone < live.most


def test_a_step_of_the_tokenizers_training(config: JanusConfig) -> None:
    """As computed: the search of the nearest codes, which is not weighed, is no moment when most is alive."""
    stages = {"quantize_from": 4, "discriminator_from": 5, "decoder_only_from": 6}
    wanted = vq_recipe(precision="float32", vq={"picture_size": 32, **stages})
    own = wanted.vq_training()
    vq = VQ(config.vq)
    state = VQState.start(vq, own)
    state.step = 5  # where all of it takes part

    def loss() -> Tensor:
        return total(vq_losses(vq, code(vq, pixels, state.step, own), pixels, state, own), own)

    with LiveBytes() as live:
        pixels = torch.zeros(2, 3, 32, 32)
        assert run(vq, wanted, loss, "cpu", live) == weigh_vq(config.vq, wanted, 2)
