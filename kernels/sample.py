"""Choosing one code per picture: guidance, temperature, top-k and noise that anybody can compute again.

B pictures, V codes. The noise of a code is a function of (seed, picture's number, position, code) and of
nothing else: Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) with the
seed as its key and the rest as its counter. Choosing argmax(p / e) with e exponentially distributed samples
from p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from janus.checks import require_number, require_whole
from janus.kernels import choice
from janus.kernels.launch import DTYPES, as_rows, kernel, launch, tl

WORD = 0xFFFFFFFF
BLOCK = (
    16384  # the codes of all released models: the kernel keeps a picture's logits in one program's registers
)
LARGEST_UNIFORM = 1 - 2.0**-24  # the largest float32 below 1


def _multiply(a: Tensor, b: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of a product of 32-bit words held in int64, without overflowing it."""
    low, high = a * (b & 0xFFFF), a * (b >> 16)
    middle = (low >> 16) + high
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def philox(key: tuple[Tensor, Tensor], counter: tuple[Tensor, Tensor, Tensor, Tensor]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four random words per counter; words are int64 in [0, 2^32) and broadcast together."""
    k0, k1 = key
    c0, c1, c2, c3 = counter
    for _ in range(10):
        high0, low0 = _multiply(c0, 0xD2511F53)
        high1, low1 = _multiply(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + 0x9E3779B9) & WORD, (k1 + 0xBB67AE85) & WORD
    return c0, c1, c2, c3


def seeds_as_int64(seeds: Sequence[int]) -> Tensor:
    """Seeds, which may be any whole numbers and count modulo 2^64 -> (B,) int64 with the same 64 bits."""
    return torch.tensor([(seed + 2**63) % 2**64 - 2**63 for seed in seeds], dtype=torch.int64)


def philox_inputs(
    seeds: Tensor, numbers: Tensor, position: Tensor | int, codes: int
) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor, Tensor]]:
    """Philox's key and counters, (B, V / 4), of the noise of pictures with these seeds and numbers, (B,)."""
    seeds, numbers = seeds[:, None], numbers[:, None]
    zero = torch.zeros_like(numbers)
    counter = torch.arange((codes + 3) // 4, device=seeds.device)[None]
    key = seeds & WORD, (seeds >> 32) & WORD
    return key, (counter, zero + (position & WORD), numbers & WORD, zero)


def exponential(words: tuple[Tensor, ...], codes: int) -> Tensor:
    """Four words per counter, (B, V / 4) each -> exponentially distributed (B, V) in float32."""
    drawn = torch.stack(words, dim=-1).flatten(1)[:, :codes]
    # The middle of each of 2^32 equal parts of (0, 1): never 0, and finest near 0, where the winners of a
    # race are. The last parts would round to 1, whose noise is infinite: not even a certain code would win.
    uniform = (drawn.to(torch.float32) + 0.5) * 2.0**-32
    return -torch.log1p(-uniform.clamp_max(LARGEST_UNIFORM))


def exponential_noise(seeds: Tensor, numbers: Tensor, position: Tensor | int, codes: int) -> Tensor:
    """The noise (B, codes) at a position, of pictures (or answers) with these seeds and numbers, (B,)."""
    return exponential(philox(*philox_inputs(seeds, numbers, position, codes)), codes)


def guide(conditional: Tensor, unconditional: Tensor, guidance: float) -> Tensor:
    """Classifier-free guidance on logits, as the original computes it."""
    return unconditional + guidance * (conditional - unconditional)


def keep_top(logits: Tensor, top_k: int | None) -> Tensor:
    """(..., V): at -inf what is below the k-th largest; all stay where `top_k` is None or 0."""
    if not top_k or top_k >= logits.shape[-1]:
        return logits
    least = logits.topk(top_k, dim=-1).values[..., -1:]
    return logits.masked_fill(logits < least, -math.inf)


def exponential_race(logits: Tensor, noise: Tensor) -> Tensor:
    """Who wins with exponential noise, (..., V) -> (...): a sample of the logits' softmax."""
    return (logits.softmax(dim=-1) / noise).argmax(dim=-1)


def sample_reference(
    conditional: Tensor,
    unconditional: Tensor | None,
    seeds: Tensor,
    numbers: Tensor,
    position: Tensor,
    guidance: float,
    temperature: float,
    top_k: int,
) -> Tensor:
    """As `sample`; `top_k` 0 keeps everything."""
    logits = conditional.float()
    if unconditional is not None:
        logits = guide(logits, unconditional.float(), guidance)
    if temperature == 0:
        return logits.argmax(dim=-1)
    codes = logits.shape[-1]
    noise = exponential_noise(seeds, numbers, position.view(1), codes)
    return exponential_race(keep_top(logits / temperature, top_k), noise)


@kernel
def _uniform(word):
    """A random word, uint32 -> the reference's uniform number, bit for bit."""
    uniform = (word.to(tl.float32) + 0.5) * 2.3283064365386963e-10  # 2^-32
    return tl.minimum(uniform, 0.999999940395355224609375)  # LARGEST_UNIFORM


@kernel
def _exponential(uniform):
    """-log1p(-uniform) by Kahan's formula: as accurate as the logarithm, however near 0 the number is.

    It takes the logarithm of what 1 - u rounds to, times the ratio of u to what was taken from 1 by rounding
    ("What every computer scientist should know about floating-point arithmetic", theorem 4).
    """
    rest = 1.0 - uniform
    taken = 1.0 - rest
    ratio = uniform / tl.where(taken == 0.0, 1.0, taken)
    return tl.where(taken == 0.0, uniform, -tl.log(rest) * ratio)


@kernel
def _sample_kernel(
    conditional_ptr,
    unconditional_ptr,
    seeds_ptr,
    numbers_ptr,
    position_ptr,
    chosen_ptr,
    codes,
    stride_conditional,
    stride_unconditional,
    guidance,
    temperature,
    top_k,
    BLOCK: tl.constexpr,
):
    """One picture: its logits are read once into registers, and nothing but the chosen code is written."""
    row = tl.program_id(0).to(tl.int64)
    code = tl.arange(0, BLOCK)
    mask = code < codes
    logits = tl.load(conditional_ptr + row * stride_conditional + code, mask=mask, other=0.0).to(tl.float32)
    if unconditional_ptr is not None:
        base = tl.load(unconditional_ptr + row * stride_unconditional + code, mask=mask, other=0.0)
        base = base.to(tl.float32)
        logits = base + tl.cast(guidance, tl.float32) * (logits - base)
    logits = tl.where(mask, logits, float("-inf"))
    if temperature > 0:
        logits = tl.div_rn(logits, tl.zeros_like(logits) + tl.cast(temperature, tl.float32))
        if top_k > 0:
            # The k-th largest is the largest number that k logits reach, found bit by bit: as unsigned
            # numbers the bits of positive floats are ordered, and those of negative ones are with all
            # inverted. (What is no code counts as -inf, and all that is left is kept where that is least.)
            bits = logits.to(tl.uint32, bitcast=True)
            ordered = bits ^ tl.where(bits >> 31 == 1, 0xFFFFFFFF, 0x80000000)
            least = tl.full((1,), 0, tl.uint32)
            for step in range(32):
                higher = least | (tl.full((1,), 0x80000000, tl.uint32) >> step)
                reached = tl.sum((ordered >= higher).to(tl.int32), axis=0)
                least = tl.where(reached >= top_k, higher, least)
            least = least ^ tl.where(least >> 31 == 1, 0x80000000, 0xFFFFFFFF)
            least = least.to(tl.float32, bitcast=True)
            # Compared as floats: 0 and -0 are a tie.
            logits = tl.where(logits < least, float("-inf"), logits)
        weight = tl.exp(logits - tl.max(logits, axis=0))
        # Each counter gives four words, those of four codes in a row.
        counter = tl.arange(0, BLOCK // 4).to(tl.uint32)
        zero = counter * 0
        first, second, third, fourth = tl.philox(
            tl.load(seeds_ptr + row),
            counter,
            zero + tl.load(position_ptr).to(tl.uint32),
            zero + tl.load(numbers_ptr + row).to(tl.uint32),
            zero,
        )
        words = tl.reshape(tl.join(tl.join(first, third), tl.join(second, fourth)), (BLOCK,))
        logits = weight / tl.sum(weight, axis=0) / _exponential(_uniform(words))
    best = tl.max(logits, axis=0)
    chosen = tl.min(tl.where(logits == best, code, BLOCK), axis=0)
    # NaN equals nothing: code 0, as it must be one.
    tl.store(chosen_ptr + row, tl.where(chosen < codes, chosen, 0).to(tl.int64))


def _launch_sample(
    conditional: Tensor,
    unconditional: Tensor | None,
    seeds: Tensor,
    numbers: Tensor,
    position: Tensor,
    guidance: float,
    temperature: float,
    top_k: int,
) -> Tensor:
    pictures, codes = conditional.shape
    conditional = as_rows(conditional)
    unconditional = None if unconditional is None else as_rows(unconditional)
    chosen = torch.empty(pictures, dtype=torch.int64, device=conditional.device)
    launch(
        _sample_kernel,
        (pictures,),
        conditional_ptr=conditional,
        unconditional_ptr=unconditional,
        seeds_ptr=seeds.contiguous(),
        numbers_ptr=numbers.contiguous(),
        position_ptr=position,
        chosen_ptr=chosen,
        codes=codes,
        stride_conditional=conditional.stride(0),
        stride_unconditional=0 if unconditional is None else unconditional.stride(0),
        guidance=float(guidance),
        temperature=float(temperature),
        top_k=0 if top_k >= codes else top_k,
        BLOCK=BLOCK,
        # Products and sums round one by one, as torch's do: what is greedy, or a tie, is the same with both.
        options={"num_warps": 16, "enable_fp_fusion": False},
    )
    return chosen


def _check(
    conditional: Tensor,
    unconditional: Tensor | None,
    seeds: Tensor,
    numbers: Tensor,
    position: Tensor,
    guidance: float,
    temperature: float,
    top_k: int,
) -> None:
    if conditional.ndim != 2 or conditional.shape[1] == 0 or not conditional.is_floating_point():
        raise ValueError(
            "conditional must be (B, V) floats, V at least 1, not "
            f"{tuple(conditional.shape)} {conditional.dtype}"
        )
    if unconditional is not None and (
        unconditional.shape != conditional.shape or unconditional.dtype != conditional.dtype
    ):
        raise ValueError(
            f"unconditional must be {tuple(conditional.shape)} {conditional.dtype} as conditional is, not "
            f"{tuple(unconditional.shape)} {unconditional.dtype}"
        )
    pictures = conditional.shape[0]
    for name, words in (("seeds", seeds), ("numbers", numbers)):
        if words.shape != (pictures,) or words.dtype != torch.int64:
            raise ValueError(f"{name} must be ({pictures},) int64, not {tuple(words.shape)} {words.dtype}")
    if position.numel() != 1 or position.dtype != torch.int64:
        raise ValueError(
            f"position must be one int64 in a tensor, not {tuple(position.shape)} {position.dtype}"
        )
    others = {"unconditional": unconditional, "seeds": seeds, "numbers": numbers, "position": position}
    for name, tensor in others.items():
        if tensor is not None and tensor.device != conditional.device:
            raise ValueError(f"{name} must be on {conditional.device} as conditional is, not {tensor.device}")
    require_number("guidance", guidance, "a finite number")
    require_number("temperature", temperature, "0 (greedy) or more", least=0)
    require_whole("top_k", top_k, least=0)


def _chosen(conditional: Tensor) -> str:
    """The implementation for these logits."""
    codes = conditional.shape[1]
    unable = None if codes <= BLOCK else f"it takes {BLOCK} codes at most, not {codes}"
    return choice.implementation("sample", conditional, unable=unable)


@torch.library.custom_op("janus::sample", mutates_args=())
def sample_op(
    conditional: Tensor,
    unconditional: Tensor | None,
    seeds: Tensor,
    numbers: Tensor,
    position: Tensor,
    guidance: float,
    temperature: float,
    top_k: int,
) -> Tensor:
    arguments = (conditional, unconditional, seeds, numbers, position, guidance, temperature, top_k)
    _check(*arguments)
    return (_launch_sample if _chosen(conditional) == "triton" else sample_reference)(*arguments)


@sample_op.register_fake
def _(
    conditional: Tensor,
    unconditional: Tensor | None,
    seeds: Tensor,
    numbers: Tensor,
    position: Tensor,
    guidance: float,
    temperature: float,
    top_k: int,
) -> Tensor:
    _check(conditional, unconditional, seeds, numbers, position, guidance, temperature, top_k)
    return conditional.new_empty(conditional.shape[0], dtype=torch.int64)


def sample(
    conditional: Tensor,
    unconditional: Tensor | None = None,
    *,
    seeds: Tensor,
    numbers: Tensor,
    position: Tensor,
    guidance: float = 1.0,
    temperature: float = 1.0,
    top_k: int | None = None,
) -> Tensor:
    """One code of each picture, (B,) int64, from its logits (B, V) of any float dtype, in float32.

    With `unconditional` logits, of the same shape and dtype, both are combined by `guidance`. The noise is
    that of picture `numbers[b]`, modulo 2^32, of seed `seeds[b]` (see `seeds_as_int64`), both (B,) int64, at
    `position`: one int64 in a tensor on the same device, so that a CUDA graph can be replayed while it
    advances. Neither the pictures beside it nor how many there are count. Temperature 0 is greedy, the lowest
    of equal codes; `top_k` None or 0 keeps all codes, and ties with the k-th largest stay too. A picture with
    NaN among its logits gets some code below V. Raises ValueError for shapes, dtypes, devices and numbers
    that do not fit.
    """
    arguments = (conditional, unconditional, seeds, numbers, position, guidance, temperature, top_k or 0)
    _check(*arguments)
    return (sample_op if _chosen(conditional) == "triton" else sample_reference)(*arguments)


def every_launch() -> Iterator[Callable[[], object]]:
    """Calls on "meta" tensors that together launch every configuration of the kernel."""
    words, position = (torch.empty(size, dtype=torch.int64, device="meta") for size in (16, 1))
    for dtype in DTYPES:
        logits = torch.empty(16, BLOCK, dtype=dtype, device="meta")
        for unconditional in (None, logits):
            yield partial(_launch_sample, logits, unconditional, words, words, position, 5.0, 1.0, 0)
