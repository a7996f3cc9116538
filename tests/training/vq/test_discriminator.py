"""The hinge losses by hand, and what the discriminator of patches sees."""

import pytest
import torch

from janus.training.vq import PatchDiscriminator, adversarial_loss, discriminator_loss


def test_hinge_by_hand() -> None:
    real, fake = torch.tensor([2.0, 0.5, -1.0]), torch.tensor([-3.0, 0.0])
    expected = ((0 + 0.5 + 2) / 3 + (0 + 1) / 2) / 2
    torch.testing.assert_close(discriminator_loss(real, fake), torch.tensor(expected))
    assert adversarial_loss(torch.tensor([1.0, 3.0])) == -2


def test_the_two_pull_a_score_apart() -> None:
    real, fake = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
    discriminator_loss(real, fake).backward()
    assert real.grad is not None
    assert fake.grad is not None
    assert (real.grad < 0).all(), "a step down its gradient raises the score of what is real"
    assert (fake.grad > 0).all()
    judged = torch.zeros(2, requires_grad=True)
    adversarial_loss(judged).backward()
    assert judged.grad is not None
    assert (judged.grad < 0).all(), "and what is judged learns to raise it"


@pytest.mark.parametrize(("layers", "field"), [(1, 16), (2, 34), (3, 70)])
def test_a_score_is_of_a_patch(layers: int, field: int) -> None:
    """pix2pix, appendix 6.1.2: 70 x 70 pixels with three layers, 16 x 16 with one; norms see all."""
    torch.manual_seed(0)
    discriminator = PatchDiscriminator(channels=4, layers=layers)
    for name, module in discriminator.body.named_children():
        if isinstance(module, torch.nn.GroupNorm):
            setattr(discriminator.body, name, torch.nn.Identity())
    pixels = torch.randn(1, 3, 128, 128, requires_grad=True)
    scores = discriminator(pixels)
    side = 128 // 2**layers - 2
    assert scores.shape == (1, 1, side, side)
    scores[0, 0, side // 2, side // 2].backward()
    assert pixels.grad is not None
    seen = pixels.grad.abs().sum(dim=(0, 1)) > 0
    assert seen.any(dim=0).sum() == seen.any(dim=1).sum() == field


@torch.no_grad()
def test_pictures_do_not_see_each_other() -> None:
    discriminator = PatchDiscriminator(channels=8, layers=2)
    pixels = torch.randn(3, 3, 32, 32)
    alone = torch.cat([discriminator(picture) for picture in pixels.split(1)])
    # Convolutions of one picture and of three may sum in another order.
    torch.testing.assert_close(discriminator(pixels), alone, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_the_smallest_picture_has_one_score() -> None:
    discriminator = PatchDiscriminator(channels=4, layers=2)
    assert discriminator(torch.zeros(1, 3, 12, 13)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"pictures of 11 x 12 pixels hold no patch: .* need 12 to a side"):
        discriminator(torch.zeros(1, 3, 12, 11))


@pytest.mark.parametrize("sizes", [{"channels": 0}, {"layers": 0}, {"layers": 1.5}])
def test_sizes_that_are_none_raise(sizes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least 1, not"):
        PatchDiscriminator(**sizes)  # type: ignore[arg-type]
