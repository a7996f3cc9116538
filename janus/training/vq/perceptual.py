"""LPIPS: the distance of two pictures as a network for classification sees them (Zhang et al., 2018).

Optional: package `lpips`, which needs torchvision and fetches the published weights of VGG-16.
"""

from torch import Tensor, nn

from janus.checks import one_line

REMEDY = "or train without it (perceptual = 0)"


class Perceptual(nn.Module):
    """The mean distance of pictures (B, 3, H, W) in [-1, 1] from their originals; its network is not trained.

    Raises ImportError where the package is absent, and ValueError where its weights cannot be had.
    """

    def __init__(self, network: str = "vgg") -> None:
        super().__init__()
        try:
            import lpips  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise ImportError(
                f"perceptual needs lpips ({one_line(error)}): pip install lpips torchvision, {REMEDY}"
            ) from error
        try:
            self.network = lpips.LPIPS(net=network, verbose=False)
        except Exception as error:  # of whatever class torchvision's downloads and torch.load raise
            raise ValueError(
                f"the weights of lpips' {network} cannot be had ({one_line(error)}): put them into torch's "
                f"hub folder, {REMEDY}"
            ) from error
        self.network.eval().requires_grad_(False)

    def train(self, mode: bool = True) -> "Perceptual":
        """Always as for inference: lpips holds dropout."""
        return super().train(False)

    def forward(self, pictures: Tensor, pixels: Tensor) -> Tensor:
        return self.network(pictures, pixels).float().mean()
