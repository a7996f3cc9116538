"""Attention: the kernels and the reference against float64, where they see, what they refuse, as ops."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernels import DEVICE, DTYPES, Largest, needs_triton, random, untouched
from janus.kernels import attention as module
from janus.kernels import choice
from janus.kernels.attention import attention, attention_backward_op, attention_op, attention_reference
from janus.kernels.launch import recorded, triton

IMPLEMENTATIONS = [pytest.param("triton", marks=needs_triton), "torch"]


def integers(*numbers: int) -> Tensor:
    return torch.tensor(numbers, device=DEVICE)


@dataclass
class Case:
    rows: int
    heads: int
    groups: int
    queries: int
    keys: int
    width: int
    causal: bool = False
    lengths: tuple[int, ...] | None = None
    offsets: tuple[int, ...] | None = None
    scale: float | None = None

    def tensors(self, dtype: torch.dtype) -> tuple[Tensor, ...]:
        """Query, key, value and the gradient of the output."""
        of_queries = self.rows, self.heads, self.queries, self.width
        of_keys = self.rows, self.groups, self.keys, self.width
        shapes = (of_queries, of_keys, of_keys, of_queries)
        return tuple(random(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes))

    def options(self) -> dict[str, Any]:
        lengths, offsets = (
            None if sight is None else integers(*sight) for sight in (self.lengths, self.offsets)
        )
        return {"causal": self.causal, "lengths": lengths, "offsets": offsets, "scale": self.scale}

    def visible(self) -> Tensor:
        """(B, S, K) bool, from the definitions, one by one."""
        seen = torch.zeros(self.rows, self.queries, self.keys, dtype=torch.bool)
        for row in range(self.rows):
            first = 0 if self.lengths is None else self.keys - self.lengths[row]
            documents = [(first, self.keys)]
            if self.offsets is not None:
                documents = list(zip(self.offsets, self.offsets[1:], strict=False))
            for query in range(self.queries):
                position = self.keys - self.queries + query
                for begin, end in documents:
                    # With neither lengths nor offsets there may be more queries than keys.
                    if begin <= position < end or (self.lengths is None and self.offsets is None):
                        seen[row, query, begin : min(end, position + 1) if self.causal else end] = True
        return seen.to(DEVICE)


def naive(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, scale: float | None) -> Tensor:
    """Attention written out; `visible` broadcasts to (B, H, S, K)."""
    members = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(members, 1), value.repeat_interleave(members, 1)
    scores = query @ key.mT * (query.shape[3] ** -0.5 if scale is None else scale)
    weights = torch.where(visible, scores.exp(), 0)  # in float64 no score is too large
    total = weights.sum(-1, keepdim=True)
    return weights @ value / torch.where(total > 0, total, 1)


def results(function: Any, query: Tensor, key: Tensor, value: Tensor, gradient: Tensor) -> list[Tensor]:
    """Output, and the gradients of query, key and value."""
    inputs = [tensor.detach().requires_grad_() for tensor in (query, key, value)]
    output = function(*inputs)
    return [output.detach(), *torch.autograd.grad(output, inputs, gradient)]


def by_op(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    causal: bool = False,
    lengths: Tensor | None = None,
    offsets: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    scale = query.shape[3] ** -0.5 if scale is None else scale
    return attention_op(query, key, value, module._spans(key, lengths, offsets), causal, scale)[0]


def attended(implementation: str, tensors: tuple[Tensor, ...], **options: Any) -> list[Tensor]:
    """By the kernels ("triton"), the reference ("torch") or the ops' own reference ("op")."""
    function = by_op if implementation == "op" else attention
    with choice.use("torch" if implementation == "op" else implementation):
        return results(lambda *inputs: function(*inputs, **options), *tensors)


NAMES = ("output", "gradient of query", "gradient of key", "gradient of value")


def assert_close(ours: list[Tensor], theirs: list[Tensor], truth: list[Tensor]) -> None:
    """No more than twice as far from the truth as PyTorch's own attention in that dtype.

    But for one rounding of the largest magnitude, as PyTorch may be exact by chance where there is next to
    nothing to sum; and for float32's rounding of numbers near 10, which cancel in a gradient that is zero.
    """
    for name, our, their, true in zip(NAMES, ours, theirs, truth, strict=True):
        assert our.dtype == their.dtype
        assert our.shape == true.shape
        if true.numel() == 0:
            continue
        rounding = torch.finfo(our.dtype).eps * true.abs().max()
        rounding += 10 * torch.finfo(torch.float32).eps
        allowed = 2 * (their - true).abs().max() + rounding
        error = (our - true).abs().max()
        assert error <= allowed, f"{name} is off by {error:.1e}, {allowed:.1e} allowed"


def truth_of(case: Case, tensors: tuple[Tensor, ...]) -> list[Tensor]:
    visible = case.visible()[:, None]
    wide = (tensor.double() for tensor in tensors)
    return results(lambda *inputs: naive(*inputs, visible, case.scale), *wide)


def assert_blind_are_zero(case: Case, found: list[Tensor]) -> None:
    """A query that sees nothing gives nothing and gets nothing; nor does a key that nothing sees."""
    visible = case.visible()
    for tensor, seeing in zip(found, (visible.any(2), visible.any(2), *[visible.any(1)] * 2), strict=True):
        assert not tensor.transpose(1, 2)[~seeing].any()


def check(case: Case, dtype: torch.dtype) -> None:
    tensors = case.tensors(dtype)
    ours = attended("triton", tensors, **case.options())
    theirs = results(lambda *inputs: attention_reference(*inputs, **case.options()), *tensors)
    assert_close(ours, theirs, truth_of(case, tensors))
    assert_blind_are_zero(case, ours)


# --- the same numbers ---

CASES = {
    "one picture's patches": Case(1, 2, 2, 144, 144, 64),
    "a prompt": Case(1, 2, 2, 70, 70, 128, causal=True),
    "head 16": Case(2, 2, 2, 67, 67, 16, causal=True),
    "head 32, three heads a group": Case(1, 6, 2, 40, 40, 32, causal=True),
    "head 48": Case(1, 1, 1, 40, 40, 48, causal=True),
    "head 80": Case(1, 2, 1, 70, 70, 80),
    "head 144": Case(1, 1, 1, 33, 33, 144, causal=True),
    "head 256": Case(1, 1, 1, 70, 70, 256, causal=True),
    "one position": Case(2, 2, 1, 1, 1, 64, causal=True),
    "one key": Case(1, 2, 2, 5, 1, 64),
    "one query": Case(2, 2, 1, 1, 131, 64, causal=True),
    "a later part of a prompt": Case(1, 2, 1, 37, 150, 64, causal=True),
    "fewer queries than keys": Case(1, 1, 1, 37, 150, 64),
    "more queries than keys": Case(2, 2, 1, 70, 37, 64),
    "a block to the key": Case(1, 1, 1, 128, 128, 64, causal=True),
    "another scale": Case(1, 1, 1, 40, 40, 64, causal=True, scale=0.5),
    "padding": Case(4, 1, 1, 70, 70, 64, causal=True, lengths=(70, 13, 1, 37)),
    "padding, bidirectional": Case(3, 1, 1, 70, 70, 64, lengths=(13, 70, 65)),
    "nothing but padding": Case(3, 2, 1, 40, 40, 64, causal=True, lengths=(0, 40, 0)),
    "padding and a cache": Case(3, 2, 1, 40, 140, 64, causal=True, lengths=(120, 23, 0)),
    "padding, head 80": Case(2, 1, 1, 40, 40, 80, causal=True, lengths=(40, 9)),
    "documents": Case(2, 1, 1, 140, 140, 64, causal=True, offsets=(0, 7, 7, 8, 60, 64, 140)),
    "documents, bidirectional": Case(1, 2, 1, 140, 140, 64, offsets=(0, 90, 91, 140)),
    "documents, head 128": Case(1, 1, 1, 90, 90, 128, causal=True, offsets=(0, 1, 2, 60, 90)),
    "no document everywhere": Case(1, 2, 1, 90, 90, 64, causal=True, offsets=(3, 3, 40, 71)),
    "no document at all": Case(1, 1, 1, 20, 20, 64, causal=True, offsets=(5,)),
    "no keys": Case(1, 2, 1, 3, 0, 64),
    "no queries": Case(1, 2, 1, 0, 3, 64, causal=True),
    "no rows": Case(0, 2, 1, 3, 3, 64, causal=True),
}
# These cross the larger tiles of 16 bits more than once.
LARGE_CASES = {
    "577 positions": Case(1, 1, 1, 577, 577, 64),
    "577 causal positions": Case(1, 1, 1, 577, 577, 128, causal=True),
    "much padding": Case(3, 1, 1, 290, 290, 64, causal=True, lengths=(290, 100, 1)),
    "much padding, bidirectional": Case(2, 1, 1, 290, 290, 64, lengths=(100, 233)),
    "long documents": Case(1, 2, 1, 400, 400, 64, causal=True, offsets=(0, 7, 7, 130, 258, 400)),
    "long documents, bidirectional": Case(1, 1, 1, 400, 400, 64, offsets=(0, 7, 270, 271, 400)),
}


@needs_triton
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_kernels_are_as_close_as_pytorch(case: Case, dtype: torch.dtype) -> None:
    if dtype == torch.float32 and case.width > module.WIDEST_FLOAT32:
        with pytest.raises(RuntimeError, match="up to 128, not"):
            check(case, dtype)
        return
    check(case, dtype)


@needs_triton
@pytest.mark.parametrize("case", LARGE_CASES.values(), ids=LARGE_CASES)
def test_the_kernels_are_as_close_as_pytorch_over_many_tiles(case: Case) -> None:
    check(case, torch.float16)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_reference_means_the_same(case: Case) -> None:
    tensors = case.tensors(torch.float64)
    ours = attended("torch", tensors, **case.options())
    for our, true in zip(ours, truth_of(case, tensors), strict=True):
        # In float64.
        torch.testing.assert_close(our, true, rtol=0, atol=1e-12)  # float64's rounding, a thousand times
    assert_blind_are_zero(case, ours)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_ops_reference_means_the_same(case: Case) -> None:
    tensors = case.tensors(torch.float32)
    ours = attended("op", tensors, **case.options())
    for our, true in zip(ours, truth_of(case, tensors), strict=True):
        torch.testing.assert_close(our.double(), true, rtol=0, atol=1e-5)  # sums of 150 roundings
    assert_blind_are_zero(case, ours)


@needs_triton
@settings(max_examples=12)
@given(data=st.data(), causal=st.booleans(), width=st.sampled_from([16, 32, 48]))
def test_any_lengths_and_documents(data: st.DataObject, causal: bool, width: int) -> None:
    keys = data.draw(st.integers(1, 80), "keys")
    queries, lengths, offsets = keys, None, None
    sight = data.draw(st.sampled_from(["all", "lengths", "offsets"]), "sight")
    if sight == "offsets":
        offsets = tuple(sorted(data.draw(st.lists(st.integers(0, keys), min_size=1, max_size=5), "offsets")))
    else:
        queries = data.draw(st.integers(1, keys), "queries")
    if sight == "lengths":
        lengths = tuple(data.draw(st.lists(st.integers(0, keys), min_size=2, max_size=2), "lengths"))
    check(Case(2, 1, 1, queries, keys, width, causal, lengths, offsets), torch.float16)


@needs_triton
def test_the_kept_logarithms() -> None:
    case = Case(2, 2, 1, 40, 70, 64, causal=True, lengths=(70, 21))
    query, key, value, _ = case.tensors(torch.float32)
    arguments = query, key, value, module._spans(key, integers(70, 21), None), True, 0.125
    scores = query.double() @ key.double().mT / 8
    expected = scores.masked_fill(~case.visible()[:, None], -torch.inf).logsumexp(-1)
    expected[expected == -torch.inf] = torch.inf  # so that all weights of a blind query come out as zero
    for implementation in ("triton", "torch"):
        with choice.use(implementation):
            kept = attention_op(*arguments)[1]
        assert kept.dtype == torch.float32
        torch.testing.assert_close(kept.double(), expected, rtol=0, atol=2e-6)  # a few roundings near 5
        assert kept.isposinf().sum() == 2 * 19


def test_on_a_cpu_it_is_pytorch_to_the_bit() -> None:
    query, key, value, gradient = (
        tensor.cpu() for tensor in Case(2, 4, 2, 70, 70, 64).tensors(torch.float32)
    )
    for causal in (False, True):
        for keys in (key, value), (key.repeat(1, 2, 1, 1), value.repeat(1, 2, 1, 1)):
            grouped = keys[0].shape[1] == 2
            sdpa = results(
                lambda *inputs, grouped=grouped, causal=causal: F.scaled_dot_product_attention(
                    *inputs, is_causal=causal, enable_gqa=grouped
                ),
                query,
                *keys,
                gradient,
            )
            ours = results(
                lambda *inputs, causal=causal: attention(*inputs, causal=causal), query, *keys, gradient
            )
            assert all(torch.equal(our, their) for our, their in zip(ours, sdpa, strict=True))
    last = attention(query[:, :, -1:], key, value, causal=True)
    expected = F.scaled_dot_product_attention(query[:, :, -1:], key, value, enable_gqa=True)
    assert torch.equal(last, expected), "the last query sees all keys"


@pytest.mark.parametrize("automatic", [False, True], ids=["given so", "autocast"])
def test_what_learns_on_a_cpu_is_attended_to_in_float32(automatic: bool) -> None:
    """And rounded once: what has no gradient stays with PyTorch's own."""
    tensors = [tensor.cpu() for tensor in Case(2, 4, 2, 70, 70, 64).tensors(torch.bfloat16)]
    wide = results(lambda *inputs: attention(*inputs, causal=True), *(each.float() for each in tensors))
    with torch.autocast("cpu", enabled=automatic):
        ours = results(lambda *inputs: attention(*inputs, causal=True), *tensors)
        plain = attention(*tensors[:3], causal=True)
    for our, true in zip(ours, wide, strict=True):
        assert torch.equal(our, true.bfloat16())
    query, key, value, _ = tensors
    own = F.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
    assert torch.equal(plain, own)


# --- a mask ---

MASKS = {
    "all alike": (1, 1, 7, 9),
    "a row's": (2, 1, 7, 9),
    "a head's": (2, 4, 7, 9),
    "of keys": (2, 1, 1, 9),
}


@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("shape", MASKS.values(), ids=MASKS)
def test_a_mask(shape: tuple[int, ...], causal: bool) -> None:
    tensors = Case(2, 4, 2, 7, 9, 24).tensors(torch.float64)
    mask = random(*shape) > 0.5
    if shape[2] == 7:
        mask[:, :, 2] = False
    visible = mask & Case(2, 4, 2, 7, 9, 24, causal).visible()[:, None]
    truth = results(lambda *inputs: naive(*inputs, visible, None), *tensors)
    ours = results(lambda *inputs: attention(*inputs, causal=causal, mask=mask), *tensors)
    for our, true in zip(ours, truth, strict=True):
        torch.testing.assert_close(our, true, rtol=0, atol=1e-12)
    if shape[2] == 7:
        assert not ours[0][:, :, 2].any()
        assert not ours[1][:, :, 2].any()


# --- what padding holds ---


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # what numpy says of infinite padding
@pytest.mark.parametrize("garbage", [torch.nan, torch.inf, 7.0])
@pytest.mark.parametrize("causal", [False, True], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "op"])
def test_padding_is_never_read(implementation: str, causal: bool, garbage: float) -> None:
    lengths = integers(40, 13, 0)
    padding = torch.arange(40, device=DEVICE) < 40 - lengths[:, None]
    clean, dirty = ([], [])
    for tensor in Case(3, 1, 1, 40, 40, 16).tensors(torch.float32):
        clean.append(tensor.masked_fill(padding[:, None, :, None], 0))
        dirty.append(tensor.masked_fill(padding[:, None, :, None], garbage))
    expected = attended(implementation, tuple(clean), lengths=lengths, causal=causal)
    found = attended(implementation, tuple(dirty), lengths=lengths, causal=causal)
    for name, ours, theirs in zip(NAMES, found, expected, strict=True):
        assert torch.equal(ours, theirs), name
        assert not ours.transpose(1, 2)[padding].any(), name
        assert ours.isfinite().all(), name


@pytest.mark.parametrize("implementation", [*IMPLEMENTATIONS, "op"])
def test_what_is_around_documents_is_never_read(implementation: str) -> None:
    outside = torch.ones(40, dtype=torch.bool, device=DEVICE)
    outside[3:31] = False
    tensors = Case(1, 2, 2, 40, 40, 64).tensors(torch.float32)
    clean, dirty = (
        tuple(tensor.masked_fill(outside[:, None], fill) for tensor in tensors) for fill in (0.0, torch.nan)
    )
    options = {"offsets": integers(3, 12, 31), "causal": True}
    for ours, theirs in zip(
        attended(implementation, dirty, **options), attended(implementation, clean, **options), strict=True
    ):
        assert torch.equal(ours, theirs)


@needs_triton
def test_a_row_does_not_depend_on_its_padding() -> None:
    query, key, value, _ = tensors = Case(2, 1, 1, 140, 140, 64).tensors(torch.float16)
    for causal in (False, True):
        padded = attended("triton", tensors, lengths=integers(140, 77), causal=causal)[0]
        with choice.use("triton"):
            alone = attention(*(x[1:, :, -77:] for x in (query, key, value)), causal=causal)
        # Blocks of keys begin at a row's first, so at most a product is summed in another order, which moves
        # a rounding.
        torch.testing.assert_close(padded[1:, :, -77:], alone, rtol=0, atol=5e-4)


# --- how tensors lie in memory ---


def fused(case: Case) -> tuple[Tensor, ...]:
    """Query, key and value as slices of one projection's output, (B, S, 3, H, d)."""
    merged = torch.stack([tensor.transpose(1, 2) for tensor in case.tensors(torch.float32)[:3]], dim=2)
    return tuple(merged[:, :, part].transpose(1, 2) for part in range(3))


LAYOUTS = {
    "positions before heads": lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),
    "positions before rows": lambda x: x.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3),
    "a window of a cache": lambda x: F.pad(x, (0, 0, 2, 3))[:, :, 2:-3],
    "a step of 2 along the heads": lambda x: x.repeat_interleave(2, 1)[:, ::2],
    "a step of 2 along the head": lambda x: x.repeat_interleave(2, 3)[..., ::2],
    "the head size first": lambda x: x.transpose(2, 3).contiguous().transpose(2, 3),
    "odd strides": lambda x: F.pad(x, (0, 3))[..., :-3],
    "unaligned": lambda x: F.pad(x.flatten(), (1, 0))[1:].view(x.shape),
}


@needs_triton
def test_strides() -> None:
    tensors = Case(2, 2, 2, 20, 20, 16).tensors(torch.float16)
    expected = attended("triton", tensors, causal=True)
    names = list(LAYOUTS)
    for turn in range(len(names)):  # each tensor in every layout, beside three others in other ones
        chosen = [names[(turn + number) % len(names)] for number in range(4)]
        moved = [LAYOUTS[name](tensor) for name, tensor in zip(chosen, tensors, strict=True)]
        assert all(x.stride() != tensors[0].stride() or x.storage_offset() for x in moved)
        for ours, theirs in zip(attended("triton", tuple(moved), causal=True), expected, strict=True):
            assert torch.equal(ours, theirs), chosen


@needs_triton
def test_slices_of_one_projection() -> None:
    case = Case(2, 2, 2, 40, 40, 64)
    *tensors, gradient = case.tensors(torch.float32)
    expected = attended("triton", (*tensors, gradient))
    for ours, theirs in zip(attended("triton", (*fused(case), gradient)), expected, strict=True):
        assert torch.equal(ours, theirs)


@needs_triton
def test_results_join_their_heads_without_a_copy() -> None:
    for result in attended("triton", Case(2, 4, 2, 5, 5, 16).tensors(torch.float32)):
        assert result.transpose(1, 2).is_contiguous()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_sums_and_of_broadcasts(implementation: str) -> None:
    query, key, value, _ = Case(2, 2, 1, 20, 20, 16).tensors(torch.float32)
    for gradient in (
        torch.ones((), device=DEVICE).expand_as(query),
        random(2, 1, 1, 16).expand_as(query),
        random(1, 2, 20, 1).expand_as(query),
    ):
        strided = attended(implementation, (query, key, value, gradient), causal=True)
        dense = attended(implementation, (query, key, value, gradient.contiguous()), causal=True)
        for ours, theirs in zip(strided, dense, strict=True):
            # Sums of twenty numbers around 1 in float32.
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@needs_triton
def test_offsets_beyond_32_bits() -> None:
    memory = untouched(2**31 + 2**20)
    case = Case(3, 3, 3, 3, 3, 16, causal=True)
    near = case.tensors(torch.float16)
    expected = attended("triton", near, causal=True)
    far = 2**30
    for side, strides in {"rows": (far, 512, 16), "heads": (512, far, 16), "keys": (512, 64, far)}.items():
        views = [memory[4096 * kind :].as_strided((3, 3, 3, 16), (*strides, 1)) for kind in range(4)]
        for view, tensor in zip(views, near, strict=True):
            view.copy_(tensor)
        for ours, theirs in zip(attended("triton", tuple(views), causal=True), expected, strict=True):
            assert torch.equal(ours, theirs), side


@needs_triton
def test_nothing_of_size_s_x_k_is_in_memory() -> None:
    query = torch.empty(1, 2, 4096, 64, device="meta")
    with recorded(), Largest() as seen:
        output, logsumexp = module._launch_forward(query, query, query, None, True, 1.0)
        module._launch_backward(output, query, query, query, None, output, logsumexp, True, 1.0)
        module._spans(query, None, torch.empty(5, dtype=torch.int64, device="meta"))
    assert seen.elements == query.numel()


@needs_triton
def test_two_runs_are_equal_to_the_bit() -> None:
    tensors = Case(2, 2, 1, 100, 100, 64).tensors(DTYPES[-1])
    runs = [attended("triton", tensors, causal=True, lengths=integers(100, 30)) for _ in range(2)]
    assert all(torch.equal(first, second) for first, second in zip(*runs, strict=True))


# --- as ops ---


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_ops_are_well_registered(implementation: str) -> None:
    for case in (
        Case(2, 4, 2, 5, 7, 16, causal=True),
        Case(1, 2, 1, 1, 1, 16, lengths=(1,)),
    ):
        query, key, value, gradient = case.tensors(torch.float32)
        spans = module._spans(key, case.options()["lengths"], None)
        inputs = [tensor.requires_grad_() for tensor in (query, key, value)]
        with choice.use(implementation):
            torch.library.opcheck(attention_op, (*inputs, spans, case.causal, 0.25))
            query, key, value = (tensor.detach() for tensor in inputs)
            kept = attention_op(query, key, value, spans, case.causal, 0.25)
            arguments = gradient, query, key, value, spans, *kept, case.causal, 0.25
            torch.library.opcheck(attention_backward_op, arguments)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_no_input_is_returned_or_changed(implementation: str) -> None:
    tensors = Case(2, 2, 1, 20, 20, 16).tensors(torch.float32)
    before = [tensor.clone() for tensor in tensors]
    found = attended(implementation, tensors, lengths=integers(20, 3))
    memory = {tensor.untyped_storage().data_ptr() for tensor in tensors}
    assert not memory & {tensor.untyped_storage().data_ptr() for tensor in found}
    assert all(torch.equal(tensor, copy) for tensor, copy in zip(tensors, before, strict=True))


@needs_triton
def test_only_what_is_wanted_gets_a_gradient() -> None:
    query, key, value, gradient = Case(1, 2, 1, 20, 20, 16).tensors(torch.float32)
    expected = attended("triton", (query, key, value, gradient))
    with choice.use("triton"):
        attention(query, key, value.requires_grad_()).backward(gradient)
        assert not attention(query, key, value.detach()).requires_grad
    assert torch.equal(value.grad, expected[3])
    assert query.grad is None


@pytest.mark.parametrize(
    ("implementation", "sight"),
    [
        pytest.param("triton", {"offsets": (0, 3, 12, 20)}, marks=needs_triton),
        ("torch", {"lengths": (20, 7)}),
    ],
)
def test_it_compiles_whole(implementation: str, sight: dict[str, tuple[int, ...]]) -> None:
    *tensors, gradient = Case(2, 4, 2, 20, 20, 16).tensors(torch.float32)
    tables = {name: integers(*numbers) for name, numbers in sight.items()}

    def layer(query: Tensor, key: Tensor, value: Tensor, tables: dict[str, Tensor]) -> Tensor:
        mixed = attention(query * 2, key, value, causal=True, **tables)
        return mixed.transpose(1, 2).flatten(2) + 1

    gradient = gradient.transpose(1, 2).flatten(2)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    with choice.use(implementation):
        eager = results(lambda *inputs: layer(*inputs, tables), *tensors, gradient)
        traced = results(lambda *inputs: compiled(*inputs, tables), *tensors, gradient)
    for ours, theirs in zip(traced, eager, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)  # fused, it rounds elsewhere


# --- what is chosen and refused ---


@needs_triton
@pytest.mark.parametrize(
    ("width", "dtype", "options", "problem"),
    [
        (24, torch.float16, {}, "head sizes in steps of 16 up to 256, not 24"),
        (272, torch.float16, {}, "up to 256, not 272"),
        (144, torch.float32, {}, "up to 128, not 144"),
        (16, torch.float64, {}, "bfloat16, float16 and float32, not torch.float64"),
        (
            16,
            torch.float32,
            {"mask": torch.ones(1, 1, 5, 5, dtype=torch.bool, device=DEVICE)},
            "no dense mask",
        ),
    ],
)
def test_what_the_kernels_cannot_do(width: int, dtype: torch.dtype, options: Any, problem: str) -> None:
    tensors = Case(1, 2, 2, 5, 5, width).tensors(dtype)[:3]
    with choice.use("triton"), pytest.raises(RuntimeError, match=problem):
        attention(*tensors, **options)
    assert attention(*tensors, **options).shape == tensors[0].shape


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"query": random(2, 5, 16)}, r"query must be \(B, H, S, d\).* not \(2, 5, 16\)"),
    "rows": ({"key": random(1, 2, 7, 16)}, r"\(2, G, K, 16\).*not \(1, 2, 7, 16\) and \(2, 2, 7, 16\)"),
    "keys": ({"value": random(2, 2, 6, 16)}, r"not \(2, 2, 7, 16\) and \(2, 2, 6, 16\)"),
    "head size": ({"query": random(2, 4, 5, 32)}, r"\(2, G, K, 32\)"),
    "heads": ({"query": random(2, 3, 5, 16)}, "3 heads cannot be shared out among 2"),
    "no heads": ({"key": random(2, 0, 7, 16), "value": random(2, 0, 7, 16)}, "4 heads .* among 0"),
    "dtypes": ({"key": random(2, 2, 7, 16).half()}, "torch.float32, torch.float16 and torch.float32"),
    "devices": ({"key": torch.empty(2, 2, 7, 16, device="meta")}, "different devices: .*meta"),
    "integers": ({name: torch.ones(2, 2, 5, 16).long() for name in ("query", "key", "value")}, "floats"),
    "order": ({"query": random(2, 4, 9, 16), "causal": True}, "9 causal queries .* last of 7 keys"),
    "scale": ({"scale": 0.0}, "scale must be a positive number, not 0.0"),
    "negative scale": ({"scale": -1.0}, "not -1.0"),
    "both": ({"lengths": torch.tensor([7, 7]), "offsets": torch.tensor([0, 7])}, "at most one"),
    "lengths' dtype": ({"lengths": torch.tensor([7.0, 7.0])}, r"lengths must be \(2,\) integers.*float32"),
    "lengths' rank": ({"lengths": torch.tensor([[7, 7]])}, r"not \(1, 2\)"),
    "lengths' number": ({"lengths": torch.tensor([7, 7, 7])}, r"lengths must be \(2,\).*not \(3,\)"),
    "too long": ({"lengths": torch.tensor([7, 8])}, r"lie in \[0, 7\], not \[7, 8\]"),
    "negative": ({"lengths": torch.tensor([-1, 7])}, r"not \[-1, 7\]"),
    "more than padded": ({"query": random(2, 4, 9, 16), "lengths": torch.tensor([7, 7])}, "9 queries"),
    "offsets of a cache": ({"offsets": torch.tensor([0, 7])}, "as many queries as keys, not 5 and 7"),
    "offsets' dtype": ({"offsets": torch.tensor([True])}, "offsets must be .* integers, not .*bool"),
    "no offsets": ({"offsets": torch.tensor([]).long()}, "the beginning of the first document"),
    "falling": ({"query": random(2, 4, 7, 16), "offsets": torch.tensor([0, 5, 3])}, r"not \[0, 5, 3\]"),
    "too far": ({"query": random(2, 4, 7, 16), "offsets": torch.tensor([0, 8])}, r"\[0, 7\], not \[0, 8\]"),
    "mask's dtype": ({"mask": torch.ones(2, 1, 5, 7)}, "mask must be .* bool, not .*float32"),
    "mask's shape": ({"mask": torch.ones(2, 2, 5, 7).bool()}, r"broadcast to \(2, 4, 5, 7\), not"),
    "mask's rank": ({"mask": torch.ones(5, 7).bool()}, r"not \(5, 7\)"),
    "mask's device": ({"mask": torch.ones(2, 1, 5, 7, device="meta").bool()}, "mask is on meta"),
}


@pytest.mark.parametrize(
    ("queries", "causal", "past"), [(1, True, False), (7, True, True), (20, True, False), (7, False, False)]
)
def test_a_past_is_a_reason_for_the_kernel(
    queries: int, causal: bool, past: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A triangle that does not begin at the first key: PyTorch's fused kernels do not take it."""
    told: list[dict[str, Any]] = []
    monkeypatch.setattr(choice, "implementation", lambda op, *rest, **facts: told.append(facts) or "torch")
    attention(random(1, 2, queries, 128), *[random(1, 2, 20, 128)] * 2, causal=causal)
    assert told[0]["past"] == past
    rule = choice.RULES["attention"]
    assert rule(head_width=128, dense_mask=False, ragged=False, past=past) == ("triton" if past else "torch")


@pytest.mark.parametrize(("wrong", "problem"), REFUSED.values(), ids=REFUSED)
def test_mistakes_raise(wrong: dict[str, Any], problem: str) -> None:
    good = {"query": random(2, 4, 5, 16), "key": random(2, 2, 7, 16), "value": random(2, 2, 7, 16)}
    for implementation in ("triton", "torch") if triton else ("torch",):
        with choice.use(implementation):
            assert attention(**good).shape == (2, 4, 5, 16)
            with pytest.raises(ValueError, match=problem):
                attention(**(good | wrong))


# --- what is compiled ahead of time ---


@needs_triton
def test_every_tile_is_compiled_ahead_of_time() -> None:
    def compiled(calls: Any) -> set[tuple[Any, ...]]:
        with recorded() as launches:
            for call in calls:
                call()
        return {
            (
                launch.kernel.__name__,
                *(launch.arguments[name] for name in ("PADDED", "WIDTH", "BLOCK_QUERIES", "BLOCK_KEYS")),
                *launch.options.values(),
            )
            for launch in launches
        }

    def calls(width: int, rows: int) -> Iterator[Any]:
        query = torch.empty(rows, 16, 576, width, dtype=torch.bfloat16, device="meta")
        kept = query, torch.empty(rows, 16, 576, device="meta")
        yield lambda: module._launch_forward(query, query, query, None, False, 1.0)
        yield lambda: module._launch_backward(*[query] * 4, None, *kept, False, 1.0)

    covered = compiled(module.every_launch())
    for width in range(16, 257, 16):
        for rows in (1, 9):
            assert compiled(calls(width, rows)) <= covered, width
    assert len(covered) <= 45
