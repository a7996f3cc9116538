"""Learning from judged drawings, on the model that ships: what is drawn, what it counts, what it changes."""

import subprocess
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from helpers.runs import quietly, records
from janus.models.janus import Janus
from janus.pipeline import Pipeline
from janus.training.objectives import sums
from janus.training.parallel import Ranks
from janus.training.recipe.file import read_recipe
from janus.training.recipe.learning import Reinforcement
from janus.training.recipe.recipe import Recipe
from janus.training.reinforce import draw, group_advantages, judge, rollout, tasks
from janus.training.run import Run, begin
from janus.training.weighted import check_shares
from janus.training.worlds import shapes

PROGRAM = Path(__file__).with_name("run_rank.py")
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
[reinforce]
world = "shapes"
categories = ["single_object", "counting", "full"]
prompts = 4
pictures = 4
[optimizer]
lr = 1e-4
[log]
every = 1
tensorboard = false
[checkpoint]
every = 2
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "judged.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def recipe(file: Path) -> Recipe:
    return read_recipe(file)


@pytest.fixture(scope="module")
def settings(recipe: Recipe) -> Reinforcement:
    assert recipe.reinforce is not None
    return recipe.reinforce


@pytest.fixture
def run(recipe: Recipe, tmp_path: Path) -> Run:
    return begin(recipe, tmp_path, ALONE)


def janus_of(run: Run) -> Janus:
    assert isinstance(run.model, Janus)
    return run.model


@given(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=6))
def test_pictures_stand_against_those_of_their_own_prompt(rewards: list[list[bool]]) -> None:
    found = group_advantages(torch.tensor(rewards, dtype=torch.float32))
    for row, right in zip(found, torch.tensor(rewards), strict=True):
        if right.all() or not right.any():
            assert not row.any()
            continue
        # In float32, of four numbers around 1.
        assert float(row.sum()) == pytest.approx(0, abs=1e-6)
        assert float(row.square().mean()) == pytest.approx(1, abs=1e-6)
        assert row[right].min() > 0 > row[~right].max()


def test_tasks_are_those_of_the_step_and_shared_out(run: Run, settings: Reinforcement) -> None:
    whole = tasks(run, settings)
    assert len(whole) == settings.prompts * settings.pictures
    assert all(task.drawing.held_out is None for task in whole)
    assert {task.drawing.category for task in whole} <= set(settings.categories)
    assert len({(task.picture.seed, task.picture.number) for task in whole}) == len(whole)
    for one, other in pairwise(whole[: settings.pictures]):
        assert one.drawing is other.drawing

    shares = [tasks(replace(run, place=replace(ALONE, rank=rank, size=2)), settings) for rank in (0, 1)]
    by_picture = {(task.picture.seed, task.picture.number): task.picture for task in whole}
    shared = [task.picture for share in shares for task in share]
    assert {(picture.seed, picture.number): picture for picture in shared} == by_picture
    assert len(shared) == len(whole)

    later = tasks(replace(run, step=1), settings)
    assert not {task.picture.seed for task in later} & {task.picture.seed for task in whole}


def test_prompts_that_are_too_long_for_a_row_are_drawn_anew(recipe: Recipe, tmp_path: Path) -> None:
    room = 21
    short = replace(recipe, data=replace(recipe.data, sequence_length=63 + room), steps=8)
    run = begin(short, tmp_path, ALONE)
    settings = replace(short.reinforce, categories=shapes.CATEGORIES, prompts=30)
    lengths = [len(task.picture.prompt) for task in tasks(run, settings)]
    assert max(lengths) <= room
    longer = [len(task.picture.prompt) for task in tasks(begin(recipe, tmp_path, ALONE), settings)]
    assert max(longer) > room
    assert [one for one, two in zip(lengths, longer, strict=True) if two <= room] == [
        two for two in longer if two <= room
    ], "others are what they would have been"
    run.recipe = replace(short, data=replace(recipe.data, sequence_length=70))
    with pytest.raises(
        ValueError, match=r"sequence_length = 70 leaves no room .*: prompts have more than 7 tok"
    ):
        tasks(run, settings)


def test_half_of_the_prompts_name_a_color(run: Run, settings: Reinforcement) -> None:
    settings = replace(settings, color="orange", prompts=100, pictures=2)
    drawings = [task.drawing for task in tasks(run, settings)[:: settings.pictures]]
    named = [drawing for drawing in drawings if "orange" in drawing.caption.lower()]
    assert {drawing.category for drawing in named} == {"full"}  # alone of the three
    assert {drawing.category for drawing in drawings} == {"single_object", "counting", "full"}
    assert 30 <= len(named) <= 70  # four deviations of a fair coin's hundred


def test_pictures_are_those_that_the_pipeline_draws(run: Run, settings: Reinforcement) -> None:
    wanted = tasks(run, settings)
    codes = draw(run, wanted)
    pipe = Pipeline(janus_of(run), run.processor)
    rewards = judge(janus_of(run), codes, [task.drawing.spec for task in wanted])
    for first in range(0, len(wanted), settings.pictures):
        task = wanted[first]
        pictures = pipe.draw(
            task.drawing.caption,
            n=settings.pictures,
            seed=task.picture.seed,
            guidance=1,
            temperature=1,
            progress=False,
        )
        right = [shapes.verify(np.asarray(picture), task.drawing.spec) for picture in pictures]
        assert rewards[first : first + settings.pictures].tolist() == right


def test_the_judge_tells_right_from_wrong(run: Run) -> None:
    model = janus_of(run)
    drawings = shapes.seen_prompts(7, 3, split="validation", side=model.config.picture_size)
    pixels = torch.stack([torch.from_numpy(each.picture).permute(2, 0, 1) for each in drawings])
    with torch.no_grad():
        codes = model.vq.encode(pixels / 127.5 - 1)
    specs = [each.spec for each in drawings]
    assert judge(model, codes, specs).tolist() == [1] * 7
    assert judge(model, codes, specs[1:] + specs[:1]).sum() == 0


def likelihoods(run: Run, wanted: Tensor) -> Tensor:
    """The logarithm of the probability that the model draws each picture (P K,) of the run's tasks."""
    settings = run.recipe.reinforce
    assert settings is not None
    model, found = janus_of(run), []
    for task, codes in zip(tasks(run, settings), wanted.flatten(1), strict=True):
        ids = torch.tensor([task.picture.prompt])
        inputs = torch.cat((model.embed(ids), model.embed_codes(codes[None, :-1])), dim=1)
        hidden = model.hidden_states(inputs)[0, ids.shape[1] - 1 :]
        logits = model.image_logits(hidden).log_softmax(dim=-1)
        found.append(logits[torch.arange(len(codes)), codes].sum())
    return torch.stack(found)


@pytest.mark.parametrize("weight", [1.0, 0.25])
def test_the_loss_is_the_policy_gradient(weight: float, run: Run, settings: Reinforcement) -> None:
    settings = replace(settings, weight=weight)
    found = rollout(run, settings)
    model, wanted = janus_of(run), tasks(run, settings)
    codes = draw(run, wanted)
    rewards = judge(model, codes, [task.drawing.spec for task in wanted])
    advantages = group_advantages(rewards.view(settings.prompts, -1)).flatten()
    assert 0 < rewards.sum() < len(rewards)  # or nothing would be tested
    assert float(found.figures["drawn_right"]) == pytest.approx(float(rewards.mean()))

    expected = -(advantages * likelihoods(run, codes)).sum() / (len(wanted) * 64) * settings.weight
    loss = sum(sums(model, batch).picture for batch in found.batches) / found.labels
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)  # a sum of terms of some tens that cancel
    weights = [model.code_embedding.weight, model.language.embed.weight, model.image_head.out.weight]
    for one, other in zip(
        torch.autograd.grad(loss, weights), torch.autograd.grad(expected, weights), strict=True
    ):
        assert (one - other).abs().max() < 1e-4 * other.abs().max()  # float32, summed in another order


def test_what_came_out_right_becomes_likelier(run: Run, settings: Reinforcement) -> None:
    wanted = tasks(run, settings)
    codes = draw(run, wanted)
    rewards = judge(janus_of(run), codes, [task.drawing.spec for task in wanted])
    advantages = group_advantages(rewards.view(settings.prompts, -1)).flatten()
    with torch.no_grad():
        before = likelihoods(run, codes)
    found = rollout(run, settings)
    (sum(sums(janus_of(run), batch).picture for batch in found.batches) / found.labels).backward()
    run.optimizer.step()
    with torch.no_grad():
        change = likelihoods(run, codes) - before
    assert float(advantages @ change) > 0


def test_batches_have_no_more_rows_than_those_of_the_data(run: Run, settings: Reinforcement) -> None:
    found = rollout(run, replace(settings, prompts=6))
    assert len(found.batches) > 1
    assert all(len(batch.ids) <= run.loader.rows for batch in found.batches)
    assert all(batch.ids.shape[1] == 256 for batch in found.batches)
    for batch in found.batches:
        assert batch.weights is not None
        assert len(batch.weights) == len(batch.codes)
        assert batch.weights.all()


def test_a_step_that_teaches_nothing_still_has_a_batch(run: Run, settings: Reinforcement) -> None:
    with torch.no_grad():  # all pictures are alike, and none is right
        janus_of(run).image_head.out.bias[0] = 1e4
    found = rollout(run, settings)
    assert float(found.figures["drawn_right"]) == 0
    (batch,) = found.batches
    assert batch.weights is not None
    assert batch.weights.tolist() == [0]
    loss = sums(janus_of(run), batch).picture
    loss.backward()
    assert all(not weight.grad.any() for weight in janus_of(run).parameters() if weight.grad is not None)


def test_a_run_that_goes_on_draws_what_it_would_have_drawn(recipe: Recipe, tmp_path: Path) -> None:
    straight = quietly(recipe, tmp_path / "straight")
    assert [record["step"] for record in straight] == [1, 2, 3, 4]
    assert all(0 <= record["drawn_right"] <= 1 for record in straight)
    quietly(replace(recipe, steps=2), tmp_path / "other")
    assert quietly(recipe, tmp_path / "other") == straight


def test_two_processes_learn_as_one(
    file: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    own = tmp_path / "own.toml"  # without data, whose rows two processes fill in another way
    own.write_text(file.read_text() + "[loss]\ntext = 0\n")
    ran = torchrun(PROGRAM, own, tmp_path / "two", 2)
    assert ran.returncode == 0, ran.stderr
    alone, together = quietly(read_recipe(own, ["steps=2"]), tmp_path / "one"), records(tmp_path / "two")
    assert [each["drawn_right"] for each in together] == [each["drawn_right"] for each in alone]
    # In float32, summed in another order.
    assert [each["norm"] for each in together] == pytest.approx([each["norm"] for each in alone], rel=1e-3)


def test_prompts_for_every_process(recipe: Recipe) -> None:
    check_shares(recipe, replace(ALONE, size=4))
    with pytest.raises(ValueError, match=r"reinforce.prompts = 4 cannot be shared out to 5 .*give 5 or more"):
        check_shares(recipe, replace(ALONE, size=5))
