"""Many questions in few rows: every answer is the one that its question gets alone."""

import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.inference import answers as answers_module
from janus.inference import batch, text
from janus.inference.answers import Question, answer
from janus.inference.batch import max_batch_size
from janus.inference.cache import PromptCache, StaticCache
from janus.inference.sampling import Sampling
from janus.inference.text import generate, prefill
from janus.models.janus import Janus

GREEDY = Sampling(temperature=0)


@pytest.fixture(scope="module")
def model(data: Path) -> Janus:
    return Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="float32")


def question(model: Janus, length: int, start: int = 0, picture: bool = False) -> Question:
    ids = (torch.arange(length) * 7 + start) % model.config.language.vocabulary
    image_mask = torch.zeros(length, dtype=torch.bool)
    size = model.config.vision.image_size
    if not picture:
        return Question(ids, torch.zeros(0, 3, size, size), image_mask)
    image_mask[1 : 1 + model.config.vision.tokens] = True
    generator = torch.Generator().manual_seed(start)
    return Question(ids, torch.randn(1, 3, size, size, generator=generator), image_mask)


def alone(
    model: Janus, asked: Question, end_id: int, count: int, sampling: Sampling = GREEDY, seed: int = 0
) -> list[int]:
    with torch.no_grad():
        embeds = model.embed(asked.ids[None], asked.pixels, asked.image_mask[None])
    steps = generate(model, embeds, end_id=end_id, max_new_tokens=count, sampling=sampling, seeds=[seed])
    tokens = [int(step.tokens[0]) for step in steps]
    return tokens[:-1] if tokens[-1] == end_id else tokens


def common_token(model: Janus, questions: list[Question]) -> int:
    """A token that ends some answers early, some late: random weights never choose the real one."""
    chosen = [token for each in questions for token in alone(model, each, -1, 12)]
    return max(set(chosen), key=chosen.count)


@settings(max_examples=15)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=7),
    rows=st.integers(1, 4),
    count=st.integers(1, 12),
    sampling=st.sampled_from([GREEDY, Sampling(temperature=0.7), Sampling(top_p=0.5)]),
)
def test_answers_are_those_of_the_questions_alone(
    model: Janus, lengths: list[int], rows: int, count: int, sampling: Sampling
) -> None:
    questions = [question(model, length, start) for start, length in enumerate(lengths)]
    end_id = common_token(model, questions)
    options: dict[str, Any] = {"end_id": end_id, "max_new_tokens": count, "sampling": sampling, "seed": 3}
    together = answer(model, questions, batch_size=rows, **options)
    assert together == [alone(model, each, end_id, count, sampling, 3) for each in questions]
    order = sorted(range(len(lengths)), key=lambda number: lengths[number])
    again = answer(model, [questions[number] for number in order], batch_size=rows, **options)
    assert again == [together[number] for number in order]


def test_rows_stay_full_and_within_their_memory(model: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Answers of many lengths in three rows: fewer steps than batch by batch."""
    made: list[StaticCache] = []

    class Counted(StaticCache):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            made.append(self)

    questions = [question(model, 5 + number % 4, number) for number in range(12)]
    end_id = common_token(model, questions)
    monkeypatch.setattr(answers_module, "StaticCache", Counted)
    steps = 0
    call = answers_module.Step.__call__

    def counted(self: Any) -> Any:
        nonlocal steps
        steps += 1
        return call(self)

    monkeypatch.setattr(answers_module.Step, "__call__", counted)
    answers = answer(model, questions, end_id=end_id, max_new_tokens=20, sampling=GREEDY, batch_size=3)
    lengths = sorted({len(each) for each in answers})
    assert lengths[0] < lengths[-1]  # else nothing would be shown
    batch_by_batch = sum(
        max(len(each) + (len(each) < 20) for each in answers[first : first + 3]) for first in range(0, 12, 3)
    )
    assert steps < batch_by_batch
    assert max(cache.rows for cache in made) == 3
    assert max(cache.capacity for cache in made) == 8 + 2 * 20


def test_pictures_go_with_their_questions(model: Janus) -> None:
    length = model.config.vision.tokens + 6
    questions = [question(model, length, number, picture=number != 1) for number in range(4)]
    options: dict[str, Any] = {"end_id": -1, "max_new_tokens": 6, "sampling": GREEDY}
    expected = [alone(model, each, -1, 6) for each in questions]
    assert answer(model, questions, batch_size=2, **options) == expected
    assert len({tuple(each) for each in expected}) > 1


def test_rows_are_moved_to_make_room(model: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    moves: list[int] = []
    realign = StaticCache.realign

    def noted(self: StaticCache, length: int) -> None:
        moves.append(length - self.length)
        realign(self, length)

    monkeypatch.setattr(StaticCache, "realign", noted)
    questions = [question(model, length, length) for length in (3, 2, 25, *[3, 2, 4] * 5)]
    answers = answer(model, questions, end_id=-1, max_new_tokens=9, sampling=GREEDY, batch_size=2)
    assert answers == [alone(model, each, -1, 9) for each in questions]
    assert min(moves) < 0 < max(moves)


def test_nothing_asked_and_wrong_numbers(model: Janus) -> None:
    options: dict[str, Any] = {"end_id": 0, "sampling": GREEDY}
    assert answer(model, [], max_new_tokens=3, **options) == []
    with pytest.raises(ValueError, match="batch_size"):
        answer(model, [question(model, 3)], max_new_tokens=3, batch_size=0, **options)
    with pytest.raises(ValueError, match="max_new_tokens"):
        answer(model, [question(model, 3)], max_new_tokens=0, **options)
    with pytest.raises(ValueError, match="context window"):
        answer(model, [question(model, 3)], max_new_tokens=10**6, **options)


def test_rows_fit_the_free_memory(model: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    for free, rows in ((None, 16), (0, 1), (1 << 60, 16)):
        monkeypatch.setattr(batch, "free_memory", lambda device, free=free: free)
        assert max_batch_size(model, 100) == rows


@pytest.mark.parametrize("piece", [1, 3, 7, 100])
@torch.no_grad()
def test_a_prompt_read_in_pieces(
    piece: int, model: Janus, monkeypatch: pytest.MonkeyPatch, close: Any
) -> None:
    """Left-padded rows too, of which whole pieces are padding."""
    embeds = model.embed((torch.arange(26) * 5 % 200).view(2, 13))
    mask = torch.ones(2, 13, dtype=torch.bool)
    mask[1, :8] = False

    def read(rows: Tensor) -> tuple[Tensor, StaticCache]:
        cache = StaticCache(model.config.language, 2, 20, device=torch.device("cpu"), dtype=torch.float32)
        return prefill(model, embeds, rows, cache), cache

    whole, cache = read(mask)
    monkeypatch.setattr(text, "PIECE", piece)
    hidden, its_cache = read(mask)
    close(hidden, whole)
    assert its_cache.length == cache.length == 13
    close(its_cache.keys[:, 1, :, 8:13], cache.keys[:, 1, :, 8:13])
    close(its_cache.values[:, 0, :, :13], cache.values[:, 0, :, :13])


def test_prompts_go_once_their_rows_hold_them(model: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they would be in memory twice, to the last answer."""
    read: list[weakref.ref[PromptCache]] = []
    alive: list[int] = []
    plain, take = answers_module.prefill_one, answers_module._Rows._take

    def noted(*given: Any) -> PromptCache:
        prompt = plain(*given)
        read.append(weakref.ref(prompt))
        return prompt

    def counted(self: Any, *given: Any) -> Any:
        alive.append(sum(prompt() is not None for prompt in read))
        return take(self, *given)

    monkeypatch.setattr(answers_module, "prefill_one", noted)
    monkeypatch.setattr(answers_module._Rows, "_take", counted)
    asked = [question(model, length) for length in (5, 9, 7)]
    answer(model, asked, end_id=-1, max_new_tokens=3, sampling=GREEDY, seed=0, batch_size=3)
    assert len(read) == 3
    assert set(alive) == {0}
