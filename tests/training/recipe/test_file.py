"""Recipes of files: every mistake in one line with the line it stands in, and changes on the command line."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from janus.config import FLOW_PRESETS, JanusFlowConfig
from janus.models.janusflow import JanusFlow
from janus.models.vae import VAE, VAEConfig
from janus.training.data.outline import Geometry
from janus.training.parts import FLOW_STAGE_1, FLOW_STAGE_2, FLOW_STAGE_3, STAGE_1, STAGE_2, STAGE_3
from janus.training.recipe.file import apply_override, dump, parse_recipe, read_recipe, shipped

TOML = """\
# a small recipe
task = "janus"
train = [
    "language",
    "text_head",
]
steps = 100
batch = 8

[model]
checkpoint = "runs/before"

[data]
ratio = { text = 1, drawing = 3 }

[[data.sources]]
task = "text"
path = "a.jsonl"

[[data.sources]]
task = "drawing"
path = "b.jsonl"

[optimizer]
lr = 1e-4
"""
YAML = """\
# the same
task: janus
train:
  - language
  - text_head
steps: 100
batch: 8
model:
  checkpoint: runs/before
data:
  ratio: {text: 1, drawing: 3}
  sources:
    - task: text
      path: a.jsonl
    - {task: drawing, path: b.jsonl}
optimizer:
  lr: 1e-4
"""


def message(text: str, *overrides: str, yaml: bool = False) -> str:
    """What is said of a recipe that is wrong."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the text is compared by the caller
        parse_recipe(text, "r.yaml" if yaml else "r.toml", overrides, yaml=yaml)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_forms_are_one_recipe() -> None:
    pytest.importorskip("yaml")
    assert parse_recipe(TOML, "r.toml") == parse_recipe(YAML, "r.yaml", yaml=True)


# By name: what is written instead of what, in TOML and in YAML, and the error with the lines of both.
MISTAKES: dict[str, tuple[tuple[str, str], tuple[str, str], tuple[int, int], str]] = {
    "unknown": (
        ("batch = 8", "batches = 8"),
        ("batch: 8", "batches: 8"),
        (8, 7),
        "batches: is unknown: did you m",
    ),
    "section": (
        ("[optimizer]\nlr", "[optimiser]\nlr"),
        ("optimizer:", "optimiser:"),
        (24, 16),
        "optimiser: is unk",
    ),
    "type": (
        ("steps = 100", 'steps = "100"'),
        ("steps: 100", "steps: '100'"),
        (7, 6),
        'steps: "100" is not a whol',
    ),
    "item": (
        ('"text_head"', '"head"'),
        ("- text_head", "- head"),
        (5, 5),
        'train.1: "head" is unknown: did you mean text_head?',
    ),
    "item-type": (('"text_head"', "7"), ("- text_head", "- 7"), (5, 5), "train.1: 7 is not a text"),
    "inline": (
        ("text = 1", "txt = 1"),
        ("text: 1", "txt: 1"),
        (14, 11),
        "data.ratio.txt: is unknown: did you mean te",
    ),
    "in-list": (
        ('path = "b.jsonl"', 'paht = "b.jsonl"'),
        ("path: b.jsonl", "paht: b.jsonl"),
        (22, 15),
        "data.sources.1.paht: is unknown: did you mean path?",
    ),
    "missing-in-list": (
        ('path = "b.jsonl"', ""),
        (", path: b.jsonl", ""),
        (20, 15),
        "data.sources.1.path: is missing: give a path, a dataset or a world",
    ),
    "missing-in-section": (
        ("lr = 1e-4", "eps = 1"),
        ("lr:", "eps:"),
        (24, 16),
        "optimizer.lr: is missing: give a num",
    ),
    "missing-at-all": (
        ("steps = 100", ""),
        ("steps: 100", ""),
        (1, 1),
        "steps: is missing: give a whole number of",
    ),
    "contradiction": (
        ("text = 1, ", ""),
        ("text: 1, ", ""),
        (17, 13),
        'data.sources.0.task: "text" has no part in the ratio',
    ),
    "elsewhere": (
        ("batch = 8", "batch = 8\nlr = 1"),
        ("batch: 8", "batch: 8\nlr: 1"),
        (9, 8),
        "lr: is unknown here: ",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_mistakes_are_told_with_their_line(case: str) -> None:
    toml, yaml, (toml_line, yaml_line), text = MISTAKES[case]
    assert message(TOML.replace(*toml)).startswith(f"r.toml:{toml_line}: {text}")
    pytest.importorskip("yaml")
    assert message(YAML.replace(*yaml), yaml=True).startswith(f"r.yaml:{yaml_line}: {text}")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("steps = 1\nsteps = 2\n", 2, "not TOML: Cannot overwrite a value"),
        ("steps 1\n", 1, "not TOML: Expected '=' after a key in a key/value pair"),
        ("a = 1\nb = [1,\n", 2, "not TOML: "),
        ("steps = \n", 1, "not TOML: Invalid value"),
        ("a = 1\n\x00\n", 2, "not TOML: "),
        ("a = " + "[" * 5000, 1, "nested too deeply for a recipe: write it flatter"),
        ("a = 1" + "0" * 5000, 1, "not TOML: Exceeds the limit (4300 digits)"),
        ("steps = 2024-01-01\n", 1, "model: is missing"),
        ("", 1, "model: is missing: give a table"),
    ],
    ids=["twice", "equals", "open", "value", "null", "deep", "digits", "date", "empty"],
)
def test_what_is_not_toml(text: str, line: int, said: str) -> None:
    assert message(text).startswith(f"r.toml:{line}: {said}")


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("steps: 1\nsteps: 2\n", 2, "not YAML: the key steps is given twice"),
        ("a: {b: 1, b: 2}\n", 1, "not YAML: the key b is given twice"),
        ("steps: [1\n", 2, "not YAML: expected ',' or ']', but got '<stream end>'"),
        ("a: 1\n\tb: 2\n", 2, "not YAML: found character '\\t' that cannot start any token"),
        ("- 1\n- 2\n", 1, "not YAML: not a table of keys"),
        (
            "task: janus\nsteps: !!python/object:os.system x\n",
            2,
            "not YAML: could not determine a constructor",
        ),
        ("a: &x 1\nb: *x\n", 1, "not YAML: aliases are not read: write it out"),
        ("a: &x\n  b: *x\n", 1, "not YAML: aliases are not read: write it out"),
        ("a: 1\n<<: {b: 1}\n", 2, "not YAML: the key << is not a text"),
        ("1: 2\n", 1, "not YAML: the key 1 is not a text"),
        ("a: 1\nb: 2024-99-99\n", 2, "not YAML: 2024-99-99 is not a value (month must be in 1..12"),
        ("a: 1\nb: \x07\n", 2, "not YAML: ReaderError"),
        ("a: 1\n---\nb: 1\n", 2, "not YAML: but found another document"),
        ("? [1]\n: 2\n", 1, "not YAML: the key "),
        ("[" * 1100, 1, "nested too deeply for a recipe: write it flatter"),
        ("", 1, "model: is missing: give a table"),
        ("steps: 2024-01-01\n", 1, "model: is missing"),
    ],
    ids=[
        "twice",
        "twice-inline",
        "open",
        "tab",
        "list",
        "object",
        "alias",
        "itself",
        "merge",
        "number",
        "date",
        "bell",
        "documents",
        "complex",
        "deep",
        "empty",
        "fine-date",
    ],
)
def test_what_is_not_yaml(text: str, line: int, said: str) -> None:
    pytest.importorskip("yaml")
    assert message(text, yaml=True).startswith(f"r.yaml:{line}: {said}")


def test_numbers_without_a_point_are_numbers_in_yaml_too() -> None:
    pytest.importorskip("yaml")
    for written, number in (("1e-4", 1e-4), ("2E3", 2000.0), ("-1e+2", None), ("1", 1.0), ("1.5e-3", 0.0015)):
        text = YAML.replace("lr: 1e-4", f"lr: {written}")
        if number is None:
            assert "-100.0 is not a number above 0" in message(text, yaml=True)
        else:
            assert parse_recipe(text, "r.yaml", yaml=True).optimizer.lr == number


def test_none_in_yaml() -> None:
    pytest.importorskip("yaml")
    for word in ("null", "~", "none", ""):
        recipe = parse_recipe(f"{YAML}  clip: {word}\n", "r.yaml", yaml=True)
        assert recipe.optimizer.clip is None


def test_yaml_without_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert message(YAML, yaml=True) == "r.yaml: YAML needs pyyaml: pip install pyyaml, or write it as TOML"


@pytest.mark.parametrize("yaml", [False, True], ids=["toml", "yaml"])
@given(st.text(max_size=60))
def test_no_text_is_worse_than_one_line(yaml: bool, text: str) -> None:
    if yaml:
        pytest.importorskip("yaml")
    assert re.match(r"r\.(toml|yaml):\d+: ", message(text, yaml=yaml))


# --- overrides ---


def test_overrides_change_what_is_there() -> None:
    recipe = parse_recipe(
        TOML,
        "r.toml",
        [
            "steps=7",
            "optimizer.lr=3e-5",
            "optimizer.clip=none",
            "data.sources.1.path=shards/with=equals.tar",
            "data.sources.0 = {task='text', world='shapes'}",
            "model.checkpoint=deepseek-ai/Janus-Pro-1B",
            "lora.rank=4",
            'train=["vision"]',
            "schedule.kind=cosine",
            "log.prompts=['a cat', 'a dog']",
            "log.samples_every=5",
            "data.workers= 0 ",
        ],
    )
    assert (recipe.steps, recipe.optimizer.lr, recipe.optimizer.clip) == (7, 3e-5, None)
    assert recipe.data.sources[1].path == "shards/with=equals.tar"
    assert (recipe.data.sources[0].world, recipe.data.sources[0].path) == ("shapes", None)
    assert recipe.model.checkpoint == "deepseek-ai/Janus-Pro-1B"
    assert recipe.lora is not None
    assert recipe.lora.rank == 4
    assert recipe.train == ("vision",)
    assert recipe.log.prompts == ("a cat", "a dog")
    assert recipe.data.workers == 0


def test_the_last_override_counts() -> None:
    assert parse_recipe(TOML, "r.toml", ["steps=7", "steps=8"]).steps == 8


def test_a_section_may_be_taken_out_and_put_back() -> None:
    text = f"{TOML}\n[lora]\nrank = 2\n"
    assert parse_recipe(text, "r.toml", ["lora=none"]).lora is None
    again = parse_recipe(text, "r.toml", ["train=[]", "lora=none", "lora.rank=3"]).lora
    assert again is not None
    assert again.rank == 3


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("steps", "override steps: not of the form key=value, such as optimizer.lr=1e-4"),
        ("=3", "override =3: not of the form key=value"),
        ("optimizer..lr=3", "override optimizer..lr=3: not of the form key=value"),
        ("steps=ten", 'override steps=ten: steps: "ten" is not a whole number of at least 1: give one'),
        ("optimizer.lr=-1", "override optimizer.lr=-1: optimizer.lr: -1 is not a number above 0"),
        ("optimizer.bets=1", "override optimizer.bets=1: optimizer.bets: is unknown: did you mean betas?"),
        ("optimzer.lr=1", "override optimzer.lr=1: optimzer: is unknown: did you mean optimizer?"),
        ("lr=1", "override lr=1: lr: is unknown here: did you mean optimizer.lr?"),
        ("steps.of=1", "override steps.of=1: steps is 100, with no of inside"),
        (
            "data.sources.2.task=text",
            "override data.sources.2.task=text: data.sources has 2 items, from 0, and no 2",
        ),
        ("data.sources.x=1", "override data.sources.x=1: data.sources has 2 items, from 0, and no x"),
        ("data.sources.0.task=txt", 'override data.sources.0.task=txt: data.sources.0.task: "txt" is not'),
        ("evaluate.evaluator=loss", "override evaluate.evaluator=loss: evaluate.sources: is missing beside"),
        ("data.sources=[]", "override data.sources=[]: data.sources: is empty: give at least one source"),
        ("steps=1\nbatch=2", 'override steps=1\\nbatch=2: steps: "1\\nbatch=2" is not a whole number'),
        (
            "schedule.warmup=101",
            "override schedule.warmup=101: schedule.warmup: 101 steps of warmup are more than",
        ),
    ],
)
def test_overrides_that_are_wrong_are_named(override: str, said: str) -> None:
    assert message(TOML, override).startswith(said)


def test_a_mistake_of_the_file_stays_the_files() -> None:
    found = message(TOML.replace("batch = 8", "batch = 0"), "steps=5", "optimizer.eps=1")
    assert found.startswith("r.toml:8: batch: 0 is not a whole number of at least 1")


@settings(max_examples=40)
@given(st.text(max_size=30), st.text(max_size=30))
def test_no_override_is_worse_than_one_line(key: str, value: str) -> None:
    """No random key is one that there is."""
    assert message(TOML, f"{key}={value}").startswith("override ")


@settings(max_examples=40)
@given(st.lists(st.sampled_from("abc"), min_size=1), st.integers() | st.booleans() | st.lists(st.integers()))
def test_overrides_reach_any_depth(names: list[str], value: Any) -> None:
    tables: dict[str, Any] = {"a": {"b": {"d": 1}}}
    path = apply_override(tables, f"{'.'.join(names)}={json.dumps(value)}")
    assert path == tuple(names)
    found: Any = tables
    for name in names:
        found = found[name]
    assert found == value


# --- files ---


def test_files_are_read_by_their_suffix(tmp_path: Path) -> None:
    pytest.importorskip("yaml")
    for name, text in (("a.toml", TOML), ("a.yaml", YAML), ("a.yml", YAML), ("bom.toml", "\ufeff" + TOML)):
        (tmp_path / name).write_text(text, encoding="utf-8")
        assert read_recipe(tmp_path / name, ["steps=3"]).steps == 3
    (tmp_path / "dos.toml").write_bytes(TOML.replace("\n", "\r\n").replace("8", "0").encode())
    with pytest.raises(ValueError, match=r"dos\.toml:8: batch: 0 is not"):
        read_recipe(tmp_path / "dos.toml")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b'# ok\ntask = "j\xe4nus"\n')
    with pytest.raises(ValueError, match=r"latin\.toml:2: not a text in UTF-8: save it as one$"):
        read_recipe(tmp_path / "latin.toml")
    (tmp_path / "recipe.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"recipe\.json is neither TOML nor YAML by its name: call it \.toml or"
    ):
        read_recipe(tmp_path / "recipe.json")
    with pytest.raises(
        FileNotFoundError, match=r"none\.toml is not a file: give a recipe's file, or one of jan"
    ):
        read_recipe(tmp_path / "none.toml")
    with pytest.raises(
        FileNotFoundError, match=r"^no recipe is called janus-pro-stage4: did you mean janus-pro"
    ):
        read_recipe("janus-pro-stage4")
    with pytest.raises(
        FileNotFoundError, match=r"^no recipe is called x: there are janus-pro-stage1, .* or give"
    ):
        read_recipe("x")


# --- those that ship ---

# lr, kind, warm-up, steps, batch, weight decay, understanding:text:drawing, what learns.
PUBLISHED = {
    "janus-stage1": (1e-3, "cosine", 300, 10_000, 256, 0.0, (1, 0, 1), STAGE_1),
    "janus-stage2": (1e-4, "constant", 5000, 180_000, 512, 0.0, (2, 3, 5), STAGE_2),
    "janus-stage3": (2e-5, "constant", 0, 24_000, 256, 0.1, (7, 3, 10), STAGE_3),
    "janus-pro-stage1": (1e-3, "constant", 600, 20_000, 256, 0.0, (1, 0, 3), STAGE_1),
    "janus-pro-stage2": (1e-4, "constant", 5000, 360_000, 512, 0.0, (2, 3, 5), STAGE_2),
    "janus-pro-stage3": (4e-5, "constant", 0, 80_000, 128, 0.0, (5, 1, 4), STAGE_3),
    "janusflow-stage1": (1e-4, "constant", 2000, 10_000, 512, 0.0, (50, 0, 50), FLOW_STAGE_1),
    "janusflow-stage2": (1e-4, "constant", 2000, 390_000, 512, 0.0, (14, 6, 80), FLOW_STAGE_2),
    "janusflow-stage3": (2e-5, "constant", 1000, 26_000, 256, 0.0, (21, 9, 70), FLOW_STAGE_3),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_numbers(name: str) -> None:
    recipe = read_recipe(name)
    ratio = recipe.data.ratio
    assert ratio is not None
    assert (
        recipe.optimizer.lr,
        recipe.schedule.kind,
        recipe.schedule.warmup,
        recipe.steps,
        recipe.batch,
        recipe.optimizer.weight_decay,
        (ratio.understanding, ratio.text, ratio.drawing),
    ) == PUBLISHED[name][:-1]
    assert set(recipe.train) == set(PUBLISHED[name][-1])
    assert (recipe.optimizer.betas, recipe.optimizer.clip) == ((0.9, 0.95), 1.0)
    assert (recipe.data.sequence_length, recipe.data.packing, recipe.data.prompt_dropout) == (4096, True, 0.1)
    assert recipe.loss.text == recipe.loss.picture == recipe.loss.alignment == 1
    assert recipe.ema == (0.99 if "flow" in name else None)


def test_stages_of_the_flow() -> None:
    """The paper's times and block, and each stage from the one before."""
    stages = [read_recipe(f"janusflow-stage{number}") for number in (1, 2, 3)]
    assert stages[0].model.architecture == FLOW_PRESETS["JanusFlow-1.3B"]
    assert [stage.model.checkpoint for stage in stages[1:]] == [
        "runs/janusflow-stage1",
        "runs/janusflow-stage2",
    ]
    for stage in stages:
        assert stage.flow is not None
        assert (stage.flow.aligned_after, stage.flow.time_mean, stage.flow.time_deviation) == (6, 0, 1)


def test_the_flow_of_shapes_fits_its_autoencoder_and_is_small() -> None:
    flow, vae = read_recipe("shapes-flow"), read_recipe("shapes-vae")
    assert flow.model.vae == "runs/shapes-vae"
    sizes, latents = flow.model.architecture, vae.model.architecture
    assert isinstance(sizes, JanusFlowConfig)
    assert isinstance(latents, VAEConfig)
    geometry = Geometry.of_flow(sizes, latents)
    assert vae.picture_size == geometry.size == sizes.picture_size
    assert geometry.tokens == sizes.vision.tokens == 64  # which the alignment compares one by one
    with torch.device("meta"):
        models = JanusFlow(sizes), VAE(latents)
    numbers = sum(weight.numel() for model in models for weight in model.parameters())
    assert 2 * numbers < 20e6 * 0.75  # bytes in bfloat16: well below what ships


def test_the_larger_models_numbers_are_an_override() -> None:
    recipe = read_recipe("janus-pro-stage3", ["steps=40000"])
    assert recipe.steps == 40_000


def test_numbers_of_the_tokenizer() -> None:
    recipe = read_recipe("vq")
    assert recipe.steps == 40 * (1_281_167 // 128)
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.batch) == (1e-4, (0.9, 0.95), 128)
    settings = recipe.vq_training()
    assert (settings.l1, settings.l2, settings.perceptual, settings.adversarial) == (0, 1, 1, 0.5)
    assert (settings.codebook, settings.commitment, settings.entropy) == (1, 0.25, 0)
    assert (settings.discriminator_from, settings.revive_every) == (20_000, None)


@pytest.mark.parametrize("name", shipped())
def test_what_ships_reads_back_and_states_its_source(name: str) -> None:
    recipe = read_recipe(name)
    assert parse_recipe(dump(recipe), "dumped.toml") == recipe
    text = (
        Path(sys.modules[read_recipe.__module__].__file__ or "").parents[1] / "recipes" / f"{name}.toml"
    ).read_text()
    assert "# Source: " in text
    assert max(map(len, text.splitlines())) <= 118


def test_a_shipped_recipes_mistake_is_told_by_its_name() -> None:
    with pytest.raises(
        ValueError, match=r"^janus-pro-stage2\.toml:\d+: schedule\.warmup: 5000 steps of warmup"
    ):
        read_recipe("janus-pro-stage2", ["steps=1"])


def test_a_recipes_table_is_json() -> None:
    """So that a checkpoint can hold it whatever the file was."""
    table = read_recipe("vq").to_dict()
    assert json.loads(json.dumps(table)) == table
