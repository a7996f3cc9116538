"""The autoencoder of JanusFlow's latents, in diffusers' layout: `config.json` and one file of weights.

Strict, as all loading here: a missing, unexpected or misshapen name raises before any weight is read.
"""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from janus.devices import resolve_device, resolve_dtype
from janus.files import require_folder, write_whole
from janus.models.meta import on_meta
from janus.models.vae import VAE, VAEConfig
from janus.weights.hub import AUTOENCODER, find
from janus.weights.json_object import JsonObject, parse_object
from janus.weights.names import match
from janus.weights.read import FLOATS, TensorInfo, choose_weights, contents, read, weight_files, windows
from janus.weights.write import write_tensors

RELEASED = "stabilityai/sdxl-vae"  # the one that JanusFlow was trained on
WEIGHTS = "diffusion_pytorch_model.safetensors"
WINDOW = 128 << 20  # bytes of a mapping's run, as in `janus.weights.load`

# From this library's names to diffusers': its present one first, then that of earlier releases.
_ATTENTION = (
    ("norm.*", ("group_norm.*",)),
    ("q.*", ("to_q.*", "query.*")),
    ("k.*", ("to_k.*", "key.*")),
    ("v.*", ("to_v.*", "value.*")),
    ("out.*", ("to_out.0.*", "proj_attn.*")),
)
TABLE: tuple[tuple[str, tuple[str, ...]], ...] = (
    *(
        row
        for coder, levels, resample in (("encoder", "down", "downsamplers"), ("decoder", "up", "upsamplers"))
        for row in (
            (
                f"{coder}.levels.{{}}.res.{{}}.nin_shortcut.*",
                (f"{coder}.{levels}_blocks.{{}}.resnets.{{}}.conv_shortcut.*",),
            ),
            (f"{coder}.levels.{{}}.res.{{}}.*", (f"{coder}.{levels}_blocks.{{}}.resnets.{{}}.*",)),
            (f"{coder}.levels.{{}}.resample.*", (f"{coder}.{levels}_blocks.{{}}.{resample}.0.*",)),
            (f"{coder}.mid.0.*", (f"{coder}.mid_block.resnets.0.*",)),
            *(
                (
                    f"{coder}.mid.1.{ours}",
                    tuple(f"{coder}.mid_block.attentions.0.{name}" for name in theirs),
                )
                for ours, theirs in _ATTENTION
            ),
            (f"{coder}.mid.2.*", (f"{coder}.mid_block.resnets.1.*",)),
            (f"{coder}.norm_out.*", (f"{coder}.conv_norm_out.*",)),
            (f"{coder}.*", (f"{coder}.*",)),
        )
    ),
    ("quant_conv.*", ("quant_conv.*",)),
    ("post_quant_conv.*", ("post_quant_conv.*",)),
)


def load_vae(
    path: str | Path = RELEASED,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    revision: str | None = None,
    token: str | None = None,
) -> VAE:
    """The autoencoder of a local folder or hub id, in evaluation mode.

    Device and dtype as for a model (`janus.weights.load`), but that float16 becomes float32 unless the config
    says that activations stay in float16's range (`force_upcast: false`). Raises FileNotFoundError,
    ConnectionError or PermissionError where it cannot be had, ValueError where it is broken or is no
    autoencoder that is computed here.
    """
    target = resolve_device(device)
    resolve_dtype(dtype, target)  # a wrong name raises before anything is fetched
    try:
        folder = find(path, revision=revision, token=token)
    except OSError as error:
        raise type(error)(
            f"the autoencoder of JanusFlow's pictures is not there: {error}. One is a folder with config.json"
            f" and {WEIGHTS}, or a hub id such as {RELEASED}"
        ) from error
    config = read_vae_config(folder)
    if not choose_weights(file.name for file in folder.iterdir()):
        raise FileNotFoundError(f"{folder} holds no weights of an autoencoder, which {WEIGHTS} would be")
    stored = contents(weight_files(folder))
    vae = empty_vae(config)
    plan = check_vae_names(vae, stored, folder)
    held = stored[plan["quant_conv.weight"]].dtype
    assert held is not None  # else the check would have raised
    chosen = resolve_dtype(dtype, target, held)
    if chosen == torch.float16 and config.force_upcast:
        chosen = torch.float32  # it would be made so again for each picture
    _fill(vae, stored, plan, target, chosen)
    return vae.eval()


def own_vae(folder: Path) -> Path | None:
    """The autoencoder in a checkpoint's own folder, as diffusers nests it; None where there is none."""
    nested = folder / AUTOENCODER
    return nested if (nested / "config.json").is_file() else None


def copy_vae(vae: Path, folder: Path) -> None:
    """Give a checkpoint's folder the autoencoder of another's, with whatever lies beside it.

    Weights that another had there are removed.
    """
    own = folder / AUTOENCODER
    if own.exists() and own.samefile(vae):
        return
    require_folder(own, "remove it, or save elsewhere")
    files = [file for file in vae.iterdir() if file.is_file()]
    for file in files:
        write_whole(own / file.name, partial(shutil.copyfile, file))
    for name in {file.name for file in own.iterdir()} - {file.name for file in files}:
        if choose_weights([name]):  # which might be read in place of those that were copied
            (own / name).unlink()


def save_vae(vae: VAE, path: str | Path) -> None:
    """Write config and weights, at their own dtype, as diffusers reads them; files are written whole."""
    folder = Path(path).expanduser()
    require_folder(folder, "name a folder to save into")
    named = {stored_names(name)[0]: tensor for name, tensor in vae.state_dict().items()}
    write_whole(folder / WEIGHTS, lambda file: write_tensors(named, file, metadata={"format": "pt"}))
    config = json.dumps(format_vae_config(vae.config), indent=2, ensure_ascii=False) + "\n"
    write_whole(folder / "config.json", config.encode())


def read_vae_config(folder: Path) -> VAEConfig:
    """The architecture that a folder's `config.json` states; absent keys mean what they mean to diffusers.

    Raises FileNotFoundError without one, ValueError for one that is broken, of another model, or asks for
    what is not computed here.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: it is not the folder of an autoencoder")
    try:
        values = parse_object(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    try:
        return parse_vae_config(values)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def parse_vae_config(values: Mapping[str, Any]) -> VAEConfig:
    """As `read_vae_config`, of the JSON object itself."""
    top = JsonObject(values)
    top.require("_class_name", "AutoencoderKL")
    top.require("act_fn", "silu", "swish", absent="silu")
    for key in ("in_channels", "out_channels"):
        top.require(key, 3, absent=3)
    for key in ("use_quant_conv", "use_post_quant_conv", "mid_block_add_attention"):
        top.require(key, True, absent=True)
    top.require("shift_factor", None, 0)
    for key in ("latents_mean", "latents_std"):
        top.require(key, None)
    channels = top.wholes("block_out_channels", (64,))
    if not channels:
        raise top.fail("block_out_channels", "must name at least one level")
    for key, kind in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        top.require(key, [kind] * len(channels), absent=[kind])
    return VAEConfig(
        channels=channels,
        residual_blocks=top.whole("layers_per_block", 1),
        latent_channels=top.whole("latent_channels", 4),
        groups=top.whole("norm_num_groups", 32),
        scaling_factor=top.number("scaling_factor", 0.18215),
        force_upcast=top.flag("force_upcast", True),
        extra=values,
    )


def format_vae_config(config: VAEConfig) -> dict[str, Any]:
    """The JSON object that states this architecture, with what else the one it was read from said."""
    levels = len(config.channels)
    return {
        **config.extra,
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.channels),
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "force_upcast": config.force_upcast,
        "in_channels": 3,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.residual_blocks,
        "norm_num_groups": config.groups,
        "out_channels": 3,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
    }


def stored_names(name: str) -> tuple[str, ...]:
    """What the file may call the module's tensor `name`: what it is called today comes first."""
    for ours, theirs in TABLE:
        if found := match(ours, name):
            return tuple(pattern.replace("*", "{}").format(*found.groups()) for pattern in theirs)
    raise KeyError(f"no row of the table fits {name}")


def check_vae_names(vae: VAE, stored: Mapping[str, TensorInfo], folder: Path) -> dict[str, str]:
    """From the module's names to those in the files, which must hold just these, in floats.

    Raises ValueError, naming up to ten of each kind. Linear layers may be stored as convolutions of one
    position, which they once were.
    """
    shapes = {name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}
    plan: dict[str, str] = {}
    for name in shapes:
        names = stored_names(name)
        plan[name] = next((each for each in names if each in stored), names[0])
    taken = set(plan.values())
    problems = {
        "missing": [name for name in plan.values() if name not in stored],
        "unexpected": [name if name.isprintable() else repr(name) for name in stored if name not in taken],
        "misshapen": [
            f"{plan[name]} is {stored[plan[name]].shape}, not {shape}"
            for name, shape in shapes.items()
            if plan[name] in stored and not _fits(stored[plan[name]].shape, shape)
        ],
        "not floating-point": [
            name for name in plan.values() if name in stored and stored[name].dtype not in FLOATS.values()
        ],
    }
    told = [
        f"{what}: {', '.join(names[:10])}" + (f" and {len(names) - 10} more" if len(names) > 10 else "")
        for what, names in problems.items()
        if names
    ]
    if told:
        raise ValueError(f"the weights in {folder} do not fit its config.json: {'. '.join(told)}")
    return plan


def _fits(stored: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return stored == wanted or (len(wanted) == 2 and stored == (*wanted, 1, 1))


def empty_vae(config: VAEConfig) -> VAE:
    """On the meta device: shapes, and no memory. ValueError where no tensor can be so large."""
    try:
        with on_meta():
            return VAE(config)
    except (RuntimeError, TypeError, OverflowError) as error:
        reason = str(error).split("\n")[0]
        raise ValueError(f"the config asks for tensors of a size that torch cannot hold: {reason}") from error


def _fill(
    vae: VAE, stored: dict[str, TensorInfo], plan: dict[str, str], device: torch.device, dtype: torch.dtype
) -> None:
    """Put every tensor of the plan into the module, holding at most one window of the files besides."""
    owner = {theirs: ours for ours, theirs in plan.items()}
    for file, names in windows(stored, list(owner), limit=WINDOW):
        for name, tensor in read(file, names):
            path, _, leaf = owner[name].rpartition(".")
            module = vae.get_submodule(path)
            whole = torch.empty(getattr(module, leaf).shape, device=device, dtype=dtype)
            whole.copy_(tensor.view(whole.shape))
            setattr(module, leaf, nn.Parameter(whole))
