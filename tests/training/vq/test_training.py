"""A tokenizer that learns: 60 steps, the same numbers each time and where a run is cut in two."""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from janus.models.vq import VQ
from janus.training.vq import VQState, VQTraining, vq_step

CONFIG = VQTraining(
    learning_rate=3e-3,
    l1=1.0,
    background=(128, 128, 128),
    foreground=2.0,
    quantize_from=20,
    revive_every=3,
    merge_share=0.99,
    decoder_only_from=52,
)
STEPS, CUT = 60, 22  # beyond the codebook's start, and one step before codes are revived

Squares = Callable[..., Tensor]


def train(vq: VQ, state: VQState, until: int, squares: Squares) -> Iterator[dict[str, float]]:
    while state.step < until:
        pixels = squares(1, state.step, count=3, side=32, tile=8)
        yield {name: float(value) for name, value in vq_step(vq, pixels, state, CONFIG).items()}


@pytest.fixture(scope="module")
def _one_run() -> dict[str, Any]:
    return {}


@pytest.fixture
def run(build: Callable[..., VQ], squares: Squares, _one_run: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer of 4 pixels and 32 codes after training, the steps' figures, and a checkpoint at CUT."""
    if not _one_run:
        vq = build(levels=3, codes=32)
        state = VQState.start(vq, CONFIG)
        figures = list(train(vq, state, CUT, squares))
        _one_run["checkpoint"] = deepcopy((vq.state_dict(), state.state_dict()))
        _one_run["figures"] = figures + list(train(vq, state, STEPS, squares))
        _one_run["vq"] = vq
    return _one_run


def test_it_learns(run: dict[str, Any], squares: Squares) -> None:
    pixels = squares(2, count=16, side=32, tile=8)
    with torch.no_grad():
        codes = run["vq"].encode(pixels)
        error = (run["vq"].decode(codes) - pixels).square().mean()
    # The best that a picture of one color can do, each picture of its own.
    constant = (pixels - pixels.mean(dim=(2, 3), keepdim=True)).square().mean()
    # It is 0.42 of it; what is left is noise of a short run.
    assert error < 0.6 * constant
    assert len(codes.unique()) > 24, "of 32 codes"
    losses = [figures["reconstruction"] for figures in run["figures"]]
    assert sum(losses[-8:]) < 0.7 * sum(losses[:8])


def test_it_goes_through_its_stages(run: dict[str, Any]) -> None:
    figures = run["figures"]
    assert [step for step in range(STEPS) if "codes_used" in figures[step]] == list(range(20, STEPS))
    assert [step for step in range(STEPS) if "commitment" in figures[step]] == list(range(20, 52))


def test_codes_without_use_are_revived(build: Callable[..., VQ], squares: Squares) -> None:
    """Of 640 codes some must be, as no more than 576 latents are seen between two revivals."""
    vq = build(levels=3, codes=640)
    settings = replace(CONFIG, quantize_from=10, decoder_only_from=None, merge_share=None)
    state = VQState.start(vq, settings)
    figures = []
    while state.step < 15:
        figures.append(vq_step(vq, squares(1, state.step, count=3, side=32, tile=8), state, settings))
    revived = [float(each["revived"]) for each in figures if "revived" in each]
    assert max(revived) >= 640 - 576


def test_it_repeats(run: dict[str, Any], build: Callable[..., VQ], squares: Squares) -> None:
    vq = build(levels=3, codes=32)
    assert list(train(vq, VQState.start(vq, CONFIG), 3, squares)) == run["figures"][:3]


def test_it_goes_on_from_a_checkpoint(
    run: dict[str, Any], build: Callable[..., VQ], squares: Squares
) -> None:
    weights, saved = run["checkpoint"]
    vq = build(levels=3, codes=32)
    vq.load_state_dict(weights)
    state = VQState.start(vq, CONFIG)
    state.load_state_dict(saved)
    assert list(train(vq, state, CUT + 3, squares)) == run["figures"][CUT : CUT + 3]


def test_it_goes_on_from_a_checkpoint_before_the_start(build: Callable[..., VQ], squares: Squares) -> None:
    """The latents that the codebook will start from are part of the state."""
    config = VQTraining(quantize_from=2, background=(128, 128, 128), revive_every=1, learning_rate=1e-2)
    pictures = [squares(step, count=2, side=8, tile=4) for step in range(4)]
    vq = build()
    state = VQState.start(vq, config)
    for step in range(2):
        vq_step(vq, pictures[step], state, config)
    weights, saved = deepcopy((vq.state_dict(), state.state_dict()))
    for step in (2, 3):
        vq_step(vq, pictures[step], state, config)
    again = build()
    again.load_state_dict(weights)
    resumed = VQState.start(again, config)
    resumed.load_state_dict(saved)
    for step in (2, 3):
        vq_step(again, pictures[step], resumed, config)
    assert all(torch.equal(a, b) for a, b in zip(vq.parameters(), again.parameters(), strict=True))
    assert torch.equal(resumed.usage, state.usage)
