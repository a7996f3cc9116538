"""Models of other sizes than any release: saved, loaded, the same numbers and the same outputs."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from janus.config import JanusConfig
from janus.models.janus import Janus
from janus.weights.load import load
from janus.weights.names import LAYOUTS, Layout

Make = Callable[..., Any]
Outputs = Callable[[Janus], dict[str, Tensor]]

ARCHITECTURES: dict[str, dict[str, Any]] = {
    "one-key-value-head": {"language": {"kv_heads": 1}},
    "heads-wider-than-the-model": {"language": {"head_width": 20, "kv_heads": 4}},
    "tied": {"language": {"tied_head": True}},
    "depths-1": {"vision_adapter": {"depth": 1}, "code_adapter": {"depth": 1}},
    "depths-3": {"vision_adapter": {"depth": 3}, "code_adapter": {"depth": 3}},
    "linear": {"vision_adapter": {"kind": "linear"}, "code_adapter": {"kind": "linear"}},
    "identity": {
        "vision": {"width": 48},
        "vision_adapter": {"kind": "identity", "input_width": 48},
        "vq": {"code_width": 48},
        "code_adapter": {"kind": "identity", "input_width": 48},
    },
    "vq-3-levels": {
        "vq": {"encoder_multipliers": (1, 1, 2), "decoder_multipliers": (1, 2, 1), "residual_blocks": 2}
    },
    "vq-1-level": {"vq": {"encoder_multipliers": (1,), "decoder_multipliers": (2,)}},
    "select-first-2": {"vision": {"select_layer": 2}},
    "select-all-but-1": {"vision": {"select_layer": -2}},
    "patches-of-14": {"vision": {"image_size": 70, "patch_size": 14, "mlp_ratio": 3.7362}},
    "narrow-head": {"head": 20},
}


@pytest.mark.filterwarnings("ignore:transformers' own Janus cannot load")
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("case", ARCHITECTURES)
def test_model_comes_back_as_it_was(
    case: str,
    layout: Layout,
    make_config: Make,
    make_model: Make,
    assert_equal: Callable[[Janus, Janus], None],
    outputs: Outputs,
    tmp_path: Path,
) -> None:
    config: JanusConfig = make_config(**ARCHITECTURES[case])
    model: Janus = make_model(config)
    model.save_pretrained(tmp_path, layout=layout)
    again = load(tmp_path, device="cpu", dtype="float32")
    assert_equal(again, model)
    assert again.config.vision.depth == config.vision.depth
    before, after = outputs(model), outputs(again)
    assert all(torch.equal(after[part], tensor) for part, tensor in before.items())
    assert all(bool(tensor.isfinite().all()) for tensor in before.values())
    if layout == "deepseek":
        assert again.config == config


# The tied head


@pytest.fixture
def tied(make_config: Make, make_model: Make) -> Janus:
    return make_model(make_config(language={"tied_head": True}))


def add_head(file: Path, name: str, head: Tensor) -> None:
    save_file({**load_file(file), name: head.contiguous()}, file)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_tied_head_is_the_word_table_itself(layout: Layout, tied: Janus, tmp_path: Path) -> None:
    tied.save_pretrained(tmp_path, layout=layout)
    assert not [name for name in load_file(tmp_path / "model.safetensors") if "lm_head" in name]
    again = load(tmp_path, device="cpu")
    assert again.config.language.tied_head
    assert again.language.head.weight is again.language.embed.weight


def test_released_layout_may_hold_the_tied_head_too(
    tied: Janus, tmp_path: Path, assert_equal: Callable[[Janus, Janus], None]
) -> None:
    tied.save_pretrained(tmp_path)
    add_head(
        tmp_path / "model.safetensors", "language_model.lm_head.weight", tied.language.embed.weight.clone()
    )
    again = load(tmp_path, device="cpu")
    assert again.language.head.weight is again.language.embed.weight
    assert_equal(again, tied)


def test_transformers_layout_with_a_head_is_untied(tied: Janus, tmp_path: Path) -> None:
    """Its config ties by default, and its own loader unties where the file holds both."""
    tied.save_pretrained(tmp_path, layout="transformers")
    head = tied.language.embed.weight.detach() + 1
    add_head(tmp_path / "model.safetensors", "lm_head.weight", head)
    again = load(tmp_path, device="cpu")
    assert not again.config.language.tied_head
    assert torch.equal(again.language.head.weight, head)
    assert torch.equal(again.language.embed.weight, tied.language.embed.weight)
    again.save_pretrained(tmp_path, layout="transformers")
    assert json.loads((tmp_path / "config.json").read_text())["tie_word_embeddings"] is False


def test_untied_head_must_be_there(make_config: Make, make_model: Make, tmp_path: Path) -> None:
    make_model(make_config()).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "lm_head" not in k}, file)
    with pytest.raises(ValueError, match=r"missing: language_model\.lm_head\.weight$"):
        load(tmp_path, device="cpu")


# Precision


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64], ids=str)
def test_stored_precision_is_the_models_own(
    dtype: torch.dtype,
    layout: Layout,
    make_config: Make,
    make_model: Make,
    assert_equal: Callable[[Janus, Janus], None],
    tmp_path: Path,
) -> None:
    model = make_model(make_config(), dtype=dtype)
    model.save_pretrained(tmp_path, layout=layout)
    assert {tensor.dtype for tensor in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    again = load(tmp_path, device="cpu", dtype=dtype)
    assert_equal(again, model)
    assert again.config.dtype == str(dtype).removeprefix("torch.")


@pytest.mark.filterwarnings("ignore:transformers' own Janus cannot load")
def test_layouts_and_back_are_bit_equal(
    checkpoint: Path, tmp_path: Path, assert_equal: Callable[[Janus, Janus], None]
) -> None:
    """Released -> transformers -> released: the very bytes of every tensor that a model holds."""
    load(checkpoint, device="cpu", dtype="bfloat16").save_pretrained(
        tmp_path / "there", layout="transformers"
    )
    load(tmp_path / "there", device="cpu", dtype="bfloat16").save_pretrained(tmp_path / "back")
    original = load_file(checkpoint / "model.safetensors")
    back = load_file(tmp_path / "back" / "model.safetensors")
    left_out = {name for name in original if "attn_pool" in name or "codebook_used" in name}
    assert back.keys() == original.keys() - left_out
    assert all(torch.equal(tensor, original[name]) for name, tensor in back.items())
    assert_equal(load(tmp_path / "back", device="cpu"), load(checkpoint, device="cpu"))
