"""Packing: nothing lost, doubled or cut; batches say of every position whose it is; mixtures stay apart."""

import random
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.models.janus import Janus
from janus.processing.processor import Processor
from janus.training.data.example import Example, drawing_example
from janus.training.data.outline import IGNORE, Geometry, Task
from janus.training.data.packing import PENDING, Batch, Filling, best_fit, first_fit, pack, pad

PAD = 482
CODES, SEEN = 4, 3  # tokens of a drawn and of a seen picture, in the examples made here
numbers = st.integers(0, 2**31 - 1)


def make(task: Task, length: int, seed: int) -> Example:
    """An example with random content: any id may occur in it, that of padding too."""
    random = torch.Generator().manual_seed(seed)

    def among(*shape: int) -> torch.Tensor:
        return torch.randint(0, 600, shape, generator=random)

    ids, nowhere = among(length), torch.zeros(length, dtype=torch.bool)
    image_mask, code_mask, code_labels_mask = nowhere.clone(), nowhere.clone(), nowhere.clone()
    labels = torch.where(among(length) < 300, among(length), IGNORE)
    pixels, targets, codes = torch.zeros(0, 3, 2, 2), torch.zeros(0, 3, 2, 2), None
    if task == "understanding":
        image_mask[1 : 1 + SEEN] = True
        pixels = torch.rand(1, 3, 2, 2, generator=random)
    if task == "drawing":
        code_mask[-(CODES - 1) :] = True
        code_labels_mask[-CODES:] = True
        labels = torch.full((length,), IGNORE)
        if seed % 2:
            codes = among(1, CODES)
        else:
            targets = torch.rand(1, 3, 2, 2, generator=random)
    return Example(
        ids=ids,
        labels=labels,
        image_mask=image_mask,
        pixels=pixels,
        code_mask=code_mask,
        codes=codes,
        targets=targets,
        code_labels_mask=code_labels_mask,
        positions=torch.arange(length) + (torch.arange(length) > 0) * (seed % 3),  # of a dropped prompt
        task=task,
        seed=seed if task == "drawing" else 0,
    )


examples = st.lists(
    st.builds(make, st.sampled_from(get_args(Task)), st.integers(6, 20), numbers), min_size=1, max_size=12
)
lengths = st.lists(st.integers(1, 50), max_size=40)


def documents(batch: Batch) -> list[Example]:
    """The examples of a batch, read back from its tensors alone, in reading order."""
    found = []
    pixels, codes, targets = (iter(each[:, None]) for each in (batch.pixels, batch.codes, batch.targets))
    seeds = iter(batch.seeds.tolist())
    for row, tasks in enumerate(batch.tasks):
        for number, task in enumerate(tasks, start=1):
            mine = batch.document[row] == number
            drawn = next(codes) if batch.code_labels_mask[row, mine].any() else None
            pending = drawn is not None and bool((drawn == PENDING).all())
            found.append(
                Example(
                    ids=batch.ids[row, mine],
                    labels=batch.labels[row, mine],
                    image_mask=batch.image_mask[row, mine],
                    pixels=next(pixels) if batch.image_mask[row, mine].any() else torch.zeros(0, 3, 2, 2),
                    code_mask=batch.code_mask[row, mine],
                    codes=None if pending else drawn,
                    targets=next(targets) if pending else torch.zeros(0, 3, 2, 2),
                    code_labels_mask=batch.code_labels_mask[row, mine],
                    positions=batch.positions[row, mine],
                    task=task,
                    seed=next(seeds) if task == "drawing" else 0,
                )
            )
    assert not [*pixels, *codes, *targets, *seeds]
    return found


def key(example: Example) -> str:
    """All that an example says."""
    return str(
        {name: each.tolist() if torch.is_tensor(each) else each for name, each in vars(example).items()}
    )


@given(lengths=lengths, spare=st.integers(0, 50))
def test_best_fit_keeps_every_document_whole(lengths: list[int], spare: int) -> None:
    capacity = max(lengths, default=1) + spare
    rows = best_fit(lengths, capacity)
    assert sorted(number for row in rows for number in row) == list(range(len(lengths)))
    assert all(row and sum(lengths[number] for number in row) <= capacity for row in rows)
    assert len(rows) <= len(first_fit(lengths, capacity))
    # Decreasing or not, two rows that are half empty would have become one.
    assert sum(2 * sum(lengths[number] for number in row) <= capacity for row in rows) <= 1
    assert rows == best_fit(lengths, capacity)


def test_first_fit_is_taken_where_it_needs_fewer_rows() -> None:
    lengths = [5, 4, 3, 5, 4, 3]  # from the longest on, 5 5, 4 4 3 and 3 need three rows of 12
    assert first_fit(lengths, 12) == best_fit(lengths, 12) == [[0, 1, 2], [3, 4, 5]]


def test_best_fit_by_hand() -> None:
    assert best_fit([3, 7, 5, 2, 4], 10) == [[1, 0], [2, 4], [3]]
    assert best_fit([], 10) == []
    assert best_fit([10, 10], 10) == [[0], [1]]


@pytest.mark.parametrize("length", [0, 11])
def test_documents_that_no_row_can_hold(length: int) -> None:
    with pytest.raises(ValueError, match=f"document 1 has {length} tokens: rows hold from 1 to 10"):
        best_fit([5, length], 10)


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=60), rows=st.integers(1, 5))
def test_a_filling_takes_documents_in_order_until_one_does_not_fit(lengths: list[int], rows: int) -> None:
    filling = Filling(rows, 50)
    taken = 0
    while taken < len(lengths) and filling.add(lengths[taken]):
        taken += 1
    placed = filling.rows.documents
    assert taken >= 1
    assert filling.lengths == lengths[:taken]
    assert len(placed) <= rows
    assert sorted(number for row in placed for number in row) == list(range(taken))
    assert all(sum(lengths[number] for number in row) <= 50 for row in placed)
    if taken < len(lengths):
        assert len(best_fit(lengths[: taken + 1], 50)) > rows
        assert not filling.add(lengths[taken])


@given(examples=examples, spare=st.integers(0, 30))
@settings(max_examples=60)
def test_packed_batches_hold_the_examples_and_nothing_else(examples: list[Example], spare: int) -> None:
    capacity = max(map(len, examples)) + spare
    batch = pack(examples, capacity, PAD)
    check_layout(batch, examples)
    assert batch.ids.shape[1] == capacity
    assert sorted(map(key, documents(batch))) == sorted(map(key, examples))


@given(examples=examples)
@settings(max_examples=60)
def test_padded_batches_hold_one_example_a_row(examples: list[Example]) -> None:
    batch = pad(examples, PAD)
    check_layout(batch, examples)
    assert batch.ids.shape == (len(examples), max(map(len, examples)))
    assert list(map(key, documents(batch))) == list(map(key, examples))
    assert all(row[0] == 1 for row in batch.document.tolist())  # on the right


def check_layout(batch: Batch, examples: list[Example]) -> None:
    padding = batch.document == 0
    assert (batch.ids[padding] == PAD).all()
    assert (batch.labels[padding] == IGNORE).all()
    assert not (batch.image_mask | batch.code_mask | batch.code_labels_mask)[padding].any()
    assert not batch.positions[padding].any()
    for document, tasks in zip(batch.document, batch.tasks, strict=True):
        rows = document.tolist()
        counts = [rows.count(number) for number in range(1, len(tasks) + 1)]
        # Documents stand one after another from the left; what is left is padding.
        expected = [number for number, count in enumerate(counts, start=1) for _ in range(count)]
        assert rows == expected + [0] * (len(rows) - len(expected))
    assert batch.tokens == sum(map(len, examples))
    assert batch.text_labels == sum(int((each.labels != IGNORE).sum()) for each in examples)
    assert batch.code_labels == sum(each.task == "drawing" for each in examples) * CODES
    assert batch.code_mask.sum() == len(batch.codes) * (CODES - 1)
    assert batch.image_mask.sum() == len(batch.pixels) * SEEN
    assert sorted(task for row in batch.tasks for task in row) == sorted(each.task for each in examples)


@given(examples=examples)
@settings(max_examples=30)
def test_pictures_are_tokenized_in_their_places(examples: list[Example]) -> None:
    random.Random(0).shuffle(examples)
    batch = pack(examples, 40, PAD)

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels[:, 0] * 1000).long()  # (M', 2, 2)

    known = batch.tokenized(encode)
    assert len(known.targets) == 0
    assert (known.codes != PENDING).all()
    targets = iter(batch.targets)
    for before, after in zip(batch.codes, known.codes, strict=True):
        expected = encode(next(targets)[None]).flatten() if (before == PENDING).all() else before
        assert torch.equal(after, expected)
    assert known.tokenized(encode) is known


def test_padding_inside_a_document_is_part_of_it(processor: Processor, geometry: Geometry) -> None:
    codes = torch.zeros(geometry.tokens, dtype=torch.long)
    dropped = drawing_example(processor, "a red circle", codes, geometry, drop_prompt=True)
    batch = pad([dropped, make("text", 8, 0)], processor.tokenizer.pad_id)
    assert (batch.ids[0] == processor.tokenizer.pad_id).sum() > 5
    assert (batch.document[0] == 1).all()
    assert batch.document[1].tolist() == [1] * 8 + [0] * (len(dropped) - 8)


@torch.no_grad()
def test_codes_by_the_tokenizer_of_the_model(model: Janus, processor: Processor, geometry: Geometry) -> None:
    noise = torch.randint(0, 256, (64, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    example = drawing_example(processor, "noise", noise.numpy(), geometry)
    batch = pad([example, drawing_example(processor, "a", [5] * 64, geometry)], 0).tokenized(model.vq.encode)
    assert torch.equal(batch.codes[0], model.vq.encode(example.targets).flatten())
    assert batch.codes[1].tolist() == [5] * 64


def test_pictures_of_two_sizes_do_not_mix(processor: Processor) -> None:
    two = [
        drawing_example(processor, "a", [1] * grid**2, Geometry(grid=grid, factor=8, codebook=9))
        for grid in (2, 3)
    ]
    with pytest.raises(ValueError, match=r"pictures of \[\(4,\), \(9,\)\] in one batch"):
        pad(two, PAD)


def test_a_batch_moves(processor: Processor) -> None:
    batch = pad([make("understanding", 9, 1)], PAD)
    moved = batch.to("meta")
    assert moved.tasks == batch.tasks
    for name, value in vars(moved).items():
        if torch.is_tensor(value):
            assert value.device.type == "meta", name
            assert value.shape == getattr(batch, name).shape
