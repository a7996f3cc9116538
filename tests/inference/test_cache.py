"""The cache: a sequence in any pieces is the same sequence; padding, overflow, cutting back, joining."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.inference.cache import PromptCache, StaticCache, bytes_per_position, join
from janus.models.janus import Janus

Close = Callable[[Tensor, Tensor], None]
CPU = torch.device("cpu")


def make(model: Janus, rows: int, capacity: int) -> StaticCache:
    return StaticCache(model.config.language, rows, capacity, device=CPU, dtype=torch.float32)


def random_embeds(rows: int, length: int, seed: int = 0) -> Tensor:
    return torch.randn(rows, length, 64, generator=torch.Generator().manual_seed(seed))


def left_padding(lengths: list[int]) -> Tensor:
    longest = max(lengths)
    return torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]


@settings(max_examples=25)
@given(
    pieces=st.lists(st.integers(1, 7), min_size=1, max_size=6),
    padding=st.lists(st.integers(0, 6), min_size=1, max_size=3),
    spare=st.integers(0, 3),
    whole_masks=st.booleans(),
)
@torch.no_grad()
def test_any_split_gives_the_same_states(
    pieces: list[int], padding: list[int], spare: int, whole_masks: bool, model: Janus, close: Close
) -> None:
    length = sum(pieces)
    mask = torch.arange(length) >= torch.tensor(padding).clamp_max(length - 1)[:, None]
    embeds = random_embeds(len(padding), length, seed=length)
    cache = make(model, len(padding), length + spare)
    states, past = [], 0
    for piece in embeds.split(pieces, dim=1):
        end = past + piece.shape[1]
        # A call's mask may cover its own positions, or those before them as well.
        states.append(model.hidden_states(piece, mask[:, 0 if whole_masks else past : end], cache))
        past = end
    assert cache.length == length
    close(torch.cat(states, dim=1), model.hidden_states(embeds, mask))


@torch.no_grad()
def test_without_a_mask_new_positions_are_real(model: Janus, close: Close) -> None:
    mask = left_padding([3, 5])
    embeds = random_embeds(2, 8)
    cache = make(model, 2, 8)
    first = model.hidden_states(embeds[:, :5], mask, cache)
    rest = model.hidden_states(embeds[:, 5:], None, cache)
    whole = torch.cat((mask, torch.ones(2, 3, dtype=torch.bool)), dim=1)
    close(torch.cat((first, rest), dim=1), model.hidden_states(embeds, whole))


@torch.no_grad()
def test_a_mask_that_hides_nothing_costs_nothing(model: Janus) -> None:
    cache = make(model, 1, 4)
    embeds = random_embeds(1, 4)
    states = model.hidden_states(embeds, torch.ones(1, 4, dtype=torch.bool), cache)
    assert cache.valid is None
    assert torch.equal(states, model.hidden_states(embeds))


@pytest.mark.parametrize(("rows", "positions"), [(1, 4), (2, 3), (3, 1)], ids=["long", "rows", "more rows"])
@torch.no_grad()
def test_overflow_raises_and_changes_nothing(rows: int, positions: int, model: Janus, close: Close) -> None:
    cache = make(model, 1, 5)
    embeds = random_embeds(1, 5)
    model.hidden_states(embeds[:, :2], cache=cache)
    with pytest.raises(
        ValueError, match=f"1 rows and 5 positions, 2 of them filled, .* {positions} more of {rows} rows"
    ):
        model.hidden_states(random_embeds(rows, positions), cache=cache)
    assert cache.length == 2
    close(model.hidden_states(embeds[:, 2:], cache=cache), model.hidden_states(embeds)[:, 2:])


@torch.no_grad()
def test_a_mask_of_another_shape_raises(model: Janus) -> None:
    cache = make(model, 1, 8)
    model.hidden_states(random_embeds(1, 3), cache=cache)
    with pytest.raises(ValueError, match=r"attention_mask must be \(1, 2\) or \(1, 5\), not \(1, 3\)"):
        model.hidden_states(random_embeds(1, 2), torch.ones(1, 3, dtype=torch.bool), cache)


@pytest.mark.parametrize("kept", [0, 1, 4, 6])
@torch.no_grad()
def test_cut_back_and_continued_equals_fresh(kept: int, model: Janus, close: Close) -> None:
    first, second = random_embeds(1, 6, seed=1), random_embeds(1, 6, seed=2)
    cache = make(model, 1, 12)
    model.hidden_states(first, cache=cache)
    cache.truncate(kept)
    continued = model.hidden_states(second, cache=cache)
    close(continued, model.hidden_states(torch.cat((first[:, :kept], second), dim=1))[:, kept:])


@torch.no_grad()
def test_cut_back_padding_is_forgotten(model: Janus, close: Close) -> None:
    cache = make(model, 2, 8)
    model.hidden_states(random_embeds(2, 6), left_padding([2, 6]), cache)
    cache.truncate(0)
    embeds = random_embeds(2, 8, seed=3)
    close(model.hidden_states(embeds, None, cache), model.hidden_states(embeds))


@pytest.mark.parametrize("kept", [0, 2, 4, 5])
@torch.no_grad()
def test_cut_back_padding_stays_on_the_left(kept: int, model: Janus, close: Close) -> None:
    first, second = random_embeds(2, 6, seed=1), random_embeds(2, 3, seed=2)
    mask = left_padding([2, 6])
    cache = make(model, 2, 9)
    model.hidden_states(first, mask, cache)
    cache.truncate(kept)
    assert cache.starts is not None  # so that attention needs no mask
    assert cache.starts.tolist() == [min(4, kept), 0]
    whole = torch.cat((mask[:, :kept], torch.ones(2, 3, dtype=torch.bool)), dim=1)
    expected = model.hidden_states(torch.cat((first[:, :kept], second), dim=1), whole)[:, kept:]
    close(model.hidden_states(second, None, cache), expected)


@pytest.mark.parametrize("length", [-1, 4])
def test_cutting_back_to_what_is_not_there_raises(length: int, model: Janus) -> None:
    cache = make(model, 1, 8)
    cache.length = 3
    with pytest.raises(ValueError, match=f"3 positions cannot be cut back to {length}"):
        cache.truncate(length)


@pytest.mark.parametrize("lengths", [[5], [4, 4], [2, 6, 1]], ids=["one", "equal", "different"])
@torch.no_grad()
def test_joined_prefixes_continue_as_if_alone(lengths: list[int], model: Janus, close: Close) -> None:
    prompt_caches, alone = [], []
    following = random_embeds(len(lengths), 3, seed=9)
    for row, length in enumerate(lengths):
        embeds = random_embeds(1, length, seed=length)
        cache = make(model, 1, length)
        hidden = model.hidden_states(embeds, cache=cache)
        prompt_caches.append(PromptCache(cache.keys[:, 0], cache.values[:, 0], hidden[0, -1]))
        alone.append(model.hidden_states(torch.cat((embeds, following[row : row + 1]), dim=1))[:, length:])
    cache = join(prompt_caches, model.config.language, room=3)
    assert cache.length == max(lengths)
    assert cache.capacity == max(lengths) + 3
    states = [model.hidden_states(one, cache=cache) for one in following.split([1, 2], dim=1)]
    close(torch.cat(states, dim=1), torch.cat(alone))


def test_bytes_per_position(model: Janus) -> None:
    cache = make(model, 2, 5)
    held = cache.keys.nbytes + cache.values.nbytes
    assert bytes_per_position(model.config.language, torch.float32) * 10 == held
    assert bytes_per_position(model.config.language, torch.bfloat16) * 20 == held


def test_where_rows_begin_is_known_while_padding_is_on_the_left(model: Janus) -> None:
    cache = make(model, 4, 8)
    assert cache.starts is None
    cache.begin(4, 3, torch.tensor([[0, 0, 1], [0, 0, 1], [1, 1, 1], [0, 0, 1]], dtype=torch.bool))
    assert cache.starts is not None
    assert cache.starts.tolist() == [2, 2, 0, 2]
    cache.finish(3)
    # A hole, which no start describes.
    cache.begin(4, 1, torch.tensor([[1], [1], [0], [1]], dtype=torch.bool))
    assert cache.starts is None


def test_gradients_pass_through_a_cache(model: Janus, close: Close) -> None:
    """A cache is for inference, but nobody who leaves out no_grad may get an error or another result."""
    embeds = random_embeds(1, 4).requires_grad_()
    cache = make(model, 1, 5)
    first = model.hidden_states(embeds[:, :3], cache=cache)
    states = torch.cat((first, model.hidden_states(embeds[:, 3:], cache=cache)), dim=1)
    close(states, model.hidden_states(embeds))


@torch.no_grad()
def test_a_cache_serves_autocast(model: Janus) -> None:
    embeds = random_embeds(1, 4)
    cache = make(model, 1, 4)
    with torch.autocast("cpu", torch.bfloat16):
        first = model.hidden_states(embeds[:, :3], cache=cache)
        states = torch.cat((first, model.hidden_states(embeds[:, 3:], cache=cache)), dim=1)
    expected = model.hidden_states(embeds)
    # bfloat16 keeps 8 bits of a number, and some twenty products lie one after another.
    assert ((states - expected).norm() / expected.norm()) < 0.05
