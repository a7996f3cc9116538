"""Answering many questions: rows that are done make way for those that wait, so that the batch stays full."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from janus.checks import require_whole
from janus.inference.batch import max_batch_size
from janus.inference.cache import PromptCache, StaticCache
from janus.inference.prepare import capacity_for
from janus.inference.sampling import Sampling
from janus.inference.step import Step
from janus.inference.text import TokenSampler, check_window, prefill_one
from janus.models.multimodal import MultimodalModel


@dataclass(frozen=True)
class Question:
    """A prompt's ids (S,), its pictures (N, 3, H, W), and where their features stand (S,)."""

    ids: Tensor
    pixels: Tensor
    image_mask: Tensor


@torch.no_grad()
def answer(
    model: MultimodalModel,
    questions: Sequence[Question],
    *,
    end_id: int,
    max_new_tokens: int,
    sampling: Sampling,
    seed: int = 0,
    batch_size: int | None = None,
) -> list[list[int]]:
    """The tokens of each answer, in the questions' order, up to `end_id` (not among them) or the count.

    Each is what it would be alone: prompts are read one by one, rows do not see each other's padding, and
    each draws the noise of the seed and its own steps. Without a batch size it is `max_batch_size`.
    """
    require_whole("max_new_tokens", max_new_tokens, least=1)
    if batch_size is not None:
        require_whole("batch_size", batch_size, least=1)
    for question in questions:
        check_window(model, len(question.ids), max_new_tokens)
    if not questions:
        return []
    # Room for twice the longest answer, so that rows are seldom moved to make more.
    longest = max(len(question.ids) for question in questions)
    capacity = capacity_for(model, longest + 2 * max_new_tokens)
    count = min(len(questions), batch_size or max_batch_size(model, capacity))
    answers: list[list[int]] = [[] for _ in questions]
    rows = _Rows(model, questions, count, capacity, end_id, max_new_tokens, sampling, seed)
    for number, token in rows.run():
        answers[number].append(token)
    return answers


class _Rows:
    """The rows of a batch, and the questions that they answer."""

    def __init__(
        self,
        model: MultimodalModel,
        questions: Sequence[Question],
        rows: int,
        capacity: int,
        end_id: int,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int,
    ) -> None:
        language, device = model.language.config, model.device
        self.model, self.questions = model, questions
        self.end_id, self.max_new_tokens = end_id, max_new_tokens
        self.cache = StaticCache(language, rows, capacity, device=device, dtype=model.dtype)
        self.choose = TokenSampler(model, sampling, [seed] * rows, None)
        self.step = Step(
            model,
            self.cache,
            tokens=torch.zeros(rows, dtype=torch.long, device=device),
            place=torch.zeros(rows, dtype=torch.long, device=device),
            feed=lambda tokens: model.language.embed(tokens)[:, None],
            pick=self.choose,
            fixed=True,
        )
        self.waiting = deque(range(len(questions)))
        self.answering: list[int | None] = [None] * rows  # which question each row is at
        self.lengths = [0] * rows  # of the rows' answers so far

    def run(self) -> Iterator[tuple[int, int]]:
        """-> (question, token) as they come."""
        first = [self.waiting.popleft() for _ in self.answering]
        prompts = [self._read(number) for number in first]
        self.cache.fill(prompts)
        hidden = torch.stack([prompt.hidden for prompt in prompts])
        del prompts  # as much memory again as what they filled
        if self.cache.starts is None:
            self.cache.starts = torch.zeros(len(first), dtype=torch.long, device=self.model.device)
        self.answering = list(first)
        self.step.first(hidden)
        while True:
            for row, token in enumerate(self.step.tokens.tolist()):
                yield from self._take(row, token)
            if all(number is None for number in self.answering):
                return
            if self.cache.length == self.cache.capacity:
                assert self.cache.starts is not None
                self._realign(self.cache.length - int(self.cache.starts.min()))
            self.step()

    def _take(self, row: int, token: int) -> Iterator[tuple[int, int]]:
        """A row's token; where it is the last of its answer, the row begins the next, or rests."""
        while (number := self.answering[row]) is not None:
            if token != self.end_id:
                yield number, token
            self.lengths[row] += 1
            if token != self.end_id and self.lengths[row] < self.max_new_tokens:
                return
            if self.waiting:
                token = self._begin(row, self.waiting.popleft())
            else:
                self._rest(row)

    def _begin(self, row: int, number: int) -> int:
        """Let a row go on with another question; -> its first token."""
        prompt = self._read(number)
        if prompt.length > self.cache.length:
            self._realign(prompt.length)
        assert self.cache.starts is not None
        self.cache.put(row, prompt)
        self.cache.starts[row] = self.cache.length - prompt.length
        self.step.resume()
        self.answering[row], self.lengths[row] = number, 0
        self.step.place[row] = 0
        token = self.choose(prompt.hidden[None], self.step.place[row : row + 1])[0]
        self.step.tokens[row : row + 1] = token
        self.step.place[row] = 1
        return int(token)

    def _rest(self, row: int) -> None:
        """A row without a question sees no key but those to come."""
        self.answering[row] = None
        assert self.cache.starts is not None
        self.cache.starts[row] = self.cache.length
        self.step.resume()

    def _realign(self, length: int) -> None:
        self.cache.realign(length)
        self.step.resume()

    def _read(self, number: int) -> PromptCache:
        """What a question leaves in a cache of its own."""
        question = self.questions[number]
        embeds = self.model.embed(question.ids[None], question.pixels, question.image_mask[None])
        return prefill_one(self.model, embeds)
