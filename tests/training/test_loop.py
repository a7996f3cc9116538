"""Runs of a few steps: what they write, that a killed one goes on bit by bit, and as other processes."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import janus
from helpers.runs import quietly, records
from janus import cpu
from janus.models.llama import Block
from janus.models.siglip import Block as VisionBlock
from janus.training import evaluation, run, train
from janus.training.checkpoint import newest
from janus.training.log import read_log
from janus.training.parallel import Ranks
from janus.training.prepare import Purpose, tokenize_drawings
from janus.training.recipe.file import read_recipe
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import LossWeights, Source
from janus.training.recipe.watch import Evaluation
from janus.training.run import begin, check_finite
from janus.weights.processor_config import read_generation_defaults

PROGRAM = Path(__file__).with_name("run_rank.py")
ALONE = Ranks(torch.device("cpu"))

RECIPE = """
task = "janus"
train = [
    "vision", "vision_adapter", "code_embedding", "code_adapter", "image_head",
    "embed", "language", "text_head",
]
steps = 7
batch = 4
accumulate = 2
precision = "float32"
ema = 0.9
[model]
checkpoint = "{checkpoint}"
[data]
sequence_length = 200
workers = 0
ratio = {{ understanding = 1, text = 1, drawing = 2 }}
sources = [
    {{ task = "understanding", world = "shapes" }},
    {{ task = "text", world = "shapes" }},
    {{ task = "drawing", world = "shapes" }},
]
[optimizer]
lr = 1e-3
[schedule]
kind = "constant"
warmup = 2
[log]
every = 1
tensorboard = false
[checkpoint]
every = 2
keep = 2
"""


@pytest.fixture(scope="module")
def file(checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "tiny.toml"
    file.write_text(RECIPE.format(checkpoint=checkpoint))
    return file


@pytest.fixture(scope="module")
def recipe(file: Path) -> Recipe:
    return read_recipe(file)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    folder = tmp_path_factory.mktemp("straight")
    quietly(recipe, folder)
    return folder


def test_a_run_writes_its_log_its_checkpoints_and_the_model(straight: Path, recipe: Recipe) -> None:
    found = records(straight)
    assert [record["step"] for record in found] == list(range(1, 8))
    assert [record["rate"] for record in found] == [5e-4] + [1e-3] * 6
    assert found[-1]["loss"] < found[0]["loss"]
    assert all(0 <= record["padding"] < 1 for record in found)
    names = [folder.name for folder in sorted((straight / "checkpoints").iterdir())]
    assert names == ["step-00000006", "step-00000007"]
    assert newest(straight / "checkpoints").recipe() == recipe


def test_the_loss_is_that_of_all_labels_and_its_parts_of_their_own(recipe: Recipe, tmp_path: Path) -> None:
    first = quietly(replace(recipe, steps=2, ema=None), tmp_path / "one")[0]
    whole = quietly(replace(recipe, steps=2, ema=None, accumulate=1), tmp_path / "other")[0]
    # Rows that are packed in turns and those packed at once hold the same documents, but for the last ones.
    between = sorted((first["text_loss"], first["picture_loss"]))
    assert between[0] < first["loss"] < between[1]
    assert whole["loss"] == pytest.approx(first["loss"], rel=0.05)


def test_a_step_is_clipped_and_of_the_rate_that_is_logged(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """AdamW's first step is of the rate, whatever the gradient: so SGD, whose step is the gradient's."""

    def build(model: torch.nn.Module, settings: Any, group: Any) -> torch.optim.Optimizer:
        return torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=9.0)

    monkeypatch.setattr(run, "build_optimizer", build)
    clipped = replace(recipe, optimizer=replace(recipe.optimizer, clip=1e-2), ema=None)
    ours = begin(clipped, tmp_path, ALONE)
    for rate in (0.5, 0.25):
        before = torch.cat([weight.detach().flatten().clone() for weight in run.learning(ours.model)])
        for weight in run.learning(ours.model):
            weight.grad = torch.ones_like(weight)
        run.advance(ours, run.learning(ours.model), rate)
        moved = torch.cat([weight.detach().flatten() for weight in run.learning(ours.model)]) - before
        # Weights of 1 lose what is less than 1e-7 of each of their steps, some 1e-5.
        assert moved.norm().item() == pytest.approx(1e-2 * rate, rel=1e-2)


def test_what_a_recipe_says_reaches_the_run(recipe: Recipe, tmp_path: Path) -> None:
    usual = begin(recipe, tmp_path / "usual", ALONE)
    assert usual.loader.packed
    assert (usual.loader.builder.prompt_dropout, usual.loader.builder.crop) == (0.1, "center")
    data = replace(recipe.data, packing=False, prompt_dropout=0.3, crop="random")
    ours = begin(
        replace(recipe, data=data, activation_checkpointing=True, precision="bfloat16"),
        tmp_path / "ours",
        ALONE,
    )
    assert not ours.loader.packed
    assert (ours.loader.builder.prompt_dropout, ours.loader.builder.crop) == (0.3, "random")
    assert {weight.dtype for weight in ours.model.parameters()} == {torch.bfloat16}
    runs = {}
    for name, each in (("usual", usual), ("ours", ours)):
        entered = []
        block = each.model.language.layers[0]
        block.input_norm.register_forward_hook(lambda *given, entered=entered: entered.append(1))
        batch = each.encoded(next(iter(each.loader)))
        sum(each.objective(batch)).backward()
        runs[name] = len(entered)
    assert runs == {"usual": 1, "ours": 2}, "checkpointed blocks are computed once more on the way back"


def test_losses_count_as_a_recipe_says(recipe: Recipe, tmp_path: Path) -> None:
    found = quietly(replace(recipe, steps=2, loss=LossWeights(text=3.0, picture=0.5)), tmp_path)[0]
    alike = quietly(replace(recipe, steps=2), tmp_path / "alike")[0]
    assert found["text_loss"] == alike["text_loss"]
    words = (alike["loss"] - alike["picture_loss"]) / (
        alike["text_loss"] - alike["picture_loss"]
    )  # their share
    expected = 3.0 * words * alike["text_loss"] + 0.5 * (1 - words) * alike["picture_loss"]
    assert found["loss"] == pytest.approx(expected, rel=1e-4)  # a difference of losses that are nearly alike


def test_the_model_that_is_written_is_the_average(straight: Path) -> None:
    found = newest(straight / "checkpoints")
    model = janus.Janus.from_pretrained(straight, device="cpu", dtype="float32")
    names = dict(model.named_parameters())
    learns = [name for name in names if not name.startswith("vq.")]
    saved = {f"average.{name}": torch.zeros_like(names[name]) for name in learns}
    weights = {f"model.{name}": torch.zeros_like(tensor) for name, tensor in names.items()}
    found.load({**saved, **weights})
    for name, tensor in names.items():
        assert torch.equal(tensor, saved.get(f"average.{name}", weights[f"model.{name}"])), name
    assert not torch.equal(saved["average.language.norm.weight"], weights["model.language.norm.weight"])
    assert janus.load(straight, device="cpu").ask("Hi", max_new_tokens=2) is not None


@pytest.fixture(scope="module")
def killed(file: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that were killed, by where they were."""
    folders = {where: tmp_path_factory.mktemp(where) for where in ("writing", "learning")}
    for where, folder in folders.items():
        run = start(file, folder, "7", where)
        assert run.returncode == -signal.SIGKILL, run.stderr
    return folders


def start(*arguments: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PROGRAM.parents[2])}
    command = [sys.executable, str(PROGRAM), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


@pytest.mark.parametrize(("where", "reached", "left"), [("writing", 4, 2), ("learning", 5, 4)])
def test_a_killed_run_goes_on_with_the_same_bits(
    where: str, reached: int, left: int, killed: dict[str, Path], straight: Path, recipe: Recipe
) -> None:
    folder = killed[where]
    assert [record["step"] for record in records(folder)] == list(range(1, reached + 1))
    assert newest(folder / "checkpoints").step == left
    found = quietly(recipe, folder)
    assert found == records(straight)
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, straight))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_run_that_is_over_is_only_written_again(straight: Path, recipe: Recipe, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "copy"))
    (folder / "model.safetensors").unlink()
    before = records(folder)
    assert quietly(recipe, folder) == before
    assert (folder / "model.safetensors").exists()


def test_a_run_goes_on_without_what_it_started_from(
    straight: Path, recipe: Recipe, checkpoint: str, tmp_path: Path
) -> None:
    """A checkpoint is whole: the weights and files of the beginning may be gone."""
    start = Path(shutil.copytree(checkpoint, tmp_path / "start"))
    recipe = replace(recipe, model=replace(recipe.model, checkpoint=str(start)))
    folder = tmp_path / "run"
    quietly(replace(recipe, steps=4), folder)
    shutil.rmtree(start)
    assert quietly(recipe, folder) == records(straight)


@pytest.mark.parametrize("widens", [True, False])
@pytest.mark.parametrize("precision", ["autocast", "bfloat16", "float32"])
def test_the_peak_is_of_what_is_computed_in(
    precision: str, widens: bool, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A CPU without instructions for bfloat16 computes in float32: the peak of the other is no peak there."""
    monkeypatch.setattr(cpu, "widens", lambda device, dtype: widens and dtype != torch.float32)
    asked = []
    monkeypatch.setattr(run, "machine_rate", lambda device, dtype: asked.append(dtype) or 1.0)
    log = run.open_log(replace(recipe, precision=precision), tmp_path, ALONE, 0, None)
    assert log is not None
    log.close()
    assert asked == [torch.float32 if widens or precision == "float32" else torch.bfloat16]


def test_a_run_with_muon_goes_on_with_the_same_bits(recipe: Recipe, tmp_path: Path) -> None:
    recipe = replace(recipe, optimizer=replace(recipe.optimizer, kind="muon"))
    whole = quietly(recipe, tmp_path / "whole")
    assert whole[-1]["loss"] < whole[0]["loss"]
    quietly(replace(recipe, steps=4), tmp_path / "parts")
    assert quietly(recipe, tmp_path / "parts") == whole


def test_blocks_that_are_compiled_learn_the_same(
    recipe: Recipe, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the compiler's own kernels, which take a minute: what is traced is what counts here."""
    kinds, graphs, compiler = [], [], torch.compile

    def traced(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Callable[..., Any]:
        graphs.append(graph)
        return graph.forward

    def compiled(forward: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        kinds.append(forward)
        return compiler(forward, backend=traced, **options)

    monkeypatch.setattr(torch, "compile", compiled)
    quietly(replace(recipe, compile=True, steps=2), tmp_path)
    assert kinds == [Block.forward, VisionBlock.forward]
    first = len(graphs)
    assert first > len(kinds)  # attention parts a block of the language model in two
    # Rows of other lengths want no graph of their own, but for a batch without any picture.
    found = quietly(replace(recipe, compile=True), tmp_path)
    assert len(graphs) <= first + 1
    for own, expected in zip(found, records(straight), strict=True):
        assert own["loss"] == pytest.approx(expected["loss"], rel=1e-5)


def test_another_recipe_is_refused(straight: Path, recipe: Recipe) -> None:
    with pytest.raises(ValueError, match=r"differs in ema, seed: give the same, or begin in another folder"):
        train(replace(recipe, seed=1, ema=None), straight, device="cpu")
    with pytest.raises(ValueError, match="is of step 7, and steps = 3 are over by then"):
        train(replace(recipe, steps=3), straight, device="cpu")


def test_two_processes_and_one_go_on_from_each_other(
    file: Path,
    straight: Path,
    recipe: Recipe,
    tmp_path: Path,
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    two = tmp_path / "two.toml"
    two.write_text(file.read_text().replace("[optimizer]", '[parallel]\nkind = "fsdp"\n[optimizer]'))
    run = torchrun(PROGRAM, two, tmp_path / "two", 4)
    assert run.returncode == 0, run.stderr
    assert newest(tmp_path / "two" / "checkpoints").ranks == 2
    quietly(replace(read_recipe(two), steps=5), tmp_path / "two")
    found = records(tmp_path / "two")
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5]
    assert found[4]["loss"] < found[0]["loss"]
    for folder in (tmp_path / "two", straight):
        assert set(load_file(folder / "model.safetensors")) == set(load_file(straight / "model.safetensors"))

    folder = Path(shutil.copytree(straight, tmp_path / "one"))
    run = torchrun(PROGRAM, two, folder, 9)
    assert run.returncode == 0, run.stderr
    found = records(folder)
    assert found[:7] == records(straight)
    assert [record["step"] for record in found[7:]] == [8, 9]
    assert found[-1]["loss"] < found[0]["loss"]
    assert newest(folder / "checkpoints").ranks == 2


def test_what_is_measured_of_a_model_that_is_split_changes_nothing(
    file: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Held-out losses are of forward passes alone, after which the root would stay whole, and be stale."""
    text = file.read_text().replace("[optimizer]", '[parallel]\nkind = "fsdp"\n[optimizer]')
    measured = (
        text
        + """
[evaluate]
evaluator = "loss"
every = 1
examples = 4
sources = [{ task = "text", world = "shapes" }]
"""
    )
    for name, content in (("plain", text), ("measured", measured)):
        (tmp_path / f"{name}.toml").write_text(content)
        for steps in (2, 4):  # the second goes on from the first's checkpoint
            run = torchrun(PROGRAM, tmp_path / f"{name}.toml", tmp_path / name, steps)
            assert run.returncode == 0, run.stderr
    assert records(tmp_path / "measured") == records(tmp_path / "plain")
    ours, theirs = (load_file(tmp_path / each / "model.safetensors") for each in ("measured", "plain"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_a_run_on_codes_goes_on(file: Path, checkpoint: str, data: Path, tmp_path: Path) -> None:
    """Beside a model in 16 bits, too: its tokenizer is still the one that made them."""
    picture = str(data / "preprocess" / "images" / "wide.png")
    lines = "".join(json.dumps({"prompt": prompt, "image": picture}) + "\n" for prompt in "abcd")
    (tmp_path / "drawings.jsonl").write_text(lines)
    wider = Path(shutil.copytree(checkpoint, tmp_path / "model"))
    model = janus.load(checkpoint, dtype="float32", device="cpu").model
    with torch.no_grad():
        model.vq.codebook += 1e-4 * model.vq.codebook.sign()  # as no 16 bits have it
    model.save_pretrained(wider)
    codes = tmp_path / "codes"
    purpose = Purpose.of(str(wider), None)
    tokenize_drawings(str(tmp_path / "drawings.jsonl"), codes, purpose, device=torch.device("cpu"))
    on_codes = tmp_path / "codes.toml"
    text = file.read_text().replace(checkpoint, str(wider))
    on_codes.write_text(
        text.replace('task = "drawing", world = "shapes"', f'task = "drawing", path = "{codes}"')
    )
    straight = quietly(read_recipe(on_codes, ["steps=4"]), tmp_path / "straight")
    quietly(read_recipe(on_codes, ["steps=2"]), tmp_path / "parts")
    assert quietly(read_recipe(on_codes, ["steps=4"]), tmp_path / "parts") == straight
    quietly(read_recipe(on_codes, ["steps=2", "precision=bfloat16"]), tmp_path / "bfloat16")


def test_two_processes_go_on_with_the_same_bits(
    file: Path, tmp_path: Path, torchrun: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    """Killed while they write a checkpoint."""
    run = torchrun(PROGRAM, file, tmp_path / "whole", 7)
    assert run.returncode == 0, run.stderr
    assert torchrun(PROGRAM, file, tmp_path / "parts", 7, "writing").returncode != 0
    assert newest(tmp_path / "parts" / "checkpoints").step == 2
    run = torchrun(PROGRAM, file, tmp_path / "parts", 7)
    assert run.returncode == 0, run.stderr
    assert records(tmp_path / "parts") == records(tmp_path / "whole")
    ours, theirs = (load_file(tmp_path / each / "model.safetensors") for each in ("parts", "whole"))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_samples_and_held_out_losses_are_logged_and_change_nothing(
    file: Path, straight: Path, data: Path, tmp_path: Path
) -> None:
    picture = data / "photographs" / "chelsea.png"
    shows = 'samples_every = 2\nworld = "shapes"\nscenes = 3\nprompts = ["a red circle", "a cat"]\n'
    text = file.read_text().replace("[log]\n", f"[log]\n{shows}")
    text += f"""
[[log.pictures]]
picture = "{picture}"
question = "What is it?"
[evaluate]
evaluator = "loss"
every = 2
examples = 4
sources = [{{ task = "drawing", world = "shapes" }}, {{ task = "text", world = "shapes" }}]
"""
    shown = tmp_path / "shown.toml"
    shown.write_text(text)
    torch.manual_seed(5)
    state = torch.get_rng_state()
    train(shown, tmp_path / "run", overrides=["steps=3"], device="cpu", show=lambda line: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert records(tmp_path / "run") == records(straight)[:3]
    logged = read_log(tmp_path / "run" / "log.jsonl")
    drawn = [record for record in logged if "drawn" in record]
    assert [record["step"] for record in drawn] == [2, 3]  # every second, and the last
    for record in drawn:
        assert [each["prompt"] for each in record["drawn"]] == ["a red circle", "a cat"]
        for each in record["drawn"]:
            assert Image.open(tmp_path / "run" / each["picture"]).size == (64, 64)
        asked, *scenes = record["asked"]
        assert len({each["question"] for each in scenes}) == 3
        assert all(Image.open(tmp_path / "run" / each["picture"]).size == (64, 64) for each in scenes)
        assert (asked["question"], type(asked["answer"])) == ("What is it?", str)
    held_out = [record for record in logged if "held_out_loss" in record]
    assert [record["step"] for record in held_out] == [2, 3]
    assert held_out[1]["held_out_loss"] < held_out[0]["held_out_loss"]
    assert set(held_out[0]) == {"step", "held_out_loss", "held_out_text_loss", "held_out_picture_loss"}


def test_held_out_losses_are_of_each_row_once(file: Path, tmp_path: Path) -> None:
    """However many examples are asked for: there are no more."""
    rows = tmp_path / "held-out.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": text}) + "\n" for text in ("a", "two words", "three of them"))
    )
    evaluated, found = tmp_path / "evaluated.toml", []
    for examples in (3, 4, 1000):
        evaluated.write_text(f"""{file.read_text()}
[evaluate]
evaluator = "loss"
examples = {examples}
sources = [{{ task = "text", path = "{rows}" }}]
""")
        evaluate = evaluation.build_evaluator(begin(read_recipe(evaluated), tmp_path / "run", ALONE))
        assert evaluate is not None
        found.append(evaluate())
    assert found[0] == found[1] == found[2]


def test_scores_of_the_world_of_shapes(file: Path, tmp_path: Path) -> None:
    text = """
[evaluate]
evaluator = "shapes"
every = 1
examples = 3
sources = [
    { task = "drawing", world = "shapes" },
    { task = "understanding", world = "shapes" },
    { task = "drawing", world = "shapes", color = "orange" },
]
"""
    scored = tmp_path / "shapes.toml"
    scored.write_text(file.read_text().replace("warmup = 2", "") + text)
    train(scored, tmp_path / "run", overrides=["steps=1"], device="cpu", show=lambda line: None)
    (scores,) = [record for record in read_log(tmp_path / "run" / "log.jsonl") if "drawing" in record]
    # Of a model that has learned nothing.
    assert scores == {"step": 1, "drawing": 0.0, "answers": 0.0, "drawing_orange": 0.0}


def test_scores_are_shares_of_what_is_right(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = {}

    def judged(verb: str, right: list[bool]) -> Callable[..., list[bool]]:
        def judge(pipe: Any, items: list[Any], *rest: Any) -> list[bool]:
            given[verb] = items
            return right

        return judge

    monkeypatch.setattr(evaluation, "draw", judged("draw", [True, False, True, True]))
    monkeypatch.setattr(evaluation, "answer", judged("answer", [False, False, True, False]))
    sources = (
        Source(task="drawing", world="shapes", color="orange"),
        Source(task="understanding", world="shapes"),
    )
    settings = Evaluation(evaluator="shapes", examples=4, sources=sources)
    score = evaluation.build_evaluator(begin(replace(recipe, evaluate=settings), tmp_path, ALONE))
    assert score() == {"drawing_orange": 0.75, "answers": 0.25}
    assert len(given["draw"]) == len(given["answer"]) == 4
    assert all("orange" in str(drawing.spec) and drawing.held_out is None for drawing in given["draw"])


def test_a_model_that_cannot_be_scored_is_told_before_the_first_step(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("janus.evaluation.shapes.LEAST_SIDE", 65)
    scored = tmp_path / "shapes.toml"
    evaluate = '\nevaluator = "shapes"\nsources = [{ task = "drawing", world = "shapes" }]\n'
    scored.write_text(file.read_text() + f"[evaluate]{evaluate}")
    with pytest.raises(ValueError, match=r"a side of 64 pixels, and the world `shapes` needs 65"):
        train(scored, tmp_path / "run", device="cpu", show=lambda line: None)
    assert not (tmp_path / "run" / "log.jsonl").exists()


def test_what_is_left_out_or_cut_for_its_length_is_told(file: Path, tmp_path: Path) -> None:
    """Row by row in turn, of which every second is too long."""
    (tmp_path / "rows.jsonl").write_text('{"text": "short"}\n' + json.dumps({"text": "long " * 200}) + "\n")
    text = file.read_text().replace(
        'task = "text", world = "shapes"', f'task = "text", path = "{tmp_path / "rows.jsonl"}"'
    )
    lines: dict[str, list[str]] = {"drop": [], "truncate_text": []}
    for policy, shown in lines.items():
        recipe = tmp_path / f"{policy}.toml"
        recipe.write_text(text.replace("workers = 0", f'workers = 0\noverlong = "{policy}"'))
        train(recipe, tmp_path / policy, overrides=["steps=3"], device="cpu", show=shown.append)
    last = {policy: read_log(tmp_path / policy / "log.jsonl")[-1] for policy in lines}
    assert last["drop"]["dropped"] > last["drop"]["cut"] == 0
    assert last["truncate_text"]["cut"] > last["truncate_text"]["dropped"] == 0
    assert f"{last['drop']['dropped']:.0f} too long, 0 cut" in lines["drop"][-1]


def test_what_to_draw_with_is_chosen_in_the_end(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = {(3.0, 1.0): 1, (2.0, 0.5): 2}  # of two prompts; the other pairs have none

    def judged(pipe: Any, drawings: list[Any], *rest: Any, **options: float) -> list[bool]:
        drawn.append((options["guidance"], options["temperature"]))
        count = right.get(drawn[-1], 0)
        return [number < count for number in range(len(drawings))]

    drawn: list[tuple[float, float]] = []
    monkeypatch.setattr("janus.evaluation.defaults.draw", judged)
    text = "[defaults]\nguidances = [3.0, 2.0]\ntemperatures = [1.0, 0.5]\nprompts = 2\n"
    several = tmp_path / "defaults.toml"
    several.write_text(file.read_text().replace("warmup = 2", "") + text)
    run = train(several, tmp_path / "run", overrides=["steps=1"], device="cpu", show=lambda line: None)
    assert sorted(drawn) == [(2.0, 0.5), (2.0, 1.0), (3.0, 0.5), (3.0, 1.0)]
    stated = read_generation_defaults(janus.load(run, device="cpu").processor.files)
    assert stated == {"guidance": 2.0, "temperature": 0.5}


def test_a_run_goes_on_with_other_defaults(file: Path, tmp_path: Path) -> None:
    several = tmp_path / "defaults.toml"
    for steps, guidance in ((1, 3.0), (2, 2.0)):
        defaults = f"[defaults]\nguidances = [{guidance}]\ntemperatures = [0.5]\n"
        several.write_text(file.read_text().replace("warmup = 2", "") + defaults)
        run = train(
            several, tmp_path / "run", overrides=[f"steps={steps}"], device="cpu", show=lambda line: None
        )
        stated = read_generation_defaults(janus.load(run, device="cpu").processor.files)
        assert stated == {"guidance": guidance, "temperature": 0.5}


def test_an_evaluator_that_is_not_configured_is_never_built(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(*given: object, **options: object) -> None:
        raise AssertionError("nothing of an evaluator is to be built")

    for name in ("parts_of", "Builder", "Mixture", "Loader"):
        monkeypatch.setattr(evaluation, name, build)
    assert evaluation.build_evaluator(begin(recipe, tmp_path, ALONE)) is None


def test_gradients_that_are_no_numbers_stop_the_run_before_a_weight_moves(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("janus.training.run.clip", lambda parameters, limit: torch.tensor(math.nan))
    with pytest.raises(FloatingPointError, match=r"step 0 are not finite: lower the rate, 0\.0005 by then"):
        train(recipe, tmp_path, device="cpu", show=lambda line: None)
    assert records(tmp_path) == []
    check_finite(torch.tensor(3.0), 0, 1e-3)


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_sixteen_bits(precision: str, recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    found = quietly(
        replace(recipe, precision=precision, steps=3, activation_checkpointing=True), tmp_path / precision
    )
    for ours, exact in zip(found, records(straight), strict=False):
        assert ours["loss"] == pytest.approx(exact["loss"], rel=2e-2)  # 8 bits of each activation


def test_overrides_are_of_files(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="overrides change a recipe that is read"):
        train(recipe, tmp_path, overrides=["steps=1"])


def test_only_names_that_there_are() -> None:
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        janus.training.trian  # noqa: B018


def test_what_a_checkpoint_shares_is_plain(straight: Path) -> None:
    shared = newest(straight / "checkpoints").shared()
    assert json.loads(shared["model"]["config"])["model_type"] == "multi_modality"
    assert "tokenizer.json" in shared["model"]["files"]
