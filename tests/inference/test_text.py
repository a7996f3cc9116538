"""Answers against the original's, greedy and sampled, and how a batch stands to its rows."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from janus.inference.cache import StaticCache
from janus.inference.sampling import Sampling, limit
from janus.inference.text import TextStep, check_window, generate
from janus.models.janus import Janus

Golden = dict[str, Tensor]
Facts = dict[str, Any]
CONVERSATIONS = ("und0", "und1", "und2", "und3")
# The original's demos: `do_sample` of transformers implies top_k 50.
SAMPLING = Sampling(temperature=0.7, top_p=0.9, top_k=50)
NO_END = -1


def inputs(name: str, model: Janus, golden: Golden) -> tuple[Tensor, Tensor]:
    """Embeddings and attention mask. The pictures of und3 are not stored: they are und2's."""
    source = "und2" if name == "und3" else name
    pictures = golden[f"{source}.pixel_values"][golden[f"{source}.images_emb_mask"].bool().any(-1)]
    mask = golden[f"{name}.images_seq_mask"].bool()
    with torch.no_grad():
        embeds = model.embed(golden[f"{name}.input_ids"], pictures, mask)
    return embeds, golden[f"{name}.attention_mask"].bool()


def tokens_of(steps: list[TextStep]) -> Tensor:
    return torch.stack([step.tokens for step in steps], dim=1)


def greedy(name: str, model: Janus, golden: Golden, facts: Facts, *, end: str = "eos") -> list[TextStep]:
    ends = {
        "eos": facts["processor"]["eos_token_id"],
        "variant": facts["greedy_eos_variant_eos_id"][name],
    }
    steps = facts["spec"]["gen"]["steps_text"]
    return list(generate(model, *inputs(name, model, golden), end_id=ends[end], max_new_tokens=steps))


def sequences(name: str, model: Janus, golden: Golden, facts: Facts, *, end: str = "eos") -> Tensor:
    return tokens_of(greedy(name, model, golden, facts, end=end))


def step_logits(name: str, model: Janus, golden: Golden, facts: Facts) -> Tensor:
    return torch.stack([step.logits for step in greedy(name, model, golden, facts)], dim=1)


def sampled(model: Janus, golden: Golden, facts: Facts) -> list[TextStep]:
    """und1 with the noise that torch.multinomial draws of its distribution, a tensor of it per step."""
    generator = torch.Generator().manual_seed(4321)
    vocabulary = model.config.language.vocabulary
    embeds, mask = inputs("und1", model, golden)
    return list(
        generate(
            model,
            embeds,
            mask,
            end_id=facts["processor"]["eos_token_id"],
            max_new_tokens=8,
            sampling=SAMPLING,
            noise=lambda step: torch.empty(1, vocabulary).exponential_(generator=generator),
        )
    )


def sampled_logits(model: Janus, golden: Golden, facts: Facts) -> Tensor:
    return torch.stack([step.logits for step in sampled(model, golden, facts)], dim=1)


# The tensors of the original's that are reproduced here; tests/models/test_coverage.py reads the names.
REPRODUCED: dict[str, Callable[[Janus, Golden, Facts], Tensor]] = {
    **{f"{name}.greedy_sequences": partial(sequences, name) for name in CONVERSATIONS},
    **{f"{name}.greedy_sequences_eos": partial(sequences, name, end="variant") for name in CONVERSATIONS},
    **{f"{name}.greedy_step_logits": partial(step_logits, name) for name in CONVERSATIONS[:3]},
    "und1.sampled_sequences": lambda *given: tokens_of(sampled(*given)),
    "und1.sampled_step_logits": sampled_logits,
    "und1.sampled_step_scores_warped": lambda *given: limit(sampled_logits(*given), SAMPLING),
}


@pytest.mark.parametrize("name", REPRODUCED)
@pytest.mark.parametrize("family", ["janus", "janusflow"])
def test_the_originals_tensor(
    family: str, name: str, request: pytest.FixtureRequest, close: Callable[[Tensor, Tensor], None]
) -> None:
    fixtures = ("model", "golden", "facts") if family == "janus" else ("flow", "flow_golden", "flow_facts")
    model, golden, facts = (request.getfixturevalue(each) for each in fixtures)
    actual, expected = REPRODUCED[name](model, golden, facts), golden[name]
    assert torch.equal(actual.isfinite(), expected.isfinite()), "the same tokens are excluded"
    close(actual.masked_fill(~actual.isfinite(), 0), expected.masked_fill(~expected.isfinite(), 0))


def test_rows_end_one_by_one(model: Janus, golden: Golden) -> None:
    embeds, mask = inputs("und3", model, golden)
    free = tokens_of(list(generate(model, embeds, mask, end_id=NO_END, max_new_tokens=12)))
    # A token that one row alone chooses, in the middle: that row ends there, the others go on.
    end, row = next(
        (int(token), row)
        for row in range(3)
        for token in free[row, 3:9]
        if sum(int(token) in other.tolist() for other in free) == 1
    )
    steps = list(generate(model, embeds, mask, end_id=end, max_new_tokens=12))
    at = free[row].tolist().index(end)
    assert torch.equal(tokens_of(steps)[row, : at + 1], free[row, : at + 1])
    assert (tokens_of(steps)[row, at:] == end).all()
    for step, result in enumerate(steps):
        assert result.ended.tolist() == [other == row and step >= at for other in range(3)]
    others = [other for other in range(3) if other != row]
    assert torch.equal(tokens_of(steps)[others], free[others])


@pytest.mark.parametrize("sampling", [Sampling(temperature=0), SAMPLING], ids=["greedy", "sampled"])
def test_a_batch_is_its_rows(
    sampling: Sampling, model: Janus, golden: Golden, close: Callable[[Tensor, Tensor], None]
) -> None:
    embeds, mask = inputs("und3", model, golden)
    options = {"end_id": NO_END, "max_new_tokens": 10, "sampling": sampling}
    together = list(generate(model, embeds, mask, seeds=[5, 6, 5], **options))
    for row, seed in enumerate([5, 6, 5]):
        own = embeds[row : row + 1, mask[row]]
        alone = list(generate(model, own, seeds=[seed], **options))
        assert torch.equal(tokens_of(together)[row], tokens_of(alone)[0])
        close(
            torch.stack([step.logits[row] for step in together]),
            torch.stack([step.logits[0] for step in alone]),
        )


def test_the_seed_governs(model: Janus, golden: Golden) -> None:
    embeds, mask = inputs("und1", model, golden)

    def answer(seed: int) -> list[int]:
        steps = generate(
            model,
            embeds,
            mask,
            end_id=NO_END,
            max_new_tokens=12,
            sampling=Sampling(temperature=2.0),
            seeds=[seed],
        )
        return tokens_of(list(steps))[0].tolist()

    assert answer(1) == answer(1)
    assert answer(1) != answer(2)


def test_a_step_is_run_only_when_asked_for(model: Janus, golden: Golden, counted: Callable[..., Any]) -> None:
    embeds, mask = inputs("und1", model, golden)
    with counted(model) as runs:
        steps = generate(model, embeds, mask, end_id=NO_END, max_new_tokens=4)
        assert runs == []
        next(steps)
        assert runs == [(1, 83)]
        assert len(list(steps)) == 3
    # The last token is chosen, never fed.
    assert runs == [(1, 83), (1, 1), (1, 1), (1, 1)]


def test_a_cache_holds_what_came_before(
    model: Janus, golden: Golden, close: Callable[[Tensor, Tensor], None]
) -> None:
    embeds, _ = inputs("und1", model, golden)
    cache = StaticCache(model.config.language, 1, 83 + 24, device=torch.device("cpu"), dtype=torch.float32)
    with torch.no_grad():
        model.hidden_states(embeds[:, :60], None, cache)
    steps = list(generate(model, embeds[:, 60:], end_id=NO_END, max_new_tokens=24, cache=cache))
    assert torch.equal(tokens_of(steps), golden["und1.greedy_sequences"])
    close(torch.stack([step.logits for step in steps], dim=1), golden["und1.greedy_step_logits"])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (0, "max_new_tokens must be a whole number of at least 1, not 0"),
        (942, "83 tokens of prompt and 942 new ones are 1025, over the context window of 1024: ask for 941"),
    ],
    ids=["none", "too many"],
)
def test_errors_come_before_any_work(
    new: int, message: str, model: Janus, golden: Golden, monkeypatch: pytest.MonkeyPatch
) -> None:
    embeds, mask = inputs("und1", model, golden)
    monkeypatch.setattr(model, "hidden_states", lambda *given: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message):
        generate(model, embeds, mask, end_id=NO_END, max_new_tokens=new)


def test_nothing_cannot_be_continued(model: Janus) -> None:
    with pytest.raises(ValueError, match="there is nothing to continue"):
        generate(model, torch.zeros(1, 0, model.config.language.width), end_id=NO_END, max_new_tokens=1)


@pytest.mark.parametrize("seeds", [None, [], [1, 2]], ids=["none", "empty", "two"])
def test_sampling_needs_a_seed_per_row(seeds: list[int] | None, model: Janus, golden: Golden) -> None:
    embeds, mask = inputs("und1", model, golden)
    with pytest.raises(ValueError, match="sampling 1 rows needs 1 seeds, not"):
        generate(model, embeds, mask, end_id=NO_END, max_new_tokens=4, sampling=SAMPLING, seeds=seeds)


def test_the_window_counts_the_cache(model: Janus, golden: Golden) -> None:
    embeds, _ = inputs("und1", model, golden)
    cache = StaticCache(model.config.language, 1, 1, device=torch.device("cpu"), dtype=torch.float32)
    cache.length = 1000
    with pytest.raises(ValueError, match=r"1083 tokens of prompt .* shorten what is said"):
        generate(model, embeds, end_id=NO_END, max_new_tokens=1, cache=cache)


def test_the_window_may_be_filled(model: Janus) -> None:
    check_window(model, 1000, 24)
    with pytest.raises(ValueError, match="are 1025, over the context window of 1024: ask for 24 or fewer"):
        check_window(model, 1000, 25)
    with pytest.raises(ValueError, match="shorten what is said, or show fewer pictures"):
        check_window(model, 1024, 1)


def test_of_what_is_drawn_the_prompt_alone_can_be_less(model: Janus) -> None:
    check_window(model, 960, 64, drawn=True)
    with pytest.raises(ValueError, match=r"961 tokens of prompt and 64 of the picture .* to 960 or fewer"):
        check_window(model, 961, 64, drawn=True)
    with pytest.raises(ValueError, match=r"1030 of the picture .*: ask for a smaller size"):
        check_window(model, 8, 1030, drawn=True)
