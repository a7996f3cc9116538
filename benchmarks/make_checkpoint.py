"""Write a full-size checkpoint with random weights, for measurements where the released one is not at hand.

    python benchmarks/make_checkpoint.py Janus-Pro-1B FOLDER [--layout deepseek|transformers] [--seed 0]
    python benchmarks/make_checkpoint.py Janus-Pro-7B FOLDER --quantize int4

The layout is exactly the released one; the tokenizer is the small stand-in of `tests/data`, with the
processor's settings raised to the model's size. A quantized model is made a layer at a time, so the one of 7B
fits where its float weights would not. A JanusFlow comes without its autoencoder.
"""

import argparse
import json
from pathlib import Path

import torch
from torch import Tensor

from janus.config import FLOW_PRESETS, PRESETS, AnyConfig
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.quantized import (
    QUANTIZATIONS,
    Quantization,
    QuantizedLinear,
    make_quantized,
    quantize_weight,
)
from janus.weights.load import empty_model
from janus.weights.processor_config import read_side_files

STAND_INS = Path(__file__).resolve().parents[1] / "tests" / "data"
PHOTOGRAPH = STAND_INS / "photographs" / "chelsea.png"
EVERY_PRESET = {**PRESETS, **FLOW_PRESETS}


@torch.no_grad()
def random_weights(
    config: AnyConfig,
    seed: int,
    dtype: torch.dtype = torch.bfloat16,
    device: torch.device | str = "cpu",
    *,
    quantization: Quantization | None = None,
) -> Janus | JanusFlow:
    """A model whose activations stay in a sane range: N(0, 1/fan_in), norms near 1.

    Quantized layers of one shape have the same rows, in other orders.
    """
    model = empty_model(config).to(dtype)
    if quantization is not None:
        make_quantized(model, quantization)
    model = model.to_empty(device=device).eval()
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 1:
            center = 1.0 if "norm" in name and name.endswith("weight") else 0.0
            parameter.normal_(center, 0.1, generator=generator)
        else:
            table = "embed" in name or name == "vq.codebook"
            fan_in = 1 if table else parameter[0].numel()
            parameter.normal_(0.0, fan_in**-0.5, generator=generator)
    drawn: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
    layers = [module for module in model.modules() if isinstance(module, QuantizedLinear)]
    for number, layer in enumerate(layers):
        shape = (layer.out_features, layer.in_features)
        if shape not in drawn:
            weight = torch.randn(shape, generator=generator, device=device) * shape[1] ** -0.5
            drawn[shape] = quantize_weight(weight, layer.quantization)
        layer.set(*(tensor.roll(number, dims=0) for tensor in drawn[shape]))
    return model


def random_model(preset: str, seed: int, quantization: Quantization | None = None) -> Janus | JanusFlow:
    """Such a model of a preset's size in bfloat16, ready to be saved."""
    return with_files(random_weights(EVERY_PRESET[preset], seed, quantization=quantization))


def with_files(model: Janus | JanusFlow) -> Janus | JanusFlow:
    """The model, with the small files that a checkpoint has besides weights."""
    family = "janusflow" if isinstance(model, JanusFlow) else "januspro"
    side_files = read_side_files(STAND_INS / family / "checkpoint")
    for name, changes in (
        ("preprocessor_config.json", {"image_size": model.config.vision.image_size}),
        ("processor_config.json", {"num_image_tokens": model.config.vision.tokens}),
    ):
        side_files[name] = json.dumps({**json.loads(side_files[name]), **changes}, indent=2).encode()
    model.files = side_files
    return model


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("preset", choices=EVERY_PRESET)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layout", choices=("deepseek", "transformers"), default="deepseek")
    parser.add_argument("--quantize", choices=QUANTIZATIONS, help="in the released layout")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    model = random_model(options.preset, options.seed, options.quantize)
    # Shards, for writing a file holds its tensors a second time.
    model.save_pretrained(
        options.folder, layout=options.layout, max_shard_size="1GB" if options.quantize else None
    )
    print(options.folder)


if __name__ == "__main__":
    main()
