"""The second oracle: what we save is opened by transformers' own Janus, which computes the same; and back."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from janus.inference.draw import draw_steps
from janus.inference.draw_batch import Picture
from janus.inference.sampling import Sampling
from janus.models.janus import Janus
from janus.processing.processor import Processor
from janus.weights.load import load
from janus.weights.processor_config import read_side_files

transformers = pytest.importorskip("transformers")

CHAT = [
    {"role": "user", "content": "Which is larger, a cat or a hat?"},
    {"role": "assistant", "content": "The cat."},
    {"role": "user", "content": "Why?"},
]


@pytest.fixture(scope="module")
def ours(make_config: Callable[..., Any], make_model: Callable[..., Janus], checkpoint: Path) -> Janus:
    """Random weights, grouped heads and five VQ levels, so that both grids have 4 x 4 places."""
    model = make_model(make_config())
    model.files = read_side_files(checkpoint)
    return model


@pytest.fixture(scope="module")
def folder(ours: Janus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transformers")
    ours.save_pretrained(folder, layout="transformers", max_shard_size="2MB")
    return folder


@pytest.fixture(scope="module")
def opened(folder: Path) -> tuple[Any, Mapping[str, Any]]:
    """Their model of the folder, and what they say of loading it."""
    model, said = transformers.JanusForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    return model.eval(), said


@pytest.fixture(scope="module")
def theirs(opened: tuple[Any, Mapping[str, Any]]) -> Any:
    return opened[0]


@pytest.fixture(scope="module")
def pixels(ours: Janus) -> Tensor:
    size = ours.config.vision.image_size
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(2))


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    """Within 1e-5 of the tensor's scale, which must not be zero."""
    assert ours.shape == theirs.shape
    scale = float(theirs.abs().max())
    assert scale > 0
    assert float((ours - theirs).abs().max()) <= 1e-5 * scale


def test_every_name_is_theirs_and_none_is_lacking(opened: tuple[Any, Mapping[str, Any]]) -> None:
    model, said = opened
    assert not said["missing_keys"]
    assert not said["unexpected_keys"]
    assert not said["mismatched_keys"]
    assert not said["error_msgs"]
    assert model.config.tie_word_embeddings is False


@torch.no_grad()
def test_vision_features(ours: Janus, theirs: Any, pixels: Tensor) -> None:
    assert_close(ours.vision(pixels), theirs.model.vision_model(pixels).last_hidden_state)
    assert_close(ours.encode_images(pixels), theirs.model.get_image_features(pixels).pooler_output)


@torch.no_grad()
def test_logits_of_words_after_pictures(ours: Janus, theirs: Any, pixels: Tensor) -> None:
    tokens, image_id = ours.config.vision.tokens, theirs.config.image_token_id
    picture = [image_id] * tokens
    ids = torch.tensor([[480, 5, *picture, 6, 7, *picture, 8, 9, 10]])
    logits = ours.text_logits(ours.hidden_states(ours.embed(ids, pixels, ids == image_id)))
    assert_close(logits, theirs(input_ids=ids, pixel_values=pixels).logits)


@torch.no_grad()
def test_logits_of_a_padded_row(ours: Janus, theirs: Any) -> None:
    ids = torch.tensor([[482, 482, 482, 480, 5, 6], [480, 5, 6, 7, 8, 9]])
    mask = ids != 482
    # Theirs counts positions from the mask only in generate(); here they are given.
    positions = (mask.long().cumsum(-1) - 1).clamp_min(0)
    logits = ours.text_logits(ours.hidden_states(ours.embed(ids), mask))
    expected = theirs(input_ids=ids, attention_mask=mask.long(), position_ids=positions).logits
    assert_close(logits[mask], expected[mask])


@torch.no_grad()
def test_codes_to_pixels_and_to_embeddings(ours: Janus, theirs: Any) -> None:
    codes = torch.randint(ours.config.vq.codes, (2, 16), generator=torch.Generator().manual_seed(3))
    # Theirs comes with the channels last.
    decoded = theirs.decode_image_tokens(codes).permute(0, 3, 1, 2)
    assert_close(ours.vq.decode(codes.view(2, 4, 4)), decoded)
    assert_close(ours.embed_codes(codes), theirs.prepare_embeddings_for_image_generation(codes))


@torch.no_grad()
def test_pixels_to_latents(ours: Janus, theirs: Any, pixels: Tensor) -> None:
    """Theirs picks codes without normalizing, unlike the original; before that step the two agree."""
    expected = theirs.model.vqmodel.quant_conv(theirs.model.vqmodel.encoder(pixels))
    assert_close(ours.vq.latents(pixels), expected)


def test_greedy_picture_is_theirs(ours: Janus, theirs: Any, checkpoint: Path) -> None:
    prompt = Processor.from_pretrained(checkpoint).draw_prompt("a red circle left of a blue square")
    steps = draw_steps(ours, [Picture(prompt=tuple(prompt))], pad_id=482, sampling=Sampling(temperature=0))
    codes = torch.stack([step.codes for step in steps], dim=1)
    ids = torch.tensor([prompt])
    expected = theirs.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        do_sample=False,
        guidance_scale=5,
    )
    assert codes.shape == (1, 16)
    assert codes.unique().numel() > 4
    assert torch.equal(codes, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_what_they_save_is_read_back(
    dtype: torch.dtype,
    ours: Janus,
    folder: Path,
    tmp_path: Path,
    assert_equal: Callable[[Janus, Janus], None],
) -> None:
    theirs = transformers.JanusForConditionalGeneration.from_pretrained(folder, dtype=dtype)
    theirs.save_pretrained(tmp_path)
    again = load(tmp_path, device="cpu", dtype=dtype)
    assert again.config == replace(ours.config, dtype=str(dtype).removeprefix("torch."))
    assert_equal(again, load(folder, device="cpu", dtype=dtype))


def test_model_that_they_made_and_tied(
    make_config: Callable[..., Any], tmp_path: Path, assert_equal: Callable[[Janus, Janus], None]
) -> None:
    """Their class ties the heads unless told otherwise, and saves one of the two."""
    from janus.weights.config_files import format_config

    values = format_config(make_config(), "transformers", dtype="float32")
    del values["tie_word_embeddings"], values["text_config"]["tie_word_embeddings"]
    torch.manual_seed(0)
    theirs = transformers.JanusForConditionalGeneration(transformers.JanusConfig(**values)).eval()
    theirs.save_pretrained(tmp_path)
    ours = load(tmp_path, device="cpu")
    assert ours.config.language.tied_head
    ids = torch.tensor([[480, 5, 6, 7]])
    with torch.no_grad():
        assert_close(ours.text_logits(ours.hidden_states(ours.embed(ids))), theirs(input_ids=ids).logits)


def test_their_processor_gives_our_ids(folder: Path, checkpoint: Path) -> None:
    theirs = transformers.AutoProcessor.from_pretrained(folder)
    processor = Processor.from_pretrained(checkpoint)
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in CHAT]
    prompt = theirs.apply_chat_template(parts, add_generation_prompt=True)
    assert prompt == processor.format(CHAT, system="")
    # Their processor puts the default system prompt before the text by itself.
    ids = theirs(text=prompt, return_tensors="pt")["input_ids"]
    assert ids.tolist() == processor(CHAT).input_ids.tolist()


def test_their_tokenizer_knows_the_special_tokens(folder: Path, checkpoint: Path) -> None:
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    processor = Processor.from_pretrained(checkpoint)
    assert theirs.image_token_id == processor.image_id == 483
    assert (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id) == (480, 481, 482)
