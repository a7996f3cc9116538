"""Runs that train a JanusFlow: what they write, that they go on bit by bit, and as several processes."""

import shutil
import subprocess
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
from janus.models.janusflow import JanusFlow
from janus.training import train
from janus.training.checkpoint import newest
from janus.training.costs.dry_run import dry_run, longest_batch
from janus.training.costs.longest import longest_row
from janus.training.flow import alignment_of
from janus.training.log import read_log
from janus.training.objectives import count
from janus.training.parallel import Ranks, gathered
from janus.training.parts import trained
from janus.training.recipe.file import dump, read_recipe
from janus.training.recipe.learning import FlowLearning
from janus.training.recipe.recipe import Recipe
from janus.training.recipe.sections import KINDS, Data, LoRA, LossWeights, Ratio, Source, Start
from janus.training.run import begin
from janus.training.start import start_janus, start_processor
from janus.weights.hub import SHAPES
from janus.weights.vae import load_vae, own_vae

PROGRAM = Path(__file__).with_name("run_rank.py")
ALONE = Ranks(torch.device("cpu"))

RECIPE = """
task = "janus"
train = [
    "vision", "vision_adapter", "begin_embedding", "encoder", "latent_adapter", "velocity_norm",
    "velocity_adapter", "decoder", "embed", "language", "text_head",
]
steps = 5
batch = 4
accumulate = 2
precision = "float32"
ema = 0.9
[model]
checkpoint = "{checkpoint}"
vae = "{vae}"
[data]
sequence_length = 200
workers = 0
prompt_dropout = 0.3
ratio = {{ understanding = 1, text = 1, drawing = 2 }}
sources = [
    {{ task = "understanding", world = "shapes" }},
    {{ task = "text", world = "shapes" }},
    {{ task = "drawing", world = "shapes" }},
]
[optimizer]
lr = 1e-3
[flow]
aligned_after = 1
[log]
every = 1
tensorboard = false
[checkpoint]
every = 2
keep = 2
"""


@pytest.fixture(scope="module")
def file(flow_checkpoint: str, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("recipe") / "flow.toml"
    file.write_text(RECIPE.format(checkpoint=flow_checkpoint, vae=data / "janusflow" / "vae"))
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


def test_losses_are_logged_apart(straight: Path) -> None:
    found = records(straight)
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5]
    figures = {"step", "loss", "text_loss", "flow_loss", "alignment_loss", "norm", "rate", "padding"}
    # And how many documents were over the limit, in steps that have any.
    assert all(set(record) - {"dropped", "cut"} == figures for record in found)
    assert found[-1]["loss"] < found[0]["loss"]
    assert found[-1]["alignment_loss"] < found[0]["alignment_loss"]


def test_what_is_written_is_a_janusflow_with_its_autoencoder(straight: Path, recipe: Recipe) -> None:
    """The averages, without what was there for learning only; it draws as it is."""
    model = JanusFlow.from_pretrained(straight, device="cpu", dtype="float32")
    names = {name for name, _ in model.named_parameters()}
    assert not [name for name in load_file(straight / "model.safetensors") if "alignment" in name]
    saved = {f"average.{name}": torch.zeros_like(model.get_parameter(name)) for name in names}
    found = newest(straight / "checkpoints")
    assert found is not None
    found.load(saved)
    for name in names:
        assert torch.equal(model.get_parameter(name), saved[f"average.{name}"]), name
    assert recipe.model.vae is not None
    ours, given = (load_vae(each, device="cpu") for each in (straight / "vae", recipe.model.vae))
    assert ours.config == given.config
    assert all(torch.equal(ours.state_dict()[name], tensor) for name, tensor in given.state_dict().items())
    (picture,) = janus.load(straight, device="cpu").draw("a red circle", seed=1, steps=2, progress=False)
    assert picture.size == (64, 64)


@pytest.mark.parametrize("stop", [2, 3])
def test_a_run_goes_on_with_the_same_bits(stop: int, recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    """Without what it started from: the checkpoint has the model, and the folder the autoencoder."""
    assert recipe.model.checkpoint is not None
    assert recipe.model.vae is not None
    start = Path(shutil.copytree(recipe.model.checkpoint, tmp_path / "start"))
    shutil.copytree(recipe.model.vae, start / "vae")
    folder = tmp_path / "run"
    own = replace(recipe, model=Start(checkpoint=str(start)))  # whose autoencoder is in its folder
    quietly(replace(own, steps=stop), folder)
    shutil.rmtree(start)
    assert quietly(own, folder) == records(straight)
    ours, theirs = (load_file(each / "model.safetensors") for each in (folder, straight))
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def test_what_reading_does_ahead_changes_nothing(recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    other = replace(recipe, steps=3, data=replace(recipe.data, workers=1))
    assert quietly(other, tmp_path) == records(straight)[:3]


def test_samples_scores_and_held_out_losses(file: Path, straight: Path, data: Path, tmp_path: Path) -> None:
    text = file.read_text().replace("[log]\n", '[log]\nsamples_every = 2\nprompts = ["a red circle"]\n')
    text += f"""
[[log.pictures]]
picture = "{data / "photographs" / "chelsea.png"}"
[evaluate]
evaluator = "loss"
every = 2
examples = 4
sources = [{{ task = "drawing", world = "shapes" }}, {{ task = "text", world = "shapes" }}]
"""
    shown = tmp_path / "shown.toml"
    shown.write_text(text)
    train(shown, tmp_path / "run", overrides=["steps=2"], device="cpu", show=lambda line: None)
    assert records(tmp_path / "run") == records(straight)[:2]
    logged = read_log(tmp_path / "run" / "log.jsonl")
    (drawn,) = [record for record in logged if "drawn" in record]
    assert Image.open(tmp_path / "run" / drawn["drawn"][0]["picture"]).size == (64, 64)
    assert isinstance(drawn["asked"][0]["answer"], str)
    (held_out,) = [record for record in logged if "held_out_loss" in record]
    parts = ("loss", "text_loss", "flow_loss", "alignment_loss")
    assert set(held_out) == {"step", *(f"held_out_{part}" for part in parts)}


def test_two_processes_that_share_the_model_out_go_on_from_one(
    recipe: Recipe,
    straight: Path,
    tmp_path: Path,
    torchrun: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    folder = Path(shutil.copytree(straight, tmp_path / "run"))
    two = tmp_path / "two.toml"
    two.write_text(dump(recipe).replace('kind = "ddp"', 'kind = "fsdp"'))
    done = torchrun(PROGRAM, two, folder, 7)
    assert done.returncode == 0, done.stderr
    found = records(folder)
    assert found[:5] == records(straight)
    assert [record["step"] for record in found[5:]] == [6, 7]
    assert found[-1]["loss"] < found[0]["loss"]
    assert set(load_file(folder / "model.safetensors")) == set(load_file(straight / "model.safetensors"))


@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_sixteen_bits(precision: str, recipe: Recipe, straight: Path, tmp_path: Path) -> None:
    found = quietly(
        replace(recipe, precision=precision, steps=2, activation_checkpointing=True), tmp_path / precision
    )
    for ours, exact in zip(found, records(straight), strict=False):
        assert ours["loss"] == pytest.approx(exact["loss"], rel=2e-2)  # 8 bits of each activation


def test_adapters_learn_beside_the_projector(recipe: Recipe, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    lora = replace(recipe, train=(), lora=LoRA(rank=2, targets=("attention.qkv",)), steps=2, ema=None)
    learns = set(trained(begin(lora, tmp_path, ALONE).model))
    assert {name.partition(".")[0] for name in learns} == {"language", "alignment"}
    found = quietly(lora, tmp_path / "run")
    assert found[1]["alignment_loss"] < found[0]["alignment_loss"]
    names = set(load_file(tmp_path / "run" / "model.safetensors"))
    assert not [name for name in names if "lora" in name or "alignment" in name]


# --- how they begin ---


def words_only(recipe: Recipe) -> Data:
    return replace(recipe.data, sources=(Source(task="text", world="shapes"),), ratio=Ratio(text=1))


def test_who_draws_nothing_needs_no_autoencoder(recipe: Recipe, tmp_path: Path) -> None:
    """The released one, that is; any other goes on with the model."""
    silent = replace(recipe, model=replace(recipe.model, vae=None), data=words_only(recipe))
    assert begin(silent, tmp_path, ALONE).vae is None
    # Nor the projector, whatever the recipe's defaults say of it.
    blocks = replace(silent, flow=FlowLearning(aligned_after=99))
    assert alignment_of(begin(blocks, tmp_path, ALONE).model) is None
    found = quietly(replace(silent, steps=1), tmp_path / "run")
    assert set(found[0]) == {"step", "loss", "text_loss", "norm", "rate", "padding"}
    assert own_vae(tmp_path / "run") is None
    quietly(replace(silent, model=recipe.model, steps=1), tmp_path / "other")
    assert own_vae(tmp_path / "other") is not None
    absent = replace(recipe, model=replace(recipe.model, vae=str(tmp_path / "none")))
    with pytest.raises(FileNotFoundError, match="autoencoder of JanusFlow's pictures is not there"):
        begin(absent, tmp_path, ALONE)


def test_what_is_put_together_or_goes_on_has_the_folders_autoencoder(straight: Path, recipe: Recipe) -> None:
    """Else saving it there would be refused: the one in the folder might be another's."""
    run = begin(recipe, straight, ALONE)
    whole = gathered(run.model, ALONE)
    for model in (run.model, whole):
        assert isinstance(model, JanusFlow)
        assert model.autoencoder == straight / "vae"


def test_a_folder_with_anothers_autoencoder_is_told_before_anything_is_learned(
    recipe: Recipe, tmp_path: Path
) -> None:
    """It would speak for what is written in the end."""
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "config.json").write_text("{}")
    silent = replace(recipe, model=replace(recipe.model, vae=None), data=words_only(recipe))
    with pytest.raises(ValueError, match="vae is the autoencoder of another model: remove it, or train else"):
        begin(silent, tmp_path, ALONE)


def test_without_weight_there_is_no_projector(recipe: Recipe, tmp_path: Path) -> None:
    run = begin(replace(recipe, loss=LossWeights(alignment=0.0)), tmp_path, ALONE)
    assert alignment_of(run.model) is None
    assert alignment_of(begin(recipe, tmp_path, ALONE).model) is not None


def test_keys_of_the_other_family_are_told_when_the_checkpoint_is_read(
    recipe: Recipe, checkpoint: str, tmp_path: Path
) -> None:
    codes = replace(recipe, model=replace(recipe.model, vq="x"))
    with pytest.raises(ValueError, match=r"^model\.vq: says nothing to a JanusFlow: take it out$"):
        begin(codes, tmp_path, ALONE)
    latents = replace(recipe, model=replace(recipe.model, checkpoint=checkpoint))
    with pytest.raises(ValueError, match=r"^model\.vae: says nothing to a Janus, which draws by codes: take"):
        begin(latents, tmp_path, ALONE)
    parts = replace(recipe, train=("image_head",))
    with pytest.raises(ValueError, match=r'^"image_head" is unknown: '):
        begin(parts, tmp_path, ALONE)


def test_random_weights_of_a_seed_and_a_processor_of_a_world(recipe: Recipe) -> None:
    shipped = read_recipe("shapes-flow")
    processor = start_processor(shipped.model)
    assert processor.config.marks_start
    assert processor.tokenizer.largest_id == 767
    speaks = janus.Janus.from_pretrained(SHAPES, device="cpu", dtype="float32").language.state_dict()
    begun = start_janus(shipped, processor, ALONE.device).language.state_dict()
    assert all(torch.equal(tensor, speaks[name]) for name, tensor in begun.items())
    shapes = replace(shipped, model=replace(shipped.model, backbone=None))
    one, again = (start_janus(shapes, processor, ALONE.device) for _ in range(2))
    other = start_janus(replace(shapes, seed=1), processor, ALONE.device)
    assert isinstance(one, JanusFlow)
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    assert not torch.equal(one.begin_embedding, other.begin_embedding)
    assert 0.018 < one.language.embed.weight.std() < 0.022
    ids, latents = torch.tensor([processor.draw_prompt("a red circle")]), torch.randn(1, 4, 16, 16)
    with torch.no_grad():
        assert not one.velocity(ids, latents, torch.tensor([300.0])).any()  # before it has learned anything


# --- what they take ---


def test_what_a_run_takes_is_told_and_tried(recipe: Recipe, tmp_path: Path) -> None:
    told: list[str] = []
    dry_run(recipe, device="cpu", show=told.append)
    for line in ("  alignment  ", "  vae  ", "    drawing rows", "    latents"):
        assert line in told[0]
    assert "forward and backward of the longest batch (" in told[1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_longest_batch_is_what_was_weighed(kind: Any, recipe: Recipe, tmp_path: Path) -> None:
    run = begin(recipe, tmp_path, ALONE)
    row = longest_row(run.model.config, 100, kind, run.geometry)
    batch = longest_batch(run.model.config, row, 2, run.geometry)
    found = count(batch)
    assert (found.seen, found.drawn) == (2 * row.seen, 2 * row.drawn)
    assert (found.word_labels, found.code_labels) == (2 * row.words, 2 * row.codes)
    assert int(batch.image_mask.sum()) == found.seen * run.model.config.seen_tokens
    assert int(batch.code_mask.sum()) == found.drawn * 17
    with torch.no_grad():
        losses = run.objective(run.encoded(batch))
    assert [bool(loss) for loss in losses] == [kind != "drawing", kind == "drawing", kind == "drawing"]
