"""Care of the codebook while it is trained: its start, codes that died, codes that mean the same, figures.

N latents of width C; K codes. What writes into a VQ's codebook says so. Randomness comes from a numpy
Generator, so that a step of training repeats.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from janus.checks import require_whole
from janus.kernels.codebook import nearest_code
from janus.models.vq import VQ


@torch.no_grad()
def start_codebook(
    vq: VQ,
    latents: Tensor,
    *,
    generator: np.random.Generator,
    background: Tensor | None = None,
    background_codes: int = 1,
    rounds: int = 10,
) -> int:
    """Write the k-means of latents (N, C), at unit length, into the codebook; -> how many entries are new.

    Of the latents that `background` (N,) bool marks there are `background_codes` entries, the first ones;
    of the others there are the rest. Where latents are fewer than entries, the last entries stay as they
    are. Raises ValueError for latents that are none or of another width, and for a mask of another length.
    """
    _check_latents(vq, latents, background, "background")
    require_whole("background_codes", background_codes, least=0)
    codes = vq.config.codes
    marked = torch.zeros(len(latents), dtype=torch.bool) if background is None else background
    flat, rest = latents[marked], latents[~marked]
    flat_codes = min(background_codes, len(flat), codes)
    start = [
        k_means(points, count, generator=generator, rounds=rounds)
        for points, count in ((flat, flat_codes), (rest, min(codes - flat_codes, len(rest))))
        if count
    ]
    centers = torch.cat(start)
    vq.codebook[: len(centers)] = centers.to(vq.codebook.dtype)
    return len(centers)


@torch.no_grad()
def k_means(points: Tensor, count: int, *, generator: np.random.Generator, rounds: int) -> Tensor:
    """`count` centers (count, C), of unit length, of points (N, C) that are compared at unit length.

    Begun by k-means++ (Arthur and Vassilvitskii, 2007); a center that is nearest to no point stays.
    """
    unit = F.normalize(points.float(), dim=1)
    centers = _spread(unit, count, generator)
    for _ in range(rounds):
        nearest = nearest_code(unit, centers)
        sums = torch.zeros_like(centers).index_add_(0, nearest, unit)
        empty = count_codes(nearest, count) == 0
        centers = torch.where(empty[:, None], centers, F.normalize(sums, dim=1))
    return centers


def _distances(unit: Tensor, codes: Tensor) -> Tensor:
    """Squared distances of points (N, C) of unit length to the nearest of codes (M, C), at most 4: (N,)."""
    if not len(codes):
        return torch.full_like(unit[:, 0], 4.0)
    entries = F.normalize(codes.float(), dim=1)
    return (unit - entries[nearest_code(unit, entries)]).square().sum(dim=1)


def _spread(
    unit: Tensor, count: int, generator: np.random.Generator, distances: Tensor | None = None
) -> Tensor:
    """`count` of the points (N, C), each drawn with a chance as its squared distance to those before it.

    `distances` (N,) are those to what was there before the first; left out, all points are as far.
    """
    draws = torch.from_numpy(generator.random(count, dtype=np.float32)).to(unit.device)
    chosen = torch.empty(count, dtype=torch.long, device=unit.device)
    if distances is None:
        distances = torch.ones(len(unit), device=unit.device)
    for number in range(count):
        heap = distances.cumsum(0)
        # Where every point is a center already the sum is 0, and any point is as good.
        place = torch.searchsorted(heap, draws[number : number + 1] * heap[-1], right=True)
        chosen[number] = place[0].clamp_max(len(unit) - 1)
        similarity = unit @ unit[chosen[number]]
        distances = torch.minimum(distances, (2 - 2 * similarity).clamp_min(0))
    return unit[chosen]


@torch.no_grad()
def revive(
    vq: VQ,
    dead: Tensor,
    latents: Tensor,
    *,
    generator: np.random.Generator,
    excluded: Tensor | None = None,
    far: bool = False,
) -> Tensor:
    """Write latents (N, C), drawn without repeats, into the entries of codes `dead` (K,) bool.

    Those that `excluded` (N,) bool marks are not drawn. All others are as likely; or, if `far`, each as its
    squared distance to the living codes and to those drawn before it (k-means++): what no code stands for yet
    gets most of them. -> the codes revived, int64: all that are dead, or as many, the lowest, as there are
    latents to draw. Raises ValueError for shapes that do not fit.
    """
    _check_latents(vq, latents, excluded, "excluded")
    _check_codes(vq, dead, "dead")
    candidates = latents if excluded is None else latents[~excluded]
    codes = dead.nonzero()[:, 0][: len(candidates)]
    unit = F.normalize(candidates.float(), dim=1)
    if far and len(codes):
        entries = _spread(unit, len(codes), generator, _distances(unit, vq.codebook[~dead]))
    else:
        entries = unit[torch.from_numpy(generator.permutation(len(unit))[: len(codes)]).to(unit.device)]
    vq.codebook[codes] = entries.to(vq.codebook.dtype)
    return codes


@torch.no_grad()
def merge(vq: VQ, which: Tensor, into: int, *, usage: Tensor | None = None) -> Tensor:
    """Make the codes `which` (K,) bool one code, `into`; -> the codes that are not used any more, int64.

    Their entries become copies of the entry of `into`, which must be the lowest of them: of entries equally
    near, encoding takes the lowest. With `usage` (K,), numbers of uses, that entry is first set to the mean
    of all merged entries by use, at unit length. Raises ValueError for codes that do not fit.
    """
    _check_codes(vq, which, "which")
    codes = which.nonzero()[:, 0]
    lowest = min(codes.tolist(), default=into)
    if not 0 <= into <= min(lowest, vq.config.codes - 1):
        raise ValueError(
            f"into is {into}: of equal entries encoding takes the lowest code, so merge into code {lowest}"
        )
    merged = torch.cat([codes.new_tensor([into]), codes[codes != into]])
    if usage is not None:
        if usage.shape != which.shape:
            raise ValueError(f"usage must be {tuple(which.shape)}, one a code, not {tuple(usage.shape)}")
        entries = F.normalize(vq.codebook[merged].float(), dim=1)
        mean = (entries * usage[merged, None]).sum(dim=0)
        if mean.norm() > 0:
            vq.codebook[into] = F.normalize(mean, dim=0).to(vq.codebook.dtype)
    vq.codebook[merged] = vq.codebook[into].clone()
    return merged[1:]


def count_codes(codes: Tensor, size: int, where: Tensor | None = None) -> Tensor:
    """How often each of `size` codes occurs in integers of any shape, where a mask of that shape is true."""
    ones = torch.ones(codes.shape, device=codes.device) if where is None else where.float()
    return torch.zeros(size, device=codes.device).index_add_(0, codes.flatten(), ones.flatten())


def usage_entropy(usage: Tensor) -> Tensor:
    """Bits per code of codes that are used in these proportions (K,): 0 to log2 K; 0 where none is used."""
    share = usage / usage.sum().clamp_min(torch.finfo(usage.dtype).tiny)
    return torch.special.entr(share).sum() / np.log(2)


def perplexity(usage: Tensor) -> Tensor:
    """How many codes, used alike, would have this entropy: 1 to K."""
    return usage_entropy(usage).exp2()


def _check_latents(vq: VQ, latents: Tensor, mask: Tensor | None, name: str) -> None:
    width = vq.config.code_width
    if latents.ndim != 2 or latents.shape[1] != width or len(latents) == 0:
        raise ValueError(f"latents must be (N, {width}), at least one, not {tuple(latents.shape)}")
    if mask is not None and (mask.shape != latents.shape[:1] or mask.dtype != torch.bool):
        raise ValueError(f"{name} must be ({len(latents)},) bool, not {tuple(mask.shape)} {mask.dtype}")


def _check_codes(vq: VQ, mask: Tensor, name: str) -> None:
    if mask.shape != (vq.config.codes,) or mask.dtype != torch.bool:
        raise ValueError(f"{name} must be ({vq.config.codes},) bool, not {tuple(mask.shape)} {mask.dtype}")
