"""The dry run: it tells, tries the longest batch, and moves nothing."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from janus.models.janus import Janus
from janus.training.costs import dry_run as module
from janus.training.costs.dry_run import dry_run, longest_batch
from janus.training.costs.longest import longest_row
from janus.training.data.outline import IGNORE
from janus.training.objectives import count, encode, sums
from janus.training.recipe.learning import VQLearning
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import KINDS, Data, Optimizer, Ratio, Source, Start

LENGTH = 100


@pytest.fixture
def recipe(checkpoint: str) -> Recipe:
    return Recipe(
        task="janus",
        model=Start(checkpoint=checkpoint),
        train=("language", "image_head", "text_head"),
        data=Data(
            sources=tuple(Source(task=kind, world="shapes") for kind in KINDS),
            ratio=Ratio(understanding=1, text=1, drawing=1),
            sequence_length=LENGTH,
            workers=0,
        ),
        optimizer=Optimizer(lr=1e-3),
        steps=10,
        batch=2,
        precision="float32",
    )


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_batch_is_what_was_weighed(kind: Any, model: Janus) -> None:
    row = longest_row(model.config, LENGTH, kind)
    batch = longest_batch(model.config, row, 2)
    assert batch.ids.shape == (2, LENGTH)
    found = count(batch)
    assert (found.seen, found.tokenized) == (2 * row.seen, 2 * row.drawn)
    assert (found.word_labels, found.code_labels) == (2 * row.words, 2 * row.codes)
    assert found.pairs == 2 * LENGTH * (LENGTH + 1) // 2
    assert int(batch.image_mask.sum()) == found.seen * model.config.vision.tokens
    assert int(batch.code_mask.sum()) == found.tokenized * (model.config.picture_tokens - 1)
    assert not (batch.image_mask & (batch.labels != IGNORE)).any()
    with torch.no_grad():
        losses = sums(model, batch.tokenized(lambda targets: encode(model, targets)))
    assert losses.text.isfinite()
    assert bool(losses.picture) == (kind == "drawing")


def test_it_tells_and_tries_and_writes_nothing(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    began: list[Any] = []
    begin = module.begin
    monkeypatch.setattr(module, "begin", lambda *given: began.append(begin(*given)) or began[-1])
    told: list[str] = []
    dry_run(recipe, device="cpu", show=told.append)
    assert "memory of a process" in told[0]
    assert "forward and backward of the longest batch (text rows): loss " in told[1]
    (run,) = began
    assert run.model.language.norm.weight.grad.any()
    assert run.optimizer.state == {}
    assert list(tmp_path.iterdir()) == []


def test_of_a_tokenizer(recipe: Recipe) -> None:
    vq = Recipe(
        task="vq",
        model=recipe.model,
        train=("decoder",),
        data=Data(sources=(Source(task="drawing", world="shapes"),), workers=0),
        optimizer=recipe.optimizer,
        steps=1,
        batch=2,
        vq=VQLearning(picture_size=64),
    )
    told: list[str] = []
    dry_run(vq, device="cpu", show=told.append)
    assert "forward and backward of the longest batch (2 pictures): loss " in told[1]


def test_what_stops_a_run_stops_it_too(recipe: Recipe, tmp_path: Path) -> None:
    missing = Source(task="text", path=str(tmp_path / "missing.jsonl"))
    data = replace(recipe.data, sources=(missing,), ratio=Ratio(text=1))
    told: list[str] = []
    with pytest.raises(FileNotFoundError, match=r"missing\.jsonl"):
        dry_run(replace(recipe, data=data), device="cpu", show=told.append)
    assert len(told) == 1  # what can be told without data was
