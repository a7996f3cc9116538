"""The losses of a batch against what is computed by hand, document by document and token by token."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from janus.models.janus import Janus
from janus.processing.processor import Processor
from janus.training.data.example import Example
from janus.training.data.outline import IGNORE
from janus.training.data.packing import Batch, pack, pad
from janus.training.objectives import Objective, assemble, count, encode, sums, total
from janus.training.parts import STAGE_3, freeze, trained
from janus.training.recipe.sections import LossWeights

LENGTH = 130
Make = Callable[[str, int], Example]


@pytest.fixture
def learner(fresh: Janus) -> Janus:
    freeze(fresh, STAGE_3)
    return fresh


@pytest.fixture
def examples(make: Make) -> list[Example]:
    kinds = ("understanding", "drawing", "text", "drawing", "understanding", "text")
    return [make(kind, number) for number, kind in enumerate(kinds)]


@pytest.fixture
def batch(examples: list[Example], reads: Processor) -> Batch:
    return pack(examples, LENGTH, reads.tokenizer.pad_id)


def by_hand(model: Janus, example: Example) -> tuple[float, float]:
    """A document's text and picture loss, with inputs put together and labels looked up one by one."""
    inputs, features, fed = [], iter(()), iter(())
    if len(example.pixels):
        features = iter(model.encode_images(example.pixels).flatten(0, 1))
    if example.codes is not None:
        fed = iter(model.code_adapter(model.code_embedding.weight[example.codes[0]]))
    for place in range(len(example)):
        if example.image_mask[place]:
            inputs.append(next(features))
        elif example.code_mask[place]:
            inputs.append(next(fed))
        else:
            inputs.append(model.language.embed.weight[example.ids[place]])
    hidden = model.hidden_states(torch.stack(inputs)[None])[0]
    text = picture = 0.0
    codes = iter(() if example.codes is None else example.codes[0].tolist())
    for place in range(len(example)):
        if example.labels[place] != IGNORE:
            text -= float(model.text_logits(hidden[place]).log_softmax(0)[example.labels[place]])
        if example.code_labels_mask[place]:
            picture -= float(model.image_logits(hidden[place]).log_softmax(0)[next(codes)])
    return text, picture


@torch.no_grad()
def test_the_losses_are_those_computed_by_hand(learner: Janus, examples: list[Example], batch: Batch) -> None:
    found = sums(learner, batch)
    text, picture = map(sum, zip(*(by_hand(learner, example) for example in examples), strict=True))
    assert float(found.text) == pytest.approx(text, rel=1e-5)  # of some hundred float32 terms
    assert float(found.picture) == pytest.approx(picture, rel=1e-5)
    assert batch.code_labels == 2 * learner.config.picture_tokens


@torch.no_grad()
def test_weights_and_the_count_of_labels_are_the_denominator_alone(learner: Janus, batch: Batch) -> None:
    found = sums(learner, batch)
    loss = total(found, LossWeights(text=2.0, picture=0.5), 7)
    # One rounding in float32 or two.
    assert float(loss) == pytest.approx((2 * float(found.text) + 0.5 * float(found.picture)) / 7, rel=1e-6)


@torch.no_grad()
def test_pictures_count_what_their_weights_say(learner: Janus, examples: list[Example], batch: Batch) -> None:
    drawn = [example for example in examples if example.task == "drawing"]
    alone = [by_hand(learner, example)[1] for example in drawn]
    numbers = {tuple(example.codes[0].tolist()): number for number, example in enumerate(drawn)}
    order = [numbers[tuple(codes.tolist())] for codes in batch.codes]
    weights = torch.tensor([2.0, -0.5])
    found = sums(learner, replace(batch, weights=weights[order]))
    # In float32, summed in another order.
    assert float(found.picture) == pytest.approx(2 * alone[0] - 0.5 * alone[1], rel=1e-5)
    assert torch.equal(found.text, sums(learner, batch).text)
    every = sums(learner, replace(batch, weights=torch.ones(2))).picture
    assert float(every) == pytest.approx(float(sums(learner, batch).picture), rel=1e-6)


def test_codes_never_touch_the_text_table(learner: Janus, make: Make, reads: Processor) -> None:
    """A drawing's codes change its input; the rows that its ids name there do not, nor do they learn."""
    batch = pad([make("drawing", 3)], reads.tokenizer.pad_id)
    embeds = assemble(learner, batch)
    embeds[batch.code_mask].sum().backward()
    assert not learner.language.embed.weight.grad.any()
    used = learner.code_embedding.weight.grad.abs().sum(1).nonzero().flatten()
    assert used.tolist() == sorted(set(batch.codes[0, :-1].tolist()))
    expected = learner.embed_codes(batch.codes)[:, :-1]
    assert torch.equal(embeds[batch.code_mask], expected.flatten(0, 1))


def gradients(model: Janus) -> dict[str, Tensor]:
    return {name: weight.grad.clone() for name, weight in trained(model).items() if weight.grad is not None}


def test_accumulating_unequal_batches_is_one_big_batch(
    learner: Janus, examples: list[Example], reads: Processor
) -> None:
    pad_id, weights = reads.tokenizer.pad_id, LossWeights(text=1.5)
    whole = pack(examples, LENGTH, pad_id)
    labels = whole.text_labels + whole.code_labels
    total(sums(learner, whole), weights, labels).backward()
    once = gradients(learner)

    learner.zero_grad(set_to_none=True)
    turns = [pad(examples[:1], pad_id), pad(examples[1:4], pad_id), pad(examples[4:], pad_id)]
    assert len({turn.text_labels + turn.code_labels for turn in turns}) == 3
    for turn in turns:
        total(sums(learner, turn), weights, labels).backward()
    accumulated = gradients(learner)

    assert set(once) == set(accumulated) == set(trained(learner))
    for name, gradient in once.items():
        error = (accumulated[name] - gradient).abs().max() / gradient.abs().max()
        assert error <= 3e-6, f"{name} is off by {error:.1e} of its largest"  # float32 sums in another order


@pytest.mark.parametrize("task", ["text", "understanding", "drawing"])
def test_what_a_batch_has_not_gets_gradients_of_zero(
    task: str, learner: Janus, make: Make, reads: Processor
) -> None:
    batch = pad([make(task, 2)], reads.tokenizer.pad_id)
    text, picture = Objective(learner)(batch)
    (text + picture).backward()
    found = gradients(learner)
    assert set(found) == set(trained(learner))
    sees, draws = task == "understanding", task == "drawing"
    expected = {"vision.": sees, "vision_adapter.": sees, "code_": draws, "image_head.": draws}
    expected["language.head."] = not draws
    for stem, moves in expected.items():
        assert any(grad.any() for name, grad in found.items() if name.startswith(stem)) == moves, stem
    assert bool(text) != draws
    assert bool(picture) == draws


def test_pictures_that_are_still_to_be_tokenized(learner: Janus, make: Make, reads: Processor) -> None:
    targets = torch.rand(2, 3, learner.config.picture_size, learner.config.picture_size) * 2 - 1
    codes = encode(learner, targets)
    assert torch.equal(codes, learner.vq.encode(targets))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(encode(learner, targets), codes)  # as exact where all else is in 16 bits
    assert not encode(learner, targets).requires_grad


def test_counts(batch: Batch, examples: list[Example]) -> None:
    found = count(batch)
    assert found.pairs == sum(len(each) * (len(each) + 1) // 2 for each in examples)
    assert (found.seen, found.tokenized, found.tokens) == (2, 0, batch.ids.numel())
    assert (found.codes, found.code_labels) == (2 * 63, 2 * 64)
    assert found.word_labels == sum(int((each.labels != IGNORE).sum()) for each in examples)


def test_masks_that_do_not_fit_the_pictures_are_refused(learner: Janus, make: Make, reads: Processor) -> None:
    batch = pad([make("drawing", 3)], reads.tokenizer.pad_id)
    vars(batch)["code_mask"][0, -1] = False
    with pytest.raises(ValueError, match="code_mask marks 62 positions, and its pictures fill 63"):
        assemble(learner, batch)
