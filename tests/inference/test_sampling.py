"""The noise against its published answers, and the choice of tokens against torch's and transformers'."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.inference.sampling import Sampling, choose, limit, seeded_noise
from janus.kernels import sample as sample_module
from janus.kernels.sample import WORD, guide, philox

CPU = torch.device("cpu")
# The known answers of Random123, the authors' library (tests/kat_vectors, philox4x32 with 10 rounds).
KNOWN_ANSWERS = {
    "zeros": ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    "ones": ((WORD,) * 4, (WORD,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    "pi": (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
}


def words(values: tuple[int, ...]) -> tuple[Tensor, ...]:
    return tuple(torch.tensor([value]) for value in values)


def noise(seeds: list[int], rows: list[int], position: int = 0, tokens: int = 9) -> Tensor:
    return seeded_noise(seeds, rows, tokens, CPU)(position)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS.values(), ids=KNOWN_ANSWERS.keys())
def test_philox_known_answers(
    counter: tuple[int, ...], key: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    drawn = philox(words(key), words(counter))  # type: ignore[arg-type]
    assert tuple(int(word) for word in drawn) == expected


def test_noise_is_the_logarithm_of_philox() -> None:
    # Seed, row and position where the paper's key and counter have their words; a block of four tokens each.
    seed, row, position = 0x299F31D0A4093822, 0x13198A2E, 0x85A308D3
    key = words((seed & WORD, seed >> 32))
    drawn = [philox(key, words((block, position, row, 0))) for block in range(3)]  # type: ignore[arg-type]
    uniform = (torch.tensor([[int(word) for word in block] for block in drawn]).flatten() + 0.5) / 2**32
    actual = noise([seed], [row], position, tokens=10)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual[0], -torch.log1p(-uniform.double()).float()[:10])


@settings(max_examples=30)
@given(
    pictures=st.lists(
        st.tuples(st.integers(-(2**70), 2**70), st.integers(0, 2**32 - 1)), min_size=1, max_size=5
    ),
    position=st.integers(0, 600),
    tokens=st.integers(1, 40),
)
def test_noise_depends_on_its_own_picture_only(
    pictures: list[tuple[int, int]], position: int, tokens: int
) -> None:
    seeds, rows = [seed for seed, _ in pictures], [row for _, row in pictures]
    together = noise(seeds, rows, position, tokens)
    assert together.shape == (len(pictures), tokens)
    assert ((together > 0) & together.isfinite()).all()
    for index, (seed, row) in enumerate(pictures):
        assert torch.equal(together[index : index + 1], noise([seed], [row], position, tokens))
    # A larger vocabulary only appends.
    assert torch.equal(together, noise(seeds, rows, position, tokens + 7)[:, :tokens])


def test_every_part_of_the_address_counts() -> None:
    addresses = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (-1, 0, 0)]
    drawn = [noise([seed], [row], position) for seed, row, position in addresses]
    for first in range(len(drawn)):
        for second in range(first):
            assert not (drawn[first] == drawn[second]).any(), (addresses[first], addresses[second])


def test_seeds_count_modulo_64_bits() -> None:
    assert torch.equal(noise([-1], [0]), noise([2**64 - 1], [0]))
    assert torch.equal(noise([5 + 2**64], [0]), noise([5], [0]))


@pytest.mark.parametrize("word", [0, WORD], ids=["least", "largest"])
def test_extreme_words_give_positive_finite_noise(word: int, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1 - 2^-33 rounds to 1 in float32: its noise would be infinite, and not even a certain token would win.
    monkeypatch.setattr(
        sample_module, "philox", lambda key, counter: (torch.full_like(counter[0], word),) * 4
    )
    drawn = noise([0], [0], tokens=4)
    assert ((drawn > 0) & drawn.isfinite()).all()
    certain = torch.tensor([[0.0, 0.0, 3.0, 1.0]])
    assert choose(certain, Sampling(top_k=1), drawn).tolist() == [2]


def test_noise_is_exponential() -> None:
    drawn = noise([3] * 8, list(range(8)), tokens=2500).flatten().double().sort().values
    count = len(drawn)
    below = torch.arange(count, dtype=torch.float64) / count
    distribution = 1 - torch.exp(-drawn)
    distance = torch.maximum((distribution - below).max(), (below + 1 / count - distribution).max())
    # Kolmogorov and Smirnov's bound for one honest sample in a thousand; the seed is fixed.
    assert distance < 1.95 / math.sqrt(count)


def test_choices_have_their_probabilities() -> None:
    probabilities = torch.tensor([0.4, 0.25, 0.15, 0.1, 0.05, 0.03, 0.015, 0.005])
    count = 20_000
    drawn = noise([11] * count, list(range(count)), tokens=8)
    chosen = choose(probabilities.log().expand(count, 8), Sampling(), drawn)
    expected = probabilities.double() * count
    statistic = ((chosen.bincount(minlength=8) - expected).square() / expected).sum()
    # Chi-square with 7 degrees of freedom: one honest sample in a thousand is above it; the seed is fixed.
    assert statistic < 24.3


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_choose_is_multinomial_with_its_noise(seed: int) -> None:
    logits = torch.randn(6, 100, generator=torch.Generator().manual_seed(seed)) * 3
    generator = torch.Generator().manual_seed(seed)
    expected = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    generator.manual_seed(seed)
    drawn = torch.empty(6, 100).exponential_(generator=generator)
    assert torch.equal(choose(logits, Sampling(), drawn), expected)


def test_greedy_takes_the_first_of_the_largest() -> None:
    logits = torch.tensor([[1.0, 4.0, 4.0], [3.0, 0.0, -1.0]])
    assert choose(logits, Sampling(temperature=0), None).tolist() == [1, 0]
    assert Sampling(temperature=0).greedy
    assert not Sampling(temperature=1e-6).greedy


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"),
    [(1.0, 5, 1.0), (0.7, 50, 0.9), (1.5, None, 0.3), (1.0, 0, 0.999), (0.3, 1, 0.5), (1.0, 900, 0.01)],
)
@pytest.mark.parametrize("ties", [False, True], ids=["no ties", "ties"])
def test_limit_is_transformers(temperature: float, top_k: int | None, top_p: float, ties: bool) -> None:
    transformers = pytest.importorskip("transformers")
    logits = torch.randn(7, 80, generator=torch.Generator().manual_seed(4)) * 2
    if ties:
        logits = logits.round()
    expected = transformers.TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = transformers.TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = transformers.TopPLogitsWarper(top_p)(None, expected)
    limited = limit(logits, Sampling(temperature=temperature, top_k=top_k, top_p=top_p))
    assert torch.equal(limited, expected)
    assert limited.isfinite().any(-1).all(), "something is always left"


@pytest.mark.parametrize("top_k", [None, 0, 4, 5], ids=["none", "zero", "all", "more than there are"])
@pytest.mark.parametrize("top_p", [None, 1, 1.0])
def test_no_limit(top_k: int | None, top_p: float | None) -> None:
    logits = torch.randn(2, 4)
    assert torch.equal(limit(logits, Sampling(top_k=top_k, top_p=top_p)), logits)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature must be 0 .greedy. or more, up to 1000000, not -0.1"),
        ({"temperature": math.nan}, "temperature must be .* not nan"),
        ({"temperature": math.inf}, "temperature must be .* not inf"),
        ({"top_k": -1}, "top_k must be a whole number of at least 0, not -1"),
        ({"top_k": 2.5}, "top_k must be a whole number of at least 0, not 2.5"),
        ({"top_p": 0}, "top_p must be above 0 and at most 1, not 0"),
        ({"top_p": -0.5}, "top_p must be above 0 and at most 1, not -0.5"),
        ({"top_p": 1.01}, "top_p must be above 0 and at most 1, not 1.01"),
        ({"top_p": math.nan}, "top_p must be above 0 and at most 1, not nan"),
        ({"top_p": math.inf}, "top_p must be above 0 and at most 1, not inf"),
    ],
)
def test_limits_that_are_none_raise(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Sampling(**options)


def test_guidance() -> None:
    conditional, unconditional = torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 2.0]])
    assert guide(conditional, unconditional, 5.0).tolist() == [[11.0, -3.0]]
    assert guide(conditional, unconditional, 1.0).tolist() == conditional.tolist()
    assert guide(conditional, unconditional, 0.0).tolist() == unconditional.tolist()
