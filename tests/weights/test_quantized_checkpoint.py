"""Quantized while loading, saved quantized, read back; and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import janus
from janus.kernels.quantized_linear import dequantize
from janus.models.janus import Janus
from janus.models.quantized import QUANTIZATIONS, Quantization, QuantizedLinear, quantize
from janus.weights.load import load

Same = Callable[[Janus, Janus], None]
Edit = Callable[..., None]
STEM = "language_model.model.layers.0."


@pytest.fixture(params=QUANTIZATIONS)
def quantization(request: pytest.FixtureRequest) -> Quantization:
    return request.param


@pytest.fixture
def saved(checkpoint: Path, tmp_path: Path) -> Path:
    """The small checkpoint, quantized to 4 bits; a test may damage it."""
    folder = tmp_path / "saved"
    load(checkpoint, device="cpu", quantize="int4").save_pretrained(folder)
    return folder


def change(folder: Path, edit: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file(tensors, folder / "model.safetensors")


# --- there and back ---


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_loading_quantizes_the_stored_weights(
    dtype: str, quantization: Quantization, checkpoint: Path, assert_equal: Same
) -> None:
    """As quantizing the whole model does: also where that is loaded in another precision than the stored."""
    ours = load(checkpoint, device="cpu", dtype=dtype, quantize=quantization)
    theirs = quantize(load(checkpoint, device="cpu", dtype=dtype), quantization)
    assert_equal(ours, theirs)
    assert ours.config == theirs.config
    assert ours.config.quantization == quantization
    assert str(ours.dtype) == f"torch.{dtype}"
    assert not ours.training


@pytest.mark.parametrize("shard", [None, "200KB"])
@torch.no_grad()
def test_it_comes_back_as_it_was(
    shard: str | None,
    quantization: Quantization,
    checkpoint: Path,
    tmp_path: Path,
    assert_equal: Same,
    outputs: Callable[[Janus], dict[str, Tensor]],
) -> None:
    model = load(checkpoint, device="cpu", quantize=quantization)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    again = load(tmp_path, device="cpu")
    assert_equal(again, model)
    assert again.config == model.config
    before, after = outputs(model), outputs(again)
    assert all(torch.equal(after[part], tensor) for part, tensor in before.items())
    assert_equal(load(tmp_path, device="cpu", quantize=quantization), model)
    again.save_pretrained(tmp_path / "twice")
    assert_equal(load(tmp_path / "twice", device="cpu"), model)


def test_names_and_shapes_of_the_files(saved: Path, checkpoint: Path) -> None:
    ours, theirs = load_file(saved / "model.safetensors"), load_file(checkpoint / "model.safetensors")
    scales = {name for name in ours if name.endswith("_scale")}
    assert ours.keys() - scales < theirs.keys()
    for part, rows in (("self_attn.q_proj", 64), ("self_attn.k_proj", 64), ("mlp.up_proj", 176)):
        weight, scale = ours[f"{STEM}{part}.weight"], ours[f"{STEM}{part}.weight_scale"]
        assert (weight.dtype, weight.shape) == (torch.uint8, (rows, 32))
        assert (scale.dtype, scale.shape) == (torch.bfloat16, (rows, 1, 2))
        plain = theirs[f"{STEM}{part}.weight"].double()
        error = (dequantize(weight, scale, torch.float64) - plain).norm() / plain.norm()
        assert error < 0.12, "as 4 bits of normal weights have; of the right rows, or it were above 1"
    assert f"{STEM}mlp.down_proj.weight_scale" not in ours, "176 columns are no groups"
    assert ours[f"{STEM}mlp.down_proj.weight"].equal(theirs[f"{STEM}mlp.down_proj.weight"])
    assert json.loads((saved / "config.json").read_text())["quantization_config"] == {
        "quant_method": "janus",
        "bits": 4,
        "group_size": 64,
    }


def test_8_bits_say_so(checkpoint: Path, tmp_path: Path) -> None:
    load(checkpoint, device="cpu", quantize="int8").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["quantization_config"] == {"quant_method": "janus", "bits": 8}
    weight = load_file(tmp_path / "model.safetensors")[f"{STEM}mlp.down_proj.weight"]
    assert (weight.dtype, weight.shape) == (torch.int8, (64, 176))


def test_the_layout_of_transformers_is_quantized_too(
    quantization: Quantization, checkpoint: Path, tmp_path: Path, assert_equal: Same
) -> None:
    load(checkpoint, device="cpu", dtype="float32").save_pretrained(tmp_path, layout="transformers")
    ours = load(tmp_path, device="cpu", dtype="float32", quantize=quantization)
    assert_equal(ours, load(checkpoint, device="cpu", dtype="float32", quantize=quantization))


def test_another_dtype_changes_no_integer(saved: Path) -> None:
    wide, narrow = load(saved, device="cpu", dtype="float32"), load(saved, device="cpu", dtype="bfloat16")
    assert wide.dtype == torch.float32
    for name, module in wide.named_modules():
        if isinstance(module, QuantizedLinear):
            theirs = narrow.get_submodule(name).state_dict()
            assert all(
                torch.equal(theirs[leaf], own) for leaf, own in module.state_dict().items() if "w" in leaf
            )


def test_a_tied_head_stays_the_word_table(make_config: Any, make_model: Any, tmp_path: Path) -> None:
    make_model(make_config(language={"tied_head": True})).save_pretrained(tmp_path)
    model = load(tmp_path, device="cpu", quantize="int8")
    assert model.language.head.weight is model.language.embed.weight
    model.save_pretrained(tmp_path / "again")
    again = load(tmp_path / "again", device="cpu")
    assert again.language.head.weight is again.language.embed.weight


def test_the_pipeline_answers_and_draws(saved: Path, checkpoint: Path) -> None:
    """As one that quantizes while it loads: the same words and the same picture."""
    for pipe in (
        loaded := [janus.load(saved, device="cpu"), janus.load(checkpoint, quantize="int4", device="cpu")]
    ):
        assert pipe.config.quantization == "int4"
    assert loaded[0].ask("hello", max_new_tokens=4) == loaded[1].ask("hello", max_new_tokens=4)
    pictures = [pipe.draw("a cat", seed=1)[0].tobytes() for pipe in loaded]
    assert pictures[0] == pictures[1]
    assert Janus.from_pretrained(checkpoint, quantize="int8", device="cpu").config.quantization == "int8"


def test_saving_over_a_quantized_checkpoint(saved: Path, checkpoint: Path, assert_equal: Same) -> None:
    model = load(checkpoint, device="cpu")
    model.save_pretrained(saved)
    assert_equal(load(saved, device="cpu"), model)


def test_memory_is_that_of_the_quantized_model(tmp_path: Path) -> None:
    """Loading float weights quantized, and a quantized checkpoint, holds neither whole besides."""
    if not os.path.exists("/proc/self/clear_refs"):
        pytest.skip("the system does not say what a process holds")
    program = """
import ctypes, sys
from dataclasses import replace

import torch

from janus.config import PRESETS
from janus.weights.load import empty_model, load

def resident(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

def write(folder):
    preset = PRESETS["Janus-Pro-1B"]
    small = replace(preset.language, layers=20, width=512, mlp_width=2048, heads=8, kv_heads=8, head_width=64,
                    vocabulary=1024)
    model = empty_model(replace(
        preset, language=small, image_head_width=512,
        vision_adapter=replace(preset.vision_adapter, input_width=64, output_width=512),
        code_adapter=replace(preset.code_adapter, output_width=512),
        vision=replace(preset.vision, layers=1, width=64, heads=1), vq=replace(preset.vq, channels=32)))
    model = model.to(torch.bfloat16).to_empty(device="cpu")
    for parameter in model.parameters():
        parameter.data.fill_(1)
    model.save_pretrained(folder)
    load(folder, quantize="int4", device="cpu").save_pretrained(folder + "-int4")

def measure(folder, quantize):
    sys.modules["janus.weights.load"].WINDOW = 8 << 20
    ctypes.CDLL(None).malloc_trim(0)
    with open("/proc/self/clear_refs", "w") as forget:
        forget.write("5")  # the peak so far
    before = resident("VmRSS:")
    model = load(folder, device="cpu", dtype="bfloat16", quantize=quantize)
    held = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
    print(resident("VmHWM:") - before, held, flush=True)

torch.set_num_threads(1)
folder = sys.argv[1]
write(folder)
measure(folder, "int4")
measure(folder + "-int4", None)
"""
    command = [sys.executable, "-c", program, str(tmp_path / "float")]
    # What is measured is what is asked for: of the system's heap much may be in pieces.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    lines = answer.stdout.splitlines()
    assert len(lines) == 2, answer.stderr
    for line in lines:
        peak, held = (int(part) for part in line.split())
        # 97 M weights, 194 MB in bfloat16. A window of 8 MB, a layer and what quantizing takes come on top.
        assert held < 70e6
        assert 0.9 * held < peak < held + 80e6


# --- what is refused ---


def test_unknown_quantizations(checkpoint: Path) -> None:
    for call in (load, janus.load, Janus.from_pretrained):
        with pytest.raises(ValueError, match="quantize 'int2' is unknown: name one of int8, int4"):
            call(checkpoint, device="cpu", quantize="int2")
    with pytest.raises(ValueError, match="quantize 'int2' is unknown"):
        load("nobody/nothing", quantize="int2")


def test_another_quantization_than_the_stored(saved: Path) -> None:
    with pytest.raises(ValueError, match="saved is quantized to int4: for int8 name the checkpoint it came"):
        load(saved, device="cpu", quantize="int8")


def test_transformers_cannot_read_it(saved: Path, tmp_path: Path) -> None:
    model = load(saved, device="cpu")
    with pytest.raises(
        ValueError, match="quantized to int4, which transformers cannot read: name the layout"
    ):
        model.save_pretrained(tmp_path / "other", layout="transformers")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"quantization_config.quant_method": "gptq"},
            r'quant_method = "gptq": cannot be .*supported: "janus"',
        ),
        (
            {"quantization_config.bits": 3},
            r"quantization_config\.bits = 3: cannot be honored; supported: 8, 4",
        ),
        ({"quantization_config.bits": ...}, r"quantization_config\.bits = null: cannot be honored"),
        ({"quantization_config.group_size": 128}, r"group_size = 128: cannot be honored; supported: 64"),
        ({"quantization_config": "int4"}, "quantization_config = .*must be an object"),
        ({"quantization_config.bits": 8}, r"misshapen: .*weight is \(64, 32\), not \(64, 64\)"),
        ({"quantization_config": ...}, r"unexpected: .*weight_scale.*not floating-point: .*q_proj\.weight"),
    ],
    ids=str,
)
def test_configs_that_do_not_fit(changes: dict[str, Any], message: str, saved: Path, edit_json: Edit) -> None:
    edit_json(saved / "config.json", changes)
    with pytest.raises(ValueError, match=message):
        load(saved, device="cpu")


def test_transformers_own_quantization(checkpoint: Path, tmp_path: Path, edit_json: Edit) -> None:
    load(checkpoint, device="cpu").save_pretrained(tmp_path, layout="transformers")
    edit_json(tmp_path / "config.json", {"quantization_config": {"quant_method": "bitsandbytes"}})
    with pytest.raises(ValueError, match="weights quantized by transformers are not read"):
        load(tmp_path, device="cpu")


def test_a_config_that_promises_what_the_files_do_not_hold(copied: Path, edit_json: Edit) -> None:
    method = {"quant_method": "janus", "bits": 8}
    edit_json(copied / "config.json", {"quantization_config": method})
    with pytest.raises(ValueError, match=r"missing: .*weight_scale.*of another dtype: .* not torch\.int8"):
        load(copied, device="cpu")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda t: t.pop(f"{STEM}mlp.up_proj.weight_scale"), rf"missing: {STEM}mlp\.up_proj\.weight_scale$"),
        (
            lambda t: t.update(
                {f"{STEM}self_attn.o_proj.weight": t[f"{STEM}self_attn.o_proj.weight"].char()}
            ),
            r"of another dtype: .*o_proj\.weight is torch\.int8, not torch\.uint8",
        ),
        (
            lambda t: t.update({"lm": torch.zeros(2, dtype=torch.uint8)}),
            "unexpected: lm$",
        ),
        (
            lambda t: t.update(
                {f"{STEM}mlp.up_proj.weight_scale": t[f"{STEM}mlp.up_proj.weight_scale"].float()}
            ),
            r"up_proj\.weight_scale is torch\.float32, not torch\.bfloat16",
        ),
        (
            lambda t: t.update(
                {f"{STEM}mlp.up_proj.weight_scale": t[f"{STEM}mlp.up_proj.weight_scale"][:, :, :1].clone()}
            ),
            r"misshapen: .*up_proj\.weight_scale is \(176, 1, 1\), not \(176, 1, 2\)",
        ),
        (
            lambda t: t.update({f"{STEM}mlp.up_proj.weight": t[f"{STEM}mlp.up_proj.weight"][:, :16].clone()}),
            r"misshapen: .*up_proj\.weight is \(176, 16\), not \(176, 32\)",
        ),
    ],
    ids=["no scale", "other integers", "stray", "wide scale", "half a scale", "half a weight"],
)
def test_damaged_tensors(damage: Callable[[dict[str, Tensor]], object], message: str, saved: Path) -> None:
    change(saved, damage)
    with pytest.raises(ValueError, match=message):
        load(saved, device="cpu")


def test_integers_where_floats_should_be(copied: Path) -> None:
    name = "language_model.model.norm.weight"
    change(copied, lambda tensors: tensors.update({name: torch.zeros(64, dtype=torch.int8)}))
    with pytest.raises(ValueError, match=f"not floating-point: {name}$"):
        load(copied, device="cpu")


def test_it_is_not_split_over_processes(checkpoint: Path) -> None:
    with pytest.raises(ValueError, match="a quantized model is not split over processes"):
        load(checkpoint, device="cpu", quantize="int8", mesh=object())  # type: ignore[arg-type]


def test_nor_is_a_janusflow(data: Path) -> None:
    folder = data / "janusflow" / "checkpoint"
    with pytest.raises(ValueError, match="a JanusFlow is not split over processes: leave tensor_parallel"):
        load(folder, device="cpu", mesh=object())  # type: ignore[arg-type]
