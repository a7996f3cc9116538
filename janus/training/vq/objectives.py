"""The terms of the VQ tokenizer's loss, and which pixels and cells count as background.

B pictures of (H, W) pixels, or of (h, w) cells, `factor` pixels to a side; C the width of latents and
entries; K codes. Latents and entries are compared at unit length, and every term is float32. Sources: VQ-VAE
(van den Oord et al., 2017) for codebook and commitment, LlamaGen (Sun et al., 2024) for their scale and the
entropy.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def reconstruction_loss(
    pictures: Tensor,
    pixels: Tensor,
    *,
    l1: float,
    l2: float,
    weights: Tensor | None = None,
    total: Tensor | None = None,
) -> Tensor:
    """`l1` times the absolute and `l2` times the squared error of (B, 3, H, W), a mean over all numbers.

    With `weights` (B, H, W) it is the weighted mean, so their scale is without effect. `total`, a scalar, is
    what their sum counts as, where the mean of several such losses is to be that of all their pixels. Raises
    ValueError for shapes that do not fit.
    """
    if pictures.shape != pixels.shape:
        raise ValueError(f"pictures {tuple(pictures.shape)} and pixels {tuple(pixels.shape)} must be alike")
    difference = pictures.float() - pixels.float()
    error = (l1 * difference.abs() + l2 * difference.square()).mean(dim=1)  # (B, H, W)
    if weights is None:
        return error.mean()
    if weights.shape != error.shape:
        raise ValueError(f"weights must be {tuple(error.shape)}, one a pixel, not {tuple(weights.shape)}")
    return (error * weights).sum() / (weights.sum() if total is None else total)


def codebook_loss(latents: Tensor, entries: Tensor) -> Tensor:
    """Draws the entries to the latents, both (B, C, h, w): mean of |e - sg(z)|^2 over all numbers.

    `entries` are `VQ.lookup`'s: through it, and here alone, the codebook gets gradients.
    """
    return F.mse_loss(entries.float(), _unit(latents).detach())


def commitment_loss(latents: Tensor, entries: Tensor) -> Tensor:
    """Draws the latents to the entries, both (B, C, h, w): mean of |z - sg(e)|^2 over all numbers."""
    return F.mse_loss(_unit(latents), entries.float().detach())


def entropy_loss(latents: Tensor, codebook: Tensor, *, temperature: float) -> Tensor:
    """E[H(p)] - H(E[p]) in nats, p = softmax(-d / temperature) over codes, d the squared distances.

    Low where every latent is sure of its code and all codes are used alike: -ln K at best, 0 at worst.
    Latents (B, C, h, w), codebook (K, C); both get gradients. Holds B * h * w * K numbers, several times.
    """
    z = _unit(latents).permute(0, 2, 3, 1).flatten(0, 2)
    e = F.normalize(codebook.float(), dim=1)
    # Both are of unit length: |z - e|^2 = 2 - 2 z.e, and the 2 is without effect on the softmax.
    log_p = (2 / temperature * (z @ e.t())).log_softmax(dim=1)
    p = log_p.exp()
    mean = p.mean(dim=0)
    of_each = -(p * log_p).sum(dim=1).mean()
    return of_each + (mean * mean.clamp_min(torch.finfo(mean.dtype).tiny).log()).sum()


def foreground_pixels(pixels: Tensor, background: tuple[int, int, int], *, tolerance: int) -> Tensor:
    """Where pixels in [-1, 1] differ from an 8-bit color by more than `tolerance` levels: (B, H, W) bool."""
    color = torch.tensor(background, dtype=torch.float32, device=pixels.device)[:, None, None]
    levels = (pixels.float() + 1) * 127.5
    # Half a level more: pixels are multiples of 1 / 127.5 only up to rounding.
    return ((levels - color).abs() > tolerance + 0.5).any(dim=1)


def background_cells(foreground: Tensor, factor: int) -> Tensor:
    """The cells without a pixel of the foreground: (B, H, W) bool -> (B, H / factor, W / factor) bool."""
    return F.max_pool2d(foreground[:, None].float(), factor)[:, 0] == 0


def _unit(latents: Tensor) -> Tensor:
    return F.normalize(latents.float(), dim=1)
