"""A small model that learns, the batches it learns from, and runs of several processes."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from janus.config import JanusConfig
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE
from janus.processing.processor import Processor
from janus.training.data.example import Example, conversation_example, drawing_example
from janus.training.data.outline import Geometry
from janus.weights.vae import load_vae

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def checkpoint(data: Path) -> str:
    """The folder of the small checkpoint."""
    return str(data / "januspro" / "checkpoint")


@pytest.fixture(scope="session")
def fewer_layers(model: Janus) -> Callable[[int], JanusConfig]:
    """From a number of layers of the language model to the small checkpoint's sizes, less of the rest."""

    def config(layers: int) -> JanusConfig:
        whole = model.config
        return replace(
            whole,
            language=replace(whole.language, layers=layers),
            vision=replace(whole.vision, layers=1),
            vq=replace(whole.vq, residual_blocks=1),
        )

    return config


@pytest.fixture
def fresh(checkpoint: str) -> Janus:
    """The small checkpoint in float32, to be changed."""
    return Janus.from_pretrained(checkpoint, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def reads(checkpoint: str) -> Processor:
    return Processor.from_pretrained(checkpoint)


@pytest.fixture(scope="session")
def make(model: Janus, reads: Processor) -> Callable[[str, int], Example]:
    """A document of a task and a number."""

    def example(task: str, number: int) -> Example:
        random = np.random.default_rng(number)
        picture = random.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        if task == "drawing":
            codes = torch.from_numpy(random.integers(0, 256, model.config.picture_tokens))
            return drawing_example(reads, "a red circle"[: 2 + number], codes, Geometry.of(model.config))
        content = [{"type": "text", "text": "What is it?"[: 3 + number]}]
        if task == "understanding":
            content.insert(0, {"type": "image", "image": picture})
        answer = {"role": "assistant", "content": "A" * (1 + number)}
        return conversation_example(reads, [{"role": "user", "content": content}, answer], system="")

    return example


@pytest.fixture(scope="session")
def flow_checkpoint(data: Path) -> str:
    """The folder of the small JanusFlow."""
    return str(data / "janusflow" / "checkpoint")


@pytest.fixture(scope="session")
def flow_vae(data: Path) -> VAE:
    """Its autoencoder: of a picture that it sees it makes 8 x 8 latents, 16 tokens."""
    return load_vae(data / "janusflow" / "vae", device="cpu", dtype="float32")


@pytest.fixture
def fresh_flow(flow_checkpoint: str) -> JanusFlow:
    """The small JanusFlow in float32, to be changed."""
    return JanusFlow.from_pretrained(flow_checkpoint, device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def flow_reads(flow_checkpoint: str) -> Processor:
    return Processor.from_pretrained(flow_checkpoint)


@pytest.fixture(scope="session")
def make_flow(flow: JanusFlow, flow_vae: VAE, flow_reads: Processor) -> Callable[[str, int], Example]:
    """As `make`, of the small JanusFlow; a "dropped" document is a drawing without its prompt."""
    geometry = Geometry.of_flow(flow.config, flow_vae.config)

    def example(task: str, number: int) -> Example:
        random = np.random.default_rng(number)
        picture = random.integers(0, 256, (9, 7, 3), dtype=np.uint8)
        if task in ("drawing", "dropped"):
            prompt, drop = "a red circle"[: 2 + number], task == "dropped"
            return drawing_example(
                flow_reads, prompt, picture, geometry, drop_prompt=drop, seed=10**18 + number
            )
        content = [{"type": "text", "text": "What is it?"[: 3 + number]}]
        if task == "understanding":
            content.insert(0, {"type": "image", "image": picture})
        answer = {"role": "assistant", "content": "A" * (1 + number)}
        return conversation_example(flow_reads, [{"role": "user", "content": content}, answer], system="")

    return example


@pytest.fixture(scope="session")
def torchrun() -> Callable[..., subprocess.CompletedProcess[str]]:
    """A run of a program on two processes on the CPU. One that hangs is ended, and the test fails."""

    def run(program: Path, *arguments: object, ranks: int = 2) -> subprocess.CompletedProcess[str]:
        start = [sys.executable]
        if ranks > 1:
            start += ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
        environment = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [*start, str(program), *map(str, arguments)],
            capture_output=True,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
            timeout=300,
        )

    return run
