"""A VQ tokenizer by itself in a folder: its weights and its sizes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors.torch import load_file

from janus.checks import one_line
from janus.config import VQConfig
from janus.files import write_whole
from janus.models.janus import Janus
from janus.models.vq import VQ
from janus.training.recipe.architecture import parse_architecture, render_architecture
from janus.weights.write import write_tensors

VQ_WEIGHTS, VQ_SIZES = "vq.safetensors", "vq.json"


def save_vq(vq: VQ, folder: Path) -> None:
    """Write a tokenizer by itself: its weights and its sizes, which `load_vq` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    sizes = render_architecture(vq.config)
    write_whole(folder / VQ_WEIGHTS, lambda file: write_tensors(vq.state_dict(), file))
    write_whole(folder / VQ_SIZES, (json.dumps(sizes, indent=1) + "\n").encode())


def load_vq(path: str | Path, config: VQConfig | None = None) -> VQ:
    """A tokenizer in float32 on the CPU: one by itself, or a whole model's. Of the sizes given, if any."""
    if not is_vq(path):
        vq = Janus.from_pretrained(path, device="cpu", dtype="float32").vq
    else:
        folder = Path(path)
        vq = VQ(read_vq_config(folder))
        try:
            vq.load_state_dict(load_file(folder / VQ_WEIGHTS))
        except Exception as error:  # of safetensors' own class, or torch's for names and shapes
            raise ValueError(
                f"{folder / VQ_WEIGHTS} cannot be read ({one_line(error)}): train or copy it again"
            ) from error
    if config is not None and vq.config != config:
        differing = [name for name in vars(config) if getattr(config, name) != getattr(vq.config, name)]
        raise ValueError(
            f"the tokenizer in {path} differs from the architecture in {', '.join(differing)}: give its sizes"
        )
    return vq


def is_vq(path: str | Path) -> bool:
    return (Path(path) / VQ_WEIGHTS).is_file()


def vq_config(architecture: Any) -> VQConfig:
    """The sizes of a tokenizer by itself, as `render_architecture` gave them; ValueError for any others."""
    config = parse_architecture(architecture)
    if not isinstance(config, VQConfig):
        raise ValueError("the sizes are of a whole model, and not of a tokenizer alone")
    return config


def read_vq_config(folder: Path) -> VQConfig:
    file = folder / VQ_SIZES
    try:
        return vq_config(json.loads(file.read_bytes()))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{file} cannot be read ({one_line(error)}): train or copy it again") from error
