"""The terms against sums done by hand, their signs, and whom their gradients reach."""

import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from janus.models.vq import VQ
from janus.training.vq import (
    background_cells,
    codebook_loss,
    commitment_loss,
    entropy_loss,
    foreground_pixels,
    reconstruction_loss,
)

# The numbers below are exact but for the last bits of float32 sums.
ROUNDING = {"rtol": 1e-6, "atol": 1e-6}


def as_cells(*rows: tuple[float, ...]) -> Tensor:
    """Vectors as one picture (1, C, 1, number of them)."""
    return torch.tensor(rows).t()[None, :, None]


# --- reconstruction ---


@pytest.mark.parametrize(
    ("l1", "l2", "expected"),
    [(1.0, 0.0, 1.0), (0.0, 1.0, 5 / 3), (2.0, 3.0, 2.0 + 5.0)],
    ids=["l1", "l2", "both"],
)
def test_reconstruction_by_hand(l1: float, l2: float, expected: float) -> None:
    pixels = torch.zeros(1, 3, 1, 2)
    pictures = torch.tensor([[1.0, -1.0], [2.0, 0.0], [0.0, 2.0]]).view(1, 3, 1, 2)
    loss = reconstruction_loss(pictures, pixels, l1=l1, l2=l2)
    torch.testing.assert_close(loss, torch.tensor(expected), **ROUNDING)


def test_weights_are_those_of_a_mean() -> None:
    pixels, pictures = torch.zeros(1, 3, 1, 2), torch.tensor([1.0, 3.0]).expand(1, 3, 1, 2)
    weights = torch.tensor([[[3.0, 1.0]]])
    loss = reconstruction_loss(pictures, pixels, l1=1, l2=0, weights=weights)
    assert loss == (3 * 1 + 1 * 3) / 4
    assert reconstruction_loss(pictures, pixels, l1=1, l2=0, weights=8 * weights) == loss
    even = reconstruction_loss(pictures, pixels, l1=1, l2=0, weights=torch.ones(1, 1, 2))
    assert even == reconstruction_loss(pictures, pixels, l1=1, l2=0)


def test_reconstruction_is_float32_whatever_comes_in() -> None:
    pictures, pixels = torch.full((1, 3, 1, 1), 1.0, dtype=torch.bfloat16), torch.zeros(1, 3, 1, 1)
    assert reconstruction_loss(pictures, pixels, l1=1, l2=1).dtype == torch.float32


@pytest.mark.parametrize(
    ("pictures", "weights", "message"),
    [
        ((1, 3, 4, 8), None, r"pictures \(1, 3, 4, 8\) and pixels \(1, 3, 4, 4\) must be alike"),
        ((1, 3, 4, 4), (4, 4), r"weights must be \(1, 4, 4\), one a pixel, not \(4, 4\)"),
    ],
    ids=["pictures", "weights"],
)
def test_shapes_that_do_not_fit_raise(
    pictures: tuple[int, ...], weights: tuple[int, ...] | None, message: str
) -> None:
    given_weights = None if weights is None else torch.ones(weights)
    with pytest.raises(ValueError, match=message):
        reconstruction_loss(torch.zeros(pictures), torch.zeros(1, 3, 4, 4), l1=0, l2=1, weights=given_weights)


# --- codebook and commitment ---


def test_codebook_and_commitment_by_hand() -> None:
    latents, entries = as_cells((3.0, 4.0)), as_cells((0.0, 1.0))  # at unit length (.6, .8) and (0, 1)
    for loss in (codebook_loss(latents, entries), commitment_loss(latents, entries)):
        torch.testing.assert_close(loss, torch.tensor((0.6**2 + 0.2**2) / 2), **ROUNDING)


def test_the_codebook_loss_reaches_the_codebook_only(build: Callable[..., VQ]) -> None:
    vq = build(codes=2, code_width=2)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[0.0, 2.0], [-5.0, 0.0]]))
    latents = as_cells((3.0, 4.0)).requires_grad_()
    codebook_loss(latents, vq.lookup(vq.nearest(latents))).backward()
    assert latents.grad is None
    # (e - z) = (-.6, .2) for the mean over two components; of it what is across e; and e is half its row.
    expected = torch.tensor([[-0.3, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(vq.codebook.grad, expected, **ROUNDING)
    before = codebook_loss(latents, vq.lookup(torch.zeros(1, 1, 1, dtype=torch.long)))
    with torch.no_grad():
        vq.codebook -= 0.1 * vq.codebook.grad  # type: ignore[operator]
    assert codebook_loss(latents, vq.lookup(torch.zeros(1, 1, 1, dtype=torch.long))) < before


def test_the_commitment_loss_reaches_the_latents_only(build: Callable[..., VQ]) -> None:
    vq = build(codes=2, code_width=2)
    with torch.no_grad():
        vq.codebook.copy_(torch.tensor([[0.0, 2.0], [-5.0, 0.0]]))
    latents = as_cells((3.0, 4.0)).requires_grad_()
    commitment_loss(latents, vq.lookup(vq.nearest(latents))).backward()
    assert vq.codebook.grad is None
    # (z - e) = (.6, -.2); of it what is across z, .6 along (.8, -.6); and z is a fifth of its latent.
    assert latents.grad is not None
    torch.testing.assert_close(latents.grad, as_cells((0.6 * 0.8 / 5, -0.6 * 0.6 / 5)), **ROUNDING)


def test_lengths_of_latents_are_without_effect() -> None:
    latents, entries = torch.randn(2, 4, 3, 3), F.normalize(torch.randn(2, 4, 3, 3), dim=1)
    for loss in (codebook_loss, commitment_loss):
        torch.testing.assert_close(loss(7 * latents, entries), loss(latents, entries), **ROUNDING)


# --- entropy ---


def test_entropy_by_hand() -> None:
    """Distances 0 and 2 at temperature 2 / ln 3 are probabilities 3/4 and 1/4."""
    codebook, temperature = torch.tensor([[2.0, 0.0], [0.0, 1.0]]), 2 / math.log(3)
    of_each = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    apart = entropy_loss(as_cells((1.0, 0.0), (0.0, 3.0)), codebook, temperature=temperature)
    torch.testing.assert_close(apart, torch.tensor(of_each - math.log(2)), **ROUNDING)
    alike = entropy_loss(as_cells((1.0, 0.0), (4.0, 0.0)), codebook, temperature=temperature)
    torch.testing.assert_close(alike, torch.tensor(0.0), **ROUNDING)


def test_entropy_is_of_softmax_of_distances() -> None:
    latents, codebook = torch.randn(2, 4, 3, 3), torch.randn(7, 4)
    z = F.normalize(latents, dim=1).permute(0, 2, 3, 1).reshape(-1, 4)
    distances = torch.cdist(z, F.normalize(codebook, dim=1)).square()
    p = (-distances / 0.5).softmax(dim=1)
    expected = torch.distributions.Categorical(p).entropy().mean()
    expected = expected - torch.distributions.Categorical(p.mean(dim=0)).entropy()
    # cdist takes a root that is squared again: its error is some 1e-4 near distance 0, and far less here.
    torch.testing.assert_close(
        entropy_loss(latents, codebook, temperature=0.5), expected, rtol=1e-4, atol=1e-5
    )


@given(seed=st.integers(0, 1000), temperature=st.sampled_from([1e-3, 0.01, 1.0, 100.0]))
def test_entropy_has_its_bounds_and_finite_gradients(seed: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn(1, 3, 2, 4, generator=generator, requires_grad=True)
    codebook = torch.randn(5, 3, generator=generator, requires_grad=True)
    loss = entropy_loss(latents, codebook, temperature=temperature)
    # float32 rounding of logarithms
    assert -math.log(5) - 1e-5 <= loss <= 1e-5
    loss.backward()
    for parameter in (latents, codebook):
        assert parameter.grad is not None
        assert parameter.grad.isfinite().all()


# --- background ---


@pytest.mark.parametrize("tolerance", [0, 2, 10])
def test_foreground_is_what_differs_by_more_than_the_tolerance(tolerance: int) -> None:
    levels = torch.arange(256.0)
    pixels = torch.full((1, 3, 1, 256), 128 / 127.5 - 1)
    for channel in range(3):
        changed = pixels.clone()
        changed[0, channel, 0] = levels / 127.5 - 1
        found = foreground_pixels(changed, (128, 128, 128), tolerance=tolerance)
        assert torch.equal(found[0, 0], (levels - 128).abs() > tolerance)


def test_a_cell_with_one_pixel_of_foreground_is_no_background() -> None:
    foreground = torch.zeros(1, 4, 6, dtype=torch.bool)
    foreground[0, 3, 1] = foreground[0, 0, 4] = True
    assert background_cells(foreground, 2).tolist() == [[[True, True, False], [False, True, True]]]
    assert torch.equal(background_cells(foreground, 1), ~foreground)
