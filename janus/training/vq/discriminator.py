"""The discriminator of patches, and the hinge losses of it and of what it judges.

B pictures; each score is of a patch of pixels that overlaps its neighbors' (70 x 70 with three layers).
Sources: pix2pix (Isola et al., 2017) for the network, hinge loss by Lim and Ye (2017), as in VQGAN (Esser et
al., 2021) and LlamaGen.
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from janus.checks import require_whole


class PatchDiscriminator(nn.Module):
    """(B, 3, H, W) in [-1, 1] -> scores (B, 1, h, w), high for what seems real.

    `layers` halve the picture. Norms are of groups of channels, not of the batch as published: pictures do
    not see each other, and processes need not agree on running means. Initial weights are normal with a
    deviation of 0.02, from torch's global generator. Raises ValueError for sizes below 1, and for pictures
    that are smaller than a patch, 3 * 2^layers pixels to a side.
    """

    def __init__(self, *, channels: int = 64, layers: int = 3) -> None:
        super().__init__()
        require_whole("channels", channels, least=1)
        self.least_side = least_side(require_whole("layers", layers, least=1))
        widths = [channels * min(2**level, 8) for level in range(layers + 1)]
        blocks: list[nn.Module] = [nn.Conv2d(3, channels, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
        for level, (inputs, outputs) in enumerate(pairwise(widths), start=1):
            stride = 2 if level < layers else 1
            blocks += [
                nn.Conv2d(inputs, outputs, 4, stride=stride, padding=1, bias=False),
                nn.GroupNorm(_groups(outputs), outputs),
                nn.LeakyReLU(0.2),
            ]
        self.body = nn.Sequential(*blocks, nn.Conv2d(widths[-1], 1, 4, padding=1))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, pixels: Tensor) -> Tensor:
        if min(pixels.shape[2:]) < self.least_side:
            raise ValueError(
                f"pictures of {pixels.shape[3]} x {pixels.shape[2]} pixels hold no patch: the "
                f"discriminator's layers need {self.least_side} to a side, so give it fewer"
            )
        return self.body(pixels)


def least_side(layers: int) -> int:
    """The pixels to a side that so many layers need of a picture."""
    return 3 * 2**layers


def _groups(channels: int) -> int:
    """The most groups, up to 32, that divide the channels."""
    return max(count for count in range(1, 33) if channels % count == 0)


def discriminator_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Hinge: the mean of max(0, 1 - score) of real pictures and of max(0, 1 + score) of others, halved."""
    return (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()) / 2


def adversarial_loss(fake: Tensor) -> Tensor:
    """What the judged learn from: the mean of their scores, negative."""
    return -fake.float().mean()
