"""Start, revival, merging and figures of the codebook."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from janus.config import VQConfig
from janus.models.vq import VQ
from janus.training.vq import (
    count_codes,
    k_means,
    merge,
    perplexity,
    revive,
    start_codebook,
    usage_entropy,
)

AXES = torch.eye(4)


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def around(centers: Tensor, each: int) -> Tensor:
    """Points near each of the centers, of many lengths, shuffled."""
    points = centers.repeat_interleave(each, dim=0)
    points = points + 0.05 * random(*points.shape)
    points = points * (1 + torch.arange(len(points))[:, None] % 5)
    return points[torch.randperm(len(points), generator=torch.Generator().manual_seed(1))]


def small(codes: int = 16, code_width: int = 4) -> VQ:
    """A VQ with a codebook by seed 7, which is all of it that is looked at: one of each size, used again."""
    vq = cheapest(codes, code_width)
    with torch.no_grad():
        vq.codebook.copy_(random(codes, code_width, seed=7))
    return vq


@cache
def cheapest(codes: int, code_width: int) -> VQ:
    return VQ(
        VQConfig(
            codes=codes,
            code_width=code_width,
            channels=32,
            encoder_multipliers=(1,),
            decoder_multipliers=(1,),
            residual_blocks=1,
            latent_channels=32,
        )
    )


# --- k-means ---


@pytest.mark.parametrize("seed", range(5))
def test_k_means_finds_what_is_apart(seed: int) -> None:
    points = around(torch.cat([AXES, -AXES]), 30)
    centers = k_means(points, 8, generator=generator(seed), rounds=5)
    torch.testing.assert_close(centers.norm(dim=1), torch.ones(8))
    similarity = centers @ torch.cat([AXES, -AXES]).t()
    assert similarity.amax(dim=0).min() > 0.99, "a center at each cluster: k-means++ starts in all of them"


def test_a_round_moves_centers_to_means() -> None:
    points = torch.tensor([[1.0, 0.1], [1.0, -0.1], [-1.0, 0.1], [-1.0, -0.1]])
    centers = k_means(points, 2, generator=generator(), rounds=3)
    assert torch.equal(centers.sort(dim=0).values, torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


def test_k_means_repeats_by_its_generator() -> None:
    points = random(200, 4)
    first, again, other = (k_means(points, 9, generator=generator(seed), rounds=3) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_points_that_are_all_alike_are_taken() -> None:
    centers = k_means(torch.ones(5, 4), 3, generator=generator(), rounds=2)
    torch.testing.assert_close(centers, torch.full((3, 4), 0.5))


# --- the start ---


def test_the_start_shares_codes_between_background_and_the_rest() -> None:
    vq = small(codes=5)
    background, rest = around(AXES[:1], 100), around(torch.stack([-AXES[0], AXES[1], AXES[2], AXES[3]]), 10)
    marks = torch.arange(140) < 100
    written = start_codebook(vq, torch.cat([background, rest]), generator=generator(), background=marks)
    assert written == 5
    similarity = vq.codebook.detach() @ AXES.t()
    assert similarity[0, 0] > 0.99, "one code for the background, though it has most of the latents"
    assert (similarity[1:] @ AXES.t()).abs().amax(dim=0).min() > 0.99


def test_with_few_latents_the_last_entries_stay() -> None:
    vq = small(codes=6)
    before = vq.codebook.detach().clone()
    assert start_codebook(vq, AXES[:3], generator=generator()) == 3
    assert torch.equal(vq.codebook[3:], before[3:])
    assert torch.equal(vq.codebook[:3].sum(dim=0), AXES[:3].sum(dim=0))


def test_background_alone_takes_no_more_than_its_codes() -> None:
    vq = small(codes=6)
    before = vq.codebook.detach().clone()
    marks = torch.ones(50, dtype=torch.bool)
    assert start_codebook(vq, random(50, 4), generator=generator(), background=marks, background_codes=2) == 2
    assert torch.equal(vq.codebook[2:], before[2:])


# --- revival ---


@given(
    dead=st.lists(st.booleans(), min_size=16, max_size=16),
    excluded=st.lists(st.booleans(), min_size=1, max_size=24),
    seed=st.integers(0, 99),
    far=st.booleans(),
)
def test_the_dead_get_latents_that_are_not_excluded(
    dead: list[bool], excluded: list[bool], seed: int, far: bool
) -> None:
    vq, latents = small(), random(len(excluded), 4, seed=seed)
    before = vq.codebook.detach().clone()
    revived = revive(
        vq,
        torch.tensor(dead),
        latents,
        generator=generator(seed),
        excluded=torch.tensor(excluded),
        far=far,
    )
    wanted = [code for code, is_dead in enumerate(dead) if is_dead]
    candidates = F.normalize(latents[~torch.tensor(excluded)], dim=1)
    assert revived.tolist() == wanted[: len(candidates)]
    untouched = [code for code in range(16) if code not in revived.tolist()]
    assert torch.equal(vq.codebook[untouched], before[untouched])
    source = (vq.codebook.detach()[revived, None] == candidates).all(dim=2)
    assert (source.sum(dim=1) == 1).all(), "each is a latent"
    assert (source.sum(dim=0) <= 1).all(), "and no latent is taken twice"


def test_what_no_code_stands_for_is_revived_first() -> None:
    """Of 20 latents that are living codes themselves and one that is far from all, that one."""
    vq = small()
    vq.codebook.data = F.normalize(vq.codebook.data, dim=1)
    dead = torch.zeros(16, dtype=torch.bool)
    dead[5] = True
    known = vq.codebook.detach()[~dead].repeat(2, 1)[:20]
    new = -known.mean(dim=0, keepdim=True)
    for seed in range(10):
        revive(vq, dead, torch.cat((known, new)), generator=generator(seed), far=True)
        torch.testing.assert_close(vq.codebook[5].detach(), F.normalize(new[0], dim=0))


# --- merging ---


@given(which=st.lists(st.booleans(), min_size=16, max_size=16), seed=st.integers(0, 99))
def test_merged_codes_are_not_used_any_more(which: list[bool], seed: int) -> None:
    vq = small()
    merged = torch.tensor(which)
    into = min([code for code, is_merged in enumerate(which) if is_merged], default=5)
    others = [code for code in range(16) if not which[code] and code != into]
    before = vq.codebook.detach().clone()
    gone = merge(vq, merged, into)
    assert gone.tolist() == [code for code, is_merged in enumerate(which) if is_merged and code != into]
    assert torch.equal(vq.codebook[into], before[into])
    assert torch.equal(vq.codebook[others], before[others])
    latents = torch.cat([random(500, 4, seed=seed), before])[:, :, None, None]
    used = set(vq.nearest(latents).flatten().tolist())
    assert not used & set(gone.tolist())
    assert used <= {into, *others}


@pytest.mark.parametrize("codes", [512, 1000])
def test_the_lowest_of_many_copies_is_taken_at_any_width(codes: int) -> None:
    """Equal entries are at equal distances, whichever lanes of a product compute them."""
    for width in (4, 8):
        vq = small(codes=codes, code_width=width)
        which = torch.rand(codes, generator=torch.Generator().manual_seed(2)) < 0.7
        which[:5] = torch.tensor([False, False, False, True, True])
        gone = merge(vq, which, 3)
        used = vq.nearest(random(3000, width)[:, :, None, None]).unique()
        assert not torch.isin(gone, used).any()
        assert 3 in used


def test_the_entry_is_the_mean_by_use() -> None:
    vq = small(codes=4)
    with torch.no_grad():
        vq.codebook.copy_(torch.stack([AXES[3], 2 * AXES[0], 5 * AXES[1], AXES[2]]))
    which = torch.tensor([False, True, True, False])
    merge(vq, which, 1, usage=torch.tensor([100.0, 3.0, 4.0, 100.0]))
    expected = torch.tensor([0.6, 0.8, 0.0, 0.0])
    torch.testing.assert_close(vq.codebook[1].detach(), expected)
    assert torch.equal(vq.codebook[2], vq.codebook[1])
    unused = vq.codebook.detach().clone()
    merge(vq, which, 1, usage=torch.zeros(4))
    assert torch.equal(vq.codebook, unused), "of codes without use there is no mean"


# --- figures ---


@given(st.lists(st.integers(0, 9), max_size=60), st.data())
def test_codes_are_counted(codes: list[int], data: st.DataObject) -> None:
    where = data.draw(st.lists(st.booleans(), min_size=len(codes), max_size=len(codes)))
    tensor = torch.tensor(codes, dtype=torch.long)
    assert torch.equal(count_codes(tensor, 10), torch.bincount(tensor, minlength=10).float())
    marked = torch.tensor([code for code, marked in zip(codes, where, strict=True) if marked]).long()
    expected = torch.bincount(marked, minlength=10).float()
    assert torch.equal(count_codes(tensor, 10, where=torch.tensor(where).bool()), expected)


@pytest.mark.parametrize(
    ("usage", "bits"),
    [([0.0, 0.0], 0.0), ([3.0, 0.0], 0.0), ([2.0, 2.0, 2.0, 2.0], 2.0), ([2.0, 1.0, 1.0, 0.0], 1.5)],
    ids=["none", "one", "all alike", "halves and quarters"],
)
def test_entropy_in_bits_and_perplexity(usage: list[float], bits: float) -> None:
    # float32: logarithms and a sum
    assert usage_entropy(torch.tensor(usage)).item() == pytest.approx(bits, abs=1e-6)
    assert perplexity(torch.tensor(usage)).item() == pytest.approx(2**bits, rel=1e-6)


def test_entropy_is_of_proportions() -> None:
    usage = random(50).abs()
    small_ones = usage_entropy(usage * 1e-6)
    # float32: logarithms and a sum
    assert small_ones.item() == pytest.approx(usage_entropy(usage).item(), rel=1e-5)
    assert usage_entropy(usage) < math.log2(50)


# --- what is refused ---


MASK = torch.zeros(16, dtype=torch.bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda vq: start_codebook(vq, random(9, 3), generator=generator()), r"\(N, 4\), at least one, not"),
        (lambda vq: start_codebook(vq, random(0, 4), generator=generator()), r"not \(0, 4\)"),
        (
            lambda vq: start_codebook(vq, random(9, 4), generator=generator(), background=MASK),
            r"background must be \(9,\) bool, not \(16,\)",
        ),
        (
            lambda vq: start_codebook(vq, random(9, 4), generator=generator(), background_codes=-1),
            "background_codes must be a whole number of at least 0, not -1",
        ),
        (lambda vq: revive(vq, MASK[:3], random(9, 4), generator=generator()), r"dead must be \(16,\) bool"),
        (lambda vq: revive(vq, MASK.float(), random(9, 4), generator=generator()), "not .* torch.float32"),
        (
            lambda vq: revive(vq, MASK, random(9, 4), generator=generator(), excluded=random(9)),
            r"excluded must be \(9,\) bool",
        ),
        (lambda vq: merge(vq, MASK[:3], 0), r"which must be \(16,\) bool"),
        (lambda vq: merge(vq, MASK | True, 2), "into is 2: .* so merge into code 0"),
        (lambda vq: merge(vq, MASK, -1), "into is -1"),
        (lambda vq: merge(vq, MASK, 16), "into is 16"),
        (lambda vq: merge(vq, MASK | True, 0, usage=torch.ones(3)), r"usage must be \(16,\), one a code"),
    ],
)
def test_what_does_not_fit_raises_and_changes_nothing(call: Callable[[VQ], object], message: str) -> None:
    vq = small()
    before = vq.codebook.detach().clone()
    with pytest.raises(ValueError, match=message):
        call(vq)
    assert torch.equal(vq.codebook, before)
