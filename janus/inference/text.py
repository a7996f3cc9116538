"""Answering: tokens one after another from a prompt's embeddings, and the memory of a conversation.

B rows, S positions, D width, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from janus.checks import NOT_NUMBERS, require_whole
from janus.inference.cache import PromptCache, StaticCache
from janus.inference.prepare import capacity_for
from janus.inference.sampling import Noise, Sampling, choose
from janus.inference.step import Step
from janus.kernels.sample import exponential_noise, seeds_as_int64
from janus.models.multimodal import MultimodalModel
from janus.models.packed import PackedLinear

GREEDY = Sampling(temperature=0)
PIECE = 2048  # positions of a prompt that are read at once: more would take memory, and gain nothing


@dataclass(frozen=True)
class TextStep:
    """What one step gave: tokens (B,), the end token in ended rows; logits (B, V); ended (B,) bool."""

    tokens: Tensor
    logits: Tensor
    ended: Tensor


def check_window(model: MultimodalModel, prompt: int, new: int, *, drawn: bool = False) -> None:
    """Raise ValueError where a prompt of so many tokens and so many new ones exceed the context window.

    What is `drawn` has a size of its own, so that the prompt alone can be less.
    """
    window = model.config.language.window
    if prompt + new <= window:
        return
    if drawn:
        shorter = f"shorten the prompt to {window - new} or fewer"
        remedy = shorter if new < window else "ask for a smaller size"
    elif prompt < window:
        remedy = f"ask for {window - prompt} or fewer"
    else:
        remedy = "shorten what is said, or show fewer pictures"
    kind = "of the picture" if drawn else "new ones"
    raise ValueError(
        f"{prompt} tokens of prompt and {new} {kind} are {prompt + new}, over the context window of "
        f"{window}: {remedy}"
    )


def generate(
    model: MultimodalModel,
    embeds: Tensor,
    attention_mask: Tensor | None = None,
    *,
    end_id: int,
    max_new_tokens: int,
    sampling: Sampling = GREEDY,
    seeds: Sequence[int] | None = None,
    noise: Noise | None = None,
    cache: StaticCache | None = None,
) -> Iterator[TextStep]:
    """Continue prompts (B, S, D), left-padded by their mask, until all chose `end_id` or the count is full.

    Row b is sampled with the noise of seed `seeds[b]`, so that its answer does not depend on the rows beside
    it; `noise`, from the number of the step to (B, V) exponential noise, replaces it. A given `cache` holds
    what came before `embeds`. The arguments are checked at once, the work is done as the steps are asked for.
    """
    rows, length, _ = embeds.shape
    if length == 0:
        raise ValueError("there is nothing to continue: embeddings need at least one position")
    require_whole("max_new_tokens", max_new_tokens, least=1)
    past = 0 if cache is None else cache.length
    check_window(model, past + length, max_new_tokens)
    if cache is None:
        # The last token is chosen, never fed.
        capacity = capacity_for(model, length + max_new_tokens - 1)
        cache = StaticCache(model.language.config, rows, capacity, device=embeds.device, dtype=embeds.dtype)
    if noise is None and not sampling.greedy and (seeds is None or len(seeds) != rows):
        raise ValueError(
            f"sampling {rows} rows needs {rows} seeds, not {seeds if seeds is None else len(seeds)}"
        )
    sampler = TokenSampler(model, sampling, seeds or [0] * rows, noise)
    return _steps(model, embeds, attention_mask, end_id, max_new_tokens, sampler, cache)


@torch.no_grad()
def prefill(model: MultimodalModel, embeds: Tensor, mask: Tensor | None, cache: StaticCache) -> Tensor:
    """Read embeddings (B, S, D) into a cache, a piece at a time; -> the last hidden states (B, D).

    Raises ValueError where these are not numbers: what would be chosen by them means nothing.
    """
    for first in range(0, embeds.shape[1], PIECE):
        piece = slice(first, first + PIECE)
        hidden = model.hidden_states(embeds[:, piece], None if mask is None else mask[:, piece], cache)
    last = hidden[:, -1]
    if bool(last.isnan().any()):
        raise ValueError(f"the language model computes NaN: {NOT_NUMBERS}")
    return last


def prefill_one(model: MultimodalModel, embeds: Tensor) -> PromptCache:
    """What one prompt (1, S, D) leaves in a cache of its own: no prompt beside it can change it."""
    length = embeds.shape[1]
    cache = StaticCache(model.language.config, 1, length, device=model.device, dtype=model.dtype)
    hidden = prefill(model, embeds, None, cache)
    return PromptCache(cache.keys[:, 0], cache.values[:, 0], hidden[0])


class TokenSampler:
    """Chooses each row's next token: greedily, or by the noise of its seed and its own count of steps."""

    def __init__(
        self, model: MultimodalModel, sampling: Sampling, seeds: Sequence[int], noise: Noise | None
    ) -> None:
        self.model, self.sampling, self.noise = model, sampling, noise
        self.patterns = seeds_as_int64(seeds).to(model.device)

    def __call__(self, hidden: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        """Hidden states (B, D), and the tokens that rows have so far (B,) -> tokens (B,), logits (B, V)."""
        logits = self.model.text_logits(hidden).float()
        return choose(logits, self.sampling, self._noise(place)), logits

    def _noise(self, place: Tensor) -> Tensor | None:
        if self.sampling.greedy:
            return None
        if self.noise is not None:
            return self.noise(int(place[0]))
        tokens = self.model.config.language.vocabulary
        patterns = self.patterns[: len(place)]
        return exponential_noise(patterns, torch.zeros_like(patterns), place[:, None], tokens)


@torch.no_grad()
def _steps(
    model: MultimodalModel,
    embeds: Tensor,
    mask: Tensor | None,
    end_id: int,
    max_new_tokens: int,
    sampler: TokenSampler,
    cache: StaticCache,
) -> Iterator[TextStep]:
    hidden = prefill(model, embeds, mask, cache)
    ended = torch.zeros(len(embeds), dtype=torch.bool, device=embeds.device)

    def pick(hidden: Tensor, place: Tensor) -> tuple[Tensor, ...]:
        tokens, logits = sampler(hidden, place)
        tokens = tokens.masked_fill(ended, end_id)
        ended.logical_or_(tokens == end_id)
        return tokens, logits

    step = Step(
        model,
        cache,
        tokens=torch.zeros(len(embeds), dtype=torch.long, device=embeds.device),
        place=torch.zeros(len(embeds), dtype=torch.long, device=embeds.device),
        feed=lambda tokens: model.language.embed(tokens)[:, None],
        pick=pick,
        recordable=sampler.noise is None,
    )
    chosen = step.first(hidden)
    for number in range(1, max_new_tokens + 1):
        shown = TextStep(*(tensor.clone() for tensor in (*chosen, ended)))
        more = number < max_new_tokens
        if more and step.recorded:
            chosen = step()  # before anybody waits for the last one's tokens: the GPU goes on meanwhile
        yield shown
        if not more or bool(shown.ended.all()):
            return
        if not step.recorded:
            chosen = step()


class Memory:
    """One conversation's cache, so that a next turn computes only what is new in it.

    What the cache holds is `ids` and the pictures among them; a prompt shares it up to the first token or
    picture that differs, wherever that is, and so may just as well be another conversation. It is forgotten
    when weights change, but for changes that torch does not count either: of a parameter's `data`, in place.
    """

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.pixels: Tensor | None = None
        self.cache: StaticCache | None = None
        self.weights: object = None

    def shared(self, ids: Sequence[int], pixels: Tensor, starts: Sequence[int], tokens: int) -> int:
        """How many leading positions of a prompt are in the cache already; never the last, which must be run.

        Pictures (N, 3, H, W) of `tokens` positions each begin at `starts`. A picture counts whole or not at
        all.
        """
        if self.cache is None or self.pixels is None:
            return 0
        common = min(len(ids) - 1, self.cache.length)
        same = next(
            (at for at, pair in enumerate(zip(ids, self.ids, strict=False)) if pair[0] != pair[1]), common
        )
        count = min(common, same, len(self.ids))
        for number, start in enumerate(starts):
            if start >= count:
                break
            known = number < len(self.pixels) and torch.equal(self.pixels[number], pixels[number])
            if not known or start + tokens > count:
                return start
        return count

    @torch.no_grad()
    def resume(
        self, model: MultimodalModel, ids: Tensor, pixels: Tensor, image_mask: Tensor, room: int
    ) -> tuple[Tensor, StaticCache]:
        """-> embeddings (1, S', D) of what is new in a prompt (1, S), and a cache that ends where they begin.

        The cache has room for them and for `room` more.
        """
        weights: list[object] = [
            # Made in inference mode, a tensor counts no versions, and nothing can train it.
            (id(tensor), None if tensor.is_inference() else tensor._version, tensor.dtype, tensor.device)
            for tensor in chain(model.parameters(), model.buffers())
        ]
        weights += [layer.version for layer in model.modules() if isinstance(layer, PackedLinear)]
        if weights != self.weights:
            # Trained, moved or cast since: what was computed with other weights is no past of theirs.
            self.cache, self.weights = None, weights
        sequence = ids[0].tolist()
        tokens = model.config.seen_tokens
        starts = image_mask[0].nonzero().flatten().tolist()[::tokens]
        count = self.shared(sequence, pixels, starts, tokens)
        capacity = capacity_for(model, len(sequence) + room)
        if self.cache is None or self.cache.capacity < capacity:
            old = self.cache
            self.cache = StaticCache(
                model.language.config, 1, capacity, device=model.device, dtype=model.dtype
            )
            if old is not None:
                self.cache.keys[:, :, :, :count] = old.keys[:, :, :, :count]
                self.cache.values[:, :, :, :count] = old.values[:, :, :, :count]
                self.cache.length = count
        self.cache.truncate(count)
        self.ids, self.pixels = sequence, pixels
        new_pictures = pixels[sum(start < count for start in starts) :]
        return model.embed(ids[:, count:], new_pictures, image_mask[:, count:]), self.cache

    def extend(self, tokens: Sequence[int]) -> None:
        """Note the tokens that were generated after the prompt; the cache holds all of them but the last."""
        assert self.cache is not None
        self.ids = [*self.ids, *tokens][: self.cache.length]
