"""The language model at other sizes, against transformers' Llama; padding, and what a position may see."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from janus.config import LanguageConfig
from janus.kernels.rotary import rotate
from janus.models.llama import Llama, causal_mask, left_padded_starts, rotary_tables

BASE = LanguageConfig(
    vocabulary=50,
    width=32,
    mlp_width=48,
    layers=2,
    heads=4,
    kv_heads=4,
    head_width=8,
    norm_eps=1e-6,
    rope_theta=10000.0,
    window=64,
    tied_head=False,
)
CONFIGS = {
    "base": BASE,
    "grouped": replace(BASE, kv_heads=2),
    "one key-value head": replace(BASE, kv_heads=1),
    "wide heads": replace(BASE, head_width=24),
    "narrow heads": replace(BASE, head_width=2),
    "other rotation and eps": replace(BASE, rope_theta=500.0, norm_eps=1e-3),
    "tied, one layer": replace(BASE, layers=1, tied_head=True),
}


def build(config: LanguageConfig) -> Llama:
    """Random weights large enough that attention is not uniform, and norms that are not ones."""
    torch.manual_seed(0)
    language = Llama(config)
    with torch.no_grad():
        for parameter in language.parameters():
            spread = 1.5 * parameter.shape[-1] ** -0.5 if parameter.ndim == 2 else 0.3
            parameter.normal_(mean=1.0 if parameter.ndim == 1 else 0.0, std=spread)
        language.embed.weight.normal_()
    return language.eval()


def theirs(language: Llama) -> torch.nn.Module:
    transformers = pytest.importorskip("transformers")
    config = language.config
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocabulary,
            hidden_size=config.width,
            intermediate_size=config.mlp_width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            num_key_value_heads=config.kv_heads,
            head_dim=config.head_width,
            rms_norm_eps=config.norm_eps,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
            tie_word_embeddings=config.tied_head,
        )
    )
    renamed = {
        "input_norm": "input_layernorm",
        "mlp_norm": "post_attention_layernorm",
        "attention": "self_attn",
        "embed": "embed_tokens",
    }
    joined = {"qkv": ("q_proj", "k_proj", "v_proj"), "gate_up": ("gate_proj", "up_proj")}
    state = {}
    for name, tensor in language.state_dict().items():
        own = "lm_head.weight" if name == "head.weight" else f"model.{name}"
        for ours, their in renamed.items():
            own = own.replace(f".{ours}.", f".{their}.")
        whole = name.split(".")[-2]
        sizes = language.get_submodule(name.rpartition(".")[0]).sizes if whole in joined else [len(tensor)]
        for part, rows in zip(joined.get(whole, (whole,)), tensor.split(sizes), strict=True):
            state[own.replace(f".{whole}.", f".{part}.")] = rows
    model.load_state_dict(state)
    return model.eval()


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
@torch.no_grad()
def test_other_sizes_equal_transformers(
    config: LanguageConfig, close: Callable[[Tensor, Tensor], None]
) -> None:
    language = build(config)
    ids = torch.randint(config.vocabulary, (2, 11), generator=torch.Generator().manual_seed(1))
    close(language.head(language(language.embed(ids))), theirs(language)(ids).logits)


@torch.no_grad()
def test_grouped_heads_are_repeated_heads(close: Callable[[Tensor, Tensor], None]) -> None:
    grouped, whole = build(replace(BASE, kv_heads=2)), build(BASE)
    state = grouped.state_dict()
    for name, tensor in state.items():
        if "qkv" in name:
            query, *others = tensor.split((32, 16, 16))
            repeated = (x.unflatten(0, (2, 8)).repeat_interleave(2, dim=0).flatten(0, 1) for x in others)
            state[name] = torch.cat((query, *repeated))
    whole.load_state_dict(state)
    embeds = torch.randn(2, 9, 32)
    close(grouped(embeds), whole(embeds))


def test_a_tied_head_is_the_word_table() -> None:
    language = build(replace(BASE, tied_head=True))
    assert language.head.weight is language.embed.weight
    assert build(BASE).head.weight is not None
    assert sum(parameter is language.embed.weight for parameter in language.parameters()) == 1


@settings(max_examples=20)
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 99))
@torch.no_grad()
def test_padded_rows_equal_rows_alone(
    lengths: list[int], seed: int, close: Callable[[Tensor, Tensor], None]
) -> None:
    language = build(replace(BASE, kv_heads=2))
    longest = max(lengths)
    embeds = torch.randn(len(lengths), longest, 32, generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(longest) >= longest - torch.tensor(lengths)[:, None]
    padded = language(embeds, mask)
    assert not padded[~mask].any()
    for row, length in enumerate(lengths):
        close(padded[row : row + 1, -length:], language(embeds[row : row + 1, -length:]))


@torch.no_grad()
def test_what_stands_in_padding_is_without_effect() -> None:
    language = build(BASE)
    embeds = torch.randn(2, 7, 32)
    mask = torch.ones(2, 7, dtype=torch.bool)
    mask[0, :3] = False
    other = embeds.masked_fill(~mask[..., None], 7.0)
    assert torch.equal(language(embeds, mask), language(other, mask))
    # Integers serve as a mask too, as tokenizers give them.
    assert torch.equal(language(embeds, mask), language(embeds, mask.long()))


@settings(max_examples=20)
@given(length=st.integers(2, 12), changed=st.data())
@torch.no_grad()
def test_later_tokens_do_not_change_earlier_states(
    length: int, changed: st.DataObject, close: Callable[[Tensor, Tensor], None]
) -> None:
    language = build(BASE)
    at = changed.draw(st.integers(1, length - 1))
    embeds = torch.randn(1, length, 32, generator=torch.Generator().manual_seed(length))
    other = embeds.clone()
    other[:, at] += 1
    first, second = language(embeds), language(other)
    close(first[:, :at], second[:, :at])
    assert ((first - second)[:, at:].abs().amax(-1) > 1e-3).all(), "every later position sees the change"


@torch.no_grad()
def test_positions_only_count_by_their_distance(close: Callable[[Tensor, Tensor], None]) -> None:
    language = build(BASE)
    embeds, positions = torch.randn(1, 6, 32), torch.arange(6)[None]
    close(language(embeds, positions=positions + 20), language(embeds))
    assert not torch.allclose(language(embeds, positions=2 * positions), language(embeds), atol=1e-2)


def test_rotation_is_half_split() -> None:
    cosines, sines = rotary_tables(torch.tensor([[3]]), 4, 100.0)
    x = torch.tensor([1.0, 0.0, 0.0, 2.0]).view(1, 1, 1, 4)
    angles = torch.tensor([3.0, 0.3])
    expected = torch.cat(
        (
            torch.tensor([1.0, 0.0]) * angles.cos() - torch.tensor([0.0, 2.0]) * angles.sin(),
            torch.tensor([0.0, 2.0]) * angles.cos() + torch.tensor([1.0, 0.0]) * angles.sin(),
        )
    )
    torch.testing.assert_close(rotate(x, cosines, sines).flatten(), expected)


def test_causal_mask() -> None:
    device = torch.device("cpu")
    assert causal_mask(1, 5, None, device) is None
    # Two queries at the end of four keys, of which the first is padding.
    seen = causal_mask(2, 4, torch.tensor([[False, True, True, True]]), device)
    assert seen is not None
    assert seen.tolist() == [[[[False, True, True, False], [False, True, True, True]]]]


def test_gradients_are_finite_with_padding() -> None:
    # Padding rows see no key at all, which an attention kernel may answer with NaN.
    language = build(BASE)
    embeds = torch.randn(2, 6, 32, requires_grad=True)
    mask = torch.ones(2, 6, dtype=torch.bool)
    mask[0, :4] = False
    language(embeds, mask).square().sum().backward()
    assert embeds.grad is not None
    assert embeds.grad.isfinite().all()
    assert not embeds.grad[~mask].any()
    assert embeds.grad[mask].abs().amax(-1).min() > 0


@pytest.mark.parametrize("shape", [(2, 5), (1, 6), (2, 7)], ids=["too short", "too few rows", "too long"])
def test_a_mask_of_another_shape_raises(shape: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match=r"attention_mask must be \(2, 6\), not"):
        build(BASE)(torch.randn(2, 6, 32), torch.ones(shape, dtype=torch.bool))


def test_padding_sees_itself_and_nothing_sees_padding() -> None:
    """A query without any key is NaN in some attention kernels; what padding computes must stay a number."""
    valid = torch.tensor([[False, False, True, True]])
    mask = causal_mask(4, 4, valid, torch.device("cpu"))
    expected = [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]]
    assert torch.equal(mask[0, 0], torch.tensor(expected, dtype=torch.bool))


def test_padding_on_the_left_is_known_by_its_starts() -> None:
    valid = torch.tensor([[0, 0, 1], [1, 1, 1], [0, 0, 0]], dtype=torch.bool)
    starts = left_padded_starts(valid)
    assert starts is not None
    assert starts.tolist() == [2, 0, 3]
    for other in ([0, 1, 0], [1, 0, 1], [1, 1, 0]):
        assert left_padded_starts(torch.tensor([[1, 1, 1], other], dtype=torch.bool)) is None


@torch.no_grad()
def test_padding_elsewhere_is_hidden_too(close: Callable[[Tensor, Tensor], None]) -> None:
    language = build(BASE)
    embeds = torch.randn(1, 7, 32)
    mask = torch.tensor([[1, 1, 0, 1, 0, 1, 1]], dtype=torch.bool)
    states = language(embeds, mask)
    close(states[mask][None], language(embeds[mask][None]))
    assert not states[~mask].any()


@torch.no_grad()
def test_a_padded_call_compiles_whole(close: Callable[[Tensor, Tensor], None]) -> None:
    language = build(BASE)
    embeds = torch.randn(2, 5, 32)
    mask = torch.arange(5) >= torch.tensor([[0], [3]])
    close(torch.compile(language, fullgraph=True, backend="aot_eager")(embeds, mask), language(embeds, mask))


@torch.no_grad()
def test_it_runs_under_autocast() -> None:
    """Weights in float32, products in bfloat16, as in mixed-precision training."""
    language = build(BASE)
    embeds = torch.randn(2, 5, 32)
    mask = torch.arange(5) >= torch.tensor([[0], [3]])
    with torch.autocast("cpu", torch.bfloat16):
        states = language(embeds, mask)
    expected = language(embeds, mask)
    # bfloat16 keeps 8 bits of a number, and some fifteen products lie one after another.
    assert ((states - expected).norm() / expected.norm()) < 0.05
