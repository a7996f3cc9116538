"""Drawing: codes one after another from a prompt, guided by what the model would draw without one.

P pictures, R rows (P, or 2 P with guidance: the conditional ones first), V codes, T codes of a whole picture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from math import ceil

import torch
from torch import Tensor

from janus.checks import require_number, require_whole
from janus.devices import free_memory
from janus.inference.cache import Prefix, StaticCache, bytes_per_position
from janus.inference.ranks import from_all_ranks
from janus.inference.sampling import Noise, Sampling, choose
from janus.inference.step import Step
from janus.inference.text import check_window
from janus.kernels.sample import WORD, exponential, guide, noise_address, philox, sample, seed_patterns
from janus.models.janus import Janus

# Without a batch size: so many pictures at once at most, and caches within this share of the free memory.
MOST_PICTURES = 16
MEMORY_SHARE = 0.5


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture to draw: its prompt's ids, what its noise is keyed by, and the codes given beforehand."""

    prompt: tuple[int, ...]
    seed: int = 0
    number: int = 0
    start: tuple[int, ...] = ()


@dataclass(frozen=True)
class DrawStep:
    """What one step gave: logits (P, V) in float32 of both kinds of row, and the codes (P,) at `position`."""

    position: int
    conditional: Tensor
    unconditional: Tensor | None
    codes: Tensor


class Prefixes:
    """Prompts already read: each is computed once, however many pictures and batches continue it.

    So is the board of the last batch, as long as it serves the next.
    """

    def __init__(self, model: Janus) -> None:
        self.model = model
        self.known: dict[tuple[int, ...], Prefix] = {}
        self.board: Board | None = None

    @torch.no_grad()
    def of(self, ids: tuple[int, ...]) -> Prefix:
        """The prefix that this sequence leaves, computed alone: no prompt beside it can change it."""
        if ids not in self.known:
            model = self.model
            cache = StaticCache(model.language.config, 1, len(ids), device=model.device, dtype=model.dtype)
            embeds = model.embed(torch.tensor([ids], device=model.device))
            hidden = model.hidden_states(embeds, None, cache)
            self.known[ids] = Prefix(cache.keys[:, 0], cache.values[:, 0], hidden[0, -1])
        return self.known[ids]

    def forget_all_but(self, wanted: Sequence[tuple[int, ...]]) -> None:
        """Drop prefixes that no picture to come will continue."""
        kept = set(wanted)
        self.known = {ids: prefix for ids, prefix in self.known.items() if ids in kept}


def unconditional(prompt: tuple[int, ...], pad_id: int) -> tuple[int, ...]:
    """What guidance compares with: all but the first and last token are padding, and attended to."""
    return (prompt[0], *([pad_id] * (len(prompt) - 2)), prompt[-1])


def draw_steps(
    model: Janus,
    pictures: Sequence[Picture],
    *,
    pad_id: int,
    guidance: float = 5.0,
    sampling: Sampling | None = None,
    noise: Noise | None = None,
    prefixes: Prefixes | None = None,
) -> Iterator[DrawStep]:
    """Draw pictures side by side, a code of each per step; guidance 1 needs and runs no unconditional rows.

    Pictures begin with the codes given in their `start`, of which all must have as many. `noise`, from
    position to (P, V) exponential noise, replaces what seed and number give. The arguments are checked at
    once.
    """
    check_pictures(model, pictures, guidance)
    return _steps(
        model, pictures, pad_id, guidance, sampling or Sampling(), noise, prefixes or Prefixes(model)
    )


def check_pictures(model: Janus, pictures: Sequence[Picture], guidance: float) -> None:
    """Raise ValueError where pictures cannot be drawn together, or not by this model."""
    require_number("guidance", guidance, "a finite number, 1 for none")
    begun = {len(picture.start) for picture in pictures}
    if len(begun) != 1:
        raise ValueError(
            f"pictures drawn together need as many codes given beforehand each, not {sorted(begun)}"
        )
    if begun.pop() >= model.config.picture_tokens:
        raise ValueError(f"all {model.config.picture_tokens} codes are given: there is nothing left to draw")
    for picture in pictures:
        check_window(model, len(picture.prompt), model.config.picture_tokens)


@torch.no_grad()
def _steps(
    model: Janus,
    pictures: Sequence[Picture],
    pad_id: int,
    guidance: float,
    sampling: Sampling,
    noise: Noise | None,
    prefixes: Prefixes,
) -> Iterator[DrawStep]:
    board, hidden = begin(model, pictures, pad_id, guidance, sampling, noise, prefixes)
    start, end = len(pictures[0].start), model.config.picture_tokens
    yield board.shown(start, board.step.first(hidden))
    for position in range(start + 1, end):
        yield board.shown(position, board.step())


def begin(
    model: Janus,
    pictures: Sequence[Picture],
    pad_id: int,
    guidance: float,
    sampling: Sampling,
    noise: Noise | None,
    prefixes: Prefixes,
) -> tuple[Board, Tensor]:
    """The board that the prefixes keep, or a new one, with these pictures begun; and hidden states (R, D)."""
    prompts = [picture.prompt for picture in pictures]
    if guidance != 1:
        prompts += [unconditional(picture.prompt, pad_id) for picture in pictures]
    rows = [prefixes.of(prompt) for prompt in prompts]
    longest = max(row.length for row in rows)
    board = prefixes.board
    if board is None or not board.serves(len(pictures), longest, guidance, sampling, noise):
        prefixes.board = None  # its memory, before the next one takes as much
        board = prefixes.board = Board(model, len(pictures), longest, guidance, sampling, noise)
    return board, board.begin(pictures, rows)


class Board:
    """Pictures that are drawn side by side: their cache, their noise, and the step that adds a code to each.

    It serves as many pictures as it was made for, batch after batch: what a GPU recorded for the first draws
    them all.
    """

    def __init__(
        self,
        model: Janus,
        count: int,
        longest_prompt: int,
        guidance: float,
        sampling: Sampling,
        noise: Noise | None = None,
    ) -> None:
        device = model.device
        self.model, self.count = model, count
        self.guidance, self.sampling, self.noise = guidance, sampling, noise
        self.cache = StaticCache(
            model.language.config,
            count * (1 if guidance == 1 else 2),
            # The last code is chosen, never fed.
            longest_prompt + model.config.picture_tokens - 1,
            device=device,
            dtype=model.dtype,
        )
        self.patterns = torch.zeros(count, dtype=torch.long, device=device)
        self.numbers = torch.zeros(count, dtype=torch.long, device=device)
        # Top-p needs the whole distribution in order, and noise from elsewhere is not to be computed.
        self.at_once = noise is None and not sampling.sorts
        self.step = Step(
            model,
            self.cache,
            tokens=torch.zeros(count, dtype=torch.long, device=device),
            place=torch.zeros(1, dtype=torch.long, device=device),
            feed=self.feed,
            pick=self.pick,
            recordable=noise is None,
        )

    def serves(
        self, count: int, longest_prompt: int, guidance: float, sampling: Sampling, noise: Noise | None
    ) -> bool:
        """Whether a batch can be drawn on this board, as it was made for."""
        wanted = (count, guidance, sampling, noise)
        room = longest_prompt + self.model.config.picture_tokens - 1
        return (
            wanted == (self.count, self.guidance, self.sampling, self.noise) and room <= self.cache.capacity
        )

    def begin(self, pictures: Sequence[Picture], rows: list[Prefix]) -> Tensor:
        """Continue these prefixes by the codes that the pictures start with; -> the last hidden states."""
        self.cache.fill(rows)
        self.patterns.copy_(seed_patterns([picture.seed for picture in pictures]))
        self.numbers.copy_(torch.tensor([picture.number & WORD for picture in pictures]))
        start = len(pictures[0].start)
        self.step.place.fill_(start)
        hidden = torch.stack([row.hidden for row in rows])
        if start:
            codes = torch.tensor([picture.start for picture in pictures], device=self.model.device)
            hidden = self.model.hidden_states(self.feed(codes), None, self.cache)[:, -1]
        return hidden

    def feed(self, codes: Tensor) -> Tensor:
        """Codes (P,) or (P, S) -> embeddings (R, S, D) for both kinds of row."""
        codes = codes[:, None] if codes.ndim == 1 else codes
        return self.model.embed_codes(codes).repeat(self.cache.rows // self.count, 1, 1)

    def pick(self, hidden: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        """-> the codes (P,), and the logits (R, V) that they were chosen by."""
        logits = self.model.image_logits(hidden).float()
        return self.choose(logits, place), logits

    def choose(self, logits: Tensor, place: Tensor) -> Tensor:
        """The codes (P,) that logits (R, V) give with the noise of a place, (1,)."""
        conditional, baseline = self.split(logits)
        if self.at_once:
            return sample(
                conditional,
                baseline,
                seeds=self.patterns,
                numbers=self.numbers,
                position=place,
                guidance=self.guidance,
                temperature=self.sampling.temperature,
                top_k=self.sampling.top_k,
            )
        combined = conditional if baseline is None else guide(conditional, baseline, self.guidance)
        return choose(combined, self.sampling, self._noise(place))

    def _noise(self, place: Tensor) -> Tensor | None:
        if self.sampling.greedy:
            return None
        if self.noise is not None:
            return self.noise(int(place))
        codes = self.model.config.vq.codes
        return exponential(philox(*noise_address(self.patterns, self.numbers, place, codes)), codes)

    def split(self, logits: Tensor) -> tuple[Tensor, Tensor | None]:
        """The logits of the conditional rows and, with guidance, of the others."""
        return logits[: self.count], logits[self.count :] if self.guidance != 1 else None

    def shown(self, position: int, chosen: tuple[Tensor, ...]) -> DrawStep:
        """What was chosen, kept from being overwritten by the next step."""
        codes, logits = (tensor.clone() for tensor in chosen)
        return DrawStep(position, *self.split(logits), codes)


def pictures_at_once(model: Janus, longest_prompt: int, guidance: float) -> int:
    """How many pictures to draw together: at most 16, with caches in at most half of the free memory.

    Of the ranks of a model split over several, what the fullest has room for.
    """
    rows = 1 if guidance == 1 else 2
    length = longest_prompt + model.config.picture_tokens
    bytes_each = rows * length * bytes_per_position(model.language.config, model.dtype)
    free = free_memory(model.device)
    fitting = MOST_PICTURES if free is None else int(free * MEMORY_SHARE) // bytes_each
    return max(1, min(MOST_PICTURES, *from_all_ranks(model, fitting)))


def draw_codes(
    model: Janus,
    pictures: Sequence[Picture],
    *,
    pad_id: int,
    guidance: float = 5.0,
    sampling: Sampling | None = None,
    batch_size: int | None = None,
    speculate: int | None = None,
    on_codes: Callable[[Tensor], None] | None = None,
) -> Iterator[Tensor]:
    """Codes (P', grid, grid) of the pictures in order, a batch at a time.

    Without a batch size, batches are alike and of at most `pictures_at_once`. `speculate` is how many codes
    to guess at once, None or 0 for none: see `speculative_steps`. `on_codes` is called after every step with
    the batch's codes so far, (P', steps).
    """
    from janus.inference.speculate import speculative_steps, window_of  # which draws by what stands here

    window = window_of(speculate)
    if batch_size is not None:
        require_whole("batch_size", batch_size, least=1)
    if not pictures:
        return
    size = batch_size
    if size is None:
        most = pictures_at_once(model, max(len(picture.prompt) for picture in pictures), guidance)
        # Every picture takes as many steps: batches of one size keep all of them full, the last one too.
        size = ceil(len(pictures) / ceil(len(pictures) / most))
    prefixes = Prefixes(model)
    for first in range(0, len(pictures), size):
        batch = pictures[first : first + size]
        to_come = [picture.prompt for picture in pictures[first:]]
        prefixes.forget_all_but([*to_come, *(unconditional(prompt, pad_id) for prompt in to_come)])
        given = torch.tensor([picture.start for picture in batch], dtype=torch.long, device=model.device)
        codes = torch.empty(len(batch), model.config.picture_tokens, dtype=torch.long, device=model.device)
        codes[:, : given.shape[1]] = given
        steps = draw_steps if window == 1 else partial(speculative_steps, window=window)
        for step in steps(
            model, batch, pad_id=pad_id, guidance=guidance, sampling=sampling, prefixes=prefixes
        ):
            codes[:, step.position] = step.codes
            if on_codes:
                on_codes(codes[:, : step.position + 1])
        yield codes.unflatten(1, (model.config.grid, model.config.grid))


@torch.no_grad()
def decode_codes(model: Janus, codes: Tensor) -> Tensor:
    """Codes (P, h, w) -> pixels (P, 3, H, W) in float32 on the CPU.

    One picture at a time: a convolution over several rounds differently, and truncation to 8 bits would show
    it.
    """
    return torch.cat([model.vq.decode(one).float().cpu() for one in codes.split(1)])
