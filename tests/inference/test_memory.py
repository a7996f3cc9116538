"""The memory of a conversation: a resumed answer is a fresh one, and only what is new is computed."""

from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.inference.prepare import prepare
from janus.inference.text import Memory, generate
from janus.models.janus import Janus
from janus.models.packed import PackedLinear, pack

Close = Callable[[Tensor, Tensor], None]
START, PICTURE, END = 492, 483, 493  # ids of the small checkpoint
FIRST_SPECIAL = 480
TOKENS = 16  # of one picture
# A prompt in parts: words by their ids, pictures by their number among the golden ones.
Part = int | tuple[int, ...]


def prompt(parts: Sequence[Part], golden: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Ids and image mask (1, S), and pixels; BOS stands in front, "\n\n" and a role at the end."""
    ids, shown = [480], []
    for part in parts:
        if isinstance(part, int):
            ids += [START, *[PICTURE] * TOKENS, END]
            shown.append(part)
        else:
            ids += part
    row = torch.tensor([[*ids, 198, 491]])
    return row, golden["vision.pixel_values"][shown], row == PICTURE


def keys_of(ids: Tensor, parts: Sequence[Part]) -> list[tuple[int, int]]:
    """What must agree at each position: the id, and in a picture its number."""
    numbers = iter([part for part in parts if isinstance(part, int)])
    keys, number = [], -1
    for token in ids[0].tolist():
        number = next(numbers) if token == START else -1 if token == END else number
        keys.append((token, number if token == PICTURE else -1))
    return keys


def reusable(cached: list[tuple[int, int]], wanted: list[tuple[int, int]]) -> int:
    """Positions in common; never the last one, and never part of a picture."""
    count = 0
    for old, new in zip(cached, wanted[:-1], strict=False):
        if old != new:
            break
        count += 1
    while 0 < count < len(wanted) and wanted[count][0] == PICTURE == wanted[count - 1][0]:
        count -= 1
    return count


def answer(
    memory: Memory, given: tuple[Tensor, Tensor, Tensor], model: Janus, *, new: int, taken: int
) -> tuple[list[int], Tensor]:
    """Resume, and take some of the new tokens before breaking off."""
    ids, pixels, mask = given
    embeds, cache = memory.resume(model, ids, pixels, mask, room=new)
    steps = generate(model, embeds, end_id=-1, max_new_tokens=new, cache=cache)
    results = list(islice(steps, taken))
    tokens = [int(step.tokens) for step in results]
    memory.extend(tokens)
    logits = torch.stack([step.logits for step in results]) if results else torch.zeros(1)
    return tokens, logits


WORDS = st.sampled_from([(5, 6), (5, 7), (8,), (9, 10, 11, 12)])
PARTS = st.lists(st.one_of(WORDS, st.integers(0, 2)), min_size=1, max_size=4)


def test_resumed_equals_fresh(
    model: Janus, golden: dict[str, Tensor], close: Close, counted: Callable[..., Any]
) -> None:
    """Prompts that share beginnings, words and pictures, some of them going on from the last answer."""

    # A function of its own: Hypothesis writes out all arguments of every example, and `golden` is long. The
    # same examples every time: among ever new ones, two tokens would one day be as good as equally likely.
    @settings(max_examples=25)
    @given(turns=st.lists(st.tuples(PARTS, st.integers(1, 4), st.booleans()), min_size=2, max_size=4))
    def check(turns: list[tuple[list[Part], int, bool]]) -> None:
        memory, cached, history = Memory(), [], []
        for parts, taken, goes_on in turns:
            history = [*history, *parts] if goes_on else parts
            given = prompt(history, golden)
            wanted = keys_of(given[0], history)
            with counted(model) as runs:
                tokens, logits = answer(memory, given, model, new=4, taken=taken)
            assert runs == [(1, len(wanted) - reusable(cached, wanted)), *[(1, 1)] * (taken - 1)]
            fresh_tokens, fresh_logits = answer(Memory(), given, model, new=4, taken=taken)
            assert tokens == fresh_tokens
            close(logits, fresh_logits)
            # All but the last token were fed.
            cached = wanted + [(token, -1) for token in tokens[:-1]]
            history = [*history, (198, 491, *(token for token in tokens if token < FIRST_SPECIAL))]
            assert memory.cache is not None
            assert memory.cache.length == len(memory.ids) == len(cached)

    check()


def test_a_picture_that_changed_is_computed_again(
    model: Janus, golden: dict[str, Tensor], counted: Callable[..., Any], close: Close
) -> None:
    memory = Memory()
    answer(memory, prompt([(5, 6), 0, (7,)], golden), model, new=2, taken=2)
    # The ids are the same: only the pixels tell.
    with counted(model) as runs:
        tokens, logits = answer(memory, prompt([(5, 6), 1, (7,)], golden), model, new=2, taken=2)
    assert runs[0] == (1, TOKENS + 4)
    fresh = answer(Memory(), prompt([(5, 6), 1, (7,)], golden), model, new=2, taken=2)
    assert tokens == fresh[0]
    close(logits, fresh[1])


def test_pictures_seen_before_are_not_encoded_again(model: Janus, golden: dict[str, Tensor]) -> None:
    memory, seen = Memory(), []
    handle = model.vision.register_forward_pre_hook(lambda module, given: seen.append(len(given[0])))
    try:
        for parts in ([0, (5,)], [0, (5,), 1, (6,)], [0, (5,), 1, (6,), (7,)], [0, (5,), 2, 1]):
            answer(memory, prompt(parts, golden), model, new=1, taken=1)
    finally:
        handle.remove()
    assert seen == [1, 1, 2]


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_broken_off_streams_leave_a_memory_that_goes_on(
    taken: int, model: Janus, golden: dict[str, Tensor], counted: Callable[..., Any], close: Close
) -> None:
    memory = Memory()
    tokens, _ = answer(memory, prompt([(5, 6), 0], golden), model, new=8, taken=taken)
    assert memory.cache is not None
    assert memory.cache.length == len(memory.ids)
    following = prompt([(5, 6), 0, (198, 491, *tokens, 7)], golden)
    with counted(model) as runs:
        resumed = answer(memory, following, model, new=3, taken=3)
    fresh = answer(Memory(), following, model, new=3, taken=3)
    assert resumed[0] == fresh[0]
    close(resumed[1], fresh[1])
    # What was not begun is computed now; of what was, all but the last token is there.
    length = following[0].shape[1]
    assert runs[0][1] == (length if taken == 0 else 1 + 3)


def test_room_grows_without_losing_what_is_known(
    model: Janus, golden: dict[str, Tensor], counted: Callable[..., Any], close: Close
) -> None:
    memory = Memory()
    answer(memory, prompt([(5, 6)], golden), model, new=1, taken=1)
    assert memory.cache is not None
    small = memory.cache.capacity
    with counted(model) as runs:
        resumed = answer(memory, prompt([(5, 6), (7, 8, 9)], golden), model, new=50, taken=3)
    assert memory.cache.capacity >= small + 49
    assert runs[0] == (1, 5)
    close(resumed[1], answer(Memory(), prompt([(5, 6), (7, 8, 9)], golden), model, new=50, taken=3)[1])


@pytest.mark.skipif(pack(torch.zeros(1, 1, dtype=torch.bfloat16)) is None, reason="this CPU packs no weights")
def test_packed_weights_that_changed_are_noticed(data: Path, golden: dict[str, Tensor]) -> None:
    """They are no parameters, whose versions torch counts."""
    model = Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="bfloat16")
    prepare(model)
    packed = {name: layer for name, layer in model.named_modules() if isinstance(layer, PackedLinear)}
    assert packed
    memory, (ids, pixels, mask) = Memory(), prompt([(5, 6, 7)], golden)
    answer(memory, (ids, pixels, mask), model, new=2, taken=2)
    assert memory.resume(model, ids, pixels, mask, room=2)[0].shape[1] == 1  # nothing else was new
    model.load_state_dict(
        {f"{name}.weight": layer.weight * 1.5 for name, layer in packed.items()}, strict=False
    )
    assert memory.resume(model, ids, pixels, mask, room=2)[0].shape[1] == ids.shape[1]
