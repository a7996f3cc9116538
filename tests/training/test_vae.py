"""The autoencoder of latents: its terms by hand, one step, its scale; runs that go on, and are read back."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from helpers.runs import quietly, records, whole_log, write_rows
from janus.models.vae import SDXL, VAE, LatentDistribution, VAEConfig
from janus.training.checkpoint import newest
from janus.training.costs.dry_run import dry_run
from janus.training.costs.live_bytes import LiveBytes
from janus.training.costs.memory import estimate_memory
from janus.training.costs.weigh import run as weigh_run
from janus.training.costs.weigh import weigh_vae
from janus.training.parts import VAE_PARTS, freeze, parameters, trained
from janus.training.recipe.file import dump, parse_recipe, read_recipe
from janus.training.recipe.recipe import Recipe
from janus.training.vae import VAEState, VAETraining, divergence, scaled, there_and_back, vae_losses, vae_step
from janus.training.vq import reconstruction_loss, total
from janus.weights.vae import load_vae

CONFIG = replace(SDXL, channels=(8, 16), residual_blocks=1, groups=4, scaling_factor=1.0)
SIDE = 8


@pytest.fixture
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE(CONFIG)


@pytest.fixture
def pixels() -> Tensor:
    return torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1)) * 2 - 1


def copy(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


# --- terms ---


def test_the_divergence_is_that_of_normal_distributions(vae: VAE, pixels: Tensor) -> None:
    found = vae.encode(pixels)
    own = torch.distributions.Normal(found.mean, (0.5 * found.log_variance).exp())
    expected = torch.distributions.kl_divergence(own, torch.distributions.Normal(0.0, 1.0)).mean()
    torch.testing.assert_close(divergence(found), expected)
    standard = LatentDistribution(torch.zeros(1, 4, 2, 2), torch.zeros(1, 4, 2, 2))
    assert divergence(standard) == 0


def test_a_step_is_its_terms_and_one_step_of_the_optimizer(vae: VAE, pixels: Tensor) -> None:
    settings = VAETraining(
        learning_rate=0.1, clip=0.01, l1=0.5, kl=0.25, background=(9, 9, 9), foreground=3.0
    )
    state = VAEState.start(vae, settings, optimizer=torch.optim.SGD(vae.parameters(), lr=0.1))
    returned = there_and_back(vae, pixels, state, settings)
    reconstruction = reconstruction_loss(returned.pictures, pixels, l1=0.5, l2=1.0)  # all is foreground here
    loss = reconstruction + 0.25 * divergence(returned.distribution)
    names, weights = zip(*vae.named_parameters(), strict=True)
    gradients = torch.autograd.grad(loss, weights)
    norm = torch.stack([gradient.norm() for gradient in gradients]).norm()
    expected = {
        name: weight.detach() - 0.1 * gradient * 0.01 / norm
        for name, weight, gradient in zip(names, weights, gradients, strict=True)
    }
    figures = vae_step(vae, pixels, state, settings)
    assert set(figures) == {"reconstruction", "kl", "loss", "norm", "deviation"}
    torch.testing.assert_close(figures["loss"], loss.detach())
    for name, weight in vae.named_parameters():
        # In float32, scaled in another order.
        torch.testing.assert_close(weight.detach(), expected[name], rtol=1e-5, atol=1e-7)
    assert state.step == 1


def test_the_foreground_counts_more(vae: VAE, pixels: Tensor) -> None:
    settings = VAETraining(background=(128, 128, 128), foreground=6.0)
    state = VAEState.start(vae, settings)
    mixed = pixels.clone()
    mixed[:, :, :, : SIDE // 2] = 128 / 127.5 - 1
    returned = there_and_back(vae, mixed, state, settings)
    weights = torch.ones(2, SIDE, SIDE)
    weights[:, :, SIDE // 2 :] = 6.0
    expected = reconstruction_loss(returned.pictures, mixed, l1=0.0, l2=1.0, weights=weights)
    torch.testing.assert_close(vae_step(vae, mixed, state, settings)["reconstruction"], expected.detach())


def test_samples_are_of_seed_and_step(vae: VAE, pixels: Tensor) -> None:
    settings = VAETraining(seed=3)
    state = VAEState.start(vae, settings)
    torch.manual_seed(9)
    before = torch.get_rng_state()
    first, again = (there_and_back(vae, pixels, state, settings).pictures for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    for other in (replace(state, step=1), state):
        seed = 3 if other.step else 4
        changed = there_and_back(vae, pixels, other, replace(settings, seed=seed)).pictures
        assert not torch.equal(first, changed)


def test_parts_hold_every_parameter_once(vae: VAE) -> None:
    found = [name for names in parameters(vae).values() for name in names]
    assert sorted(found) == sorted(name for name, _ in vae.named_parameters())
    assert set(parameters(vae)) == set(VAE_PARTS)
    freeze(vae, ("decoder",))
    assert {name.split(".")[0] for name in trained(vae)} == {"decoder", "post_quant_conv"}


def test_a_frozen_encoder_stands_still(vae: VAE, pixels: Tensor) -> None:
    freeze(vae, ("decoder",))
    settings = VAETraining(learning_rate=1e-2)
    state, before = VAEState.start(vae, settings), copy(vae)
    vae_step(vae, pixels, state, settings)
    assert {name.split(".")[0] for name in moved(vae, before)} == {"decoder", "post_quant_conv"}


def test_the_discriminator_learns_from_its_step_on(vae: VAE, pixels: Tensor) -> None:
    settings = VAETraining(discriminator_from=1, discriminator_channels=4, discriminator_layers=1)
    state = VAEState.start(vae, settings)
    assert state.discriminator is not None
    before = copy(state.discriminator)
    assert "adversarial" not in vae_step(vae, pixels, state, settings)
    assert not moved(state.discriminator, before)
    assert {"adversarial", "discriminator"} <= set(vae_step(vae, pixels, state, settings))
    assert moved(state.discriminator, before)


def test_gradients_that_are_not_finite_raise_before_anything_moves(vae: VAE, pixels: Tensor) -> None:
    settings = VAETraining()
    state, before = VAEState.start(vae, settings), copy(vae)
    with pytest.raises(FloatingPointError, match="gradients of step 0 are not finite"):
        vae_step(vae, pixels * float("nan"), state, settings)
    assert not moved(vae, before)


def test_it_learns_in_float32(vae: VAE) -> None:
    with pytest.raises(ValueError, match=r"a VAE trains in float32, not torch\.bfloat16"):
        VAEState.start(vae.bfloat16(), VAETraining())


@pytest.mark.parametrize(("name", "value"), [("kl", -1.0), ("l1", float("nan")), ("background", (1, 2))])
def test_settings_that_cannot_be(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be"):
        VAETraining(**{name: value})


def test_scaled_latents_have_a_deviation_of_1(vae: VAE) -> None:
    generator = torch.Generator().manual_seed(2)
    batches = [torch.rand(8, 3, SIDE, SIDE, generator=generator) for _ in range(8)]
    scaled(vae, batches)
    with torch.no_grad():
        drawn = torch.cat([vae.encode(batch).sample(generator) for batch in batches])
    # Three standard errors of 16384 / 16 numbers, neighbors being alike.
    assert float((drawn * vae.config.scaling_factor).std()) == pytest.approx(1.0, abs=0.07)


def test_a_step_is_weighed_as_computed(vae: VAE) -> None:
    wanted = replace(small(), vae=replace(small().vae, discriminator_from=5))
    settings = wanted.vae_training()
    state = VAEState.start(vae, settings)
    state.step = 5

    def loss() -> Tensor:
        returned = there_and_back(vae, given, state, settings)
        return total(vae_losses(returned, given, state, settings), settings)

    with LiveBytes() as live:
        given = torch.zeros(2, 3, 16, 16)
        assert weigh_run(vae, wanted, loss, "cpu", live) == weigh_vae(CONFIG, wanted, 2)


# --- runs ---

# Runs are stopped before all of their phases have come, and say so.
pytestmark = pytest.mark.filterwarnings("ignore:vae.*is never reached")

RECIPE = """
task = "vae"
train = ["encoder", "decoder"]
steps = 5
batch = 2
precision = "float32"
ema = 0.5
[model]
architecture.vae = {{ channels = [8, 16], residual_blocks = 1, groups = 4 }}
[data]
workers = 0
sources = [{{ task = "drawing", path = "{data}" }}]
[optimizer]
lr = 1e-3
[schedule]
kind = "constant"
warmup = 2
[log]
every = 1
samples_every = 2
pictures = [{{ picture = "{picture}" }}]
tensorboard = false
[checkpoint]
every = 2
[vae]
picture_size = 16
kl = 1e-3
discriminator_from = 3
discriminator_channels = 4
discriminator_layers = 1
"""


def small() -> Recipe:
    return parse_recipe(RECIPE.format(data="rows.jsonl", picture="1.png"), "vae.toml")


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    folder = tmp_path_factory.mktemp("data")
    rows = write_rows(folder, [f"color {number}" for number in range(5)])
    file = folder / "vae.toml"
    file.write_text(RECIPE.format(data=rows, picture=folder / "1.png"))
    return read_recipe(file)


@pytest.fixture(scope="module")
def straight(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("straight")
    return folder, quietly(recipe, folder)


def test_what_is_logged(straight: tuple[Path, list[dict[str, Any]]]) -> None:
    folder, steps = straight
    assert [record["step"] for record in steps] == [1, 2, 3, 4, 5]
    assert all("kl" in record for record in steps)
    assert ["discriminator" in record for record in steps] == [False, False, False, True, True]
    shown = [record for record in whole_log(folder) if "drawn" in record]
    assert [record["step"] for record in shown] == [2, 4, 5]  # every second, and the last
    assert Image.open(folder / shown[0]["drawn"][0]["picture"]).size == (2 + 18, 2 + 2 * 18)


def test_what_is_written_is_read_as_diffusers_has_it(
    recipe: Recipe, straight: tuple[Path, list[dict[str, Any]]]
) -> None:
    """The average of the weights, and a config that says at which scale latents have a deviation of 1."""
    folder, _ = straight
    written = load_vae(folder, device="cpu")
    saved = {f"average.{name}": torch.zeros_like(tensor) for name, tensor in written.named_parameters()}
    newest(folder / "checkpoints").load(saved)  # type: ignore[union-attr]
    for name, tensor in written.named_parameters():
        assert torch.equal(saved[f"average.{name}"], tensor), name
    said = json.loads((folder / "config.json").read_text())
    assert said["_class_name"] == "AutoencoderKL"
    assert said["block_out_channels"] == [8, 16]
    names = set(load_file(folder / "diffusion_pytorch_model.safetensors"))
    assert {"encoder.down_blocks.0.resnets.0.conv1.weight", "quant_conv.bias"} <= names
    assert said["scaling_factor"] == written.config.scaling_factor != 1.0
    assert isinstance(recipe.model.architecture, VAEConfig)
    assert replace(written.config, scaling_factor=1.0) == recipe.model.architecture


@pytest.mark.parametrize("stop", [2, 4])
def test_a_run_goes_on_with_the_same_bits(
    stop: int, recipe: Recipe, straight: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    quietly(replace(recipe, steps=stop), tmp_path)
    quietly(recipe, tmp_path)
    assert whole_log(tmp_path) == whole_log(straight[0])
    ours, theirs = (load_vae(each, device="cpu") for each in (tmp_path, straight[0]))
    assert ours.config == theirs.config
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[name], tensor), name


def test_an_autoencoder_begins_where_another_ended(
    recipe: Recipe, straight: tuple[Path, list[dict[str, Any]]], tmp_path: Path
) -> None:
    start = replace(recipe.model, architecture=None, checkpoint=str(straight[0]))
    found = quietly(replace(recipe, model=start, steps=2), tmp_path)
    assert found[0]["reconstruction"] < straight[1][0]["reconstruction"]


def test_two_processes_train_as_one_run(
    recipe: Recipe,
    tmp_path: Path,
    torchrun: Callable[..., Any],
    straight: tuple[Path, list[dict[str, Any]]],
) -> None:
    file = tmp_path / "vae.toml"
    file.write_text(dump(recipe))
    done = torchrun(Path(__file__).with_name("run_rank.py"), file, tmp_path / "run", 3)
    assert done.returncode == 0, done.stderr
    assert newest(tmp_path / "run" / "checkpoints").ranks == 2  # type: ignore[union-attr]
    two = records(tmp_path / "run")
    assert [record["step"] for record in two] == [1, 2, 3]
    # The same pictures, each process half of them, whose latents are sampled with other noise.
    assert two[0]["kl"] == pytest.approx(straight[1][0]["kl"], rel=1e-4)


def test_what_it_takes_is_told_and_tried(recipe: Recipe) -> None:
    memory = estimate_memory(CONFIG, recipe)
    assert set(memory.parts) == {*VAE_PARTS, "discriminator"}
    assert memory.tokens == 2 * (16 // CONFIG.factor) ** 2
    told: list[str] = []
    dry_run(recipe, device="cpu", show=told.append)
    assert "forward and backward of the longest batch (2 pictures): loss " in told[1]
