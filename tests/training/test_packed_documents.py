"""Documents that share a row: none sees another, and packing changes nothing but the rounding of sums."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from janus.models.janus import Janus
from janus.models.llama import document_starts

LENGTHS = ((5, 9, 1, 4), (12, 3), (16,))  # of the documents of each row
LENGTH = 21


@pytest.fixture
def trained(model: Janus) -> Iterator[Janus]:
    """The small checkpoint with gradients; they are cleared afterwards."""
    model.zero_grad(set_to_none=True)
    yield model
    model.zero_grad(set_to_none=True)


def number(lengths: tuple[tuple[int, ...], ...]) -> Tensor:
    """(B, LENGTH): the documents of rows, and padding."""
    rows = [torch.tensor([of for of, size in enumerate(row, 1) for _ in range(size)]) for row in lengths]
    return torch.stack([torch.cat((row, row.new_zeros(LENGTH - len(row)))) for row in rows])


def example(model: Janus, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """ids and labels (B, LENGTH) of all documents, and their numbers."""
    documents = number(LENGTHS)
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.language.vocabulary, documents.shape, generator=random)
    labels = torch.randint(model.config.language.vocabulary, documents.shape, generator=random)
    return ids, labels, documents


def loss(model: Janus, hidden: Tensor, labels: Tensor) -> Tensor:
    return torch.nn.functional.cross_entropy(model.text_logits(hidden), labels, reduction="sum")


def gradients(model: Janus) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in model.named_parameters() if each.grad is not None}


def test_gradients_are_those_of_unpacked_documents(trained: Janus) -> None:
    ids, labels, documents = example(trained)
    hidden = trained.hidden_states(trained.embed(ids), documents=documents)
    real = documents > 0
    loss(trained, hidden[real], labels[real]).backward()
    packed = gradients(trained)

    trained.zero_grad(set_to_none=True)
    for row, count in enumerate(map(len, LENGTHS)):
        for own in (documents[row] == each for each in range(1, count + 1)):
            alone = trained.hidden_states(trained.embed(ids[row, own][None]))
            loss(trained, alone[0], labels[row, own]).backward()
    unpacked = gradients(trained)

    assert set(packed) == set(unpacked)
    assert len(packed) == 3 * 6 + 3
    for name, gradient in unpacked.items():
        error = (packed[name] - gradient).abs().max() / gradient.abs().max()
        assert error <= 1e-6, f"{name} is off by {error:.1e} of its largest"  # rounding of float32 sums


@torch.no_grad()
def test_hidden_states_are_those_of_unpacked_documents(model: Janus) -> None:
    ids, _, documents = example(model)
    hidden = model.hidden_states(model.embed(ids), documents=documents)
    for row, count in enumerate(map(len, LENGTHS)):
        for own in (documents[row] == each for each in range(1, count + 1)):
            alone = model.hidden_states(model.embed(ids[row, own][None]))[0]
            # Matrix products of other sizes round otherwise.
            torch.testing.assert_close(hidden[row, own], alone, rtol=0, atol=1e-5 * float(alone.abs().max()))


@torch.no_grad()
def test_a_document_is_the_same_whatever_its_neighbors_and_the_padding_are(model: Janus) -> None:
    ids, _, documents = example(model)
    others, *_ = example(model, seed=1)
    kept = (documents == 2) & (torch.arange(len(ids))[:, None] < 2)  # the second document of two rows
    before = model.hidden_states(model.embed(ids), documents=documents)
    after = model.hidden_states(model.embed(torch.where(kept, ids, others)), documents=documents)
    assert torch.equal(before[kept], after[kept])
    assert not torch.equal(before[documents == 1], after[documents == 1])


def test_padding_has_no_influence_not_even_as_nan(trained: Janus) -> None:
    ids, labels, documents = example(trained)
    real = documents > 0
    found = []
    for filler in (0.0, torch.nan, 1e30):
        trained.zero_grad(set_to_none=True)
        embeds = trained.embed(ids).masked_fill(~real[..., None], filler)
        hidden = trained.hidden_states(embeds, documents=documents)
        loss(trained, hidden[real], labels[real]).backward()
        found.append((hidden.detach(), gradients(trained)))
    for hidden, grads in found:
        assert torch.equal(hidden, found[0][0])
        assert not hidden[~real].any()
        for name, gradient in grads.items():
            assert torch.equal(gradient, found[0][1][name]), name


@torch.no_grad()
def test_one_document_a_row_is_a_row_without_documents(model: Janus) -> None:
    ids, *_ = example(model)
    embeds = model.embed(ids)
    packed = model.hidden_states(embeds, documents=torch.ones_like(ids))
    plain = model.hidden_states(embeds)
    # Another kernel of attention sums in another order.
    torch.testing.assert_close(packed, plain, rtol=0, atol=1e-5 * float(plain.abs().max()))


@torch.no_grad()
def test_what_leaves_a_block_in_the_middle(model: Janus) -> None:
    """The sum that the next norm reads; after none, what went in."""
    ids, _, documents = example(model)
    embeds, real = model.embed(ids), documents > 0
    seen: list[Tensor] = []
    for block in model.language.layers:
        block.register_forward_hook(lambda block, given, left: seen.append(left[0] + left[1]))
    try:
        model.hidden_states(embeds, documents=documents)
    finally:
        for block in model.language.layers:
            block._forward_hooks.clear()
    last = model.hidden_states(embeds, documents=documents)
    for after in range(len(model.language.layers) + 1):
        found, passed = model.language.through_documents(embeds, documents, after=after)
        assert torch.equal(found, last)
        expected = embeds if after == 0 else seen[after - 1].view_as(embeds)
        assert torch.equal(passed[real], expected[real])
    with pytest.raises(ValueError, match="after must be from 0 to 3 blocks, not 4"):
        model.language.through_documents(embeds, documents, after=4)


@torch.no_grad()
def test_positions_may_be_given(model: Janus) -> None:
    """Counted ones change nothing; a gap is what a row without the places between has, positions kept."""
    ids, _, documents = example(model)
    embeds = model.embed(ids)
    counted = torch.cat([torch.arange(size) for row in LENGTHS for size in (*row, LENGTH - sum(row))])
    plain, _ = model.language.through_documents(embeds, documents)
    given, _ = model.language.through_documents(embeds, documents, positions=counted.view_as(ids))
    assert torch.equal(plain, given)
    kept = torch.tensor([0, 5, 6, 7])
    mask = torch.zeros(1, 8, dtype=torch.bool)
    mask[0, kept] = True
    masked = model.language(embeds[:1, :8], mask, positions=torch.arange(8)[None])
    packed, _ = model.language.through_documents(
        embeds[:1, kept], torch.ones(1, 4, dtype=torch.long), positions=kept[None]
    )
    # Softmax over fewer keys is summed in another order.
    torch.testing.assert_close(packed[0], masked[0, kept], rtol=0, atol=1e-5 * float(packed.abs().max()))


@given(st.lists(st.lists(st.integers(0, 3), min_size=7, max_size=7), min_size=1, max_size=4))
def test_starts_are_where_numbers_change_or_a_row_begins(rows: list[list[int]]) -> None:
    flat = [(row, each) for row, numbers in enumerate(rows) for each in numbers]
    starts = [0]
    for place in range(1, len(flat)):
        starts.append(starts[-1] if flat[place] == flat[place - 1] else place)
    assert document_starts(torch.tensor(rows)).tolist() == starts


@pytest.mark.parametrize(
    ("documents", "others", "message"),
    [
        (torch.ones(1, 4), {}, "whole numbers, not torch.float32"),
        (torch.ones(1, 5, dtype=torch.long), {}, r"documents must be \(1, 4\), not \(1, 5\)"),
        (torch.ones(1, 4, dtype=torch.long), {"attention_mask": torch.ones(1, 4)}, "a mask or a cache to"),
    ],
)
def test_what_does_not_fit_is_refused(
    model: Janus, documents: Tensor, others: dict[str, Tensor], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        model.hidden_states(torch.zeros(1, 4, 64), documents=documents, **others)
