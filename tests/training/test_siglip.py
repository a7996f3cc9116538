"""A vision tower that learns by captions: what fits what, the loss, and runs that go on bit by bit."""

import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

import janus
from helpers.runs import quietly, records, write_rows
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.training.costs.dry_run import dry_run
from janus.training.costs.flops import contrast_cost
from janus.training.costs.live_bytes import LiveBytes
from janus.training.costs.weigh import run as run_weighed
from janus.training.costs.weigh import weigh_contrast
from janus.training.feed import Drawings
from janus.training.parallel import Ranks
from janus.training.parts import ALIGNMENT, freeze
from janus.training.recipe.file import read_recipe
from janus.training.recipe.recipe import Recipe
from janus.training.run import begin
from janus.training.siglip import ContrastObjective, Pairs, add_contrast, fitting, prompts_in
from janus.training.siglip_loop import compare
from janus.training.worlds import shapes
from janus.training.worlds.shapes.sampling import DRAWN_CATEGORIES
from janus.training.worlds.shapes.scene import Meaning

PROGRAM = Path(__file__).with_name("run_rank.py")
ALONE = Ranks(torch.device("cpu"))

RECIPE = """
task = "siglip"
train = ["vision", "embed", "language"]
steps = 4
batch = 8
precision = "float32"
ema = 0.5
[model]
checkpoint = "shapes"
[data]
workers = 0
sources = [{ task = "drawing", world = "shapes", categories = ["single_object", "colors", "position"] }]
[optimizer]
lr = 1e-3
clip = 1.0
[log]
every = 1
tensorboard = false
[checkpoint]
every = 2
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "siglip.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture(scope="module")
def recipe(file: Path) -> Recipe:
    return read_recipe(file)


def meaning(words: str, *objects: shapes.Object) -> Meaning:
    return Meaning(shapes.parse(words), objects)


RED_CIRCLE = shapes.Object("circle", "red", "small", 4, 4)
BLUE_CIRCLE = shapes.Object("circle", "blue", "small", 4, 4)
RED_STAR = shapes.Object("star", "red", "small", 12, 4)


def test_which_captions_fit() -> None:
    meanings = [
        meaning("a red circle", RED_CIRCLE),
        meaning("a circle", BLUE_CIRCLE),
        meaning("a star", RED_STAR),
        meaning("a star right of a circle", RED_STAR, RED_CIRCLE),
        None,
        None,
    ]
    pairs = Pairs(torch.zeros(6, 3, 8, 8), [[1], [2], [3], [4], [5, 6], [5, 6]], meanings)
    assert fitting(pairs, ALONE).int().tolist() == [
        [1, 1, 0, 0, 0, 0],  # a red circle is a circle
        [0, 1, 0, 0, 0, 0],  # and a blue one is no red one
        [0, 0, 1, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],  # two things are not one
        [0, 0, 0, 0, 1, 1],  # the same words
        [0, 0, 0, 0, 1, 1],
    ]


def test_a_worlds_own_captions_fit_exactly() -> None:
    random = np.random.default_rng(0)
    drawn = [shapes.drawing(random, category=category) for category in DRAWN_CATEGORIES for _ in range(4)]
    for each in drawn:
        for other in drawn:
            assert each.meaning.is_also(other.meaning) == shapes.verify(each.picture, other.caption)


def example(model: Janus | JanusFlow, lengths: tuple[int, ...] = (3, 5, 2)) -> tuple[Tensor, ...]:
    """Pixels, ids, ends and what fits: each its own, and the first also the last."""
    generator = torch.Generator().manual_seed(0)
    size, vocabulary = model.config.vision.image_size, model.config.language.vocabulary
    pixels = torch.randn(len(lengths), 3, size, size, generator=generator)
    prompts = [torch.randint(vocabulary, (length,), generator=generator).tolist() for length in lengths]
    ids, ends = prompts_in(Pairs(pixels, prompts, [None] * len(lengths)), pad_id=0)
    fits = torch.eye(len(lengths), dtype=torch.bool)
    fits[0, -1] = True
    return pixels, ids, ends, fits


def test_the_loss_pair_by_pair(fresh: Janus) -> None:
    add_contrast(fresh, seed=0)
    pixels, ids, ends, fits = example(fresh)
    objective, contrast = ContrastObjective(fresh), getattr(fresh, ALIGNMENT)
    torch.nn.init.constant_(contrast.bias, -0.3)
    with torch.no_grad():
        loss, right = objective(pixels, ids, ends, fits)
        wanted, correct = 0.0, 0
        logits = torch.zeros(3, 3)
        for number, picture in enumerate(pixels):
            seen = contrast.pool(fresh.vision(picture[None]))[0]
            for other, end in enumerate(ends):
                words = fresh.language.embed(ids[other, : end + 1])[None]  # without any padding
                caption = contrast.words(fresh.language(words)[0, -1])
                logit = 10 * F.cosine_similarity(seen, caption, dim=0) - 0.3
                sign = 1 if fits[number, other] else -1
                wanted += float(torch.log1p(torch.exp(-sign * logit)))
                logits[number, other] = logit
            correct += bool(fits[number, logits[number].argmax()])
    assert float(loss) == pytest.approx(wanted, rel=1e-5)  # float32, in another order
    assert int(right) == correct


def test_the_pooling_attends_by_heads(fresh: Janus) -> None:
    """As torch's own attention of many heads, with the same weights."""
    add_contrast(fresh, seed=0)
    pool = getattr(fresh, ALIGNMENT).pool
    width = fresh.config.vision.width
    patches = torch.randn(2, 9, width, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        attended, _ = F.multi_head_attention_forward(
            pool.query.expand(1, 2, width),
            patches.transpose(0, 1),
            patches.transpose(0, 1),
            width,
            pool.heads,
            torch.cat((torch.eye(width), pool.kv.weight)),
            torch.cat((torch.zeros(width), pool.kv.bias)),
            None,
            None,
            False,
            0.0,
            pool.proj.weight,
            pool.proj.bias,
        )
        wanted = attended[0] + pool.mlp(pool.norm(attended[0]))
        torch.testing.assert_close(pool(patches), wanted, rtol=1e-5, atol=1e-6)  # float32


@pytest.mark.parametrize("train_parts", [("vision",), ("embed", "language"), ("vision", "embed", "language")])
def test_what_it_costs(fresh: Janus, train_parts: tuple[str, ...]) -> None:
    """As torch counts it, but for what is done once a picture."""
    freeze(fresh, train_parts)
    add_contrast(fresh, seed=0)
    lengths = (4, 4, 4)
    pixels, ids, ends, fits = example(fresh, lengths)
    with FlopCounterMode(display=False) as counter:
        ContrastObjective(fresh)(pixels, ids, ends, fits)[0].backward()
    pairs = Pairs(pixels, ids.tolist(), [None] * 3)
    found = contrast_cost(fresh.config, train_parts).of(pairs.count())
    # torch does not count a CPU's attention, and the pooling's last layers are left out of ours.
    assert found / counter.get_total_flops() == pytest.approx(1, abs=0.05)


def test_what_it_takes_is_weighed_as_computed(fresh: Janus, recipe: Recipe) -> None:
    freeze(fresh, recipe.train)
    add_contrast(fresh, seed=0)
    objective = ContrastObjective(fresh)
    size = fresh.config.vision.image_size
    with LiveBytes() as live:
        pixels, ids = torch.zeros(3, 3, size, size), torch.zeros(3, 6, dtype=torch.long)
        ends, fits = torch.full((3,), 5), torch.zeros(3, 3, dtype=torch.bool)
        found = run_weighed(fresh, recipe, lambda: objective(pixels, ids, ends, fits)[0], "cpu", live)
    assert weigh_contrast(fresh.config, replace(recipe, batch=3), 3, 6) == found


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, float]]]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, quietly(recipe, folder)


def test_a_run_goes_on_with_the_same_bits(
    recipe: Recipe, straight: tuple[Path, list[dict[str, float]]], tmp_path: Path
) -> None:
    quietly(replace(recipe, steps=2), tmp_path)
    assert quietly(recipe, tmp_path) == straight[1]
    assert (tmp_path / "model.safetensors").read_bytes() == (straight[0] / "model.safetensors").read_bytes()


def test_what_is_written_is_a_model(
    recipe: Recipe, straight: tuple[Path, list[dict[str, float]]], tmp_path: Path
) -> None:
    """With nothing of what it was compared by; what did not learn is as it was."""
    ours, theirs = janus.load(straight[0]).model, janus.load("shapes").model
    assert not hasattr(ours, ALIGNMENT)
    moved = {
        name.split(".")[0] for name, weight in ours.state_dict().items() if _differs(theirs, name, weight)
    }
    assert moved == {"vision", "language"}
    assert torch.equal(ours.language.head.weight, theirs.language.head.weight)


def _differs(model: Any, name: str, weight: Tensor) -> bool:
    return not torch.equal(model.state_dict()[name], weight)


def test_it_learns(recipe: Recipe, tmp_path: Path) -> None:
    found = quietly(replace(recipe, steps=40, batch=16), tmp_path)
    first, last = found[:5], found[-5:]
    assert np.mean([each["loss"] for each in last]) < np.mean([each["loss"] for each in first]) / 2
    assert np.mean([each["right"] for each in last]) > 2 * np.mean([each["right"] for each in first])


def test_two_processes_learn_as_one(
    file: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Captions of both are compared with pictures of both, and gradients reach both towers of both."""
    ran = torchrun(PROGRAM, file, tmp_path / "two", 3)
    assert ran.returncode == 0, ran.stderr
    alone, together = quietly(read_recipe(file, ["steps=3"]), tmp_path / "one"), records(tmp_path / "two")
    for name in ("loss", "norm", "right"):
        # In float32, summed in another order, and a step's rounding goes into the next one's weights.
        assert [each[name] for each in together] == pytest.approx([each[name] for each in alone], rel=1e-3)


def test_captions_of_files(recipe: Recipe, tmp_path: Path) -> None:
    rows = write_rows(tmp_path, ["darker", "dark", "dark"])
    sources = tuple(replace(each, world=None, categories=(), path=str(rows)) for each in recipe.data.sources)
    own = replace(recipe, data=replace(recipe.data, sources=sources), batch=3, steps=1)
    started = begin(own, tmp_path / "run", ALONE)
    assert isinstance(started.loader, Drawings)
    pairs = next(iter(started.loader))
    same = [[one == other for other in pairs.prompts] for one in pairs.prompts]
    assert fitting(pairs, ALONE).tolist() == same
    assert sorted(map(sum, same)) == [1, 2, 2]

    (tmp_path / "1.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"rows\.jsonl:2: "):
        quietly(own, tmp_path / "broken")
    rows.write_text('{"text": "no picture"}\n')
    with pytest.raises(ValueError, match=r"rows\.jsonl:1: no prompt with an image, which is all that can be"):
        quietly(own, tmp_path / "none")


def test_of_a_flow(recipe: Recipe, flow_checkpoint: str, tmp_path: Path) -> None:
    """Its towers are of the same classes; no autoencoder is asked for."""
    rows = write_rows(tmp_path, ["color 0", "color 1"])
    source = replace(recipe.data.sources[0], world=None, categories=(), path=str(rows))
    model = replace(recipe.model, checkpoint=flow_checkpoint)
    own = replace(recipe, model=model, data=replace(recipe.data, sources=(source,)), batch=2, steps=2)
    first, second = quietly(own, tmp_path / "run")
    assert second["loss"] < first["loss"]
    assert not hasattr(janus.JanusFlow.from_pretrained(tmp_path / "run"), ALIGNMENT)


def test_before_it_runs(recipe: Recipe) -> None:
    told: list[str] = []
    dry_run(recipe, device="cpu", show=told.append)
    assert "alignment" in told[0]
    assert "forward and backward of the longest batch (8 pictures and captions): loss " in told[1]


def test_a_step_of_nothing_but_gradients(recipe: Recipe, tmp_path: Path) -> None:
    """All that learns has one, and nothing else has."""
    started = begin(recipe, tmp_path, ALONE)
    assert isinstance(started.loader, Drawings)
    compare(started, next(iter(started.loader)))
    learns = {name for name, weight in started.model.named_parameters() if weight.grad is not None}
    assert learns == {name for name, weight in started.model.named_parameters() if weight.requires_grad}
    assert {name.split(".")[0] for name in learns} == {"vision", "language", ALIGNMENT}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            'train=["vision", "text_head"]',
            r'no loss of task = "siglip" reaches "text_head": name parts among',
        ),
        ("accumulate=2", r'accumulate: says nothing to task = "siglip": take it out'),
        ("loss.text=2", r'loss: says nothing to task = "siglip"'),
        ("data.sequence_length=64", r'data\.sequence_length: says nothing to task = "siglip"'),
        ("data.crop=random", r'data\.crop: says nothing to task = "siglip"'),
        ("data.ratio.drawing=1", r'data\.ratio: says nothing to task = "siglip"'),
        ("defaults.guidances=[1.0]", r'defaults: says nothing to task = "siglip"'),
        ("log.world=shapes log.samples_every=2", r'log\.world: says nothing to task = "siglip"'),
        ("parallel.kind=fsdp", r'parallel\.kind: is "fsdp", and for task = "siglip" each process has both'),
        (
            "data.sources.0.task=understanding data.sources.0.categories=[]",
            r'"understanding" is not read for task = "siglip"',
        ),
        ("vq.l1=1", r'vq: is of task = "vq", not "siglip": take it out'),
    ],
)
def test_what_a_recipe_must_not_say(file: Path, overrides: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_recipe(file, re.split(r" (?=\w+\.)", overrides))
