"""`janus info`: what a checkpoint is, what it takes, and whether its numbers are numbers.

No weight is read but to check.
"""

import json
from collections.abc import Container, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from janus.checks import one_line, require_whole
from janus.config import LATENT_PATCH, AnyConfig, JanusConfig, JanusFlowConfig
from janus.drawing.choose import choose_vae
from janus.drawing.flow import latent_size
from janus.files import require_place
from janus.inference.cache import bytes_per_position
from janus.models.quantized import check_quantization, make_quantized
from janus.models.vae import SDXL, VAEConfig
from janus.weights.config_files import read_config
from janus.weights.hub import find, missing
from janus.weights.load import WINDOW, dtypes, empty_model, inspect, parameter_names, settle_tie
from janus.weights.read import (
    TensorInfo,
    choose_weights,
    contents,
    read,
    weight_files,
    weight_map,
    windows,
)
from janus.weights.vae import RELEASED, empty_vae, read_vae_config

DTYPES = (torch.float32, torch.bfloat16)
GIB = 1 << 30


def parameters_by_part(config: AnyConfig) -> dict[str, int]:
    """How many numbers each part of the model holds, and all of them as "total"."""
    model = empty_model(config)
    state = model.state_dict()
    counts: dict[str, int] = {}
    for name in parameter_names(model):
        part = name.split(".")[0]
        counts[part] = counts.get(part, 0) + state[name].numel()
    return {**counts, "total": sum(counts.values())}


def bytes_of_weights(config: AnyConfig, dtype: torch.dtype) -> int:
    """How much the weights take at a dtype; those that are quantized keep their own."""
    model = empty_model(config)
    if config.quantization is not None:
        make_quantized(model, check_quantization(config.quantization))
    kept = dtypes(model)
    state = model.state_dict()
    return sum(state[name].numel() * kept.get(name, dtype).itemsize for name in parameter_names(model))


def drawn_tokens(config: AnyConfig, vae: VAEConfig | None = None) -> int:
    """Positions of the language model that a picture takes which is drawn, beyond its prompt's.

    Its codes; or, by a flow, its latents' tokens, through this autoencoder (or the released one): the time
    stands in place of the prompt's last token.
    """
    if isinstance(config, JanusConfig):
        return config.picture_tokens
    height, width = latent_size(config.picture_size, vae or SDXL)
    return height * width // LATENT_PATCH**2


def vae_parameters(vae: VAEConfig) -> int:
    """How many numbers an autoencoder holds."""
    return sum(tensor.numel() for tensor in empty_vae(vae).parameters())


def estimate(
    config: AnyConfig,
    dtype: torch.dtype,
    *,
    pictures: int,
    prompt: int,
    answer: int,
    vae: VAEConfig | None = None,
) -> dict[str, int]:
    """Bytes of the weights, of the caches of guided pictures drawn at once, and of the cache of one answer.

    And those of a JanusFlow's autoencoder (the released one). The working memory of the layers comes on top.
    """
    each = bytes_per_position(config.language, dtype)
    sizes = {"weights": bytes_of_weights(config, dtype)}
    if isinstance(config, JanusFlowConfig):
        sizes["autoencoder"] = vae_parameters(vae or SDXL) * dtype.itemsize
    return sizes | {
        "picture_caches": 2 * pictures * (prompt + drawn_tokens(config, vae)) * each,
        "answer_cache": (prompt + config.seen_tokens + answer) * each,
    }


def not_finite(path: str | Path, *, revision: str | None = None) -> dict[str, int]:
    """The tensors of a checkpoint that hold NaN or infinity, by their names in its files, with how many."""
    checkpoint = inspect(path, revision=revision)
    names = [name for source in checkpoint.plan.values() for name in source.names]
    return _not_finite(checkpoint.stored, names)


def not_finite_vae(path: str | Path) -> dict[str, int]:
    """As `not_finite`, of the autoencoder in a folder or of a hub id."""
    stored = contents(weight_files(find(path)))
    return _not_finite(stored, list(stored))


def _not_finite(stored: dict[str, TensorInfo], names: Sequence[str]) -> dict[str, int]:
    found = {}
    for file, run in windows(stored, names, WINDOW):
        for name, tensor in read(file, run):
            bad = tensor.numel() - int(torch.isfinite(tensor).sum())
            if bad:
                found[name] = bad
    return found


def describe(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    revision: str | None,
    pictures: int,
    prompt: int,
    answer: int,
) -> dict[str, Any]:
    """All that `janus info` tells, as plain values. Needs the small files only, and reads no weight.

    Of the autoencoder too, and where the released one is meant, whose sizes are known, none at all.
    """
    for name, value in (("pictures", pictures), ("prompt_tokens", prompt), ("answer_tokens", answer)):
        require_whole(name, value, least=0)
    folder = find(path, weights=False, revision=revision)
    config, layout = read_config(folder)
    config = settle_tie(config, layout, _stored_names(folder))
    architecture = asdict(config)
    architecture.pop("extra")
    parameters = parameters_by_part(config)
    use: dict[str, Any] = {"pictures": pictures, "prompt": prompt, "answer": answer}
    flow: dict[str, Any] = {}
    source = choose_vae(folder, vae)
    if isinstance(config, JanusFlowConfig):
        use["vae"] = SDXL if source is None else read_vae_config(find(source, weights=False))
        flow["autoencoder"] = _facts_of_flow(config, str(source or RELEASED), use["vae"])
    return {
        "model": str(path),
        "layout": layout,
        "config": architecture,
        "parameters": parameters,
        **flow,
        "use": {"pictures": pictures, "prompt_tokens": prompt, "answer_tokens": answer},
        "memory": {str(dtype).removeprefix("torch."): estimate(config, dtype, **use) for dtype in DTYPES},
    }


def _stored_names(folder: Path) -> Container[str]:
    """The tensors' names, as an index has them, or the files where all are there; none where neither is."""
    files = choose_weights(file.name for file in folder.iterdir() if file.is_file())
    for name in files:
        if name.endswith(".index.json"):
            return weight_map(folder / name)
    return () if missing(folder) else contents([folder / name for name in files])


def _facts_of_flow(config: JanusFlowConfig, source: str, vae: VAEConfig) -> dict[str, Any]:
    sizes = asdict(vae)
    sizes.pop("extra")
    height, width = latent_size(config.picture_size, vae)
    return {
        "model": source,
        "config": sizes,
        "parameters": vae_parameters(vae),
        "picture": [config.picture_size, config.picture_size],
        "latents": [vae.latent_channels, height, width],
        "drawn_tokens": drawn_tokens(config, vae),
    }


def report(facts: dict[str, Any]) -> str:
    """The facts of `describe` as text."""
    quantization = facts["config"]["quantization"]
    precision = facts["config"]["dtype"] + (f", quantized to {quantization}" if quantization else "")
    lines = [f"{facts['model']} ({facts['layout']} layout, {precision})", "", "config"]
    for part, values in facts["config"].items():
        shown = values
        if isinstance(values, dict):
            shown = ", ".join(f"{key} {value}" for key, value in values.items())
        lines.append(f"  {part:<18}{shown}")
    lines += ["", "parameters"]
    lines += [f"  {part:<18}{count:>16,}" for part, count in facts["parameters"].items()]
    if flow := facts.get("autoencoder"):
        sides = {name: " x ".join(map(str, flow[name])) for name in ("picture", "latents")}
        lines += [
            "",
            f"autoencoder: {flow['model']}, {flow['parameters']:,} parameters",
            f"  draws {sides['picture']} pixels from latents of {sides['latents']}, "
            f"{flow['drawn_tokens']} tokens of the language model",
            f"  {', '.join(f'{key} {value}' for key, value in flow['config'].items())}",
        ]
    use = facts["use"]
    lines += [
        "",
        f"memory: {use['pictures']} guided pictures at once, an answer of {use['answer_tokens']} tokens, "
        f"prompts of {use['prompt_tokens']}; what the layers work in comes on top",
    ]
    for dtype, parts in facts["memory"].items():
        shown = ", ".join(f"{part.replace('_', ' ')} {size / GIB:.2f} GiB" for part, size in parts.items())
        lines.append(f"  {dtype:<18}{shown}; together {sum(parts.values()) / GIB:.2f} GiB")
    return "\n".join(lines)


def run(
    path: str | Path,
    *,
    vae: str | Path | None = None,
    revision: str | None = None,
    pictures: int = 1,
    prompt: int = 64,
    answer: int = 512,
    check: bool = False,
    json_path: Path | None = None,
) -> int:
    """Print the report and write it to `json_path`; with `check` 1 where a weight is not finite, else 0."""
    if json_path is not None:
        require_place(json_path, "--json")
    facts = describe(path, vae=vae, revision=revision, pictures=pictures, prompt=prompt, answer=answer)
    print(report(facts))
    if check:
        facts["not_finite"] = not_finite(path, revision=revision)
        print("\ncheck")
        if flow := facts.get("autoencoder"):
            try:
                found = not_finite_vae(flow["model"])
                facts["not_finite"] |= {f"autoencoder: {name}": count for name, count in found.items()}
            except OSError as error:
                print(f"  the autoencoder is not there, and was not checked: {one_line(error)}")
        for name, count in facts["not_finite"].items():
            print(f"  {name} holds {count:,} numbers that are NaN or infinite")
        damaged = "the checkpoint is damaged: fetch it again"
        print(f"  {damaged if facts['not_finite'] else 'every weight is a finite number'}")
    if json_path is not None:
        json_path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    return 1 if facts.get("not_finite") else 0
