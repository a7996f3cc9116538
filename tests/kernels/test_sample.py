"""One code per picture: the kernel's noise against float64, and its choices against plain PyTorch's."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

import janus.kernels.sample as module
from helpers.kernels import DEVICE, DTYPES, random, untouched
from janus.inference.sampling import Sampling, choose, seeded_noise
from janus.kernels import choice
from janus.kernels.launch import kernel, launch, recorded, tl
from janus.kernels.sample import (
    BLOCK,
    WORD,
    _exponential,
    _uniform,
    every_launch,
    guide,
    keep_top,
    philox,
    philox_inputs,
    sample,
    sample_op,
    seeds_as_int64,
)

BOTH = pytest.mark.parametrize("implementation", ["triton", "torch"])


@pytest.fixture
def few_codes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same kernel for 64 codes at most: the interpreter spends as long on codes that are not there."""
    monkeypatch.setattr(module, "BLOCK", 64)


def whole(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=DEVICE)


def addressed(pictures: int, **options: Any) -> dict[str, Any]:
    """Seeds 0, 1, ... and number and position 0, unless others are given."""
    return {
        "seeds": whole(*range(pictures)),
        "numbers": whole(*[0] * pictures),
        "position": whole(0),
    } | options


def run(implementation: str, *logits: Tensor, **options: Any) -> Tensor:
    with choice.use(sample=implementation):
        return sample(*logits, **addressed(len(logits[0]), **options))


def uniform_numbers(codes: int, *, seeds: Tensor, numbers: Tensor, position: Tensor) -> Tensor:
    words = torch.stack(philox(*philox_inputs(seeds, numbers, position, codes)), dim=-1)
    return ((words.flatten(1)[:, :codes].float() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24)


def assert_same_choices(*logits: Tensor, **options: Any) -> None:
    """The kernel's codes are the reference's, or tie with them in float64 but for the rounding of float32.

    Rounded are the logit less the largest one, the exponential, the sum, the noise and two quotients, each by
    2^-24 or a few of that; the first and the second in proportion to the difference.
    """
    chosen, wanted = (run(implementation, *logits, **options) for implementation in ("triton", "torch"))
    pictures, codes = logits[0].shape
    assert chosen.dtype == wanted.dtype == torch.int64
    assert chosen.shape == wanted.shape == (pictures,)
    temperature, top_k = options.pop("temperature", 1), options.pop("top_k", None)
    guided = logits[0].float()
    if len(logits) > 1:
        guided = guide(guided, logits[1].float(), options.pop("guidance"))
    if temperature == 0:
        assert torch.equal(chosen, wanted)
        return
    noise = -torch.log1p(-uniform_numbers(codes, **addressed(pictures, **options)).double())
    logarithms = keep_top(guided / temperature, top_k).double()
    scores = logarithms - noise.log()
    ours, theirs = (scores.gather(1, picked[:, None])[:, 0] for picked in (chosen, wanted))
    apart = logarithms.amax(1) - logarithms.gather(1, chosen[:, None])[:, 0]
    assert ((ours - theirs).abs() <= 2.0**-24 * (16 + 2 * apart)).all()


# --- the noise ---


@kernel
def noise_kernel(words_ptr, uniform_ptr, noise_ptr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    uniform = _uniform(tl.load(words_ptr + place).to(tl.uint32))
    tl.store(uniform_ptr + place, uniform)
    tl.store(noise_ptr + place, _exponential(uniform))


def test_noise_is_exact_everywhere() -> None:
    near_powers = torch.tensor([2**power + step for power in range(33) for step in (-2, -1, 0, 1, 2)])
    drawn = torch.randint(2**32, (2**15,), generator=torch.Generator().manual_seed(0))
    words = torch.cat(
        [
            near_powers,
            torch.arange(2**14),  # the winners of a race over so many codes
            WORD - torch.arange(2**12),
            2**31 + torch.arange(-(2**10), 2**10) * 64,  # 1 - u leaves [0.5, 1)
            drawn,
            drawn >> torch.arange(2**15) % 32,
        ]
    ).clamp(0, WORD)
    words = torch.cat([words, words[: -len(words) % 1024]]).to(DEVICE)
    uniform, noise = (torch.empty(len(words), device=DEVICE) for _ in range(2))
    launch(
        noise_kernel,
        (len(words) // 1024,),
        words_ptr=words,
        uniform_ptr=uniform,
        noise_ptr=noise,
        BLOCK=1024,
        options={"num_warps": 4, "enable_fp_fusion": False},
    )
    assert torch.equal(uniform, ((words.float() + 0.5) * 2.0**-32).clamp_max(1 - 2.0**-24))
    assert ((noise > 0) & noise.isfinite()).all()
    exact = -torch.log1p(-uniform.double())
    # A logarithm (1 unit in the last place of 2^-23), a quotient (2), a product, and 1 - u for u (a half).
    assert float(((noise - exact) / exact).abs().max()) < 4.5 * 2**-23


@pytest.mark.parametrize("codes", [BLOCK, 1000, 5])
def test_of_equal_codes_the_one_with_the_least_word_wins(codes: int) -> None:
    address = {
        "seeds": seeds_as_int64([0, 1, -1, 2**32, 2**63 + 5, -(2**63), 0x299F31D0A4093822]).to(DEVICE),
        "numbers": whole(0, 0, 0, 3, WORD, 2**31, 0x13198A2E),
        "position": whole(0x85A308D3),
    }
    chosen = run("triton", torch.zeros(7, codes, device=DEVICE), **address)
    assert torch.equal(chosen, uniform_numbers(codes, **address).argmin(1))


@BOTH
def test_every_part_of_the_address_counts(implementation: str) -> None:
    logits = torch.zeros(1, BLOCK, device=DEVICE)
    addresses = [(0, 0, 0), (1, 0, 0), (2**32, 0, 0), (-1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 575)]
    chosen = [
        int(run(implementation, logits, seeds=whole(seed), numbers=whole(number), position=whole(position)))
        for seed, number, position in addresses
    ]
    # Of 16,384 equal codes: two of them would meet once in 780 times, and the noise is always the same.
    assert len(set(chosen)) == len(addresses)


@BOTH
def test_seeds_and_numbers_count_modulo_their_bits(implementation: str) -> None:
    logits = random(1, BLOCK).expand(4, BLOCK)
    seeds = seeds_as_int64([-1, 2**64 - 1, 3 * 2**64 - 1, -1]).to(DEVICE)
    numbers = whole(5, 5 + 2**32, 5 - 2**40, 5)
    first, *others = run(implementation, logits, seeds=seeds, numbers=numbers).tolist()
    assert others == [first] * 3
    again = run(implementation, logits, seeds=seeds, numbers=numbers, position=whole(2**32))
    assert again.tolist() == [first] * 4
    assert seeds.tolist() == [-1] * 4


@BOTH
def test_it_is_the_noise_of_answers_too(implementation: str) -> None:
    logits, seeds, rows = random(3, BLOCK, seed=3) * 2, [7, 2**70 + 7, -7], [0, 4, 1]
    noise = seeded_noise(seeds, rows, BLOCK, torch.device(DEVICE))
    for position in (0, 575):
        chosen = run(
            implementation,
            logits,
            seeds=seeds_as_int64(seeds).to(DEVICE),
            numbers=whole(*rows),
            position=whole(position),
            temperature=0.9,
            top_k=500,
        )
        wanted = choose(logits, Sampling(temperature=0.9, top_k=500), noise(position))
        assert torch.equal(chosen, wanted)


# --- the choice ---


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("codes", [BLOCK, 1000])
@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 1.0},
        {"temperature": 0.6, "top_k": 50},
        {"temperature": 3.0, "top_k": 999},
        {"temperature": 1e-3},
        {"temperature": 0.0, "top_k": 2},
    ],
    ids=str,
)
def test_it_chooses_what_the_reference_chooses(
    options: dict[str, float], codes: int, dtype: torch.dtype
) -> None:
    conditional, unconditional = (random(4, codes, seed=seed, dtype=dtype) * 3 for seed in (1, 2))
    assert_same_choices(conditional, position=whole(3), **options)
    assert_same_choices(conditional, unconditional, guidance=5.0, position=whole(4), **options)


@pytest.mark.usefixtures("few_codes")
@pytest.mark.parametrize("top_k", [None, 40])
def test_over_many_seeds(top_k: int | None) -> None:
    logits = random(100, 64, seed=1) * 2
    assert_same_choices(logits, position=whole(1), temperature=0.8, top_k=top_k)


@st.composite
def calls(draw: st.DrawFn) -> dict[str, Any]:
    pictures, codes = draw(st.integers(1, 4)), draw(st.integers(1, 64))
    dtype = draw(st.sampled_from(DTYPES))
    spread = draw(st.sampled_from([0.0, 0.1, 3.0, 100.0]))
    logits = [(random(pictures, codes, seed=seed) * spread).to(dtype) for seed in (1, 2)]
    if draw(st.booleans()):
        logits = [x.round() for x in logits]  # ties
    call = {
        "seeds": draw(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=pictures, max_size=pictures)),
        "numbers": draw(st.lists(st.integers(0, WORD), min_size=pictures, max_size=pictures)),
        "position": [draw(st.integers(0, 2**32))],
    }
    options = {
        "temperature": draw(st.sampled_from([0.0, 0.5, 1.0, 7.0])),
        "top_k": draw(st.none() | st.integers(0, 70)),
    }
    if draw(st.booleans()):
        options["guidance"] = draw(st.sampled_from([-1.0, 0.0, 1.0, 2.5, 5.0]))
    kept = logits if "guidance" in options else logits[:1]
    return {"logits": kept, **{name: whole(*numbers) for name, numbers in call.items()}, **options}


@pytest.mark.usefixtures("few_codes")
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(call=calls())
def test_it_chooses_what_the_reference_chooses_whatever_is_asked(call: dict[str, Any]) -> None:
    assert_same_choices(*call.pop("logits"), **call)


@pytest.mark.usefixtures("few_codes")
def test_codes_have_their_probabilities() -> None:
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.06, 0.04], device=DEVICE)
    count = 400
    logits = probabilities.log().expand(count, 6)
    chosen = run("triton", logits, seeds=whole(*[11] * count), numbers=torch.arange(count, device=DEVICE))
    expected = probabilities.double() * count
    statistic = ((chosen.bincount(minlength=6) - expected).square() / expected).sum()
    # Chi-square with 5 degrees of freedom: one honest sample in a thousand is above it; the seed is fixed.
    assert statistic < 20.5


@pytest.mark.usefixtures("few_codes")
@BOTH
@pytest.mark.parametrize(
    ("logits", "top_k", "kept"),
    [
        ([1.0, 3.0, 2.0, 0.0], 1, {1}),
        ([1.0, 1.2, 1.1, 0.0], 2, {1, 2}),
        ([3.0, 3.0, 2.9, 3.0], 2, {0, 1, 3}),
        ([-1.0, -1.3, -1.2, -1.0], 3, {0, 2, 3}),
        ([0.2, -0.0, 0.0, -0.2], 2, {0, 1, 2}),
        ([0.2, 0.0, -0.0, -0.2], 3, {0, 1, 2}),
        ([1.0, 1.0, 1.0, 1.0], 1, {0, 1, 2, 3}),
        ([0.0, 0.2, -math.inf, -math.inf], 3, {0, 1}),
        ([1e-40, 2e-40, -1e-40, 0.0], 1, {1}),
        ([3e38, -3e38, 3e38, 0.0], 1, {0, 2}),
        ([1.0, 1 + 2**-23, 1.0, 1.0], 1, {1}),
        ([-1.0, -1 - 2**-23, -1.0, -2.0], 2, {0, 2}),
        ([0.0, 0.1, 0.2, 0.1], 4, {0, 1, 2, 3}),
        ([0.0, 0.1, 0.2, 0.1], 5, {0, 1, 2, 3}),
        ([0.0, 0.1, 0.2, 0.1], 0, {0, 1, 2, 3}),
    ],
)  # fmt: skip
def test_top_k_keeps_the_k_largest_and_their_ties(
    implementation: str, logits: list[float], top_k: int, kept: set[int]
) -> None:
    # So many pictures draw each of a few codes that are nearly as likely as each other.
    pictures = 8 * len(kept)
    chosen = run(implementation, torch.tensor(logits, device=DEVICE).expand(pictures, 4), top_k=top_k)
    assert set(chosen.tolist()) == kept


@BOTH
def test_half_precision_is_guided_in_single(implementation: str) -> None:
    # 201 and 201.001 times 5: float16 cannot tell them apart, and would take the first.
    conditional = torch.tensor([[1.0, 1.0009765625, 0.0]], device=DEVICE, dtype=torch.float16)
    unconditional = torch.full_like(conditional, -200.0)
    half = guide(conditional, unconditional, 5.0)
    assert half[0, 0] == half[0, 1]
    chosen = run(implementation, conditional, unconditional, guidance=5.0, temperature=0.0)
    assert chosen.tolist() == [1]


@BOTH
def test_the_first_of_the_largest_is_greedy(implementation: str) -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0], [3.0, 0.0, -1.0], [-math.inf] * 3], device=DEVICE)
    assert run(implementation, logits, temperature=0.0).tolist() == [1, 0, 0]


@BOTH
@pytest.mark.filterwarnings("ignore:invalid value", "ignore:All-NaN slice")  # the interpreter's numpy
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_whatever_comes_in_a_code_comes_out(implementation: str, temperature: float) -> None:
    nan, inf = math.nan, math.inf
    logits = torch.tensor(
        [[nan] * 3, [1.0, nan, 2.0], [nan, inf, 1.0], [inf, inf, 0.0], [-inf] * 3], device=DEVICE
    )
    for top_k in (0, 1):
        chosen = run(implementation, logits, temperature=temperature, top_k=top_k)
        assert ((chosen >= 0) & (chosen < 3)).all()
        if temperature:
            assert not chosen.any(), "nothing is known of it: the first"


@BOTH
def test_pictures_do_not_depend_on_each_other(implementation: str) -> None:
    conditional, unconditional = random(5, 300, seed=1), random(5, 300, seed=2)
    options = {"seeds": whole(3, 3, 4, -9, 3), "numbers": whole(0, 1, 0, 7, 2)}
    together = run(implementation, conditional, unconditional, guidance=2.0, top_k=99, **options)
    for row in (4, 0, 2):
        alone = {name: words[[row]] for name, words in options.items()}
        chosen = run(
            implementation, conditional[[row]], unconditional[[row]], guidance=2.0, top_k=99, **alone
        )
        assert torch.equal(chosen, together[[row]])


def test_views_give_what_copies_give() -> None:
    both = random(6, 330, seed=1)
    conditional, unconditional = both[::2, 7:307], both[1::2, 20:320]  # rows in turn, of larger ones
    words = torch.arange(6, device=DEVICE).view(3, 2)
    address = {"seeds": words[:, 0], "numbers": words[:, 1], "position": words[1, 1]}
    copies = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in address.items()}
    wanted = run("triton", conditional.contiguous(), unconditional.contiguous(), guidance=3.0, **copies)
    assert torch.equal(run("triton", conditional, unconditional, guidance=3.0, **address), wanted)
    columns = conditional.t().contiguous().t()
    assert torch.equal(run("triton", columns, unconditional, guidance=3.0, **address), wanted)
    spread = torch.stack((unconditional, unconditional), dim=-1)[..., 0]
    assert torch.equal(run("triton", conditional, spread, guidance=3.0, **address), wanted)


def test_offsets_beyond_32_bits() -> None:
    memory = untouched(2**31 + 1000)
    logits = memory.as_strided((3, 40), (2**30, 1))
    logits.copy_(random(3, 40))
    assert torch.equal(run("triton", logits), run("triton", logits.contiguous()))
    chosen = run("triton", random(3, 40, dtype=torch.float16), logits, guidance=4.0)
    wanted = run("triton", random(3, 40, dtype=torch.float16), logits.contiguous(), guidance=4.0)
    assert torch.equal(chosen, wanted)


@BOTH
def test_no_pictures_get_no_codes(implementation: str) -> None:
    assert run(implementation, random(0, 9)).shape == (0,)


def test_more_codes_than_the_kernel_holds() -> None:
    logits = random(2, BLOCK + 1)
    logits[0, -1] = 99.0
    assert run("torch", logits, temperature=0.0)[0] == BLOCK
    assert sample(logits, **addressed(2)).shape == (2,)
    with pytest.raises(RuntimeError, match=f"it takes {BLOCK} codes at most, not {BLOCK + 1}"):
        run("triton", logits)


# --- the op ---


@BOTH
def test_opcheck(implementation: str) -> None:
    address = whole(1, 2), whole(0, 1), whole(3)
    logits = random(2, 30), random(2, 30, seed=1)
    with choice.use(implementation):
        torch.library.opcheck(sample_op, (*logits, *address, 5.0, 1.0, 7))
        torch.library.opcheck(sample_op, (logits[0], None, *address, 1.0, 0.0, 0))


@BOTH
def test_it_compiles_whole(implementation: str) -> None:
    logits, address = random(3, 30), addressed(3)

    def step(logits: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        options = address | {"position": position}
        return sample(logits * 2, logits - 1, guidance=3.0, top_k=9, **options), position + 1

    with choice.use(implementation):
        compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
        for position in (whole(0), whole(5)):
            chosen, after = compiled(logits, position)
            assert torch.equal(chosen, step(logits, position)[0])
            assert torch.equal(after, position + 1)


def test_nothing_is_read_on_the_host() -> None:
    # Tensors on "meta" have no numbers to read: what launches without them can be captured in a graph.
    calls = list(every_launch())
    for call in calls:
        with recorded() as launches:
            call()
        assert [launch.kernel.__name__ for launch in launches] == ["_sample_kernel"]
    assert len(calls) == 6, "three dtypes, guided and not"


@pytest.mark.skipif(DEVICE != "cuda", reason="graphs are captured on a GPU")
def test_a_captured_step_follows_its_position() -> None:
    logits, position = random(4, BLOCK), whole(0)
    run("triton", logits, position=position)  # compiled before it is captured
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    address = addressed(4, position=position)
    with torch.cuda.graph(graph), choice.use("triton"):
        chosen = sample(logits, **address)
        position += 1
    position.zero_()
    for step in range(3):
        graph.replay()
        assert torch.equal(chosen, run("triton", logits, position=whole(step))), step


# --- what is refused ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"conditional": torch.ones(5)}, r"conditional must be \(B, V\) floats, V at least 1, not \(5,\)"),
        ({"conditional": torch.ones(2, 0)}, r"V at least 1, not \(2, 0\)"),
        ({"conditional": torch.ones(2, 5).long()}, "conditional must be .* torch.int64"),
        ({"unconditional": torch.ones(2, 4)}, r"unconditional must be \(2, 5\) torch.float32"),
        ({"unconditional": torch.ones(2, 5).half()}, r"unconditional must be .* not \(2, 5\) torch.float16"),
        ({"unconditional": torch.ones(2, 5, device="meta")}, "unconditional must be on cpu .* not meta"),
        ({"seeds": torch.ones(3).long()}, r"seeds must be \(2,\) int64, not \(3,\)"),
        ({"numbers": torch.ones(2).int()}, r"numbers must be \(2,\) int64, not \(2,\) torch.int32"),
        ({"position": torch.ones(2).long()}, r"position must be one int64 in a tensor, not \(2,\)"),
        ({"position": torch.ones(1)}, r"position must be one int64 in a tensor, not \(1,\) torch.float32"),
        ({"guidance": math.inf}, "guidance must be a finite number, not inf"),
        ({"temperature": -1.0}, r"temperature must be 0 \(greedy\) or more, not -1.0"),
        ({"temperature": math.nan}, "temperature must be .* not nan"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0, not -1"),
        ({"top_k": 2.5}, "top_k must be a whole number of at least 0, not 2.5"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_raises(change: dict[str, Any], message: str) -> None:
    words = torch.ones(2, dtype=torch.int64)
    call: dict[str, Any] = {"conditional": torch.ones(2, 5), "unconditional": torch.ones(2, 5)}
    call |= {"seeds": words, "numbers": words, "position": words[:1]}
    sample(**call)
    with pytest.raises(ValueError, match=message):
        sample(**(call | change))
