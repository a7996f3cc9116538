"""Rotary positions and the write into the cache: the kernel and the reference, against eager PyTorch."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernels import DEVICE, DTYPES, needs_triton, random, untouched
from janus.kernels import choice
from janus.kernels.launch import recorded
from janus.kernels.rotary import (
    WIDEST,
    _launch_rotate_and_store,
    _store,
    rotate,
    rotate_and_store,
    rotate_and_store_op,
)

IMPLEMENTATIONS = ["triton", "torch"]
SENTINEL = 77.0
BITS = {torch.float32: torch.int32, torch.float16: torch.int16, torch.bfloat16: torch.int16}

pytestmark = needs_triton


def at(position: int) -> Tensor:
    return torch.tensor(position, device=DEVICE)


def original_rotate(x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
    """As Llama in transformers writes it."""
    half = x.shape[-1] // 2
    return (x * cosines) + (torch.cat((-x[..., half:], x[..., :half]), dim=-1) * sines)


class Call:
    """One call's tensors: projections merged to (B, S, (H + 2G) d), caches that are one layer of a bigger."""

    def __init__(
        self,
        rows: int,
        heads: int,
        groups: int,
        positions: int,
        width: int,
        *,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        own_tables: bool = False,
        seed: int = 0,
    ) -> None:
        merged = random(rows, positions, (heads + 2 * groups) * width, seed=seed, dtype=dtype)
        split = merged.unflatten(-1, (-1, width)).transpose(1, 2).split([heads, groups, groups], dim=1)
        self.query, self.key, self.value = split
        # Both halves of a table differ here, as they need not with positions: each must be read where it is.
        shape = (rows if own_tables else 1, 1, positions, width)
        angles = 3 * random(*shape, seed=seed + 1)
        self.cosines, self.sines = angles.cos().to(dtype), angles.sin().to(dtype)
        self.memory = torch.full((3, 2, rows, groups, capacity, width), SENTINEL, dtype=dtype, device=DEVICE)
        self.key_cache, self.value_cache = self.memory[1]

    def inputs(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        tables = self.cosines, self.sines
        return self.query, self.key, self.value, *tables, self.key_cache, self.value_cache

    def expected_memory(self, position: int) -> Tensor:
        """What is in range is written, at its place, and nothing else."""
        memory = torch.full_like(self.memory, SENTINEL)
        stored = original_rotate(self.key, self.cosines, self.sines), self.value
        for place in range(self.key.shape[2]):
            if 0 <= position + place < memory.shape[4]:
                for cache, new in zip(memory[1], stored, strict=True):
                    cache[:, :, position + place] = new[:, :, place]
        return memory


def same_bits(ours: Tensor, theirs: Tensor) -> bool:
    return ours.shape == theirs.shape and torch.equal(
        ours.view(BITS[ours.dtype]), theirs.view(BITS[ours.dtype])
    )


def assert_right(call: Call, position: int, implementation: str) -> None:
    """Equal to eager PyTorch to the bit, the sign of a zero included; the rest of the cache is untouched."""
    with choice.use(implementation):
        rotated = rotate_and_store(*call.inputs(), at(position))
    assert rotated.dtype == call.query.dtype
    assert rotated.is_contiguous()
    assert same_bits(rotated, original_rotate(call.query, call.cosines, call.sines).contiguous())
    assert same_bits(call.memory, call.expected_memory(position))


# --- what comes out ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("rows", "heads", "groups", "positions", "width", "position"),
    [
        (2, 16, 16, 1, 128, 33),  # a step of the 1B model
        (1, 2, 2, 606, 128, 0),  # a prompt of pictures, of few heads
        (3, 4, 2, 17, 64, 5),
        (2, 3, 1, 33, 16, 7),
        (1, 1, 1, 9, 256, 1),
        (1, 2, 1, 5, 48, 0),
        (2, 2, 2, 16, 80, 24),  # up to the cache's end
        (1, 2, 1, 3, 240, 1),
    ],
)
def test_rotated_and_stored(
    rows: int,
    heads: int,
    groups: int,
    positions: int,
    width: int,
    position: int,
    dtype: torch.dtype,
    implementation: str,
) -> None:
    capacity = max(40, positions + 1)
    for own_tables in (False, True):
        call = Call(
            rows, heads, groups, positions, width, capacity=capacity, dtype=dtype, own_tables=own_tables
        )
        assert_right(call, position, implementation)


FUSED = """
from janus.kernels.compile import CHIPS, specialized
from janus.kernels.launch import recorded, triton
from janus.kernels.rotary import every_launch
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

with recorded() as launches:
    for call in every_launch():
        call()
launch = next(launch for launch in launches if "fp32" in "".join(specialized(launch)[0].values()))
source = ASTSource(launch.kernel, *specialized(launch))
for name, text in (("sm_90", "ptx"), ("gfx942", "amdgcn")):
    chip = CHIPS[name]
    target = GPUTarget(chip.backend, chip.architecture, chip.warp)
    for options in (launch.options, {**launch.options, "enable_fp_fusion": True}):
        code = triton.compile(source, target=target, options=options).asm[text]
        print("fma.rn.f32" in code or "v_fma" in code or "v_pk_fma" in code)
"""


def test_products_are_not_fused_into_the_sum() -> None:
    """A fused multiply-add rounds once; the interpreter, which has none, would not tell."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run([sys.executable, "-c", FUSED], capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["False", "True"] * 2, "as launched, and as it would be otherwise"


@settings(max_examples=15)
@given(
    rows=st.integers(1, 3),
    heads=st.integers(1, 3),
    groups=st.integers(1, 3),
    positions=st.integers(1, 35),
    width=st.integers(1, 16).map(lambda sixteens: 16 * sixteens),
    before=st.integers(0, 5),
    after=st.integers(0, 5),
    own_tables=st.booleans(),
    dtype=st.sampled_from(DTYPES),
)
def test_any_shape(
    rows: int,
    heads: int,
    groups: int,
    positions: int,
    width: int,
    before: int,
    after: int,
    own_tables: bool,
    dtype: torch.dtype,
) -> None:
    for implementation in IMPLEMENTATIONS:
        capacity = before + positions + after
        call = Call(
            rows, heads, groups, positions, width, capacity=capacity, dtype=dtype, own_tables=own_tables
        )
        assert_right(call, before, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_signed_zeros(implementation: str) -> None:
    signs = torch.tensor([0.0, -0.0, 1.0, -1.0], device=DEVICE)
    call = Call(1, 4, 1, 4, 16, capacity=4)
    call.query.copy_(signs[torch.arange(4 * 4 * 16) // 3 % 4].view(1, 4, 4, 16))
    call.cosines.copy_(signs[torch.arange(4 * 16) // 5 % 4].view(1, 1, 4, 16))
    call.sines.copy_(signs[torch.arange(4 * 16) // 7 % 4].view(1, 1, 4, 16))
    assert_right(call, 0, implementation)


def test_nothing_to_store() -> None:
    for shape in ((0, 2, 1, 3, 16), (2, 2, 1, 0, 16)):
        for implementation in IMPLEMENTATIONS:
            assert_right(Call(*shape, capacity=4), 0, implementation)
            assert_right(Call(*shape, capacity=4), 1, implementation)


def test_a_graph_may_be_replayed_as_the_position_advances() -> None:
    """The position is read when the kernel runs: the same tensor, advanced in place, writes further on."""
    position = at(3)
    together = Call(2, 2, 1, 4, 32, capacity=9)
    with choice.use("triton"):
        for step in range(4):
            one = slice(step, step + 1)
            of_step = [tensor[:, :, one] for tensor in together.inputs()[:5]]
            rotate_and_store(*of_step, together.key_cache, together.value_cache, position)
            position += 1
    assert same_bits(together.memory, together.expected_memory(3))


# --- positions outside of the cache ---


@pytest.mark.parametrize("positions", [1, 5, 20])
@pytest.mark.parametrize("position", [-(2**40), -21, -20, -3, -1, 0, 7, 16, 19, 22, 23, 24, 2**33])
def test_nothing_is_written_outside_of_the_cache(position: int, positions: int) -> None:
    """As on a GPU, where to ask for the position would wait for it."""
    call = Call(2, 2, 2, positions, 32, capacity=24)
    rotated = _launch_rotate_and_store(*call.inputs(), at(position))
    assert same_bits(rotated, original_rotate(call.query, call.cosines, call.sines).contiguous())
    assert same_bits(call.memory, call.expected_memory(position))
    by_reference = Call(2, 2, 2, positions, 32, capacity=24)
    _store(by_reference.key_cache, rotate(call.key, call.cosines, call.sines), at(position))
    _store(by_reference.value_cache, call.value, at(position).view(1))
    assert same_bits(by_reference.memory, call.expected_memory(position))


@pytest.mark.skipif(DEVICE != "cpu", reason="on a GPU the position is not looked at")
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("position", [-1, 6, 1000])
def test_on_a_cpu_positions_outside_raise(position: int, implementation: str) -> None:
    call = Call(2, 2, 2, 5, 32, capacity=10)
    message = f"a cache of 10 positions has no room for 5 from position {position} on"
    with choice.use(implementation), pytest.raises(ValueError, match=message):
        rotate_and_store(*call.inputs(), at(position))
    assert (call.memory == SENTINEL).all()


# --- how it is read ---


def test_views_are_not_copied() -> None:
    merged = torch.empty(2, 7, (4 + 2 * 2) * 32, device="meta").unflatten(-1, (-1, 32)).transpose(1, 2)
    query, key, value = merged.split([4, 2, 2], dim=1)
    table = torch.empty(1, 1, 7, 32, device="meta")
    cache = torch.empty(2, 2, 50, 32, device="meta")
    with recorded() as launches:
        _launch_rotate_and_store(query, key, value, table, table, cache, cache, torch.empty(1, device="meta"))
    assert len(launches) == 1, "of queries, keys and values alike"
    for name in ("query", "key", "value"):
        strides = [launches[0].arguments[f"stride_{name}_{of}"] for of in ("row", "head", "position")]
        assert strides == [7 * 8 * 32, 32, 8 * 32]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_strided_inputs(implementation: str) -> None:
    call = Call(2, 4, 2, 7, 32, capacity=11, own_tables=True)
    whole = call.query, call.key, call.value, call.cosines, call.sines
    for rearranged in (
        [tensor.contiguous() for tensor in whole],
        [tensor.transpose(2, 3).contiguous().transpose(2, 3) for tensor in whole],
        [tensor.repeat_interleave(2, dim=3)[..., ::2] for tensor in whole],
        [tensor.repeat(1, 1, 2, 1)[:, :, 7:] for tensor in whole],
        [tensor.flip(0).contiguous().flip(0) for tensor in whole],
    ):
        call.memory.fill_(SENTINEL)
        call.query, call.key, call.value, call.cosines, call.sines = rearranged
        assert_right(call, 3, implementation)
    expanded = Call(3, 2, 2, 5, 32, capacity=8)
    expanded.key = expanded.key[:1].expand(3, -1, -1, -1)
    expanded.cosines, expanded.sines = (x.expand(3, -1, -1, -1) for x in (expanded.cosines, expanded.sines))
    assert_right(expanded, 1, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_strided_caches(implementation: str) -> None:
    """Of rows, heads and positions that lie otherwise; the kernel only wants a head's components together."""
    call = Call(2, 2, 3, 4, 32, capacity=9)
    for order in ((0, 1, 4, 3, 2, 5), (0, 1, 3, 2, 4, 5), (4, 0, 1, 3, 2, 5)):
        memory = call.memory.permute(order).contiguous().permute([order.index(axis) for axis in range(6)])
        assert memory.stride() != call.memory.stride()
        call.memory, (call.key_cache, call.value_cache) = memory.fill_(SENTINEL), memory[1]
        assert_right(call, 2, implementation)


def test_strides_are_each_tensors_own() -> None:
    call = Call(2, 2, 2, 5, 32, capacity=9)
    for step, name in enumerate(("query", "key", "value", "key_cache", "value_cache")):
        tensor = getattr(call, name)
        rows, heads, positions, width = tensor.shape
        memory = tensor.new_empty(rows, heads + step, positions + 2 * step, width + 3 * step)
        setattr(call, name, memory[:, :heads, :positions, :width].copy_(tensor))
    with choice.use("triton"):
        rotated = rotate_and_store(*call.inputs(), at(3))
    assert torch.equal(rotated, original_rotate(call.query, call.cosines, call.sines))
    expected = call.expected_memory(3)[1]
    assert torch.equal(call.key_cache, expected[0])
    assert torch.equal(call.value_cache, expected[1])


def test_offsets_beyond_32_bits() -> None:
    memory = untouched(2**31 + 2**20)
    far = 2**30
    sides = {"rows": (far, 512, 16), "heads": (512, far, 16), "positions": (512, 64, far)}
    for far_side, strides in sides.items():
        near = Call(3, 3, 3, 3, 16, capacity=4, dtype=torch.float16)
        kinds = [memory[4096 * kind :].as_strided((3, 3, 3, 16), (*strides, 1)) for kind in range(5)]
        for view, tensor in zip(kinds, (near.query, near.key, near.value), strict=False):
            view.copy_(tensor)
        near.query, near.key, near.value, near.key_cache, near.value_cache = kinds
        with choice.use("triton"):
            rotated = rotate_and_store(*near.inputs(), at(0))
        of_query, of_key = (rotate(x, near.cosines, near.sines) for x in (near.query, near.key))
        assert torch.equal(rotated, of_query), far_side
        assert torch.equal(near.key_cache, of_key), far_side
        assert torch.equal(near.value_cache, near.value), far_side


# --- as an op ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_input_is_returned_or_changed(implementation: str) -> None:
    call = Call(2, 2, 1, 3, 32, capacity=5)
    before = [tensor.clone() for tensor in call.inputs()[:5]]
    position = at(1)
    with choice.use(implementation):
        rotated = rotate_and_store(*call.inputs(), position)
    assert rotated.untyped_storage().data_ptr() not in {
        tensor.untyped_storage().data_ptr() for tensor in call.inputs()
    }
    for tensor, copy in zip(call.inputs(), before, strict=False):
        assert torch.equal(tensor, copy)
    assert position.item() == 1


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_op_is_well_registered(implementation: str) -> None:
    with choice.use(implementation):
        torch.library.opcheck(rotate_and_store_op, (*Call(2, 4, 2, 5, 32, capacity=9).inputs(), at(3)))
        torch.library.opcheck(rotate_and_store_op, (*Call(2, 4, 2, 1, 32, capacity=9).inputs(), at(8)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_compiles_whole(implementation: str) -> None:
    def step(call: Call, position: Tensor) -> Tensor:
        rotated = rotate_and_store(*call.inputs(), position)
        return rotated + call.key_cache.sum() + call.value_cache.sum()

    eager, traced = (Call(2, 2, 2, 5, 32, capacity=9) for _ in range(2))
    with choice.use(implementation):
        expected = step(eager, at(3))
        torch.testing.assert_close(
            torch.compile(step, fullgraph=True, backend="aot_eager")(traced, at(3)), expected
        )
    assert same_bits(traced.memory, eager.memory)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_it_runs_in_inference_mode(implementation: str) -> None:
    with torch.inference_mode():
        assert_right(Call(2, 2, 2, 5, 32, capacity=9), 3, implementation)
    before = Call(2, 2, 2, 5, 32, capacity=9)
    with torch.inference_mode():
        assert_right(before, 3, implementation)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_gradient_passes_with_pytorchs_own_operations(implementation: str) -> None:
    call = Call(2, 2, 2, 5, 32, capacity=9)
    given = call.query
    weight = torch.randn(given.shape).to(given)
    query = given.detach().clone().requires_grad_()
    (rotate(query, call.cosines, call.sines) * weight).sum().backward()
    tracked = given.detach().clone().requires_grad_()
    call.query = tracked
    with choice.use(implementation):
        (rotate_and_store(*call.inputs(), at(3)) * weight).sum().backward()
    assert query.grad is not None
    assert tracked.grad is not None
    assert torch.equal(tracked.grad, query.grad)
    assert same_bits(call.memory, call.expected_memory(3))


# --- rotate alone ---


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bfloat16])
def test_rotate_is_the_original_to_the_bit(dtype: torch.dtype) -> None:
    call = Call(2, 3, 1, 5, 64, capacity=5, dtype=dtype)
    rotated = rotate(call.query, call.cosines, call.sines)
    assert same_bits(rotated, original_rotate(call.query, call.cosines, call.sines))


def test_rotate_turns_each_pair_by_its_angle() -> None:
    x = random(2, 3, 5, 64).double()
    angles = random(5, 32, seed=1).double()
    cosines, sines = (torch.cat((table, table), dim=-1)[None, None] for table in (angles.cos(), angles.sin()))
    turned = torch.complex(x[..., :32], x[..., 32:]) * torch.polar(torch.ones_like(angles), angles)
    expected = torch.cat((turned.real, turned.imag), dim=-1)
    torch.testing.assert_close(rotate(x, cosines, sines), expected)


def test_rotate_is_differentiable() -> None:
    x = random(1, 2, 3, 8).double().requires_grad_()
    tables = [random(1, 1, 3, 8, seed=seed).double().requires_grad_() for seed in (1, 2)]
    assert torch.autograd.gradcheck(rotate, (x, *tables))


# --- what is refused ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("query", lambda x: x[0], r"queries must be \(B, H, S, d\) floats, d even, not \(4, 3, 32\)"),
        ("query", lambda x: x[..., :31], r"d even, not \(2, 4, 3, 31\)"),
        ("query", lambda x: x.int(), r"floats, d even, .* torch\.int32"),
        ("query", lambda x: x[:, :, :2], r"keys must be \(2, 2, 2, 32\) .* not \(2, 2, 3, 32\)"),
        ("query", lambda x: x.half(), r"keys must be .* torch\.float16 .* not .* torch\.float32"),
        (
            "key",
            lambda x: x[0],
            r"keys must be \(B, G, S, d\) and their cache \(B, G, C, d\), not \(2, 3, 32\)",
        ),
        ("key", lambda x: x[:, :1], r"values must be \(2, 1, 3, 32\) .* not \(2, 2, 3, 32\)"),
        ("value", lambda x: x[:, :, 1:], r"values must be \(2, 2, 3, 32\) .* not \(2, 2, 2, 32\)"),
        ("value", lambda x: x.to("meta"), "values must be .* on meta"),
        ("cosines", lambda x: x[..., :16], r"cosines must be \(1, 1, 3, 32\) .* not \(1, 1, 3, 16\)"),
        ("cosines", lambda x: x[0], r"cosines must be \(1, 1, 3, 32\)"),
        ("cosines", lambda x: x.sum(), r"cosines must be \(2, 1, 3, 32\) .* not \(\)"),
        ("sines", lambda x: x.expand(2, -1, -1, -1), r"sines must be \(1, 1, 3, 32\) .* not \(2, 1, 3, 32\)"),
        ("sines", lambda x: x.double(), r"sines must be .* not .* torch\.float64"),
        ("key_cache", lambda x: x[:1], r"the cache of keys must be \(2, 2, 7, 32\) .* not \(1, 2, 7, 32\)"),
        ("key_cache", lambda x: x[:, :, :2], "a cache of 2 positions has no room for 3|the cache of values"),
        ("value_cache", lambda x: x[:, :, 1:], r"the cache of values must be \(2, 2, 7, 32\)"),
        ("value_cache", lambda x: x.half(), r"the cache of values must be .* not .* torch\.float16"),
    ],
)
def test_what_does_not_fit_raises(name: str, change, message: str, implementation: str) -> None:  # type: ignore[no-untyped-def]
    call = Call(2, 4, 2, 3, 32, capacity=7)
    setattr(call, name, change(getattr(call, name)))
    with choice.use(implementation), pytest.raises(ValueError, match=message):
        rotate_and_store(*call.inputs(), at(0))


@pytest.mark.parametrize(
    "position",
    [torch.zeros(2, dtype=torch.int64), torch.zeros(1), torch.tensor(0, dtype=torch.int32), at(0).to("meta")],
)
def test_a_position_that_is_none_raises(position: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the position must be one torch\.int64 on "):
        rotate_and_store(*Call(2, 4, 2, 3, 32, capacity=7).inputs(), position)


def test_a_call_longer_than_the_cache_raises() -> None:
    with pytest.raises(ValueError, match="a cache of 2 positions has no room for 3"):
        rotate_and_store(*Call(2, 4, 2, 3, 32, capacity=2).inputs(), at(0))


def test_what_the_kernel_cannot_take_falls_back_or_raises() -> None:
    for width in (8, 24, WIDEST + 16):
        call = Call(2, 2, 1, 3, width, capacity=5)
        with choice.use("triton"), pytest.raises(RuntimeError, match=f"width 16, 32, .* 256, not {width}"):
            rotate_and_store(*call.inputs(), at(1))
        rotate_and_store(*call.inputs(), at(1))
        assert same_bits(call.memory, call.expected_memory(1))
    call = Call(2, 2, 1, 3, 32, capacity=5)
    call.value_cache = call.memory[1, 1].transpose(2, 3).contiguous().transpose(2, 3)
    with choice.use("triton"), pytest.raises(RuntimeError, match="caches whose heads are contiguous"):
        rotate_and_store(*call.inputs(), at(1))
    rotate_and_store(*call.inputs(), at(1))
    assert torch.equal(call.value_cache, call.expected_memory(1)[1, 1])
