"""The codebook from step to step: its start, its counts, its dead, and the background's codes."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from janus.models.vq import VQ
from janus.training.vq import VQState, VQTraining, prepare_codebook, tend_codebook, vq_step

SIDE = 8
CELLS = 2 * 4 * 4  # of two pictures
GRAY = (128, 128, 128)


@pytest.fixture
def vq(build: Callable[..., VQ]) -> VQ:
    return build()


@pytest.fixture
def pixels(squares: Callable[..., Tensor]) -> Tensor:
    return squares(0, count=2, side=SIDE, tile=4)


def latents_of(*axes: int) -> Tensor:
    """One picture (1, 4, 1, cells) of unit vectors along these axes."""
    return torch.eye(4)[list(axes)].t()[None, :, None]


def test_the_codebook_starts_from_the_newest_latents(vq: VQ, squares: Callable[..., Tensor]) -> None:
    config = VQTraining(quantize_from=5, start_latents=2 * CELLS, background=GRAY, learning_rate=1e-2)
    state = VQState.start(vq, config)
    latents = []
    for step in range(5):
        pixels = squares(step, count=2, side=SIDE, tile=4)
        latents.append(vq.latents(pixels).detach().permute(0, 2, 3, 1).reshape(-1, 4))
        vq_step(vq, pixels, state, config)
        assert len(state.pool) == CELLS * max(0, step - 2), "what would be dropped again is not kept"
    assert torch.equal(state.pool, torch.cat(latents[-2:]))
    gray = (pixels[:, :, ::2, ::2] - (128 / 127.5 - 1)).abs().amax(dim=1) < 1e-6
    assert torch.equal(state.pool_background[-CELLS:], gray.flatten())
    before, background = vq.codebook.detach().clone(), state.pool[state.pool_background]
    prepare_codebook(vq, pixels, state, config)
    assert not (vq.codebook == before).all(dim=1).any()
    mean = F.normalize(F.normalize(background, dim=1).mean(dim=0), dim=0)
    torch.testing.assert_close(vq.codebook[0].detach(), mean)
    assert len(state.pool) == len(state.pool_background) == 0


def test_quantizing_from_the_first_step_starts_from_its_pixels(vq: VQ, pixels: Tensor) -> None:
    config, before = VQTraining(), vq.codebook.detach().clone()
    prepare_codebook(vq, pixels, VQState.start(vq, config), config)
    assert not (vq.codebook == before).all(dim=1).any()
    used = vq.encode(pixels).unique()
    assert len(used) > 12, "of 16 codes for 32 latents: nearly each is the nearest of some"


@pytest.mark.parametrize("learns", [True, False])
def test_a_codebook_of_a_checkpoint_stays(vq: VQ, pixels: Tensor, learns: bool) -> None:
    vq.codebook.requires_grad_(learns)
    config = VQTraining(start_latents=0 if learns else None)
    before = vq.codebook.detach().clone()
    prepare_codebook(vq, pixels, VQState.start(vq, config), config)
    assert torch.equal(vq.codebook, before)


def test_counts_run(vq: VQ) -> None:
    config = VQTraining(usage_decay=0.75)
    state = VQState.start(vq, config)
    background = torch.tensor([[[True, False, False]]])
    tend_codebook(vq, latents_of(0, 1, 2), torch.tensor([[[3, 3, 5]]]), state, config, background=background)
    figures = tend_codebook(
        vq, latents_of(0, 1, 2), torch.tensor([[[7, 3, 3]]]), state, config, background=background
    )
    usage, of_background = torch.zeros(16), torch.zeros(16)
    usage[[3, 5, 7]] = torch.tensor([2 * 0.75 + 2, 0.75, 1.0]) / 4
    of_background[[3, 7]] = torch.tensor([0.75, 1.0]) / 4
    torch.testing.assert_close(state.usage, usage)
    torch.testing.assert_close(state.background_usage, of_background)
    assert state.unused.tolist() == [2, 2, 2, 0, 2, 1, 2, 0, *[2] * 8]
    assert figures["codes_used"] == 2
    entropy = torch.distributions.Categorical(of_background).entropy() / torch.log(torch.tensor(2.0))
    torch.testing.assert_close(figures["background_entropy"], entropy)
    torch.testing.assert_close(figures["perplexity"], figures["code_entropy"].exp2())


def test_the_dead_restart_when_it_is_time_but_not_from_background(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(revive_every=2, quantize_from=1, start_latents=0)
    state = VQState.start(vq, config)
    for parameter in vq.parameters():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    before = vq.codebook.detach().clone()
    latents, codes = latents_of(0, 1, 2, 3), torch.tensor([[[4, 4, 5, 6]]])
    background = torch.tensor([[[True, True, False, False]]])
    state.step = 1
    assert tend_codebook(vq, latents, codes, state, config, background=background)["revived"] == 0
    assert torch.equal(vq.codebook, before)
    state.step = 2
    assert tend_codebook(vq, latents, codes, state, config, background=background)["revived"] == 2
    assert torch.equal(vq.codebook[2:], before[2:]), "as many as there are latents to draw, the lowest first"
    assert {tuple(row) for row in vq.codebook[:2].tolist()} == {(0, 0, 1, 0), (0, 0, 0, 1)}
    assert state.unused.tolist() == [0, 0, 2, 2, 0, 0, 0, *[2] * 9]
    moments = state.optimizer.state[vq.codebook]
    for name in ("exp_avg", "exp_avg_sq"):
        assert (moments[name][:2] == 0).all()
        assert (moments[name][2:] > 0).all()


def test_codes_of_the_background_become_one(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(decoder_only_from=3, merge_share=0.9)
    state = VQState.start(vq, config)
    state.usage[:5] = torch.tensor([1.0, 2.0, 10.0, 4.0, 10.0])
    state.background_usage[:5] = torch.tensor([0.0, 2.0, 9.0, 4.0, 8.9])
    before = vq.codebook.detach().clone()
    state.step = 2
    prepare_codebook(vq, pixels, state, config)
    assert torch.equal(vq.codebook, before), "only where the last stage begins"
    state.step = 3
    prepare_codebook(vq, pixels, state, config)
    weights = torch.tensor([2.0, 9.0, 4.0])
    mean = F.normalize((weights[:, None] * F.normalize(before[1:4], dim=1)).sum(dim=0), dim=0)
    torch.testing.assert_close(vq.codebook[1:4].detach(), mean.expand(3, 4))
    unmerged = [0, *range(4, 16)]
    assert torch.equal(vq.codebook[unmerged], before[unmerged])
    assert state.usage[:5].tolist() == [1, 16, 0, 0, 10]
    assert state.background_usage[1:4].tolist() == [15, 0, 0]
    used = vq.nearest(torch.randn(500, 4, 1, 1)).unique().tolist()
    assert 1 in used
    assert not {2, 3} & set(used)


def test_without_background_nothing_merges(vq: VQ, pixels: Tensor) -> None:
    config = VQTraining(decoder_only_from=1, merge_share=0.9)
    state = VQState.start(vq, config)
    vq_step(vq, pixels, state, config)
    before = vq.codebook.detach().clone()
    figures = vq_step(vq, pixels, state, config)
    assert torch.equal(vq.codebook, before)
    assert "background_entropy" not in figures
