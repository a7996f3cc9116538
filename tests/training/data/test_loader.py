"""The loader: the same batches whoever reads, resumed anywhere, in the ratio asked for in every step."""

import json
import pickle
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.processing.processor import Processor
from janus.training.data.documents import Builder, Crop, Documents, Read, join, split
from janus.training.data.limits import Guard
from janus.training.data.loader import Loader, reshard
from janus.training.data.mixture import Mixture, Part
from janus.training.data.outline import Geometry
from janus.training.data.packing import Batch
from janus.training.data.sources import JsonLines, Table, World

LENGTH = 300


def invent(random: np.random.Generator) -> dict[str, Any]:
    """A drawing of random words; every third has its codes already."""
    prompt = " ".join(random.choice(["red", "blue", "circle", "square"], int(random.integers(1, 9))))
    if random.integers(3) == 0:
        return {"prompt": prompt, "codes": random.integers(0, 256, 64)}
    return {"prompt": prompt, "image": random.integers(0, 256, (9, 7, 3), dtype=np.uint8)}


def texts(count: int, longest: int = 40) -> list[dict[str, Any]]:
    random = np.random.default_rng(1)
    return [{"text": f"{number} " + "a " * int(random.integers(longest))} for number in range(count)]


def questions(count: int) -> list[dict[str, Any]]:
    random = np.random.default_rng(2)
    return [
        {
            "messages": [
                {"role": "user", "content": "<image> What is it?"},
                {"role": "assistant", "content": f"Number {number}" + "!" * int(random.integers(30))},
            ],
            "images": [random.integers(0, 256, (8, 8, 3), dtype=np.uint8)],
        }
        for number in range(count)
    ]


def mixture(seed: int = 0, rank: int = 0, ranks: int = 1) -> Mixture:
    parts = [
        Part(Table(questions(20), "seen"), 5, "understanding"),
        Part(Table(texts(15), "text"), 1, "text"),
        Part(World(invent, "world"), 4, "drawing"),
    ]
    return Mixture(parts, seed=seed, rank=rank, ranks=ranks)


@pytest.fixture(scope="module")
def builder(processor: Processor, geometry: Geometry) -> Builder:
    return Builder(processor=processor, guard=Guard(LENGTH), geometry=geometry, system="")


def load(builder: Builder, *, packed: bool = True, workers: int = 0, **options: Any) -> Loader:
    return Loader(
        mixture(**options), builder, rows=3 if packed else 10, length=LENGTH, packed=packed, workers=workers
    )


def same(left: Batch, right: Batch) -> bool:
    return all(
        torch.equal(value, vars(right)[name]) if isinstance(value, Tensor) else value == vars(right)[name]
        for name, value in vars(left).items()
    )


@pytest.fixture(scope="module")
def packed(builder: Builder) -> list[Batch]:
    return list(islice(load(builder), 12))


@pytest.fixture(scope="module")
def padded(builder: Builder) -> list[Batch]:
    return list(islice(load(builder, packed=False), 12))


@pytest.mark.parametrize("kind", ["packed", "padded"])
@pytest.mark.parametrize(("before", "after"), [(0, 2), (2, 0)])
def test_any_number_of_workers_resumes_any_other(
    request: pytest.FixtureRequest, builder: Builder, kind: str, before: int, after: int
) -> None:
    expected: list[Batch] = request.getfixturevalue(kind)
    first = load(builder, packed=kind == "packed", workers=before)
    for batch, other in zip(islice(first, 5), expected, strict=False):
        assert same(batch, other)
    state = json.loads(json.dumps(first.state_dict()))
    second = load(builder, packed=kind == "packed", workers=after)
    second.load_state_dict(state)
    for batch, other in zip(islice(second, 7), expected[5:], strict=True):
        assert same(batch, other)


@given(steps=st.lists(st.integers(0, 4), max_size=4))
@settings(max_examples=6)
def test_any_number_of_stops_is_no_stop(builder: Builder, packed: list[Batch], steps: list[int]) -> None:
    state, batches = load(builder).state_dict(), []
    for count in steps:
        loader = load(builder)
        loader.load_state_dict(state)
        batches += list(islice(loader, count))
        state = loader.state_dict()
    assert all(same(ours, other) for ours, other in zip(batches, packed, strict=False))


def test_the_same_loader_goes_on(builder: Builder, packed: list[Batch]) -> None:
    loader = load(builder)
    batches = [*islice(loader, 2), *islice(loader, 3)]
    assert all(same(ours, other) for ours, other in zip(batches, packed[:5], strict=True))


def test_packed_batches_hold_the_order_without_gaps(builder: Builder, packed: list[Batch]) -> None:
    documents = Documents(mixture(), builder)
    place = 0
    for batch in packed:
        count = sum(map(len, batch.tasks))
        examples = [documents.read(number).example for number in range(place, place + count)]
        lengths = Counter(len(example) for example in examples if example)
        rows = zip(batch.document, batch.tasks, strict=True)
        held = [int((row == number).sum()) for row, tasks in rows for number in range(1, len(tasks) + 1)]
        assert Counter(held) == lengths
        assert batch.ids.shape == (3, LENGTH)
        # What follows did not fit: the rows are as full as the order lets them be.
        next_one = documents.read(place + count).example
        assert next_one is not None
        assert sum(held) + len(next_one) > 2 * LENGTH
        place += count


def test_padded_batches_have_a_document_a_row(padded: list[Batch]) -> None:
    for batch in padded:
        assert Counter(task for (task,) in batch.tasks) == {"understanding": 5, "text": 1, "drawing": 4}
        assert batch.ids.shape[1] == int((batch.document > 0).sum(dim=1).max())


def test_packed_steps_have_the_ratio(packed: list[Batch]) -> None:
    counts = Counter[str]()
    for batch in packed:
        step = Counter(task for row in batch.tasks for task in row)
        for task, share in (("understanding", 0.5), ("text", 0.1), ("drawing", 0.4)):
            assert abs(step[task] - share * step.total()) < 2
        counts += step
    assert abs(counts["understanding"] - counts.total() / 2) < 1


def test_ranks_read_different_rows(builder: Builder) -> None:
    read = [
        {
            tuple(row[mask > 0].tolist())
            for batch in islice(load(builder, packed=False, rank=rank, ranks=2), 2)
            for row, mask in zip(batch.ids, batch.document, strict=True)
            if mask.any() and not batch.code_mask.any(dim=1)[0]
        }
        for rank in range(2)
    ]
    assert read[0]
    assert not read[0] & read[1]


def test_reading_leaves_torchs_generator_alone(builder: Builder) -> None:
    before = torch.get_rng_state()
    next(iter(load(builder, workers=1)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_row_is_named_when_its_turn_comes(builder: Builder, tmp_path: Path, workers: int) -> None:
    lines = [json.dumps(row) for row in texts(40)]
    lines[17] = '{"prompt": "a cat", "image": "absent.png"}'
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(lines))
    mixed = Mixture([Part(JsonLines(path), 1)], seed=0)
    place = next(number for number in range(40) if mixed.draw(number).index == 17)
    loader = Loader(mixed, builder, rows=1, length=LENGTH, packed=False, workers=workers)
    batches = iter(loader)
    for _ in range(place):
        next(batches)
    with pytest.raises(FileNotFoundError, match=r"a\.jsonl:18: .*absent\.png does not exist") as caught:
        next(batches)
    assert "\n" not in str(caught.value)
    assert loader.place == place


def test_rows_that_are_too_long_make_way(processor: Processor, geometry: Geometry) -> None:
    for policy, limit in (("drop", 30), ("truncate_text", 30)):
        builder = Builder(processor=processor, guard=Guard(limit, policy), geometry=geometry)  # type: ignore[arg-type]
        mixed = Mixture([Part(Table(texts(30), "text"), 1)], seed=0)
        loader = Loader(mixed, builder, rows=10, length=50, packed=False)
        batch = next(iter(loader))
        documents = Documents(mixed, builder)
        reads = [documents.read(place) for place in range(10)]
        assert loader.dropped == sum(read.dropped for read in reads)
        assert loader.cut == sum(read.cut for read in reads)
        assert (loader.dropped > 0) == (policy == "drop")
        assert (loader.cut > 0) == (policy == "truncate_text")
        assert len(batch.ids) == 10  # the ratio holds: another row of the source came instead
        assert batch.ids.shape[1] <= 30
        again = Loader(mixed, builder, rows=10, length=50, packed=False)
        again.load_state_dict(loader.state_dict())
        assert (again.dropped, again.cut) == (loader.dropped, loader.cut)


def test_rows_that_cannot_be_read_make_way(processor: Processor, geometry: Geometry, tmp_path: Path) -> None:
    """No JSON, no row and no picture; all else is as it would have been."""
    path, good = tmp_path / "rows.jsonl", [json.dumps({"text": f"word {number}"}) for number in range(12)]
    bad = ["no JSON", '{"text": 1}', '{"prompt": "a", "image": "gone.png"}']
    path.write_text("\n".join([*good[:4], bad[0], *good[4:8], bad[1], *good[8:], bad[2]]))
    mixed = Mixture([Part(JsonLines(path), 1)], seed=0)
    strict = Builder(processor=processor, guard=Guard(200), geometry=geometry)
    drops = replace(strict, unreadable="drop")
    one, other = Documents(mixed, strict), Documents(mixed, drops)
    dropped = 0
    for place in range(15):  # an epoch
        with_errors, without = one.read(place), other.read(place)
        assert without.error is None
        dropped += without.dropped > 0
        if with_errors.error is None:
            assert torch.equal(with_errors.example.ids, without.example.ids)
        else:
            assert without.dropped
    assert dropped == 3
    loader = Loader(mixed, drops, rows=15, length=200, packed=False)
    next(iter(loader))
    assert loader.dropped >= 3

    path.write_text("no JSON\n" * 3)
    nothing = Documents(Mixture([Part(JsonLines(path), 1)], seed=0), drops).read(0)
    with pytest.raises(
        ValueError, match="100 rows in turn are over the limit of 200 tokens, or cannot be read"
    ):
        raise nothing.error


def test_a_source_of_nothing_but_long_rows(processor: Processor, geometry: Geometry) -> None:
    builder = Builder(processor=processor, guard=Guard(50, "drop"), geometry=geometry)
    loader = Loader(Mixture([Part(World(invent, "world"), 1)], seed=0), builder, rows=1, length=50)
    with pytest.raises(ValueError, match=r"^world: 100 rows in turn are over the limit of 50 tokens: raise"):
        next(iter(loader))


def test_a_tenth_of_the_prompts_is_dropped(processor: Processor, geometry: Geometry) -> None:
    rows = [{"prompt": "a red circle", "codes": [0] * 64}]
    pad_id = processor.tokenizer.pad_id

    def dropped(share: float, count: int, seed: int = 0) -> Iterator[bool]:
        builder = Builder(processor=processor, guard=Guard(200), geometry=geometry, prompt_dropout=share)
        documents = Documents(Mixture([Part(Table(rows, "one"), 1)], seed=seed), builder)
        for place in range(count):
            example = documents.read(place).example
            assert example is not None
            yield bool(example.ids[1] == pad_id)

    # Four standard deviations of a thousand throws.
    thousand = list(dropped(0.1, 1000))
    assert abs(sum(thousand) - 100) < 4 * (1000 * 0.1 * 0.9) ** 0.5
    assert list(dropped(0.1, 100)) == thousand[:100]
    assert list(dropped(0.1, 100, seed=1)) != thousand[:100]
    assert not any(dropped(0.0, 50))
    assert all(dropped(1.0, 50))


def test_squares_are_of_the_middle_or_of_anywhere(processor: Processor, geometry: Geometry) -> None:
    """Of a picture whose columns are its numbers, each wherever its draw says, and there every time."""
    side = geometry.size
    wide = np.broadcast_to(np.arange(3 * side, dtype=np.uint8)[None, :, None], (side, 3 * side, 3))
    mixed = Mixture([Part(Table([{"prompt": "a", "image": wide}], "one"), 1)], seed=0)

    def first_columns(crop: Crop, count: int) -> list[int]:
        builder = Builder(processor=processor, guard=Guard(200), geometry=geometry, crop=crop)
        examples = [Documents(mixed, builder).read(place).example for place in range(count)]
        assert all(example is not None for example in examples)
        return [round(float((example.targets[0, 0, 0, 0] + 1) * 127.5)) for example in examples if example]

    assert first_columns("center", 5) == [side] * 5
    found = first_columns("random", 60)
    assert found == first_columns("random", 60)
    assert min(found) < side / 2
    assert max(found) > 3 * side / 2
    assert len(set(found)) > 20


def test_a_row_of_another_task_is_refused(builder: Builder) -> None:
    mixed = Mixture([Part(Table(texts(3), "text"), 1, "understanding")], seed=0)
    with pytest.raises(ValueError, match=r"^text:\d: the row is text, in a source of understanding: mix it"):
        next(iter(Loader(mixed, builder, rows=1, length=LENGTH)))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (mixture(seed=1), "the data's seed were 0 when the state was saved, and are 1"),
        (mixture(ranks=2), "the data's ranks were 1 when the state was saved, and are 2"),
        (Mixture([Part(Table(texts(3), "text"), 1)], seed=0), "the data's parts were"),
        (
            Mixture([Part(part.source, 1) for part in mixture().parts], seed=0),
            r"the data's shares were \[5, 1, 4\] when the state was saved, and are \[1, 1, 1\]",
        ),
    ],
    ids=["seed", "ranks", "parts", "shares"],
)
def test_states_of_another_order(builder: Builder, other: Mixture, message: str) -> None:
    state = json.loads(json.dumps(load(builder).state_dict()))
    with pytest.raises(ValueError, match=message):
        Loader(other, builder, rows=1, length=LENGTH).load_state_dict(state)


def test_states_for_another_number_of_ranks(builder: Builder) -> None:
    loaders = [load(builder, rank=rank, ranks=2) for rank in range(2)]
    for loader in loaders:
        list(islice(loader, 4))
    states = [loader.state_dict() for loader in loaders]
    one = load(builder)
    one.load_state_dict(reshard(states, 1))
    assert one.place == sum(loader.place for loader in loaders)
    four = load(builder, rank=3, ranks=4)
    four.load_state_dict(reshard(states, 4))
    assert four.place == one.place // 4
    next(iter(four))


def test_workers_that_are_started_afresh_can_read(builder: Builder) -> None:
    documents = Documents(mixture(), builder)
    copy = pickle.loads(pickle.dumps(documents))
    for place in range(5):
        ours, theirs = documents.read(place).example, copy.read(place).example
        assert ours is not None
        assert torch.equal(ours.ids, theirs.ids)
        assert torch.equal(ours.pixels, theirs.pixels)


@given(places=st.lists(st.integers(0, 40), max_size=6), errors=st.sets(st.integers(0, 5)))
@settings(max_examples=6)
def test_chunks_are_what_they_were_made_of(builder: Builder, places: list[int], errors: set[int]) -> None:
    documents = Documents(mixture(), builder)
    reads = [
        Read(None, ValueError("x")) if number in errors else documents.read(place)
        for number, place in enumerate(places)
    ]
    for ours, other in zip(reads, split(join(reads)), strict=True):
        assert (ours.error, ours.dropped, ours.cut) == (other.error, other.dropped, other.cut)
        if ours.example is None:
            assert other.example is None
            continue
        for name, value in vars(ours.example).items():
            theirs = getattr(other.example, name)
            if isinstance(value, Tensor):
                assert torch.equal(value, theirs), name
                assert value.dtype == theirs.dtype, name
            else:
                assert value == theirs, name


def test_limits_that_cannot_be(processor: Processor, builder: Builder) -> None:
    with pytest.raises(ValueError, match="the limit of 16385 tokens is over the model's window of 16384"):
        Builder(processor=processor, guard=Guard(16385))
    with pytest.raises(ValueError, match="documents of up to 300 tokens do not fit into rows of 299"):
        Loader(mixture(), builder, rows=1, length=299)
    with pytest.raises(ValueError, match="prompt_dropout must be a number from 0 to 1, not 2"):
        Builder(processor=processor, guard=Guard(10), prompt_dropout=2)
    for options in ({"rows": 0}, {"rows": 1, "workers": -1}):
        with pytest.raises(ValueError, match="must be a whole number of at least"):
            Loader(mixture(), builder, length=LENGTH, **options)
