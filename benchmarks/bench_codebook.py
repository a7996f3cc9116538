"""The codebook: the code nearest to each latent, and the entries of codes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

import compare
from cases import CODEBOOK, CodebookCase
from janus.kernels.codebook import lookup, nearest_code
from measure import Cost
from peers import cuvs
from variants import Prepare, eager_and_compiled, ours

CASES = CODEBOOK
UNCAPTURED = ("cuvs",)  # it takes workspaces from elsewhere than torch
TIE = 4e-6  # squared distances of unit vectors, up to 4, are summed in float32 from three parts


def cost(case: CodebookCase) -> Cost:
    """Latents and codebook in, codes out; a product and a sum for each component of each pair.

    Of a lookup codes in, latents out, and the entries that random codes touch.
    """
    latents, codes = case.pictures * case.side**2, case.codes
    touched = codes if case.task == "nearest_code" else round(codes * (1 - (1 - 1 / codes) ** latents))
    numbers = (latents + touched) * case.width * case.dtype.itemsize
    if case.task == "nearest_code":
        # Float32 units: at the precision of tensor cores nearly equal codes would be confused.
        return Cost(numbers + 8 * latents, 2 * latents * codes * case.width, torch.float32)
    return Cost(numbers + 8 * latents, 3 * latents * case.width, torch.float32)


def inputs(case: CodebookCase, device: torch.device) -> tuple[Tensor, Tensor]:
    """Latents (B, C, h, w), or codes (B, h, w); the codebook (K, C)."""
    codebook = torch.randn(case.codes, case.width, dtype=case.dtype, device=device)
    shape = case.pictures, case.side, case.side
    if case.task == "lookup":
        return torch.randint(case.codes, shape, device=device), codebook
    latents = torch.randn(case.pictures, case.width, *shape[1:], dtype=case.dtype, device=device)
    return latents, codebook


def units(latents: Tensor, codebook: Tensor) -> tuple[Tensor, Tensor]:
    """All latents (N, C) and codes (K, C) at unit length, in float32 or better."""
    rows = latents.permute(0, 2, 3, 1).reshape(-1, codebook.shape[1])
    dtype = torch.promote_types(codebook.dtype, torch.float32)
    return F.normalize(rows.to(dtype), dim=1), F.normalize(codebook.to(dtype), dim=1)


def like(codes: Tensor, latents: Tensor) -> Tensor:
    return codes.view(latents.shape[0], *latents.shape[2:])


def einsum(latents: Tensor, codebook: Tensor) -> Tensor:
    """As the original does."""
    z, e = units(latents, codebook)
    distances = z.pow(2).sum(1, keepdim=True) + e.pow(2).sum(1) - 2 * torch.einsum("nc,kc->nk", z, e)
    return like(distances.argmin(dim=1), latents)


def cdist(latents: Tensor, codebook: Tensor) -> Tensor:
    return like(torch.cdist(*units(latents, codebook)).argmin(dim=1), latents)


def gather(codes: Tensor, codebook: Tensor) -> Tensor:
    return F.embedding(codes, F.normalize(codebook, dim=1)).permute(0, 3, 1, 2).contiguous()


def setup(case: CodebookCase, device: torch.device) -> dict[str, Prepare]:
    if case.task == "lookup":
        return eager_and_compiled(gather) | ours(lookup, device)
    return (
        eager_and_compiled(einsum, "einsum")
        | eager_and_compiled(cdist, "cdist")
        | ours(nearest_code, device)
        | cuvs.nearest_code(device, units)
    )


def problem(
    case: CodebookCase, given: tuple[Tensor, Tensor], name: str, result: Tensor, expected: Tensor
) -> str | None:
    """Codes must be equal unless two are equally near, but for float32's rounding."""
    if case.task == "lookup":
        return compare.problem(result, expected, case.dtype)
    if result.shape != expected.shape:
        return f"shape {tuple(result.shape)} instead of {tuple(expected.shape)}"
    differ = (result != expected).flatten()
    latents, codebook = units(given[0].double(), given[1].double())
    distances = torch.cdist(latents[differ], codebook).square()
    return compare.near_tie(result.flatten()[differ], expected.flatten()[differ], distances, TIE)
