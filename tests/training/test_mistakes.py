"""Pictures told from what their captions would mean by mistake, on the model that ships."""

from dataclasses import replace
from difflib import SequenceMatcher
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from helpers.runs import quietly
from janus.models.janus import Janus
from janus.training.mistakes import SETTLED, codes_of, pairs, tell_apart, until_settled
from janus.training.objectives import sums
from janus.training.parallel import Ranks
from janus.training.recipe.file import parse_recipe
from janus.training.recipe.learning import Mistakes
from janus.training.recipe.recipe import Recipe
from janus.training.run import Run, begin
from janus.training.worlds import shapes

ALONE = Ranks(torch.device("cpu"))
RECIPE = """
task = "sft"
train = ["code_adapter", "code_embedding", "image_head", "embed", "language"]
steps = 4
batch = 2
precision = "float32"
[model]
checkpoint = "shapes"
[data]
sequence_length = 256
workers = 0
sources = [{ task = "text", world = "shapes" }]
[mistakes]
world = "shapes"
pairs = 6
weight = 0.5
[optimizer]
lr = 1e-4
[log]
every = 1
tensorboard = false
[checkpoint]
every = 2
"""


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return parse_recipe(RECIPE, "mistaken.toml")


@pytest.fixture(scope="module")
def settings(recipe: Recipe) -> Mistakes:
    assert recipe.mistakes is not None
    return recipe.mistakes


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Run:
    return begin(recipe, tmp_path, ALONE)


def janus_of(run: Run) -> Janus:
    assert isinstance(run.model, Janus)
    return run.model


def differences(run: Run, settings: Mistakes) -> Tensor:
    """Of each pair, how much likelier its picture is by its own caption, until it is settled; one by one."""
    model, given = janus_of(run), pairs(run, settings)
    codes = codes_of(run, [pair.drawing for pair in given]).flatten(1)

    def likelihood(caption: str, own: Tensor) -> Tensor:
        ids = torch.tensor([run.processor.draw_prompt(caption)])
        inputs = torch.cat((model.embed(ids), model.embed_codes(own[None, :-1])), dim=1)
        logits = model.image_logits(model.hidden_states(inputs)[0, ids.shape[1] - 1 :])
        return -F.cross_entropy(logits, own, reduction="none")

    found = []
    for pair, own in zip(given, codes, strict=True):
        of_codes = likelihood(pair.caption, own) - likelihood(pair.mistaken, own)
        total = torch.zeros(())
        for each in of_codes:
            total = total + each
            if total > SETTLED:
                break
        found.append(total)
    return torch.stack(found)


def test_what_follows_a_settled_pair_counts_no_more() -> None:
    differences = torch.tensor(
        [[1.0, 1.5, 1.0, 5.0, -9.0], [1.0, -1.0, 1.0, -1.0, 2.0], [4.0, 0.0, 0.0, 0.0, 0.0]]
    )
    assert until_settled(differences).tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 0, 0, 0, 0]]


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_has_the_gradient_of_the_pairs(weight: float, run: Run, settings: Mistakes) -> None:
    settings = replace(settings, weight=weight)
    model, found = janus_of(run), tell_apart(run, settings)
    by_hand = differences(run, settings)
    assert float(found.figures["told_apart"]) == pytest.approx(float((by_hand > 0).float().mean()))
    weights = [model.code_embedding.weight, model.language.embed.weight, model.image_head.out.weight]
    loss = sum(sums(model, batch).picture for batch in found.batches) / found.labels
    expected = -F.logsigmoid(by_hand).mean() * weight
    for one, other in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        # float32: terms of some tens that cancel, summed in another order
        assert (one - other).abs().max() < 1e-3 * other.abs().max()


def test_a_step_tells_them_further_apart(run: Run, settings: Mistakes) -> None:
    with torch.no_grad():
        before = F.logsigmoid(differences(run, settings)).mean()
    found = tell_apart(run, settings)
    (sum(sums(janus_of(run), batch).picture for batch in found.batches) / found.labels).backward()
    run.optimizer.step()
    with torch.no_grad():
        assert F.logsigmoid(differences(run, settings)).mean() > before


def test_pairs_are_those_of_the_step_and_shared_out(run: Run, settings: Mistakes) -> None:
    whole = pairs(run, settings)
    assert len({pair.caption for pair in whole}) == settings.pairs
    assert all(pair.drawing.held_out is None for pair in whole)
    shares = [pairs(replace(run, place=replace(ALONE, rank=rank, size=2)), settings) for rank in (0, 1)]
    assert {pair.mistaken for share in shares for pair in share} == {pair.mistaken for pair in whole}
    assert len(shares[0]) + len(shares[1]) == len(whole)
    later = pairs(replace(run, step=1), settings)
    assert not {pair.mistaken for pair in later} & {pair.mistaken for pair in whole}
    related = pairs(run, replace(settings, categories=("position",), pairs=20))
    assert {pair.drawing.category for pair in related} == {"position"}
    for pair in whole:
        right, wrong = shapes.parse(pair.caption), shapes.parse(pair.mistaken)
        assert right is not None
        assert wrong is not None
        assert shapes.verify(pair.drawing.picture, right)
        assert not shapes.verify(pair.drawing.picture, wrong)
        one, other = pair.caption.split(), pair.mistaken.split()
        matching = SequenceMatcher(None, one, other, autojunk=False).get_matching_blocks()
        # Of one wording: two colors are others, or the few words of a relation.
        assert 0 < len(one) - sum(block.size for block in matching) <= 5


def test_captions_that_no_row_holds_are_refused(run: Run, settings: Mistakes) -> None:
    run.recipe = replace(run.recipe, data=replace(run.recipe.data, sequence_length=70))
    with pytest.raises(ValueError, match=r"sequence_length = 70 leaves no room .* more than 7 tokens"):
        pairs(run, settings)


def test_a_run_that_goes_on_has_the_pairs_that_it_would_have_had(recipe: Recipe, tmp_path: Path) -> None:
    straight = quietly(recipe, tmp_path / "straight")
    assert [record["step"] for record in straight] == [1, 2, 3, 4]
    assert all(0 <= record["told_apart"] <= 1 for record in straight)
    quietly(replace(recipe, steps=2), tmp_path / "other")
    assert quietly(recipe, tmp_path / "other") == straight


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ('categories = ["counting"]', r"mistakes\.categories.*counting"),
        ("pairs = 0", r"mistakes\.pairs"),
        ('world = "circles"', r"mistakes\.world"),
    ],
)
def test_sections_that_cannot_be(changes: str, message: str) -> None:
    key = changes.partition(" ")[0]
    text = "\n".join(line for line in RECIPE.splitlines() if not line.startswith(f"{key} ="))
    with pytest.raises(ValueError, match=message):
        parse_recipe(text.replace("[mistakes]", f"[mistakes]\n{changes}"), "mistaken.toml")


def test_pairs_for_every_process(recipe: Recipe, tmp_path: Path) -> None:
    few = replace(recipe, mistakes=replace(recipe.mistakes, pairs=2))
    with pytest.raises(ValueError, match=r"mistakes\.pairs = 2 cannot be shared out to 3 .*give 3 or more"):
        begin(few, tmp_path, replace(ALONE, size=3))
