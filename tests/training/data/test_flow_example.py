"""JanusFlow's documents: what inference reads, with a time and latents after the prompt."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from janus.config import JanusFlowConfig
from janus.models.vae import SDXL, VAEConfig
from janus.processing.processor import Processor
from janus.training.data.documents import Builder, Documents
from janus.training.data.example import conversation_example, drawing_example
from janus.training.data.limits import Guard
from janus.training.data.loader import Loader
from janus.training.data.mixture import Mixture, Part
from janus.training.data.order import hashed
from janus.training.data.outline import IGNORE, Geometry, drawing_outline
from janus.training.data.packing import Batch
from janus.training.data.sources import World
from janus.weights.config_files import read_config
from janus.weights.processor_config import read_side_files
from janus.weights.vae import read_vae_config

PICTURE = Image.new("RGB", (40, 20), (250, 10, 30))
TOKENS = 16
prompts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "janusflow" / "checkpoint"


@pytest.fixture(scope="module")
def reads(folder: Path) -> Processor:
    return Processor(read_side_files(folder), where=str(folder))


@pytest.fixture(scope="module")
def flow_config(folder: Path) -> JanusFlowConfig:
    config, _ = read_config(folder)
    assert isinstance(config, JanusFlowConfig)
    return config


@pytest.fixture(scope="module")
def vae(data: Path) -> VAEConfig:
    return read_vae_config(data / "janusflow" / "vae")


@pytest.fixture(scope="module")
def shape(flow_config: JanusFlowConfig, vae: VAEConfig) -> Geometry:
    return Geometry.of_flow(flow_config, vae)


def test_the_geometry_is_of_the_size_that_is_seen(shape: Geometry) -> None:
    assert (shape.grid, shape.factor, shape.codebook) == (4, 16, None)
    assert (shape.tokens, shape.size) == (TOKENS, 64)


def test_an_autoencoder_that_does_not_fit_is_refused(flow_config: JanusFlowConfig, vae: VAEConfig) -> None:
    with pytest.raises(ValueError, match="latents have 8 channels, and the model's 4: give the one that it"):
        Geometry.of_flow(flow_config, replace(vae, latent_channels=8))
    with pytest.raises(
        ValueError, match=r"of 64 pixels are no whole number of tokens of 128 pixels: give an"
    ):
        Geometry.of_flow(flow_config, replace(SDXL, channels=(128,) * 7))


@given(prompt=prompts)
@settings(max_examples=40)
def test_a_drawing_is_the_prompt_without_its_last_the_time_and_latents(
    reads: Processor, shape: Geometry, prompt: str
) -> None:
    ids = reads.draw_prompt(prompt)
    document = drawing_outline(reads, prompt, PICTURE, shape)
    start = len(ids) - 1
    assert document.ids[:start].tolist() == ids[:-1]
    assert len(document) == start + 1 + TOKENS
    assert document.code_mask.nonzero()[:, 0].tolist() == list(range(start, len(document)))
    assert document.code_labels_mask.nonzero()[:, 0].tolist() == list(range(start + 1, len(document)))
    assert document.positions.tolist() == list(range(len(document)))
    assert (document.labels == IGNORE).all()
    assert not document.image_mask.any()
    assert document.picture is PICTURE
    assert document.end_of_pictures == len(document)  # never cut


@given(prompt=prompts)
@settings(max_examples=40)
def test_without_its_prompt_it_stands_where_it_stood(reads: Processor, shape: Geometry, prompt: str) -> None:
    whole = drawing_outline(reads, prompt, PICTURE, shape)
    dropped = drawing_outline(reads, prompt, PICTURE, shape, drop_prompt=True)
    assert len(dropped) == 1 + 1 + TOKENS
    assert dropped.ids[0] == reads.tokenizer.bos_id
    assert dropped.positions.tolist() == [0, *whole.positions[-TOKENS - 1 :].tolist()]
    for mask in ("code_mask", "code_labels_mask"):
        assert torch.equal(getattr(dropped, mask)[1:], getattr(whole, mask)[-TOKENS - 1 :])


def test_a_conversation_is_what_inference_reads(reads: Processor) -> None:
    """A picture's embeddings begin on its start token."""
    question = [{"type": "image", "image": PICTURE}, {"type": "text", "text": "What is it?"}]
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": "A strip."}]
    example, batch = conversation_example(reads, messages), reads(messages)
    assert torch.equal(example.ids, batch.input_ids[0])
    assert torch.equal(example.image_mask, batch.image_mask[0])
    assert int(example.image_mask.sum()) == reads.config.num_image_tokens + 1
    assert torch.equal(example.pixels, batch.pixels)
    assert not (example.image_mask & (example.labels != IGNORE)).any()


def test_codes_are_refused(reads: Processor, shape: Geometry) -> None:
    with pytest.raises(
        ValueError, match="codes are of a VQ tokenizer, and this model draws latents: give th"
    ):
        drawing_example(reads, "a strip", [0] * TOKENS, shape)


# --- what the loader gives ---


def row(random: Any) -> dict[str, Any]:
    level = int(random.integers(256))
    return {"prompt": f"a square of level {level}", "image": Image.new("RGB", (64, 64), (level,) * 3)}


@pytest.fixture
def loader(reads: Processor, shape: Geometry) -> Callable[[int], Loader]:
    def loader(workers: int) -> Loader:
        builder = Builder(processor=reads, guard=Guard(100, "drop"), geometry=shape, prompt_dropout=0.3)
        mixture = Mixture([Part(World(row, "squares"), 1.0, "drawing")], seed=5)
        return Loader(mixture, builder, rows=2, length=100, workers=workers)

    return loader


def said(batch: Batch) -> dict[str, Any]:
    return {name: each.tolist() for name, each in vars(batch).items() if isinstance(each, torch.Tensor)}


def test_workers_change_nothing(loader: Callable[[int], Loader]) -> None:
    alone, helped = iter(loader(0)), iter(loader(1))
    for _ in range(3):
        assert said(next(alone)) == said(next(helped))


def test_every_draw_has_a_seed_of_its_own(
    reads: Processor, shape: Geometry, loader: Callable[[int], Loader]
) -> None:
    """A function of the draw alone: in whatever batch, and when a run goes on."""
    made = loader(0)
    batches = iter(made)
    first = next(batches)
    state = made.state_dict()
    second = next(batches)
    seeds = [*first.seeds.tolist(), *second.seeds.tolist()]
    assert len(set(seeds)) == len(seeds)
    assert first.seeds.shape == first.targets.shape[:1]
    documents = Documents(made.mixture, made.builder)
    own = {hashed("noise", made.mixture.draw(place).seed) >> 1 for place in range(len(seeds))}
    assert own == set(seeds)
    example = documents.read(0).example
    assert example is not None
    assert example.seed in first.seeds.tolist()
    again = loader(0)
    again.load_state_dict(state)
    assert said(next(iter(again))) == said(second)
