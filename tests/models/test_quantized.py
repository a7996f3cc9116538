"""Quantized layers and models: how good the integers are, and that a layer stays what it is."""

import copy
import io
import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from janus.config import JanusConfig
from janus.kernels.quantized_linear import dequantize, packs
from janus.models.janus import Janus
from janus.models.llama import JoinedLinear
from janus.models.quantized import (
    QUANTIZATIONS,
    Quantization,
    QuantizedLinear,
    check_quantization,
    quantize,
    quantize_weight,
    targets,
    unpacked,
)

packed_here = pytest.mark.skipif(
    not packs(torch.zeros(64, 32, dtype=torch.uint8)), reason="aten packs in an order that is not known here"
)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def restored(weight: Tensor, quantization: Quantization) -> Tensor:
    return dequantize(*quantize_weight(weight, quantization), torch.float64)


def layer(quantization: Quantization, *, bias: bool = False, outputs: int = 128) -> QuantizedLinear:
    """One with weights."""
    made = QuantizedLinear(64, outputs, quantization, bias=bias)
    made.set(*quantize_weight(random(outputs, 64), quantization))
    if made.bias is not None:
        made.bias.data.copy_(random(outputs, seed=1))
    return made


# --- the integers ---


@settings(max_examples=20)
@given(
    outputs=st.integers(1, 5),
    inputs=st.integers(1, 200),
    seed=st.integers(0, 9999),
    magnitude=st.integers(-12, 12),
)
def test_8_bits_are_half_a_step_off_at_most(outputs: int, inputs: int, seed: int, magnitude: int) -> None:
    weight = random(outputs, inputs, seed=seed) * 2.0**magnitude
    integers, scale = quantize_weight(weight, "int8")
    error = (dequantize(integers, scale, torch.float64) - weight).abs().amax(1)
    # The scale is rounded to 8 bits, so the largest may be clipped by 127 of its half units.
    assert (error <= scale.double() * (0.5 + 127 * 2.0**-9 + 1e-6)).all()
    assert integers.abs().amax(1).ge(126).all(), "the range is used"


@pytest.mark.parametrize(
    ("sample", "at_most"),
    [
        # Squared error over squared weights; nearest integers between minimum and maximum reach 0.0080,
        # 0.0138 and 0.0124.
        (torch.distributions.Normal(0.0, 1.0), 0.0072),
        (torch.distributions.StudentT(4.0), 0.0126),
        (torch.distributions.Laplace(0.0, 1.0), 0.0112),
    ],
    ids=["normal", "heavy tails", "laplace"],
)
def test_4_bits_are_better_than_the_range(sample: torch.distributions.Distribution, at_most: float) -> None:
    torch.manual_seed(0)
    weight = sample.sample((512, 1024))
    error = (restored(weight, "int4") - weight).square().sum() / weight.square().sum()
    assert error <= at_most
    groups = weight.view(512, -1, 64)
    low, high = groups.amin(2, keepdim=True), groups.amax(2, keepdim=True)
    step = (high - low) / 15
    plain = ((groups - low) / step).round() * step + low
    assert error < 0.92 * (plain - groups).square().sum() / weight.square().sum()


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("value", [0.0, 1.5, -3.0])
def test_weights_that_are_all_one_stay(value: float, quantization: Quantization) -> None:
    weight = torch.full((3, 64), value)
    # A step of half the 256th part of a number of 8 bits.
    torch.testing.assert_close(restored(weight, quantization), weight.double(), rtol=2.0**-8, atol=1e-15)


def test_4_bits_on_a_grid_are_exact() -> None:
    """Sixteen equal steps, whose ends occur: there is nothing to lose."""
    q = torch.randint(0, 16, (8, 4, 64), generator=torch.Generator().manual_seed(0))
    q[..., 0], q[..., 1] = 0, 15
    weight = ((q - 8) * 0.25 + 0.125).flatten(1)
    # The middle of a grid, times its step, in float32.
    torch.testing.assert_close(restored(weight, "int4").float(), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_of_any_dtype(dtype: torch.dtype, quantization: Quantization) -> None:
    weight = random(4, 64).to(dtype)
    for ours, theirs in zip(
        quantize_weight(weight, quantization), quantize_weight(weight.float(), quantization), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_rows_do_not_depend_on_each_other(quantization: Quantization) -> None:
    """So that q, k and v, quantized together, can be told apart again. Over several chunks too."""
    weight = random(1500, 256)
    whole = quantize_weight(weight, quantization)
    for rows in (slice(0, 1), slice(1000, 1300)):
        for ours, theirs in zip(quantize_weight(weight[rows], quantization), whole, strict=True):
            assert torch.equal(ours, theirs[rows])


def test_4_bits_need_groups() -> None:
    with pytest.raises(ValueError, match="rows of a multiple of 32 weights, not of 48"):
        quantize_weight(torch.zeros(2, 48), "int4")
    with pytest.raises(ValueError, match="rows of a multiple of 32 weights, not 48"):
        QuantizedLinear(48, 2, "int4")
    assert quantize_weight(torch.zeros(2, 96), "int4")[1].shape == (2, 3, 2), "groups of 32"


# --- the layer ---


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("rows", [2, 200])
@pytest.mark.parametrize("outputs", [128, 24])
def test_it_computes_what_its_weights_say(quantization: Quantization, rows: int, outputs: int) -> None:
    made = layer(quantization, bias=True, outputs=outputs)
    state = made.state_dict()
    weight = dequantize(state["weight"], state["weight_scale"], torch.float64)
    x = random(rows, 64)
    expected = x.double() @ weight.t() + state["bias"].double()
    # Sums of 64 products in float32.
    torch.testing.assert_close(made(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_joined_it_knows_the_parts() -> None:
    linear = JoinedLinear(64, (64, 32, 32))
    made = QuantizedLinear.like(linear, "int4")
    assert made.weight.is_meta
    made.set(*quantize_weight(linear.weight.detach(), "int4"))
    x = random(3, 64)
    assert made.sizes == (64, 32, 32)
    weight = restored(linear.weight.detach(), "int4").float()
    torch.testing.assert_close(made(x), x @ weight.t())


@packed_here
def test_packed_it_is_no_larger_and_shows_the_plain_format() -> None:
    made = layer("int4")
    integers, scale = quantize_weight(random(128, 64), "int4")
    assert made.packed
    assert not torch.equal(made.weight, integers)
    assert sum(each.nbytes for each in made.buffers()) == integers.nbytes + scale.nbytes
    state = made.state_dict()
    assert torch.equal(state["weight"], integers)
    assert torch.equal(state["weight_scale"], scale)
    assert made.packed
    with unpacked(made):
        assert torch.equal(made.weight, integers)
        assert torch.equal(made.weight_scale, scale)
        assert made.state_dict()["weight"].data_ptr() == made.weight.data_ptr(), "no copy"
    assert made.packed


@packed_here
def test_unpacked_ends_with_an_error_too() -> None:
    made = layer("int4")
    with pytest.raises(KeyError), unpacked(made):
        raise KeyError
    assert made.packed


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_states_are_loaded(quantization: Quantization) -> None:
    made, other = layer(quantization), QuantizedLinear(64, 128, quantization)
    other.load_state_dict(made.state_dict())
    assert other.packed == made.packed
    x = random(3, 64)
    assert torch.equal(other(x), made(x))
    buffer = io.BytesIO()
    torch.save(made.state_dict(), buffer)
    buffer.seek(0)
    made.load_state_dict(torch.load(buffer))
    assert torch.equal(other(x), made(x))


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_another_dtype_changes_no_weight(dtype: torch.dtype, quantization: Quantization) -> None:
    made = layer(quantization, bias=True)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    packed = made.packed
    made.to(dtype)
    after = made.state_dict()
    assert made.packed == packed
    assert torch.equal(after["weight"], before["weight"])
    assert torch.equal(after["weight_scale"], before["weight_scale"])
    assert after["bias"].dtype == dtype
    assert made(random(2, 64).to(dtype)).dtype == dtype


@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_to_the_meta_device_and_copies(quantization: Quantization) -> None:
    made = layer(quantization)
    x = random(2, 64)
    expected = made(x)
    assert torch.equal(copy.deepcopy(made)(x), expected)
    made.to("meta")
    assert made.weight.is_meta
    assert made.weight_scale.is_meta
    assert not made.packed


def test_its_weights_are_no_parameters() -> None:
    made = layer("int8", bias=True)
    assert [name for name, _ in made.named_parameters()] == ["bias"]
    x = random(2, 64).requires_grad_()
    made(x).sum().backward()
    state = made.state_dict()
    weight = dequantize(state["weight"], state["weight_scale"], torch.float32)
    torch.testing.assert_close(x.grad, weight.sum(0).expand(2, -1))


def test_it_says_what_it_is() -> None:
    assert repr(layer("int4")) == "QuantizedLinear(64, 128, int4, bias=False)"


# --- the model ---


@pytest.fixture
def whole(model: Janus) -> Janus:
    """A copy of the small checkpoint, to be quantized."""
    return copy.deepcopy(model)


def test_what_is_quantized(whole: Janus) -> None:
    layers = [f"language.layers.{index}" for index in range(3)]
    wide = [
        *(
            f"{each}.{part}"
            for each in layers
            for part in ("attention.qkv", "attention.o_proj", "mlp.gate_up")
        ),
        "language.head",
        "image_head.up",
    ]
    # 176 and 80 columns are no groups of 32.
    narrow = [*(f"{each}.mlp.down_proj" for each in layers), "image_head.out"]
    assert set(targets(whole, "int8")) == {*wide, *narrow}
    assert set(targets(whole, "int4")) == set(wide)
    others = {name for name, module in whole.named_modules() if not isinstance(module, nn.Linear)}
    quantize(whole, "int4")
    quantized = {name for name, module in whole.named_modules() if isinstance(module, QuantizedLinear)}
    assert quantized == set(wide)
    assert others == {
        name for name, module in whole.named_modules() if not isinstance(module, nn.Linear | QuantizedLinear)
    }
    assert whole.config.quantization == "int4"
    assert not whole.training


def test_a_tied_head_is_left(whole: Janus) -> None:
    language = replace(whole.config.language, tied_head=True)
    tied = Janus(replace(whole.config, language=language)).eval()
    quantize(tied, "int8")
    assert tied.language.head.weight is tied.language.embed.weight
    assert isinstance(tied.image_head.out, QuantizedLinear)


@pytest.mark.parametrize(("quantization", "at_most"), [("int8", 0.02), ("int4", 0.25)])
@torch.no_grad()
def test_its_logits_are_near(model: Janus, whole: Janus, quantization: Quantization, at_most: float) -> None:
    """Relative to the logits' size. Untrained, 64 wide: each of 12 products in 4 bits is 8 % off or more."""
    quantize(whole, quantization)
    embeds = model.embed(torch.arange(3, 12)[None])
    ours, theirs = whole.hidden_states(embeds), model.hidden_states(embeds)
    for head in ("text_logits", "image_logits"):
        expected = getattr(model, head)(theirs)
        error = (getattr(whole, head)(ours) - expected).norm() / expected.norm()
        assert 0 < error <= at_most, head


@torch.no_grad()
def test_each_layer_is_the_one_it_was(model: Janus, whole: Janus) -> None:
    """A model whose float weights are what the integers say computes the same."""
    quantize(whole, "int4")
    plain = copy.deepcopy(model)
    for name in targets(model, "int4"):
        linear = plain.get_submodule(name)
        linear.weight.copy_(restored(linear.weight, "int4").float())
    embeds = model.embed(torch.arange(3, 12)[None])
    ours, theirs = whole.hidden_states(embeds), plain.hidden_states(embeds)
    # Sums of other orders, in float32, through three layers.
    assert (ours - theirs).abs().max() <= 2e-5 * theirs.abs().max()
    assert (whole.image_logits(ours) - plain.image_logits(theirs)).abs().max() <= 2e-5 * 10


def test_memory_is_never_that_of_two_models() -> None:
    """Quantized a layer at a time, in a process of its own: the peak is measured as the system counts it."""
    program = """
import torch
from torch import nn
from janus.config import PRESETS
from dataclasses import replace
from janus.models.quantized import quantize
from janus.weights.load import empty_model

def resident(field):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(field))

torch.set_num_threads(1)
preset = PRESETS["Janus-Pro-1B"]
small = replace(preset.language, layers=8, width=512, mlp_width=2048, heads=8, kv_heads=8, head_width=64,
                vocabulary=1024)
model = empty_model(replace(
    preset, language=small, image_head_width=512,
    vision_adapter=replace(preset.vision_adapter, input_width=64, output_width=512),
    code_adapter=replace(preset.code_adapter, output_width=512),
    vision=replace(preset.vision, layers=1, width=64, heads=1), vq=replace(preset.vq, channels=32)))
model = model.to_empty(device="cpu")
for parameter in model.parameters():
    parameter.data.fill_(1)
before = resident("VmRSS:")
quantize(model, "int4")
print(before, resident("VmHWM:"), resident("VmRSS:"))
"""
    if not os.path.exists("/proc/self/status"):
        pytest.skip("the system does not say what a process holds")
    # What is measured is what is asked for: of the system's heap much may be in pieces.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    command = [sys.executable, "-c", program]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    before, peak, after = (int(part) for part in answer.stdout.split())
    # 42 M weights in float32 are 168 MB; one layer and what quantizing it takes besides may come on top.
    assert peak - before < 40e6
    assert before - after > 100e6


def test_what_is_refused(whole: Janus) -> None:
    with pytest.raises(ValueError, match="quantize 'int3' is unknown: name one of int8, int4"):
        quantize(whole, "int3")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="quantize 8 is unknown"):
        check_quantization(8)
    quantize(whole, "int8")
    with pytest.raises(ValueError, match="this model is quantized to int8 already"):
        quantize(whole, "int4")


def test_configs_of_other_quantizations_are_none(model: Janus) -> None:
    config: JanusConfig = model.config
    assert config.quantization is None
    assert replace(config, quantization="int4") != config
    with pytest.raises(ValueError, match="quantization 'int3' is unknown: name int8 or int4"):
        replace(config, quantization="int3")
