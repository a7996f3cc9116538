"""Pictures against the original's; a picture's independence of its neighbors; what is computed how often."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from janus.inference import draw_batch
from janus.inference.cache import StaticCache
from janus.inference.draw import decode_codes, draw_codes, draw_steps, pictures_at_once
from janus.inference.draw_batch import DrawStep, Picture, PromptCaches, unconditional
from janus.inference.sampling import Sampling
from janus.kernels.sample import guide
from janus.models import llama
from janus.models.janus import Janus
from janus.processing.image import to_pictures

Golden = dict[str, Tensor]
Drawings = dict[str, list[DrawStep]]
GREEDY = Sampling(temperature=0)
PAD = 482  # of the small checkpoint
CODES, GRID = 64, 8  # of a whole picture


@pytest.fixture(scope="module")
def prompt(facts: dict[str, Any]) -> tuple[int, ...]:
    return tuple(facts["imagegen.prompt_ids"])


@pytest.fixture(scope="module")
def drawings(model: Janus, prompt: tuple[int, ...]) -> Drawings:
    """The two runs of the original's: greedy, and with the noise that its torch.multinomial drew."""
    pictures = [Picture(prompt=prompt, number=number) for number in range(2)]
    generator = torch.Generator().manual_seed(1234)
    return {
        "greedy": list(draw_steps(model, pictures, pad_id=PAD, sampling=GREEDY)),
        "sampled": list(
            draw_steps(
                model,
                pictures,
                pad_id=PAD,
                noise=lambda position: torch.empty(2, 256).exponential_(generator=generator),
            )
        ),
    }


def codes_of(steps: list[DrawStep]) -> Tensor:
    return torch.stack([step.codes for step in steps], dim=1)


def tokens(kind: str, model: Janus, drawings: Drawings) -> Tensor:
    return codes_of(drawings[kind])


def head_logits(kind: str, count: int, model: Janus, drawings: Drawings) -> Tensor:
    """(steps, 2 P, V) in the original's order of rows: conditional and unconditional in turn."""
    rows = []
    for step in drawings[kind][:count]:
        assert step.unconditional is not None
        rows.append(torch.stack((step.conditional, step.unconditional), dim=1).flatten(0, 1))
    return torch.stack(rows)


def guided_logits(kind: str, model: Janus, drawings: Drawings) -> Tensor:
    logits = head_logits(kind, 2, model, drawings)
    return guide(logits[:, 0::2], logits[:, 1::2], 5.0)


def pixels(kind: str, model: Janus, drawings: Drawings) -> Tensor:
    return decode_codes(model, codes_of(drawings[kind]).unflatten(1, (GRID, GRID)))


def eight_bits(kind: str, model: Janus, drawings: Drawings) -> Tensor:
    return torch.from_numpy(np.stack(to_pictures(pixels(kind, model, drawings))))


# The tensors of the original's that are reproduced here; tests/models/test_coverage.py reads the names.
REPRODUCED: dict[str, Callable[[Janus, Drawings], Tensor]] = {
    f"imagegen.{kind}.{name}": partial(compute, kind)
    for kind, count in (("greedy", CODES), ("sampled", 24))
    for name, compute in (
        ("tokens", tokens),
        ("head_logits", lambda kind, *given, count=count: head_logits(kind, count, *given)),
        ("cfg_logits_first2", guided_logits),
        ("pixels", pixels),
        ("uint8", eight_bits),
    )
}


@pytest.mark.parametrize("name", REPRODUCED)
def test_the_originals_tensor(
    name: str, model: Janus, golden: Golden, drawings: Drawings, close: Callable[[Tensor, Tensor], None]
) -> None:
    actual, expected = REPRODUCED[name](model, drawings), golden[name]
    if name.endswith(".uint8"):
        unrounded = golden[name.replace("uint8", "pixels")]
        assert np.array_equal(np.stack(to_pictures(unrounded)), expected.numpy())
        actual = with_excuses(actual, expected, unrounded)
    close(actual, expected)


def with_excuses(actual: Tensor, expected: Tensor, unrounded: Tensor) -> Tensor:
    """`actual` with the expected value where the original's own lies so near a whole number that the order of
    summation, which differs between machines, decides to which side truncation takes it."""
    values = ((unrounded + 1) / 2 * 255).permute(0, 2, 3, 1)
    tolerance = 2e-5 * float(unrounded.abs().max()) * 255 / 2
    excused = ((values - values.round()).abs() < tolerance) & ((actual.int() - expected.int()).abs() == 1)
    return torch.where(excused, expected, actual)


def test_the_originals_prompt(
    model: Janus, golden: Golden, prompt: tuple[int, ...], close: Callable[[Tensor, Tensor], None]
) -> None:
    prompt_caches = PromptCaches(model)
    for row, ids in enumerate((prompt, unconditional(prompt, PAD))):
        assert ids == tuple(golden["imagegen.prompt_tokens"][row].tolist())
        close(prompt_caches.of(ids).hidden, golden["imagegen.prompt_hidden_states"][row, -1])


def pictures_of(prompt: tuple[int, ...]) -> list[Picture]:
    """Five pictures of three prompts of different length."""
    short, shortest = (*prompt[:9], prompt[-1]), (*prompt[:4], prompt[-1])
    return [
        Picture(prompt=prompt, seed=7, number=0),
        Picture(prompt=prompt, seed=7, number=1),
        Picture(prompt=short, seed=7, number=0),
        Picture(prompt=shortest, seed=8, number=3),
        Picture(prompt=short, seed=2**70, number=2**31),
    ]


def codes_by_picture(model: Janus, pictures: list[Picture], **options: Any) -> dict[Picture, Tensor]:
    codes = torch.cat(list(draw_codes(model, pictures, pad_id=PAD, **options)))
    return dict(zip(pictures, codes, strict=True))


def test_a_picture_does_not_depend_on_its_neighbors(model: Janus, prompt: tuple[int, ...]) -> None:
    pictures = pictures_of(prompt)
    alone = codes_by_picture(model, pictures, batch_size=1)
    assert len({tuple(codes.flatten().tolist()) for codes in alone.values()}) == len(pictures)
    arrangements = {
        "all at once": (pictures, None),
        "reversed": (pictures[::-1], None),
        "two by two": (pictures, 2),
        "three by three, in another order": ([pictures[at] for at in (3, 0, 4, 2, 1)], 3),
        "fewer": (pictures[2:4], 7),
    }
    whole = decode_codes(model, torch.stack(list(alone.values())))
    eight_bits = dict(zip(pictures, map(np.asarray, to_pictures(whole)), strict=True))
    for name, (arranged, batch_size) in arrangements.items():
        drawn = codes_by_picture(model, arranged, batch_size=batch_size)
        decoded = to_pictures(decode_codes(model, torch.stack(list(drawn.values()))))
        for picture, result in zip(arranged, decoded, strict=True):
            assert torch.equal(drawn[picture], alone[picture]), name
            assert np.array_equal(np.asarray(result), eight_bits[picture]), name


def test_prompts_are_computed_once(
    model: Janus, prompt: tuple[int, ...], counted: Callable[..., Any]
) -> None:
    short, other = (*prompt[:9], prompt[-1]), (*prompt[20:29], prompt[-1])
    pictures = [Picture(prompt=each, number=number) for each in (prompt, short, other) for number in range(3)]
    with counted(model) as runs:
        list(draw_codes(model, pictures, pad_id=PAD, batch_size=2))
    # Three prompts, and two unconditional ones: the short prompts are of one length and begin alike.
    assert prompt[0] == short[0] != other[0]
    read = sorted(positions for _, positions in runs if positions > 1)
    assert read == [10, 10, 10, 10, 62, 62]
    # Each batch then feeds all codes but the last, for both kinds of row.
    assert [run for run in runs if run[1] == 1] == [(4, 1)] * 63 * 4 + [(2, 1)] * 63


def test_unconditional_prompts_are_shared(
    model: Janus, prompt: tuple[int, ...], counted: Callable[..., Any]
) -> None:
    short, other = (*prompt[:9], prompt[-1]), (prompt[0], *prompt[20:28], prompt[-1])
    assert unconditional(short, PAD) == unconditional(other, PAD) == (prompt[0], *[PAD] * 8, prompt[-1])
    with counted(model) as runs:
        list(draw_codes(model, [Picture(prompt=short), Picture(prompt=other)], pad_id=PAD, batch_size=1))
    assert [run for run in runs if run[1] > 1] == [(1, 10)] * 3


def test_prompts_of_pictures_to_come_only_are_kept(model: Janus, prompt: tuple[int, ...]) -> None:
    prompt_caches = PromptCaches(model)
    first, second = prompt[:5], prompt[:7]
    kept = prompt_caches.of(first)
    prompt_caches.of(second)
    prompt_caches.forget_all_but([first, prompt])
    assert list(prompt_caches.known) == [first]
    assert prompt_caches.of(first) is kept


def test_guidance_1_is_the_conditional_rows(
    model: Janus,
    prompt: tuple[int, ...],
    drawings: Drawings,
    counted: Callable[..., Any],
    close: Callable[[Tensor, Tensor], None],
) -> None:
    with counted(model) as runs:
        steps = list(draw_steps(model, [Picture(prompt=prompt)], pad_id=PAD, guidance=1.0, sampling=GREEDY))
    assert runs == [(1, 62)] + [(1, 1)] * 63
    assert all(step.unconditional is None for step in steps)
    close(steps[0].conditional, drawings["greedy"][0].conditional[:1])
    assert all(torch.equal(step.codes, step.conditional.argmax(-1)) for step in steps)
    # Barely guided, both kinds of row run, and the codes are the same.
    nearly = list(
        draw_steps(model, [Picture(prompt=prompt)], pad_id=PAD, guidance=1.0 + 1e-7, sampling=GREEDY)
    )
    assert nearly[0].unconditional is not None
    assert torch.equal(codes_of(steps), codes_of(nearly))


@pytest.mark.parametrize("given", [1, 24, 63])
def test_codes_given_beforehand_are_continued(
    given: int, model: Janus, prompt: tuple[int, ...], close: Callable[[Tensor, Tensor], None]
) -> None:
    pictures = pictures_of(prompt)[:3]
    whole = list(draw_steps(model, pictures, pad_id=PAD))
    begun = [
        replace(picture, start=tuple(codes[:given].tolist()))
        for picture, codes in zip(pictures, codes_of(whole), strict=True)
    ]
    rest = list(draw_steps(model, begun, pad_id=PAD))
    assert [step.position for step in rest] == list(range(given, CODES))
    assert torch.equal(codes_of(rest), codes_of(whole)[:, given:])
    close(rest[0].conditional, whole[given].conditional)
    assert torch.equal(torch.cat(list(draw_codes(model, begun, pad_id=PAD))).flatten(1), codes_of(whole))


def test_starts_that_do_not_go_together_raise(model: Janus, prompt: tuple[int, ...]) -> None:
    pictures = [Picture(prompt=prompt), Picture(prompt=prompt, start=(1, 2))]
    with pytest.raises(ValueError, match=r"as many codes given beforehand each, not \[0, 2\]"):
        draw_steps(model, pictures, pad_id=PAD)
    with pytest.raises(ValueError, match="all 64 codes are given"):
        draw_steps(model, [Picture(prompt=prompt, start=(1,) * 64)], pad_id=PAD)


def test_the_window_is_checked_before_any_work(
    model: Janus, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = replace(model.config, language=replace(model.config.language, window=100))
    monkeypatch.setattr(model, "config", small)
    monkeypatch.setattr(model, "hidden_states", lambda *given: pytest.fail("the model was run"))
    with pytest.raises(
        ValueError, match=r"62 tokens of prompt and 64 of the picture are 126, over .* of 100"
    ):
        draw_steps(model, [Picture(prompt=prompt)], pad_id=PAD)


def test_codes_so_far_are_told(model: Janus, prompt: tuple[int, ...]) -> None:
    told: list[Tensor] = []
    pictures = [Picture(prompt=prompt, number=number, start=(1, 2, 3)) for number in range(3)]
    results = list(
        draw_codes(
            model,
            pictures,
            pad_id=PAD,
            batch_size=2,
            on_codes=lambda codes: told.append(codes.clone()),
        )
    )
    assert [len(codes) for codes in results] == [2, 1]
    assert [len(codes) for codes in told] == [2] * 61 + [1] * 61
    for codes in told:
        assert torch.equal(codes, results[2 - len(codes)].flatten(1)[:, : codes.shape[1]])
    assert [codes.shape[1] for codes in told[:61]] == list(range(4, 65))
    assert (results[0].flatten(1)[:, :3] == torch.tensor([1, 2, 3])).all()


@pytest.mark.parametrize("batch_size", [0, -1])
def test_a_batch_of_none_raises(batch_size: int, model: Janus, prompt: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=f"batch_size must be a whole number of at least 1, not {batch_size}"
    ):
        list(draw_codes(model, [Picture(prompt=prompt)], pad_id=PAD, batch_size=batch_size))


def test_no_pictures_are_no_work(model: Janus) -> None:
    assert list(draw_codes(model, [], pad_id=PAD)) == []


@pytest.mark.parametrize(
    ("free", "guidance", "expected"),
    [(None, 5.0, 16), (0, 5.0, 1), (10**12, 5.0, 16), (10, 5.0, 5), (10, 1.0, 10), (9.9, 1.0, 9)],
    ids=["unknown", "none", "plenty", "ten rows", "ten rows, unguided", "just not ten rows"],
)
def test_pictures_at_once(
    free: float | None, guidance: float, expected: int, model: Janus, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 3 layers of 4 heads of 16 numbers of 4 bytes, keys and values, of all but the last code; half of the
    # memory is used. A compiled model's rows are longer.
    for compiled, positions in ((False, 20 + CODES - 1), (True, 256)):
        given = None if free is None else int(free * 2 * positions * 2 * 3 * 4 * 16 * 4)
        monkeypatch.setattr("janus.inference.batch.free_memory", lambda device, given=given: given)
        monkeypatch.setattr("janus.inference.prepare.is_compiled", lambda model, compiled=compiled: compiled)
        assert pictures_at_once(model, 20, guidance) == expected


def test_prompts_of_other_lengths_bring_no_mask(
    model: Janus, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Padding under a mask changes the order of summation, and with it a picture drawn in bfloat16."""
    pictures = [Picture(prompt=prompt), Picture(prompt=(prompt[0], *prompt[5:]))]
    prompt_caches = PromptCaches(model)
    for picture in pictures:
        prompt_caches.of(picture.prompt)
        prompt_caches.of(unconditional(picture.prompt, PAD))
    monkeypatch.setattr(llama, "causal_mask", lambda *given: pytest.fail("a mask was made"))
    steps = draw_steps(model, pictures, pad_id=PAD, prompt_caches=prompt_caches)
    assert len([next(steps) for _ in range(3)]) == 3


def test_a_prompt_too_long_is_told_before_any_is_drawn(
    model: Janus, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However late its batch comes: what is drawn before it would be lost."""
    monkeypatch.setattr(model, "hidden_states", lambda *given: pytest.fail("the model was run"))
    pictures = [Picture(prompt=prompt), Picture(prompt=prompt * 100)]
    with pytest.raises(ValueError, match=r"of the picture are .*, over the context window of 1024: shorten"):
        next(draw_codes(model, pictures, pad_id=PAD, batch_size=1))


@pytest.mark.parametrize("speculate", [None, 4], ids=["plain", "speculating"])
def test_memory_is_free_when_all_is_drawn(
    speculate: int | None, model: Janus, prompt: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and not when Python looks for what holds itself: the cache of a large model is gigabytes."""
    caches: list[weakref.ref[StaticCache]] = []

    class Noted(StaticCache):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            assert all(other() is None for other in caches), "two batches at once"
            caches.append(weakref.ref(self))

    monkeypatch.setattr(draw_batch, "StaticCache", Noted)
    pictures = [Picture(prompt=prompt, number=number) for number in range(3)]
    gc.collect()
    gc.disable()
    try:
        drawn = list(draw_codes(model, pictures, pad_id=PAD, batch_size=2, speculate=speculate))
        alive = [cache() is not None for cache in caches]
    finally:
        gc.enable()
    assert len(drawn) == 2
    assert alive == [False, False]
