"""The nearest code and the entries of codes: the kernels, the reference, and the original's formula."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from helpers.kernels import DEVICE, DTYPES, Largest, random
from janus.kernels import choice
from janus.kernels.codebook import lookup, lookup_op, nearest_code, nearest_code_op


def original(latents: Tensor, codebook: Tensor) -> Tensor:
    """The formula of the original's vq_model.py, written out: N x K distances."""
    z, e = F.normalize(latents.float(), dim=1), F.normalize(codebook.float(), dim=1)
    return (z.pow(2).sum(1, keepdim=True) + e.pow(2).sum(1) - 2 * torch.einsum("nc,kc->nk", z, e)).argmin(1)


def cdist_argmin(latents: Tensor, codebook: Tensor) -> Tensor:
    return torch.cdist(F.normalize(latents, dim=1), F.normalize(codebook, dim=1)).argmin(1)


def assert_nearest(chosen: Tensor, latents: Tensor, codebook: Tensor) -> None:
    """No code is nearer, in float64, by more than the rounding of float32 numbers near 1: 1e-6."""
    z, e = F.normalize(latents.double(), dim=1), F.normalize(codebook.double(), dim=1)
    similarity = z @ e.t()
    assert (similarity.gather(1, chosen[:, None])[:, 0] >= similarity.amax(1) - 1e-6).all()


def with_ties(codes: int, width: int) -> Tensor:
    """Every entry four times, shuffled."""
    order = torch.randperm(codes, generator=torch.Generator().manual_seed(1))
    return random(codes // 4, width).repeat(4, 1)[order.to(DEVICE)]


# --- the reference, which the CPU runs ---


def test_a_million_latents_get_the_codes_of_cdist() -> None:
    codebook = with_ties(1024, 8)
    latents = random(1_000_000, 8, seed=2)
    latents[::3] = codebook[
        torch.arange(len(latents[::3]), device=DEVICE) % 1024
    ]  # at distance 0, four times
    for part in latents.split(50_000):
        with choice.use("torch"):
            chosen = nearest_code(part, codebook)
        assert torch.equal(chosen, cdist_argmin(part, codebook))


def near_ties(codebook: Tensor, count: int) -> Tensor:
    """Latents half-way between an entry and its neighbor: rounding decides."""
    unit = F.normalize(codebook, dim=1)
    distances = torch.cdist(unit[:count], unit)
    distances.fill_diagonal_(torch.inf)
    return unit[:count] + unit[distances.argmin(1)]


@pytest.mark.parametrize("codes", [16384, 1000, 129, 128, 1])
def test_the_reference_decides_near_ties_as_the_original_does(codes: int) -> None:
    codebook = random(codes, 8, seed=3)
    grid = torch.randint(-2, 3, (500, 8), generator=torch.Generator().manual_seed(4)).to(DEVICE).float()
    for latents in (random(577, 8, seed=5), near_ties(codebook, min(codes, 600)), grid):
        with choice.use("torch"):
            assert torch.equal(nearest_code(latents, codebook), original(latents, codebook))


def test_memory_does_not_grow_with_the_pictures() -> None:
    codebook = random(16384, 8)
    largest = {}
    for pictures in (1, 64):
        latents = random(pictures, 8, 24, 24)
        with choice.use("torch"), Largest() as seen:
            nearest_code(latents, codebook)
        largest[pictures] = seen.elements
    distances = 576 * 16384
    assert largest[1] <= 1024 * 16384, "the distances of one chunk"
    assert largest[64] == max(largest[1], 64 * 576 * 8), "those of a chunk still, not of 64 pictures"
    assert DEVICE == "cuda" or largest[64] < distances, "less than one picture's"


def test_the_comparison_is_in_float32() -> None:
    # In bfloat16 the distances to these two are equal, and the first would win.
    codebook = F.normalize(torch.tensor([[1.0, 0.02], [1.0, 0.01]]), dim=1)
    assert nearest_code(torch.tensor([[1.0, 0.0]], dtype=torch.bfloat16), codebook).tolist() == [1]


# --- the kernels ---


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("count", "codes", "width"),
    [(1, 1, 1), (34, 16384, 8), (577, 300, 8), (64, 32, 8), (65, 33, 3), (7, 5000, 16)],
)
def test_the_kernel_finds_the_nearest(count: int, codes: int, width: int, dtype: torch.dtype) -> None:
    latents, codebook = random(count, width, dtype=dtype), random(codes, width, seed=1, dtype=dtype)
    with choice.use("triton"):
        chosen = nearest_code(latents, codebook)
    assert chosen.dtype == torch.int64
    assert_nearest(chosen, latents, codebook)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 9999), count=st.integers(1, 140), codes=st.integers(1, 300), width=st.integers(1, 16)
)
def test_any_shape(seed: int, count: int, codes: int, width: int) -> None:
    latents, codebook = random(count, width, seed=seed), random(codes, width, seed=seed + 1)
    for implementation in ("triton", "torch"):
        with choice.use(implementation):
            assert_nearest(nearest_code(latents, codebook), latents, codebook)


@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize("count", [40, 4000], ids=["codes split over programs", "whole"])
def test_ties_give_the_lowest_index(implementation: str, count: int) -> None:
    codebook = with_ties(256, 8)
    latents = random(count, 8, seed=2)
    with choice.use(implementation):
        chosen = nearest_code(latents, codebook)
    same = (codebook[chosen][:, None] == codebook[None]).all(-1)
    assert torch.equal(chosen, same.int().argmax(1))
    assert (same.sum(1) == 4).all()


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_pictures_are_read_in_order(implementation: str) -> None:
    codebook, latents = random(300, 8), random(3, 8, 5, 7, seed=1)
    rows = latents.permute(0, 2, 3, 1).reshape(-1, 8)
    with choice.use(implementation):
        expected = nearest_code(rows, codebook).view(3, 5, 7)
        assert torch.equal(nearest_code(latents, codebook), expected)
        # Strided: channels-last, a window, codes that are columns of something else.
        assert torch.equal(nearest_code(latents.to(memory_format=torch.channels_last), codebook), expected)
        window = F.pad(latents, (2, 1, 1, 3))[:, :, 1:6, 2:9]
        assert torch.equal(nearest_code(window, codebook), expected)
        assert torch.equal(nearest_code(latents, codebook.t().contiguous().t()), expected)
        assert torch.equal(nearest_code(rows[::2], codebook), expected.flatten()[::2])


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_length_is_without_effect_and_zero_has_a_code(implementation: str) -> None:
    codebook, latents = random(300, 8), random(50, 8, seed=1)
    with choice.use(implementation):
        # Powers of two scale without rounding.
        assert torch.equal(nearest_code(latents * 1024, codebook / 8), nearest_code(latents, codebook))
        assert nearest_code(torch.zeros_like(latents), codebook).lt(300).all()
        assert nearest_code(torch.full_like(latents, torch.nan), codebook).lt(300).all()
        assert nearest_code(latents[:0], codebook).shape == (0,)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("width", [8, 5, 16])
def test_entries_are_those_of_the_reference(width: int, dtype: torch.dtype) -> None:
    codebook = random(40, width, dtype=dtype)
    codes = torch.randint(40, (3, 7, 9), device=DEVICE)
    with choice.use("triton"):
        entries = lookup(codes, codebook)
        narrow = lookup(codes.to(torch.uint8), codebook.t().contiguous().t())
    expected = F.normalize(codebook.double(), dim=1)[codes].permute(0, 3, 1, 2)
    with choice.use("torch"):
        reference = lookup(codes, codebook)
    assert entries.shape == reference.shape == (3, width, 7, 9)
    assert entries.is_contiguous()
    assert reference.is_contiguous()
    assert entries.dtype == dtype
    assert torch.equal(entries, narrow)
    error, allowed = (entries - expected).abs().max(), (reference - expected).abs().max()
    assert error <= 2 * allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_an_entry_of_zeros_stays_one(dtype: torch.dtype) -> None:
    """In 16 bits, too, which hold no number as small as what a length is at least."""
    codebook = random(3, 8).to(dtype)
    codebook[1] = 0
    entries = lookup(torch.tensor([[[1, 2]]], device=DEVICE), codebook)
    assert not entries[..., 0].any()
    assert entries[..., 1].isfinite().all()


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_the_codebook_learns_through_its_entries(implementation: str) -> None:
    codebook = random(12, 8, dtype=torch.float32).requires_grad_()
    codes = torch.tensor([[[1, 1, 5], [11, 0, 1]]], device=DEVICE)  # some several times, others never
    weight = random(1, 8, 2, 3, seed=1)
    exact = codebook.detach().double().requires_grad_()
    (F.normalize(exact, dim=1)[codes].permute(0, 3, 1, 2) * weight).sum().backward()
    with choice.use(implementation):
        (lookup(codes, codebook) * weight).sum().backward()
    assert codebook.grad is not None
    assert exact.grad is not None
    # A sum of at most three float32 products, of numbers around 1.
    torch.testing.assert_close(codebook.grad.double(), exact.grad, rtol=0, atol=2e-6)
    assert not codebook.grad[2].any()


def test_the_ops_are_well_registered() -> None:
    codebook = random(30, 8)
    codes = torch.randint(30, (2, 3, 4), device=DEVICE)
    for implementation in ("triton", "torch"):
        with choice.use(implementation):
            torch.library.opcheck(nearest_code_op, (random(10, 8), codebook))
            torch.library.opcheck(nearest_code_op, (random(2, 8, 3, 4), codebook))
            torch.library.opcheck(lookup_op, (codes, codebook.clone().requires_grad_()))


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_they_compile_whole(implementation: str) -> None:
    codebook, latents = random(30, 8), random(2, 8, 3, 4, seed=1)

    def there_and_back(latents: Tensor, codebook: Tensor) -> Tensor:
        return lookup(nearest_code(latents * 2, codebook), codebook) + 1

    with choice.use(implementation):
        compiled = torch.compile(there_and_back, fullgraph=True, backend="aot_eager")(latents, codebook)
        torch.testing.assert_close(compiled, there_and_back(latents, codebook))


# --- what is refused ---


@pytest.mark.parametrize("shape", [(4,), (4, 7), (2, 7, 3, 3), (2, 8, 3)])
def test_latents_of_another_shape_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"latents must be \(N, 8\) or \(B, 8, h, w\) floats"):
        nearest_code(torch.zeros(shape), torch.ones(5, 8))


@pytest.mark.parametrize("codebook", [torch.ones(8), torch.ones(5, 8).long(), torch.ones(0, 8)])
def test_codebooks_that_are_none_raise(codebook: Tensor) -> None:
    with pytest.raises(ValueError, match=r"the codebook must be \(K, C\) floats"):
        nearest_code(torch.zeros(4, 8), codebook)
    with pytest.raises(ValueError, match=r"the codebook must be \(K, C\) floats"):
        lookup(torch.zeros(1, 2, 2).long(), codebook)


def test_whole_numbers_and_other_devices_raise() -> None:
    codebook = torch.ones(5, 8)
    with pytest.raises(ValueError, match=r"torch\.int64"):
        nearest_code(torch.zeros(4, 8).long(), codebook)
    with pytest.raises(ValueError, match="latents are on meta, and the codebook on cpu"):
        nearest_code(torch.zeros(4, 8, device="meta"), codebook)
    with pytest.raises(ValueError, match=r"codes must be \(B, h, w\) integers, not \(4, 8\) torch\.float32"):
        lookup(torch.zeros(4, 8), codebook)
    with pytest.raises(ValueError, match="codes are on meta, and the codebook on cpu"):
        lookup(torch.zeros(1, 2, 2, device="meta").long(), codebook)


def test_what_the_kernel_cannot_take_falls_back_or_raises() -> None:
    latents, codebook = random(20, 17), random(30, 17, seed=1)
    assert_nearest(nearest_code(latents, codebook), latents, codebook)
    with choice.use("triton"), pytest.raises(RuntimeError, match="codes of width 16 at most, not 17"):
        nearest_code(latents, codebook)
    with choice.use("triton"), pytest.raises(RuntimeError, match=r"not torch\.float64"):
        nearest_code(latents[:, :8].double(), codebook[:, :8].double())
