"""Speculation: the same picture as one code after another, in as many passes as the guesses deserve."""

import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.config import JanusConfig
from janus.inference import draw
from janus.inference.draw import draw_codes, draw_steps
from janus.inference.draw_batch import DrawStep, Picture, PromptCaches, unconditional
from janus.inference.prepare import prepare
from janus.inference.sampling import Sampling
from janus.inference.speculate import Clues, SpeculativeStep, by_newest, speculative_steps, window_of
from janus.kernels.sample import sample
from janus.models import llama
from janus.models.janus import Janus

PAD = 482  # of the small checkpoint
CODES, GRID = 64, 8  # of a whole picture
PROMPT = (480, 17, 203, 64, 9, 481)
SAMPLINGS = {
    "greedy": Sampling(temperature=0),
    "sampled": Sampling(),
    "top-k": Sampling(temperature=0.7, top_k=5),
    "top-p": Sampling(temperature=1.3, top_p=0.6),
}


def pictures_of(number: int, seed: int = 7, start: int = 0) -> list[Picture]:
    """Pictures of prompts of two lengths, with codes given beforehand."""
    given = tuple(range(3, 3 + start))
    return [
        Picture(prompt=PROMPT[index % 2 :], seed=seed, number=index, start=given) for index in range(number)
    ]


def codes_of(steps: list[Any]) -> Tensor:
    return torch.stack([step.codes for step in steps], dim=1)


def with_grid(config: JanusConfig, grid: int) -> JanusConfig:
    """A config that draws grid x grid codes."""
    return replace(config, vision=replace(config.vision, image_size=grid * config.vq.factor))


@pytest.fixture(scope="module")
def sized(model: Janus) -> Callable[[int], Janus]:
    """The small checkpoint, drawing pictures of another size: only the tower that sees would care."""

    def make(grid: int) -> Janus:
        other = deepcopy(model)
        other.config = with_grid(model.config, grid)
        assert other.config.grid == grid
        return other

    return make


@pytest.fixture(scope="module")
def deaf(model: Janus) -> Janus:
    """A model that gives every position the same logits, whatever codes were fed."""
    other = deepcopy(model)
    torch.nn.init.zeros_(other.image_head.out.weight)
    torch.nn.init.normal_(other.image_head.out.bias, generator=torch.Generator().manual_seed(3))
    return other


@pytest.mark.parametrize("guidance", [1.0, 5.0])
@pytest.mark.parametrize("kind", SAMPLINGS)
def test_the_same_picture(
    kind: str, guidance: float, sized: Callable[[int], Janus], close: Callable[[Tensor, Tensor], None]
) -> None:
    model = sized(5)
    options: dict[str, Any] = {"pad_id": PAD, "guidance": guidance, "sampling": SAMPLINGS[kind]}
    pictures = pictures_of(2)
    expected = list(draw_steps(model, pictures, **options))
    for window in (2, 7, 1000):
        steps = list(speculative_steps(model, pictures, window=window, **options))
        assert [step.position for step in steps] == list(range(25)), window
        assert torch.equal(codes_of(steps), codes_of(expected)), window
        for step, its in zip(steps, expected, strict=True):
            close(step.conditional, its.conditional)
            assert (step.unconditional is None) == (its.unconditional is None) == (guidance == 1)
            if step.unconditional is not None and its.unconditional is not None:
                close(step.unconditional, its.unconditional)
        check_passes(steps, window)


def check_passes(steps: list[SpeculativeStep], window: int) -> None:
    """The first code takes no pass, and each pass gives from one code to a window of them."""
    passes = [step.passes for step in steps]
    assert passes == sorted(passes)
    assert passes[0] == 0
    assert set(passes) == set(range(passes[-1] + 1))
    assert all(1 <= passes.count(number) <= window for number in range(1, passes[-1] + 1))


@settings(max_examples=20)
@given(
    window=st.integers(1, 12),
    grid=st.integers(2, 6),
    number=st.integers(1, 3),
    seed=st.integers(-(2**70), 2**70),
    share=st.floats(0, 1),
    guidance=st.sampled_from([1.0, 5.0]),
    kind=st.sampled_from(sorted(SAMPLINGS)),
)
def test_the_same_picture_always(
    window: int,
    grid: int,
    number: int,
    seed: int,
    share: float,
    guidance: float,
    kind: str,
    sized: Callable[[int], Janus],
) -> None:
    drawing = sized(grid)
    pictures = pictures_of(number, seed, start=int(share * (grid**2 - 1)))
    options: dict[str, Any] = {"pad_id": PAD, "guidance": guidance, "sampling": SAMPLINGS[kind]}
    steps = list(speculative_steps(drawing, pictures, window=window, **options))
    assert torch.equal(codes_of(steps), codes_of(list(draw_steps(drawing, pictures, **options))))
    check_passes(steps, window)


@pytest.mark.parametrize("start", [0, 20, 63])
@pytest.mark.parametrize("window", [1, 3, 8, 64])
def test_where_codes_do_not_matter_every_guess_is_right(window: int, start: int, deaf: Janus) -> None:
    for guidance in (1.0, 5.0):
        steps = list(
            speculative_steps(deaf, pictures_of(2, start=start), pad_id=PAD, guidance=guidance, window=window)
        )
        assert steps[-1].passes == math.ceil((CODES - 1 - start) / window)
        assert len(codes_of(steps)[0].unique()) > 1 or start == 63  # the noise, at least, matters


def test_the_worst_and_the_best_guesses(model: Janus) -> None:
    """What is guessed changes how many passes there are, and never a code."""
    pictures = pictures_of(2)
    expected = codes_of(list(draw_steps(model, pictures, pad_id=PAD)))

    def run(guess: Callable[[Clues], Tensor], window: int) -> list[SpeculativeStep]:
        steps = list(speculative_steps(model, pictures, pad_id=PAD, window=window, guess=guess))
        assert torch.equal(codes_of(steps), expected)
        return steps

    assert run(lambda clues: expected[:, clues.position], 7)[-1].passes == math.ceil(63 / 7)
    # After a wrong guess, in all pictures or in one, one code is sure; what was computed beyond may be right.
    for wrong in (torch.tensor([1, 1]), torch.tensor([0, 1])):
        asked: list[int] = []

        def guess(clues: Clues, wrong: Tensor = wrong, asked: list[int] = asked) -> Tensor:
            asked.append(clues.position)
            return (expected[:, clues.position] + wrong) % 256

        passes = [step.passes for step in run(guess, 2)]
        assert asked[0] == 1
        # The code that stands there instead is sure, and the next takes another pass.
        assert all(passes[position] < passes[position + 1] for position in asked)


def test_what_a_guess_can_go_by(model: Janus) -> None:
    pictures = pictures_of(2, start=3)
    steps = list(draw_steps(model, pictures, pad_id=PAD))
    whole = torch.cat((torch.arange(3, 6).expand(2, -1), codes_of(steps)), dim=1)
    asked: list[int] = []

    def guess(clues: Clues) -> Tensor:
        asked.append(clues.position)
        assert torch.equal(clues.codes, whole[:, : clues.position])
        newest = steps[clues.position - 1 - 3]  # one by one, as guesses for windows of two are
        expected = sample(
            newest.conditional,
            newest.unconditional,
            seeds=torch.tensor([7, 7]),
            numbers=torch.tensor([0, 1]),
            position=torch.tensor([clues.position]),
            guidance=5.0,
        )
        assert torch.equal(by_newest(clues), expected)
        return whole[:, clues.position]

    list(speculative_steps(model, pictures, pad_id=PAD, window=2, guess=guess))
    assert asked == list(range(4, CODES - 1, 2))


@pytest.mark.parametrize("window", [2, 5, 16, 64])
def test_the_model_reads_windows_and_no_more(window: int, model: Janus, counted: Callable[..., Any]) -> None:
    pictures = [Picture(prompt=PROMPT, number=number, start=(1, 2, 3)) for number in range(2)]
    prompt_caches = PromptCaches(model)
    with counted(model) as runs:
        steps = list(
            speculative_steps(model, pictures, pad_id=PAD, window=window, prompt_caches=prompt_caches)
        )
    # No longer a cache than one code at a time needs: the last code is never fed.
    assert prompt_caches.batch is not None
    assert prompt_caches.batch.cache.capacity == len(PROMPT) + CODES - 1
    prompts, (given, *passes) = runs[:2], runs[2:]
    assert prompts == [(1, len(PROMPT))] * 2
    assert given == (4, 3)
    assert len(passes) == steps[-1].passes
    sure = 4
    for number, run in enumerate(passes, 1):
        assert run == (4, min(window, CODES - sure))
        sure += sum(step.passes == number for step in steps)


def test_prompts_of_other_lengths_bring_no_mask(model: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures = pictures_of(2)
    prompt_caches = PromptCaches(model)
    for picture in pictures:
        prompt_caches.of(picture.prompt)
        prompt_caches.of(unconditional(picture.prompt, PAD))
    monkeypatch.setattr(llama, "causal_mask", lambda *given: pytest.fail("a mask was made"))
    steps = speculative_steps(model, pictures, pad_id=PAD, prompt_caches=prompt_caches, window=4)
    assert next(step for step in steps if step.passes == 3)


def test_what_a_step_gave_stays(model: Janus) -> None:
    """Codes and logits that were handed out are not computed anew in their place."""
    pictures = pictures_of(1)

    def copied(step: DrawStep) -> list[Tensor]:
        assert step.unconditional is not None
        return [step.conditional.clone(), step.unconditional.clone(), step.codes.clone()]

    pairs = [(step, copied(step)) for step in speculative_steps(model, pictures, pad_id=PAD, window=6)]
    for step, copies in pairs:
        assert all(map(torch.equal, [step.conditional, step.unconditional, step.codes], copies))


@pytest.mark.parametrize("option", [2, 9])
def test_draw_codes_tells_of_every_code(option: int, model: Janus) -> None:
    pictures = pictures_of(3, start=3)

    def drawn(**options: Any) -> tuple[list[Tensor], list[Tensor]]:
        told: list[Tensor] = []
        codes = draw_codes(
            model,
            pictures,
            pad_id=PAD,
            batch_size=2,
            on_codes=lambda codes: told.append(codes.clone()),
            **options,
        )
        return list(codes), told

    expected, found = drawn(), drawn(speculate=option)
    for one, other in zip(expected, found, strict=True):
        assert len(one) == len(other)
        assert all(map(torch.equal, one, other))


@pytest.mark.parametrize(
    ("option", "window"), [(None, 1), (False, 1), (0, 1), (1, 1), (2, 2), (1000, 1000)], ids=repr
)
def test_the_option(option: Any, window: int) -> None:
    assert window_of(option) == window


@pytest.mark.parametrize("option", [-1, True, 2.0, "4"], ids=repr)
def test_an_option_that_is_no_window_raises(option: Any, model: Janus) -> None:
    message = f"speculate .* must be a whole number of at least 0, not {option!r}"
    with pytest.raises(ValueError, match=message):
        next(draw_codes(model, pictures_of(1), pad_id=PAD, speculate=option))


def test_no_window_is_one_code_after_another(
    model: Janus, counted: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draw, "speculative_steps", lambda *given, **options: pytest.fail("speculated"))
    for option in (None, False, 0, 1):
        with counted(model) as runs:
            next(draw_codes(model, pictures_of(1), pad_id=PAD, speculate=option))
        assert runs[2:] == [(2, 1)] * 63


def test_arguments_are_checked_at_once(model: Janus) -> None:
    pictures = pictures_of(1)
    with pytest.raises(ValueError, match="window must be a whole number of at least 1, not 0"):
        speculative_steps(model, pictures, pad_id=PAD, window=0)
    with pytest.raises(
        ValueError, match="guidance must be a number from -1000000 to 1000000, 1 for none, not nan"
    ):
        speculative_steps(model, pictures, pad_id=PAD, window=4, guidance=math.nan)
    with pytest.raises(ValueError, match="all 64 codes are given"):
        speculative_steps(model, pictures_of(1, start=64), pad_id=PAD, window=4)


@pytest.mark.parametrize("packed", [False, True], ids=["plain", "packed"])
def test_the_same_picture_in_bfloat16(packed: bool, data: Path) -> None:
    """Attention rounds alike for a few positions at once, and on most CPUs a row of a matrix product does."""
    model = Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="bfloat16")
    model.config = with_grid(model.config, 6)
    if packed:
        prepare(model)
    rows = torch.randn(96, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    with torch.no_grad():
        layers = [model.language.layers[0].attention.o_proj, model.image_head.up]
        if any(not torch.equal(layer(rows[:2]), layer(rows)[:2]) for layer in layers):
            pytest.skip("this CPU's matrix products round differently for other numbers of rows")
    pictures = pictures_of(3)
    expected = codes_of(list(draw_steps(model, pictures, pad_id=PAD)))
    for window in (2, 5, 16):
        steps = list(speculative_steps(model, pictures, pad_id=PAD, window=window))
        assert torch.equal(codes_of(steps), expected), window
    alone = list(speculative_steps(model, pictures[1:2], pad_id=PAD, window=5))
    assert torch.equal(codes_of(alone), expected[1:2])
