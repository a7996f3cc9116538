"""The vision tower and the adapters at other sizes and depths, and the pictures that do not fit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from janus import cpu
from janus.config import AdapterConfig, AdapterKind, VisionConfig
from janus.models.adapters import ImageHead, build_adapter
from janus.models.siglip import SigLIP


def config(**changes: float) -> VisionConfig:
    sizes = {"image_size": 28, "patch_size": 14, "width": 24, "layers": 4, "heads": 3, "mlp_ratio": 2.5}
    return VisionConfig(**{**sizes, "select_layer": -1, "norm_eps": 1e-6, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("select_layer", "blocks"), [(-1, 4), (-2, 3), (-4, 1), (0, 4), (1, 1), (3, 3), (9, 4)]
)
@torch.no_grad()
def test_select_layer(select_layer: int, blocks: int) -> None:
    torch.manual_seed(0)
    whole, tower = SigLIP(config()), SigLIP(config(select_layer=select_layer))
    tower.load_state_dict({name: whole.state_dict()[name] for name in tower.state_dict()})
    assert len(tower.blocks) == blocks
    pixels = torch.randn(2, 3, 28, 28)
    x = whole.patch_embed(pixels).flatten(2).transpose(1, 2) + whole.pos_embed
    for block in list(whole.blocks)[:blocks]:
        x = block(x)
    # The final norm follows the last block that is built, whichever it is.
    assert torch.equal(tower(pixels), whole.norm(x))


@pytest.mark.parametrize("select_layer", [-5, -9])
def test_select_layer_that_leaves_nothing(select_layer: int) -> None:
    with pytest.raises(ValueError, match=f"select_layer {select_layer} leaves none of 4 layers"):
        config(select_layer=select_layer)


@torch.no_grad()
def test_sizes() -> None:
    tower = SigLIP(config(image_size=31, mlp_ratio=3.7362))
    # 31 pixels hold two whole patches of 14; what is left over is not seen, as in the original.
    assert tower.config.tokens == 4
    assert tower.blocks[0].mlp.fc1.out_features == int(24 * 3.7362)
    pixels = torch.randn(1, 3, 31, 31)
    seen = pixels.clone()
    seen[:, :, 28:], seen[:, :, :, 28:] = 0, 0
    assert tower(pixels).shape == (1, 4, 24)
    assert torch.equal(tower(pixels), tower(seen))


@pytest.mark.parametrize("image_size", [28, 31])
@torch.no_grad()
def test_patches_as_a_matrix_product(
    image_size: int, close: Callable[[Tensor, Tensor], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a CPU has no convolution of 16 bits; in float32 it shows that they are the same."""
    tower, pixels = SigLIP(config(image_size=image_size)), torch.randn(2, 3, image_size, image_size)
    expected = tower.patches(pixels)
    monkeypatch.setattr(cpu, "widens", lambda device, dtype: True)
    close(tower.patches(pixels), expected)


@torch.no_grad()
def test_pictures_do_not_see_each_other(close: Callable[[Tensor, Tensor], None]) -> None:
    torch.manual_seed(0)
    tower, pixels = SigLIP(config()), torch.randn(3, 3, 28, 28)
    together = tower(pixels)
    for number in range(3):
        close(together[number : number + 1], tower(pixels[number : number + 1]))
    assert tower(pixels[:0]).shape == (0, 4, 24)


@torch.no_grad()
def test_patches_see_all_patches() -> None:
    torch.manual_seed(0)
    tower, pixels = SigLIP(config()), torch.randn(1, 3, 28, 28)
    other = pixels.clone()
    other[:, :, 14:, 14:] += 1  # the last patch in reading order
    assert ((tower(pixels) - tower(other)).abs().amax(-1) > 1e-6).all()


@pytest.mark.parametrize(
    "shape",
    [(1, 3, 28, 27), (1, 3, 56, 56), (1, 1, 28, 28), (3, 28, 28)],
    ids=["not square", "another size", "gray", "no batch"],
)
def test_wrong_pixels_raise(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"pixels must be \(N, 3, 28, 28\).*not \("):
        SigLIP(config())(torch.zeros(shape))


@pytest.mark.parametrize(
    ("kind", "depth", "linear_layers"), [("mlp_gelu", 1, [0]), ("mlp_gelu", 3, [0, 2, 4])]
)
@torch.no_grad()
def test_mlp_adapters(kind: AdapterKind, depth: int, linear_layers: list[int]) -> None:
    torch.manual_seed(0)
    adapter = build_adapter(AdapterConfig(kind=kind, depth=depth, input_width=5, output_width=7))
    assert isinstance(adapter, nn.Sequential)
    # The checkpoint's names count the activations too.
    assert sorted(adapter.state_dict()) == sorted(
        f"{layer}.{part}" for layer in linear_layers for part in ("weight", "bias")
    )
    x = torch.randn(2, 3, 5)
    expected = x
    for layer in linear_layers:
        if layer:
            # The exact GELU, written out.
            expected = expected * 0.5 * (1 + torch.erf(expected / 2**0.5))
        expected = expected @ adapter[layer].weight.T + adapter[layer].bias
    torch.testing.assert_close(adapter(x), expected)


def test_linear_and_identity_adapters() -> None:
    linear = build_adapter(AdapterConfig(kind="linear", depth=1, input_width=5, output_width=7))
    assert isinstance(linear, nn.Linear)
    assert linear.weight.shape == (7, 5)
    identity = build_adapter(AdapterConfig(kind="identity", depth=1, input_width=5, output_width=5))
    x = torch.randn(2, 5)
    assert identity(x) is x
    assert not list(identity.parameters())
    with pytest.raises(ValueError, match="identity adapter cannot turn width 5 into 7"):
        AdapterConfig(kind="identity", depth=1, input_width=5, output_width=7)


def test_image_head_has_an_inner_width_of_its_own() -> None:
    head = ImageHead(width=6, inner_width=10, codes=33)
    assert {name: tuple(tensor.shape) for name, tensor in head.state_dict().items()} == {
        "up.weight": (10, 6),
        "up.bias": (10,),
        "out.weight": (33, 10),
        "out.bias": (33,),
    }
    assert head(torch.zeros(2, 4, 6)).shape == (2, 4, 33)
