"""Low-rank adapters: put in without effect, trained, kept, loaded by us and by peft, merged."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import janus
from janus.models.janus import Janus
from janus.training import train
from janus.training.blocks import checkpoint_blocks
from janus.training.lora import adapted, add_adapters, load_adapters, merge_adapters, save_adapters
from janus.training.parts import freeze, trained
from janus.training.recipe.file import parse_recipe
from janus.training.recipe.sections import LoRA
from janus.training.widen import widen_linears

peft = pytest.importorskip("peft")
SETTINGS = LoRA(rank=3, alpha=6)

RECIPE = """
task = "sft"
train = []
steps = 3
batch = 2
precision = "float32"
[model]
checkpoint = "{checkpoint}"
[data]
sequence_length = 120
workers = 0
sources = [{{ task = "drawing", world = "shapes" }}]
[optimizer]
lr = 1e-2
[lora]
rank = 2
dropout = 0.5
[log]
every = 1
tensorboard = false
[checkpoint]
every = 2
"""


def hidden(model: torch.nn.Module) -> Tensor:
    """What the language model makes of some words."""
    language = model.get_submodule("language")
    with torch.no_grad():
        return language(language.embed(torch.arange(2, 16).view(2, 7)))


def perturb(model: Janus) -> None:
    """As if the adapters had learned: B is not zero any more."""
    generator = torch.Generator().manual_seed(3)
    for layer in adapted(model).values():
        layer.lora_B["default"].weight.data.normal_(std=0.1, generator=generator)


def test_what_drops_out_does_so_again_where_blocks_are_computed_twice(fresh: Janus) -> None:
    freeze(fresh, [])
    add_adapters(fresh, LoRA(rank=2, dropout=0.5), seed=0)
    perturb(fresh)
    found = []
    for twice in (False, True):
        if twice:
            checkpoint_blocks(fresh)
        torch.manual_seed(1)
        language = fresh.language
        language(language.embed(torch.arange(2, 16).view(2, 7))).square().sum().backward()
        found.append([weight.grad.clone() for weight in trained(fresh).values()])
        fresh.zero_grad()
    assert all(torch.equal(once, again) for once, again in zip(*found, strict=True))


def test_they_begin_without_effect_and_learn_alone(fresh: Janus) -> None:
    before, state = hidden(fresh), torch.get_rng_state()
    freeze(fresh, ["image_head"])
    head = set(trained(fresh))
    add_adapters(fresh, SETTINGS, train=["image_head"], seed=5)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(hidden(fresh), before)
    assert len(adapted(fresh)) == 4 * fresh.config.language.layers
    learning = set(trained(fresh))
    assert head < learning
    assert all("lora_" in name for name in learning - head)
    rank = fresh.get_parameter("language.layers.0.mlp.gate_up.lora_A.default.weight").shape[0]
    assert rank == SETTINGS.rank


def test_they_are_of_the_seed(checkpoint: str) -> None:
    def first(seed: int) -> Tensor:
        model = Janus.from_pretrained(checkpoint, device="cpu", dtype="float32")
        add_adapters(model, SETTINGS, seed=seed)
        return model.get_parameter("language.layers.0.attention.qkv.lora_A.default.weight")

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def test_what_is_saved_is_read_by_us_and_by_peft(fresh: Janus, checkpoint: str, tmp_path: Path) -> None:
    add_adapters(fresh, SETTINGS)
    perturb(fresh)
    folder = save_adapters(fresh, tmp_path / "adapter")
    assert {file.name for file in folder.iterdir()} >= {"adapter_config.json", "adapter_model.safetensors"}
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == SETTINGS.rank
    expected = hidden(fresh)

    ours = Janus.from_pretrained(checkpoint, device="cpu", dtype="float32")
    before = hidden(ours)
    load_adapters(ours, folder)
    assert torch.equal(hidden(ours), expected)
    assert not torch.allclose(before, expected, atol=1e-3)
    assert not any("lora_" in name for name in trained(ours))

    theirs = peft.PeftModel.from_pretrained(
        Janus.from_pretrained(checkpoint, device="cpu", dtype="float32"), str(folder)
    )
    assert torch.equal(hidden(theirs.get_base_model()), expected)


def test_merged_they_are_part_of_the_weights(
    fresh: Janus, checkpoint: str, tmp_path: Path, close: Callable[[Tensor, Tensor], None]
) -> None:
    plain = Janus.from_pretrained(checkpoint, device="cpu", dtype="float32")
    add_adapters(fresh, SETTINGS)
    perturb(fresh)
    expected = hidden(fresh)
    merge_adapters(fresh)
    assert not adapted(fresh)
    assert list(fresh.state_dict()) == list(plain.state_dict())
    assert [type(module) for module in fresh.modules()] == [type(module) for module in plain.modules()]
    close(hidden(fresh), expected)
    fresh.save_pretrained(tmp_path)
    again = Janus.from_pretrained(tmp_path, device="cpu", dtype="float32")
    assert torch.equal(hidden(again), hidden(fresh))
    add_adapters(fresh, SETTINGS)  # a second time, of what the first has become
    assert torch.equal(hidden(fresh), hidden(again))


def test_merged_into_layers_that_multiply_in_float32_they_count(fresh: Janus) -> None:
    widen_linears(fresh)
    before = hidden(fresh)
    add_adapters(fresh, SETTINGS)
    perturb(fresh)
    merge_adapters(fresh)
    merged = hidden(fresh)
    assert not torch.allclose(merged, before, atol=1e-3)
    plain = Janus(fresh.config)
    plain.load_state_dict(fresh.state_dict())
    assert torch.equal(hidden(plain), merged)


def test_a_run_trains_keeps_and_merges_them(checkpoint: str, tmp_path: Path) -> None:
    recipe = parse_recipe(RECIPE.format(checkpoint=checkpoint), "lora.toml")
    train(recipe, tmp_path / "whole", device="cpu", show=lambda line: None)
    before, after = (
        Janus.from_pretrained(folder, device="cpu", dtype="float32")
        for folder in (checkpoint, tmp_path / "whole")
    )
    changed = {
        name
        for name, weight in before.state_dict().items()
        if not torch.equal(weight, after.state_dict()[name])
    }
    parts = ("attention.qkv", "attention.o_proj", "mlp.gate_up", "mlp.down_proj")
    layers = range(before.config.language.layers)
    assert changed == {f"language.layers.{number}.{part}.weight" for number in layers for part in parts}

    load_adapters(before, tmp_path / "whole" / "adapter")
    merge_adapters(before)
    assert torch.equal(hidden(before), hidden(after))
    assert janus.load(tmp_path / "whole", device="cpu").config.language == before.config.language

    # Two steps, an interruption, and the third: the very same adapters.
    halved = parse_recipe(RECIPE.format(checkpoint=checkpoint), "lora.toml", ["steps=2"])
    train(halved, tmp_path / "parts", device="cpu", show=lambda line: None)
    train(recipe, tmp_path / "parts", device="cpu", show=lambda line: None)
    files = [tmp_path / run / "adapter" / "adapter_model.safetensors" for run in ("whole", "parts")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_a_layer_cannot_learn_twice(fresh: Janus) -> None:
    with pytest.raises(ValueError, match=r"attention\.qkv learns as a whole and by an adapter: take it out"):
        add_adapters(fresh, SETTINGS, train=["language"])


@pytest.mark.parametrize("target", ["attention.query", "language.embed", "input_norm"])
def test_targets_that_are_no_linear_layers(target: str, fresh: Janus) -> None:
    with pytest.raises(ValueError, match=f"^lora: {target} is no linear layer of the model: name layers by"):
        add_adapters(fresh, LoRA(targets=(target,)))


def test_folders_that_hold_no_adapters_or_others(fresh: Janus, checkpoint: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no adapters that can be read .*: give the"):
        load_adapters(fresh, tmp_path)
    with pytest.raises(ValueError, match="has no adapters to save: add_adapters gives it some"):
        save_adapters(fresh, tmp_path)
    add_adapters(fresh, SETTINGS)
    save_adapters(fresh, tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for changes in ({"r": 4}, {"target_modules": ["attention.qkv"]}):
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | changes))
        model = Janus.from_pretrained(checkpoint, device="cpu", dtype="float32")
        with pytest.raises(ValueError, match=r"are of another model: .* is missing or of another size"):
            load_adapters(model, tmp_path)
    (tmp_path / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ValueError, match="holds no adapters that can be"):
        load_adapters(fresh, tmp_path)


def test_without_peft_the_remedy_is_told(fresh: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"^lora needs the package peft .*: pip install peft, or take it"):
        add_adapters(fresh, SETTINGS)
