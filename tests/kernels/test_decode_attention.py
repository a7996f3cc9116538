"""One query per row over a cache: the kernel against float64, against itself elsewhere, and the reference."""

import os
import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernels import DEVICE, DTYPES, random, untouched
from janus.kernels import choice
from janus.kernels.decode_attention import (
    NO_PREFIX,
    SPLIT,
    WIDEST,
    SharedPrefix,
    _attend_masked,
    compiled_for_cpu,
    decode_attention,
    decode_attention_op,
    every_launch,
)
from janus.kernels.launch import recorded


def whole(*numbers: int, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.tensor(numbers, dtype=dtype, device=DEVICE)


def run(implementation: str, *arguments: Any, **options: Any) -> Tensor:
    with choice.use(decode_attention=implementation):
        return decode_attention(*arguments, **options)


def expected(
    query: Tensor,
    keys: Tensor,
    values: Tensor,
    starts: Tensor | None = None,
    ends: Tensor | None = None,
    prefix: SharedPrefix | None = None,
    scale: float | None = None,
) -> Tensor:
    """Attention written out, row by row in float64."""
    rows, heads, width = query.shape
    mixed = []
    for row in range(rows):
        own = slice(
            0 if starts is None else int(starts[row]), keys.shape[2] if ends is None else int(ends[row])
        )
        k, v = keys[row, :, own], values[row, :, own]
        if prefix is not None and int(prefix.rows[row]) >= 0:
            shared = int(prefix.rows[row])
            length = int(prefix.lengths[shared])
            k = torch.cat((prefix.keys[shared, :, :length], k), dim=1)
            v = torch.cat((prefix.values[shared, :, :length], v), dim=1)
        k, v = (x.double().repeat_interleave(heads // x.shape[0], dim=0) for x in (k, v))
        scores = torch.einsum("hd,hkd->hk", query[row].double(), k) * (
            width**-0.5 if scale is None else scale
        )
        mixed.append(torch.einsum("hk,hkd->hd", scores.softmax(-1), v))
    return torch.stack(mixed)


def assert_as_exact_as_torch(*arguments: Any, **options: Any) -> None:
    """Within twice the error of PyTorch's own attention in this dtype, as root mean squares, or a rounding's.

    The latter for the few numbers of a small case, which PyTorch may happen to hit: a rounding of the result,
    and one of the scores in float32, as large as a query's and a key's lengths make their partial sums; a
    weight errs by as much.
    """
    wanted = expected(*arguments, **options)
    dtype = arguments[0].dtype
    actual, theirs = (run(implementation, *arguments, **options) for implementation in ("triton", "torch"))
    assert actual.dtype == dtype
    assert actual.shape == wanted.shape
    error, bound = (float((found.double() - wanted).norm()) for found in (actual, theirs))
    query, keys = arguments[0].double(), arguments[1].double()
    scale = query.shape[-1] ** -0.5 if options.get("scale") is None else options["scale"]
    largest = float(query.norm(dim=-1).max() * keys.norm(dim=-1).max()) * scale
    rounding = torch.finfo(dtype).eps + torch.finfo(torch.float32).eps * largest
    assert error <= max(2 * bound, rounding * float(wanted.norm()))


# --- what it computes ---

CASES = {  # rows, heads, key-value heads, positions, head width
    "1B": (1, 16, 16, 96, 128),
    "widest": (1, 2, 2, 65, 256),
    "narrowest": (3, 4, 4, 64, 16),
    "odd width": (2, 3, 3, 63, 80),
    "grouped": (2, 8, 2, 129, 64),
    "more than 16 in a group": (2, 18, 1, 70, 48),
    "two in a group of one": (2, 2, 1, 1, 112),
    "many pieces": (1, 1, 1, 20 * SPLIT + 1, 16),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_is_attention(case: tuple[int, int, int, int, int], dtype: torch.dtype) -> None:
    rows, heads, kv_heads, positions, width = case
    query = random(rows, heads, width, seed=1, dtype=dtype) * 2
    keys, values = (random(rows, kv_heads, positions, width, seed=seed, dtype=dtype) for seed in (2, 3))
    # Later keys weigh more, so that what came before is scaled down.
    keys = keys * torch.linspace(0.2, 2, positions, dtype=dtype, device=DEVICE)[:, None]
    assert_as_exact_as_torch(query, keys, values)
    starts = torch.arange(rows, device=DEVICE) % positions
    ends = positions - torch.arange(rows, device=DEVICE).flip(0) % positions // 2
    assert (ends > starts).all()
    assert_as_exact_as_torch(query, keys, values, starts=starts, ends=ends)
    prefix = SharedPrefix(
        *(random(3, kv_heads, 90, width, seed=seed, dtype=dtype) for seed in (4, 5)),
        lengths=whole(5, 90, 64),
        rows=torch.arange(rows, device=DEVICE) - 1 if rows > 1 else whole(1),
    )
    assert_as_exact_as_torch(query, keys, values, starts=starts, ends=ends, prefix=prefix)
    assert_as_exact_as_torch(query, keys, values, prefix=prefix, scale=0.3)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    kv_heads, group = draw(st.sampled_from([(1, 1), (3, 1), (2, 2), (1, 17)]))
    rows, positions, length = draw(st.integers(1, 3)), draw(st.integers(1, 150)), draw(st.integers(1, 80))
    width, dtype = draw(st.sampled_from([16, 48, 128, 144])), draw(st.sampled_from(DTYPES))
    if group > 1 and dtype == torch.float32:
        width = min(width, WIDEST // 2)
    starts = [draw(st.integers(0, positions - 1)) for _ in range(rows)]
    ends = [draw(st.integers(start + 1, positions)) for start in starts]
    tensors = {
        "query": random(rows, kv_heads * group, width, seed=1, dtype=dtype),
        "keys": random(rows, kv_heads, positions, width, seed=2, dtype=dtype),
        "values": random(rows, kv_heads, positions, width, seed=3, dtype=dtype),
    }
    prefix = SharedPrefix(
        *(random(2, kv_heads, length, width, seed=seed, dtype=dtype) for seed in (4, 5)),
        lengths=whole(*(draw(st.integers(0, length)) for _ in range(2)), dtype=torch.int32),
        rows=whole(*(draw(st.integers(-1, 1)) for _ in range(rows)), dtype=torch.int32),
    )
    whole_numbers = draw(st.sampled_from([torch.int32, torch.int64]))
    return tensors | {
        "starts": whole(*starts, dtype=whole_numbers) if draw(st.booleans()) else None,
        "ends": whole(*ends, dtype=whole_numbers) if draw(st.booleans()) else None,
        "prefix": prefix if draw(st.booleans()) else None,
    }


@given(call=calls())
def test_without_a_look_at_any_number_it_means_the_same(call: dict[str, Any]) -> None:
    """As plain PyTorch runs where the numbers are on another device; what nobody may see is NaN."""
    query, keys, values, starts, ends, prefix = (
        call[name] for name in ("query", "keys", "values", "starts", "ends", "prefix")
    )
    for number in range(len(query)):
        if starts is not None:
            keys[number, :, : int(starts[number])] = values[number, :, : int(starts[number])] = torch.nan
        if ends is not None:
            keys[number, :, int(ends[number]) :] = values[number, :, int(ends[number]) :] = torch.nan
    of_prefix = NO_PREFIX if prefix is None else (prefix.keys, prefix.values, prefix.lengths, prefix.rows)
    masked = _attend_masked(query, keys, values, starts, ends, *of_prefix, None)
    # They sum in another order: a rounding of the result, or of float32 in numbers around 1.
    tolerance = max(torch.finfo(masked.dtype).eps, 1e-5)
    torch.testing.assert_close(masked, run("torch", **call), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("implementation", ["triton", "torch", "masked"])
def test_a_prefix_that_there_is_not_is_none(implementation: str) -> None:
    query, keys = random(3, 2, 16, seed=1), random(3, 2, 20, 16, seed=2)
    shared = random(2, 2, 8, 16, seed=3)
    prefix = SharedPrefix(shared, shared, lengths=whole(8, 5), rows=whole(-1, 2, 1))
    wanted = expected(query, keys, keys, prefix=replace(prefix, rows=whole(-1, -1, 1)))
    if implementation == "masked":
        found = _attend_masked(
            query, keys, keys, None, None, shared, shared, prefix.lengths, prefix.rows, None
        )
    else:
        found = run(implementation, query, keys, keys, prefix=prefix)
    torch.testing.assert_close(found, wanted.float())


@settings(max_examples=15)
@given(call=calls())
def test_it_is_attention_whatever_the_shapes(call: dict[str, Any]) -> None:
    arguments = [call.pop(name) for name in ("query", "keys", "values")]
    assert_as_exact_as_torch(*arguments, **call)


@pytest.mark.parametrize("heads", [2, 6], ids=["one to one", "grouped"])
def test_compiled_for_a_cpu(heads: int) -> None:
    """One function for all lengths; a row without keys gives zeros there too."""
    attend = compiled_for_cpu()
    for positions, starts, ends, scale in ((40, (0, 3), (40, 31), None), (41, (7, 9), (41, 9), 0.3)):
        query = torch.randn(2, heads, 32).bfloat16() * 2
        keys, values = (torch.randn(2, 2, positions, 32).bfloat16() for _ in range(2))
        bounds = {"starts": torch.tensor(starts), "ends": torch.tensor(ends)}
        wanted = expected(query, keys, values, **bounds, scale=scale)
        actual = attend(query, keys, values, **bounds, scale=scale)
        assert actual.dtype == torch.bfloat16
        # Float32 but for the last rounding, to 8 bits, and the noise of its own exponential.
        assert ((actual.double() - wanted).abs() <= wanted.abs() * 2.0**-8 + 1e-5).all()


@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize("heads", [2, 6], ids=["one to one", "grouped"])
def test_a_row_without_keys_gives_zeros(implementation: str, heads: int) -> None:
    query, keys = random(3, heads, 16), random(3, 2, 20, 16, seed=1)
    mixed = run(implementation, query, keys, keys, starts=whole(20, 3, 9), ends=whole(20, 4, 2))
    assert not mixed[0].any()
    assert not mixed[2].any()
    torch.testing.assert_close(mixed[1], keys[1, :, 3].repeat_interleave(heads // 2, dim=0))
    assert not run(implementation, query, keys[:, :, :0], keys[:, :, :0]).any()


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_no_rows_give_none(implementation: str) -> None:
    keys = random(0, 2, 20, 16)
    assert run(implementation, random(0, 2, 16), keys, keys, starts=whole()).shape == (0, 2, 16)


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_bounds_are_held_within_the_cache(implementation: str) -> None:
    # In the middle of a larger tensor, so that a step outside would be noticed.
    query, cache, shared = random(2, 2, 16), random(4, 2, 30, 16, seed=1), random(4, 2, 9, 16, seed=2)
    cache[[0, 3]], shared[[0, 3]] = torch.nan, torch.nan
    keys, prefix = cache[1:3], SharedPrefix(shared[1:3], shared[1:3], whole(4, 9), whole(1, 0))
    wanted = run(implementation, query, keys, keys, starts=whole(0, 9), ends=whole(30, 30), prefix=prefix)
    wild = replace(prefix, lengths=whole(4, 2**40))
    held = run(implementation, query, keys, keys, starts=whole(-5, 9), ends=whole(2**40, 31), prefix=wild)
    assert torch.equal(held, wanted)
    # Fewer than none of the prefix, and fewer than none of its own, are none.
    no_prefix, no_own = replace(prefix, lengths=whole(4, -3)), {"starts": whole(0, 20), "ends": whole(30, 9)}
    wanted = run(implementation, query[:1], keys[:1], keys[:1])
    held = run(implementation, query, keys, keys, prefix=no_prefix, **no_own)
    assert torch.equal(held[:1], wanted)
    wanted = run(implementation, query[1:], keys[:1, :, :4], keys[:1, :, :4])
    prefix = SharedPrefix(keys[:1], keys[:1], whole(4), whole(0, 0))
    assert torch.equal(run(implementation, query, keys, keys, prefix=prefix, **no_own)[1:], wanted)


# --- to the bit, whatever is not its own ---

GROUPS = pytest.mark.parametrize("heads", [2, 6], ids=["one to one", "grouped"])
BIT_DTYPES = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def sequences(lengths: list[int], width: int, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
    """Keys and values (2, length, width) of some rows."""
    return [
        (random(2, n, width, seed=10 * row, dtype=dtype), random(2, n, width, seed=10 * row + 1, dtype=dtype))
        for row, n in enumerate(lengths)
    ]


def laid_out(
    rows: list[tuple[Tensor, Tensor]], starts: list[int], capacity: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Keys, values, starts and ends of a cache in which rows begin there; NaN is what nobody may see."""
    width = rows[0][0].shape[2]
    # A layer of a larger cache: what lies behind a row is not its own either.
    keys, values = (
        torch.full((3, len(rows), 2, capacity, width), torch.nan, device=DEVICE, dtype=rows[0][0].dtype)[1]
        for _ in range(2)
    )
    ends = []
    for row, ((k, v), start) in enumerate(zip(rows, starts, strict=True)):
        ends.append(start + k.shape[1])
        keys[row, :, start : ends[-1]], values[row, :, start : ends[-1]] = k, v
    return keys, values, whole(*starts), whole(*ends)


@GROUPS
@BIT_DTYPES
def test_a_row_does_not_depend_on_rows_padding_or_capacity(heads: int, dtype: torch.dtype) -> None:
    lengths = [1, 64, 65, 150]
    rows, query = sequences(lengths, 48, dtype), random(len(lengths), heads, 48, seed=5, dtype=dtype)
    alone = torch.cat([run("triton", query[[row]], k[None], v[None]) for row, (k, v) in enumerate(rows)])
    assert alone.isfinite().all()
    right_aligned = [150 - length for length in lengths]
    for starts, capacity in ((right_aligned, 150), ([0] * 4, 151), ([7, 160, 0, 64], 1030)):
        keys, values, first, last = laid_out(rows, starts, capacity)
        together = run("triton", query, keys, values, starts=first, ends=last)
        assert torch.equal(together, alone), (starts, capacity)
    keys, values, first, _ = laid_out(rows, right_aligned, 150)
    assert torch.equal(run("triton", query, keys, values, starts=first), alone)
    keys, values, _, last = laid_out(rows, [0] * 4, 151)
    assert torch.equal(run("triton", query, keys, values, ends=last), alone)
    order = [3, 0, 2]
    some = run("triton", query[order], keys[order], values[order], ends=last[order])
    assert torch.equal(some, alone[order])


@GROUPS
@BIT_DTYPES
def test_a_row_does_not_depend_on_where_its_keys_are(heads: int, dtype: torch.dtype) -> None:
    lengths = [140, 150, 90, 140]
    rows, query = sequences(lengths, 48, dtype), random(len(lengths), heads, 48, seed=5, dtype=dtype)
    for ours, theirs in zip(rows[3], rows[0], strict=True):
        ours[:, :70] = theirs[:, :70]  # what the first and the last row share
    alone = torch.cat([run("triton", query[[row]], k[None], v[None]) for row, (k, v) in enumerate(rows)])
    for shared, length in ((1, 65), (64, 1), (70, 128), (63, 150)):
        # Rows 0 and 3 share one prefix, row 1 has one of its own, row 2 has none.
        prefix_keys, prefix_values = (
            torch.full((3, 2, 150, 48), torch.nan, device=DEVICE, dtype=dtype) for _ in range(2)
        )
        for prefix, row, size in ((2, 0, shared), (0, 1, length)):
            prefix_keys[prefix, :, :size], prefix_values[prefix, :, :size] = (x[:, :size] for x in rows[row])
        prefix = SharedPrefix(prefix_keys, prefix_values, whole(length, 150, shared), whole(2, 0, -1, 2))
        own = [
            (k[:, size:], v[:, size:]) for (k, v), size in zip(rows, (shared, length, 0, shared), strict=True)
        ]
        keys, values, first, last = laid_out(own, [0, 3, 20, 1], 200)
        together = run("triton", query, keys, values, starts=first, ends=last, prefix=prefix)
        assert torch.equal(together, alone), (shared, length)


@GROUPS
def test_views_give_what_copies_give(heads: int) -> None:
    # Queries and keys of one position beside each other, as a single projection makes them.
    mixed, shared = random(3, 40, heads + 2, 32, seed=1), random(2, 30, 3, 32, seed=2)
    sides, lengths = whole(0, 17, 3, 39, 1, 25).view(3, 2), whole(30, 0, 7, 0)[::2]
    arguments = [
        mixed[:, -1, :heads],
        mixed[:, :, heads:].transpose(1, 2),
        random(3, 2, 50, 32, seed=3)[:, :, 10:],
        *sides.unbind(1),
        shared.transpose(1, 2)[:, 1:],
        random(2, 4, 33, 48, seed=4)[:, :2, 3:, :32],
        lengths,
        sides[:, 0].clamp_max(1),
        None,
    ]
    copies = [None if view is None else view.contiguous() for view in arguments]
    assert all(view.stride() != copy.stride() for view, copy in zip(arguments[:8], copies[:8], strict=True))
    with choice.use("triton"):
        wanted = decode_attention_op(*copies)
        assert torch.equal(decode_attention_op(*arguments), wanted)
        arguments[0] = arguments[0].transpose(1, 2).contiguous().transpose(1, 2)
        assert arguments[0].stride(2) != 1
        assert torch.equal(decode_attention_op(*arguments), wanted)


def test_memory_that_was_never_written_does_not_count() -> None:
    query, keys = random(3, 2, 16), random(3, 2, 300, 16, seed=1)
    ends = whole(1, 130, 0)
    torch.use_deterministic_algorithms(False)
    wanted = run("triton", query, keys, keys, ends=ends)
    torch.use_deterministic_algorithms(True)  # fills new memory with NaN
    assert torch.empty(1, device=DEVICE).isnan().all()
    assert torch.equal(run("triton", query, keys, keys, ends=ends), wanted)


@pytest.mark.parametrize("group", [1, 2], ids=["one to one", "grouped"])
@pytest.mark.parametrize(
    ("shape", "strides"),
    [
        ((3, 1, 40, 16), (2**30, 640, 16, 1)),
        ((1, 3, 40, 16), (640, 2**30, 16, 1)),
        ((1, 1, 40, 16), (0, 0, 2**26, 1)),
    ],
    ids=["row", "head", "key"],
)
def test_offsets_beyond_32_bits(shape: tuple[int, ...], strides: tuple[int, ...], group: int) -> None:
    keys = untouched(40 * 2**26).as_strided(shape, strides)
    keys.copy_(random(*shape, seed=1))
    query = random(shape[0], group * shape[1], 16, seed=2, dtype=torch.float16)
    wanted = run("triton", query, keys.contiguous(), keys.contiguous())
    assert torch.equal(run("triton", query, keys, keys), wanted)
    rows = torch.arange(shape[0], device=DEVICE)
    prefix = SharedPrefix(keys, keys, torch.full_like(rows, 40), rows)
    assert torch.equal(run("triton", query, keys[:, :, :0], keys[:, :, :0], prefix=prefix), wanted)


# --- the reference ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("heads", [4, 8], ids=["one to one", "grouped"])
def test_the_reference_attends_to_runs_of_rows_together(heads: int, dtype: torch.dtype) -> None:
    starts = [3, 3, 0, 7, 7, 7, 3]
    query, cache = random(7, heads, 32, dtype=dtype), random(7, 4, 60, 32, seed=1, dtype=dtype)
    keys, values = cache[:, :, :50], cache.flip(2)[:, :, :50]
    one_by_one = [
        F.scaled_dot_product_attention(
            query[rows, :, None], keys[rows, :, start:], values[rows, :, start:], enable_gqa=heads > 4
        )
        for rows, start in ((slice(0, 2), 3), (slice(2, 3), 0), (slice(3, 6), 7), (slice(6, 7), 3))
    ]
    wanted = torch.cat(one_by_one)[:, :, 0]
    assert torch.equal(run("torch", query, keys, values, starts=whole(*starts)), wanted)
    wanted = F.scaled_dot_product_attention(query[:, :, None], keys, values, enable_gqa=heads > 4)[:, :, 0]
    assert torch.equal(run("torch", query, keys, values), wanted)


def test_the_reference_does_not_see_padding() -> None:
    # A padded row as it would be alone, in a dtype in which the order of summation shows.
    dtype = torch.bfloat16
    query, keys = random(3, 4, 32, dtype=dtype), random(3, 4, 600, 32, seed=1, dtype=dtype)
    together = run("torch", query, keys, keys, starts=whole(37, 0, 101), ends=whole(600, 590, 333))
    for row, (start, end) in enumerate(((37, 600), (0, 590), (101, 333))):
        own = keys[[row], :, start:end]
        assert torch.equal(
            together[row], F.scaled_dot_product_attention(query[[row], :, None], own, own)[0, :, 0]
        )


def test_gradients_are_those_of_attention() -> None:
    query, keys, values = (random(*shape).requires_grad_() for shape in ((2, 6, 16), *[(2, 2, 9, 16)] * 2))
    upstream = random(2, 6, 16, seed=1)
    wanted = torch.autograd.grad(expected(query, keys, values), (query, keys, values), upstream.double())
    for implementation in ("triton", "torch"):
        for ends in (None, whole(9, 9)):
            mixed = run(implementation, query, keys, values, ends=ends)
            actual = torch.autograd.grad(mixed, (query, keys, values), upstream)
            torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-5)  # float32, sums of 9 and 16


# --- the op ---


def op_arguments(heads: int) -> tuple[Any, ...]:
    query, keys, shared = random(3, heads, 16), random(3, 2, 70, 16, seed=1), random(2, 2, 9, 16, seed=2)
    return query, keys, keys, whole(0, 1, 69), None, shared, shared, whole(4, 9), whole(1, -1, 0), None


@pytest.mark.parametrize("implementation", ["triton", "torch"])
@GROUPS
def test_opcheck(implementation: str, heads: int) -> None:
    query, keys, values, *_ = arguments = op_arguments(heads)
    with choice.use(implementation):
        torch.library.opcheck(decode_attention_op, arguments)
        torch.library.opcheck(
            decode_attention_op, (query, keys[:, :, 2:], values[:, :, 2:], *[None] * 6, 0.5)
        )


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_it_compiles_whole(implementation: str) -> None:
    query, keys, values, starts, _, *shared, _ = op_arguments(2)

    def step(query: Tensor, keys: Tensor, starts: Tensor, *shared: Tensor) -> Tensor:
        prefix = SharedPrefix(*shared)
        seen = decode_attention(query * 2, keys, values, starts=starts, ends=starts + 1, prefix=prefix)
        return seen + decode_attention(query, keys, values)

    with choice.use(implementation):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(query, keys, starts, *shared)
        torch.testing.assert_close(compiled, step(query, keys, starts, *shared))


def test_nothing_is_read_on_the_host() -> None:
    # Tensors on "meta" have no numbers to read: what launches without them can be captured in a graph.
    calls = list(every_launch())
    for call in calls:
        with recorded() as launches:
            call()
        assert [launch.kernel.__name__ for launch in launches] == [
            "_decode_split_kernel",
            "_decode_combine_kernel",
        ]
    assert len(calls) > 10


COMPILATIONS = """
import torch
from janus.kernels.compile import describe
from janus.kernels.decode_attention import _launch_decode_attention
from janus.kernels.launch import recorded

for heads in (2, 6):
    for rows, capacity in ((1, 1), (2, 15), (16, 16), (3, 640), (1, 1024), (5, 16384)):
        query = torch.empty(rows, heads, 48, device="meta")
        cache = torch.empty(rows, 2, 20000, 48, device="meta")[:, :, :capacity]
        starts = torch.empty(rows, dtype=torch.int64, device="meta")
        with recorded() as launches:
            _launch_decode_attention(query, cache, cache, starts, *[None] * 6)
        print(*(describe(launch) for launch in launches), sep="; ")
"""


def test_one_compiled_kernel_serves_every_size() -> None:
    # Another one might add in another order; and a cache that grows would wait for the compiler.
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-c", COMPILATIONS]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert len(lines) == 12
    one_to_one, grouped = (set(half) for half in (lines[:6], lines[6:]))
    assert len(one_to_one) == len(grouped) == 1
    assert one_to_one != grouped


@pytest.mark.skipif(DEVICE != "cuda", reason="graphs are captured on a GPU")
def test_a_captured_step_follows_its_bounds() -> None:
    query, keys, ends = random(2, 4, 64), random(2, 4, 500, 64, seed=1), whole(3, 70)
    run("triton", query, keys, keys, ends=ends)  # compiled before it is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        mixed = run("triton", query, keys, keys, ends=ends)
    for step in range(3):
        graph.replay()
        assert torch.equal(mixed, run("triton", query, keys, keys, ends=ends)), step
        ends += 61


# --- what is refused ---


WORDS = torch.ones(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.ones(2, 64)}, r"query must be \(B, H, d\) floats, not \(2, 64\)"),
        ({"query": torch.ones(2, 4, 16, dtype=torch.int64)}, "query must be .* torch.int64"),
        ({"keys": torch.ones(2, 2, 9, 32)}, r"keys must be \(2, G, C, 16\)"),
        ({"keys": torch.ones(3, 2, 9, 16)}, r"keys must be \(2, G, C, 16\)"),
        ({"keys": torch.ones(2, 3, 9, 16)}, "a multiple of the key-value heads, not 4 of 3"),
        ({"values": torch.ones(2, 2, 8, 16)}, r"values must be \(2, 2, 9, 16\)"),
        ({"values": torch.ones(2, 2, 9, 16).half()}, "values must be torch.float32 as"),
        ({"keys": torch.ones(2, 2, 9, 32)[..., ::2]}, "keys must have a last stride of 1, not 2"),
        ({"starts": torch.zeros(3).long()}, r"starts must be \(2,\) int32 or int64, not \(3,\)"),
        ({"ends": torch.zeros(2)}, r"ends must be \(2,\) .* torch.float32"),
        ({"starts": WORDS.to("meta")}, "starts must be on cpu as query is, not meta"),
        ({"scale": float("nan")}, "scale must be a finite number, not nan"),
        ({"prefix": {"keys": torch.ones(3, 1, 5, 16)}}, r"prefix's keys must be \(P, 2, L, 16\)"),
        ({"prefix": {"keys": torch.ones(3, 2, 80)}}, r"prefix's keys must be \(P, 2, L, 16\)"),
        ({"prefix": {"values": torch.ones(3, 2, 4, 16)}}, r"prefix's values must be \(P, 2, L, 16\) and"),
        ({"prefix": {"lengths": WORDS}}, r"prefix's lengths must be \(3,\)"),
        ({"prefix": {"rows": torch.ones(3).long()}}, r"prefix's rows must be \(2,\)"),
    ],
    ids=str,
)
def test_what_does_not_fit_raises(change: dict[str, Any], message: str) -> None:
    keys, shared = torch.ones(2, 2, 9, 16), torch.ones(3, 2, 5, 16)
    call: dict[str, Any] = {
        "query": torch.ones(2, 4, 16),
        "keys": keys,
        "values": keys,
        "starts": WORDS,
        "prefix": SharedPrefix(shared, shared, torch.ones(3, dtype=torch.int64), WORDS),
    }
    decode_attention(**call)
    if "prefix" in change:
        change = {"prefix": replace(call["prefix"], **change["prefix"])}
    with pytest.raises(ValueError, match=message):
        decode_attention(**(call | change))


def test_a_prefix_is_whole() -> None:
    query, keys, values, *bounds, shared, _, lengths, rows, scale = op_arguments(2)
    with pytest.raises(ValueError, match="all of them or none"):
        decode_attention_op(query, keys, values, *bounds, shared, None, lengths, rows, scale)


def test_widths_that_the_kernel_does_not_take() -> None:
    for width in (8, 24, 272):
        query, keys = random(2, 2, width), random(2, 2, 9, width, seed=1)
        torch.testing.assert_close(decode_attention(query, keys, keys), expected(query, keys, keys).float())
        with pytest.raises(RuntimeError, match=f"multiples of 16 up to 256, not {width}"):
            run("triton", query, keys, keys)


def test_grouped_heads_in_float32_are_taken_up_to_half_the_width() -> None:
    query, keys = random(1, 2, WIDEST // 2 + 16), random(1, 1, 5, WIDEST // 2 + 16, seed=1)
    with choice.use("triton"), pytest.raises(RuntimeError, match="up to 128, not 144"):
        decode_attention(query, keys, keys)
    assert decode_attention(query, keys, keys).shape == query.shape
