"""What a step of a JanusFlow takes, in bytes and FLOP: told without memory, as it is computed."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from janus.config import FLOW_PRESETS, JanusFlowConfig
from janus.models.janusflow import JanusFlow
from janus.models.uvit import ConvNeXtBlock
from janus.models.vae import SDXL, VAE
from janus.processing.processor import Processor
from janus.training.blocks import checkpoint_blocks
from janus.training.costs import flops
from janus.training.costs.dry_run import longest_batch
from janus.training.costs.flops import Counts, encoding_flop, flow_cost, reconstruction_flop
from janus.training.costs.live_bytes import LiveBytes
from janus.training.costs.longest import Row, fake_batch, longest_row, rows_loss
from janus.training.costs.memory import estimate_memory
from janus.training.costs.weigh import DTYPES, run, weigh, weigh_encoding
from janus.training.data.outline import Geometry
from janus.training.flow import FlowObjective, attach_alignment, with_latents
from janus.training.parts import FLOW_PARTS, FLOW_STAGE_1, FLOW_STAGE_2, FLOW_STAGE_3, freeze, parameters
from janus.training.recipe.fields import build
from janus.training.recipe.learning import FlowLearning
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import Kind
from janus.weights.load import empty_model

LENGTH, ROWS, AFTER = 80, 2, 2


@pytest.fixture(scope="module")
def config(flow: JanusFlow) -> JanusFlowConfig:
    return flow.config


@pytest.fixture(scope="module")
def geometry(config: JanusFlowConfig, flow_vae: VAE) -> Geometry:
    return Geometry.of_flow(config, flow_vae.config)


def recipe(**keys: Any) -> Recipe:
    tables = {
        "train": list(FLOW_STAGE_3),
        "steps": 10,
        "batch": ROWS,
        "precision": "float32",
        "model": {"checkpoint": "x"},
        "data": {
            "sources": [{"task": "drawing", "path": "a"}, {"task": "text", "path": "b"}],
            "ratio": {"drawing": 1, "text": 1},
            "sequence_length": LENGTH,
        },
        "flow": {"aligned_after": AFTER},
        "optimizer": {"lr": 1.0},
    }
    return build(Recipe, {**tables, **keys})


def computed(config: JanusFlowConfig, wanted: Recipe) -> JanusFlow:
    """The model itself as the recipe has it, to be run."""
    fresh = JanusFlow(config)
    freeze(fresh, wanted.train)
    if wanted.loss.alignment:
        attach_alignment(fresh, AFTER)
    if wanted.activation_checkpointing:
        checkpoint_blocks(fresh)
    return fresh.to(DTYPES[wanted.precision])


STEPS: dict[str, tuple[dict[str, Any], Kind]] = {
    "stage-1": ({"train": list(FLOW_STAGE_1)}, "drawing"),
    "stage-2": ({"train": list(FLOW_STAGE_2), "precision": "autocast"}, "text"),
    "stage-3": ({}, "understanding"),
    "unaligned": ({"loss": {"alignment": 0}}, "drawing"),
    "checkpointing": ({"activation_checkpointing": True}, "drawing"),
}


@pytest.mark.parametrize("step", STEPS)
def test_what_is_weighed_is_what_is_computed(
    step: str, config: JanusFlowConfig, geometry: Geometry, flow_vae: VAE, flow_reads: Processor
) -> None:
    """To the byte where the very same is computed; training picks positions, and draws noise, beside that."""
    keys, kind = STEPS[step]
    wanted, row = recipe(**keys), longest_row(config, LENGTH, kind, geometry)
    weighed = weigh(config, wanted, row, ROWS, geometry=geometry)
    fresh = computed(config, wanted)
    with LiveBytes() as live:
        batch = fake_batch(config, row, ROWS, "cpu", geometry)
        assert run(fresh, wanted, lambda: rows_loss(fresh, batch, row), "cpu", live) == weighed

    objective = FlowObjective(computed(config, wanted), FlowLearning(), flow_reads.config)
    given = with_latents(longest_batch(config, row, ROWS, geometry), flow_vae)

    def loss() -> Tensor:
        return torch.stack(objective(given)).sum()

    with LiveBytes() as live:
        found = run(objective, wanted, loss, "cpu", live)
    of_batch = sum(each.nbytes for each in vars(given).values() if isinstance(each, Tensor))
    # What was picked is freed at other moments, as in test_weigh.
    assert weighed.most == pytest.approx(found.most + of_batch, rel=0.03)


def test_encoding_is_weighed_as_computed(flow_vae: VAE) -> None:
    with torch.no_grad(), LiveBytes() as live:
        flow_vae.encode(torch.zeros(3, 3, 64, 64))
    assert weigh_encoding(flow_vae.config, 3, 64) == live.most


def test_what_is_told_of_a_flow(config: JanusFlowConfig, flow_vae: VAE) -> None:
    memory = estimate_memory(config, recipe(ema=0.9), vae=flow_vae.config)
    assert set(memory.parts) == {*FLOW_PARTS, "alignment", "vae"}
    assert set(memory.by_row) == {"text", "drawing", "latents"}
    learning = sum(part.learning for part in memory.parts.values())
    beside = sum(weight.numel() for weight in flow_vae.parameters())
    assert (memory.parts["vae"].numbers, memory.parts["vae"].learning) == (beside, 0)
    assert memory.weights == 4 * (learning + beside)
    assert memory.gradients == memory.average == 4 * learning
    assert memory.moments == 8 * learning
    width, features = config.language.width, config.vision.width
    assert memory.parts["alignment"].learning == 2 * (width**2 + width) + width * features + features


def test_parts_of_the_released_model_are_those_that_were_counted() -> None:
    """Source: the manifest of the released file."""
    counted = {
        part: sum(weight.numel() for weight in weights.values())
        for part, weights in parameters(empty_model(FLOW_PRESETS["JanusFlow-1.3B"])).items()
    }
    assert counted["vision_adapter"] == 2_099_200
    assert counted["begin_embedding"] == counted["velocity_norm"] == 2_048
    assert counted["encoder"] == 21_614_336
    assert counted["latent_adapter"] == 1_574_912
    assert counted["decoder"] == 50_561_296
    assert counted["velocity_adapter"] == 1_573_632
    assert counted["embed"] + counted["language"] + counted["text_head"] == 1_652_656_128


# --- rows ---


def test_the_longest_rows_of_the_released_model() -> None:
    config = FLOW_PRESETS["JanusFlow-1.3B"]
    geometry = Geometry.of_flow(config, SDXL)
    assert (geometry.grid, geometry.size) == (24, 384)
    assert longest_row(config, 4096, "drawing", geometry) == Row(
        kind="drawing", length=4096, drawn=7, codes=7 * 576
    )
    assert longest_row(config, 578, "drawing", geometry).drawn == 1  # without its prompt
    with pytest.raises(
        ValueError, match=r"^data.sequence_length 577 has no room for the 578 tokens of a pic"
    ):
        longest_row(config, 577, "drawing", geometry)


# --- FLOP ---

TRAINED = {
    "stage-1": FLOW_STAGE_1,
    "stage-2": FLOW_STAGE_2,
    "stage-3": FLOW_STAGE_3,
    "encoder": ("encoder",),
    "decoder": ("decoder",),
    "adapters": ("latent_adapter", "velocity_adapter", "vision_adapter"),
    "velocity-norm": ("velocity_norm",),
    "embed": ("embed",),
    "begin": ("begin_embedding", "text_head"),
}


@pytest.mark.parametrize("aligned", [True, False])
@pytest.mark.parametrize("kind", ["understanding", "drawing"])
@pytest.mark.parametrize("train", TRAINED)
def test_a_step_costs_what_torch_counts(
    train: str,
    kind: Kind,
    aligned: bool,
    config: JanusFlowConfig,
    geometry: Geometry,
    flow_vae: VAE,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But for depthwise convolutions, whose gradients its counter takes for dense, and a CPU's attention."""
    monkeypatch.setattr(flops, "KERNEL", 0)
    learns, row = TRAINED[train], longest_row(config, LENGTH, kind, geometry)
    counts = Counts(
        tokens=ROWS * LENGTH,
        seen=ROWS * row.seen,
        tokenized=ROWS * row.drawn,
        drawn=ROWS * row.drawn,
        word_labels=ROWS * row.words,
        code_labels=ROWS * row.codes,
    )
    found = flow_cost(config, learns, flow_vae.config, alignment=aligned).of(counts)
    model = JanusFlow(config)
    freeze(model, learns)
    if aligned:
        attach_alignment(model, AFTER)
    for module in model.modules():
        if isinstance(module, ConvNeXtBlock):
            module.depthwise = nn.Identity()  # type: ignore[assignment]
    monkeypatch.setattr("janus.models.uvit.convolve", lambda conv, x: conv(x))
    with FlopCounterMode(display=False) as counter:
        loss = rows_loss(model, fake_batch(config, row, ROWS, "cpu", geometry), row)
        if loss.requires_grad:
            loss.backward()
    vision = config.vision
    pair = 4 * vision.tokens**2 * vision.width * vision.depth
    seen = (3 if "vision" in learns else 1) * ROWS * row.seen + aligned * ROWS * row.drawn
    encoding = ROWS * row.drawn * encoding_flop(flow_vae.config, geometry.size)
    assert found - pair * seen - encoding == counter.get_total_flops()


def test_the_depthwise_convolutions(config: JanusFlowConfig, geometry: Geometry, flow_vae: VAE) -> None:
    """Forward, where the counter is right about them."""
    model = JanusFlow(config)
    latents = torch.zeros(1, 4, 8, 8)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        embedded = model.embed_latents(latents, torch.zeros(1))
        model.decode_velocity(torch.zeros(1, 16, config.language.width), embedded)
    assert flow_cost(config, (), flow_vae.config, alignment=False).drawn == counter.get_total_flops()


def test_without_an_autoencoder_nothing_is_drawn(config: JanusFlowConfig) -> None:
    found = flow_cost(config, FLOW_STAGE_3, None, alignment=True)
    assert (found.drawn, found.tokenized) == (0, 0)


def test_the_autoencoder(flow_vae: VAE) -> None:
    pixels = torch.zeros(1, 3, 32, 32)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        mean = flow_vae.encode(pixels).mean
        there = counter.get_total_flops()
        flow_vae.decode(mean)
    # The CPU's attention is not counted: two products in the middle of each half, of 4 x 4 places.
    attention = 4 * 16**2 * flow_vae.config.channels[-1]
    assert encoding_flop(flow_vae.config, 32) - there in (0, attention)
    assert reconstruction_flop(flow_vae.config, 32) - counter.get_total_flops() in (0, 2 * attention)
