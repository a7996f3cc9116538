"""Small architectures, random models, copies of the small checkpoint for the tests of reading and writing."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from janus.config import AdapterConfig, JanusConfig, LanguageConfig, VisionConfig, VQConfig
from janus.models.janus import Janus
from janus.weights.load import empty_model


@pytest.fixture(scope="session")
def checkpoint(data: Path) -> Path:
    """The small bfloat16 checkpoint in the released layout; never written to."""
    return data / "januspro" / "checkpoint"


@pytest.fixture
def copied(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the small checkpoint that a test may damage."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copied"))


@pytest.fixture(scope="session")
def edit_json() -> Callable[..., None]:
    """`edit_json(file, {"a.b": value})` sets values by their path of keys; a value of ... removes the key."""

    def edit(file: Path, changes: dict[str, Any]) -> None:
        values = json.loads(file.read_text(encoding="utf-8"))
        for path, value in changes.items():
            *parents, leaf = path.split(".")
            section = values
            for parent in parents:
                section = section[parent]
            if value is ...:
                del section[leaf]
            else:
                section[leaf] = value
        file.write_text(json.dumps(values), encoding="utf-8")

    return edit


@pytest.fixture(scope="session")
def make_config() -> Callable[..., JanusConfig]:
    """A small architecture that transformers can hold too, with the given values instead of its own.

    Keywords are `vision`, `vision_adapter`, `vq`, `code_adapter` and `language` as dicts, and `head` as the
    image head's width.
    """
    base = JanusConfig(
        vision=VisionConfig(
            image_size=64,
            patch_size=16,
            width=32,
            layers=3,
            heads=2,
            mlp_ratio=2.0,
            select_layer=-1,
            norm_eps=1e-6,
        ),
        vision_adapter=AdapterConfig(kind="mlp_gelu", depth=2, input_width=32, output_width=48),
        vq=VQConfig(
            codes=64,
            code_width=8,
            channels=32,
            encoder_multipliers=(1, 1, 1, 2, 1),
            decoder_multipliers=(1, 1, 1, 2, 1),
            residual_blocks=1,
            latent_channels=16,
        ),
        code_adapter=AdapterConfig(kind="mlp_gelu", depth=2, input_width=8, output_width=48),
        image_head_width=48,
        language=LanguageConfig(
            vocabulary=640,  # that of the small checkpoint's tokenizer
            width=48,
            mlp_width=80,
            layers=2,
            heads=4,
            kv_heads=2,
            head_width=12,
            norm_eps=1e-5,
            rope_theta=5000.0,
            window=256,
            tied_head=False,
        ),
        dtype="float32",
    )

    def make(head: int | None = None, **parts: dict[str, Any]) -> JanusConfig:
        changed = {name: replace(getattr(base, name), **values) for name, values in parts.items()}
        return replace(base, **changed, image_head_width=head or base.image_head_width)

    return make


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Janus]:
    """A model of a config with seeded random weights; norms and biases are off their usual 1 and 0."""

    def make(config: JanusConfig, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> Janus:
        model = empty_model(config).to_empty(device="cpu")
        model.language.tie()
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.ndim == 1:
                values = 0.1 * noise + ("norm" in name and name.endswith("weight"))
            elif "embed" in name or "codebook" in name:
                values = noise
            else:
                values = noise / parameter[0].numel() ** 0.5
            parameter.data.copy_(values)
        return model.to(dtype).eval()

    return make


@pytest.fixture(scope="session")
def assert_equal() -> Callable[[Janus, Janus], None]:
    """Both models have the same tensors: names, dtypes and every bit."""

    def check(left: Janus, right: Janus) -> None:
        ours, theirs = left.state_dict(), right.state_dict()
        assert ours.keys() == theirs.keys()
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype, name
            assert torch.equal(tensor, theirs[name]), name

    return check


@pytest.fixture(scope="session")
def outputs() -> Callable[[Janus], dict[str, torch.Tensor]]:
    """What every part of a model computes from fixed inputs."""

    @torch.no_grad()
    def run(model: Janus) -> dict[str, torch.Tensor]:
        config = model.config
        generator = torch.Generator().manual_seed(1)
        size = config.vision.image_size
        pixels = torch.randn(1, 3, size, size, generator=generator)
        tokens = config.vision.tokens
        ids = torch.arange(tokens + 4)[None] % config.language.vocabulary
        mask = torch.zeros_like(ids, dtype=torch.bool)
        mask[:, 2 : 2 + tokens] = True
        hidden = model.hidden_states(model.embed(ids, pixels, mask))
        codes = torch.arange(4).view(1, 2, 2) % config.vq.codes
        side = 2 * config.vq.factor
        return {
            "text": model.text_logits(hidden[:, -2:]),
            "image": model.image_logits(hidden[:, -2:]),
            "codes": model.embed_codes(codes.flatten(1)),
            "decoded": model.vq.decode(codes),
            "encoded": model.vq.encode(pixels[:, :, :side, :side].clamp(-1, 1)),
        }

    return run
