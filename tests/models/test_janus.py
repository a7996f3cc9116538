"""How the parts meet: pictures among words, gradients to every parameter, 16 bits."""

import copy
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from janus.models.janus import Janus

TOKENS = 16  # of one picture, in the small checkpoint


def marked(rows: list[list[int]], length: int) -> Tensor:
    """(B, S) bool: a whole picture at each of the positions named for a row."""
    mask = torch.zeros(len(rows), length, dtype=torch.bool)
    for row, starts in enumerate(rows):
        for start in starts:
            mask[row, start : start + TOKENS] = True
    return mask


@torch.no_grad()
def test_pictures_fill_the_mask_in_reading_order(model: Janus, golden: dict[str, Tensor]) -> None:
    pixels = golden["vision.pixel_values"]
    mask = marked([[3], [0, 20]], 40)
    ids = torch.arange(80).view(2, 40)
    embeds = model.embed(ids, pixels, mask)
    features = model.encode_images(pixels)
    for number, (row, start) in enumerate([(0, 3), (1, 0), (1, 20)]):
        assert torch.equal(embeds[row, start : start + TOKENS], features[number])
    assert torch.equal(embeds[~mask], model.language.embed(ids)[~mask])
    # What id stands below a picture is without effect, and a mask of integers will do.
    assert torch.equal(model.embed(ids.masked_fill(mask, -100), pixels, mask.long()), embeds)


@torch.no_grad()
def test_words_alone(model: Janus) -> None:
    ids = torch.tensor([[1, 2, 3]])
    expected = model.language.embed(ids)
    assert torch.equal(model.embed(ids), expected)
    no_pictures, nowhere = torch.zeros(0, 3, 64, 64), torch.zeros(1, 3, dtype=torch.bool)
    assert torch.equal(model.embed(ids, no_pictures, nowhere), expected)
    # As in the original, ids below 0 are read as 0.
    assert torch.equal(model.embed(torch.tensor([[-7, 2]])), model.language.embed(torch.tensor([[0, 2]])))


@pytest.mark.parametrize(
    ("pictures", "places"),
    [(1, 0), (0, 1), (1, 2), (2, 1)],
    ids=["picture without a place", "place without a picture", "one picture for two", "two for one"],
)
def test_pictures_and_places_must_agree(model: Janus, pictures: int, places: int) -> None:
    # The original shows one picture at both of two places.
    mask = marked([[0, 20][:places]], 40)
    message = f"image_mask marks {places * TOKENS} positions, but {pictures} pictures of 16 features"
    with pytest.raises(ValueError, match=message):
        model.embed(torch.zeros(1, 40, dtype=torch.long), torch.zeros(pictures, 3, 64, 64), mask)


def test_one_of_pixels_and_mask_alone_raises(model: Janus) -> None:
    ids = torch.zeros(1, 40, dtype=torch.long)
    with pytest.raises(ValueError, match="marks 0 positions, but 1 pictures"):
        model.embed(ids, torch.zeros(1, 3, 64, 64))
    with pytest.raises(ValueError, match="marks 16 positions, but 0 pictures"):
        model.embed(ids, image_mask=marked([[0]], 40))


def test_pixels_of_another_size_raise(model: Janus) -> None:
    with pytest.raises(ValueError, match=r"\(N, 3, 64, 64\).*\(1, 3, 32, 32\)"):
        model.embed(
            torch.zeros(1, TOKENS, dtype=torch.long), torch.zeros(1, 3, 32, 32), marked([[0]], TOKENS)
        )


def test_gradients_reach_every_parameter(model: Janus, golden: dict[str, Tensor]) -> None:
    model = copy.deepcopy(model)
    pixels, codes = golden["vision.pixel_values"][:1], golden["gen_embed.ids"]
    ids = torch.randint(480, (1, 30), generator=torch.Generator().manual_seed(0))
    hidden = model.hidden_states(model.embed(ids, pixels, marked([[4]], 30)))
    text_loss = F.cross_entropy(model.text_logits(hidden)[0, :-1], ids[0, 1:])
    hidden = model.hidden_states(model.embed_codes(codes))
    picture_loss = F.cross_entropy(model.image_logits(hidden)[:, :-1].flatten(0, 1), codes[:, 1:].flatten())
    latents = model.vq.latents(golden["vq.image"])
    quantized, chosen = model.vq.quantize(latents)
    reconstruction = F.mse_loss(model.vq.decode_latents(quantized), golden["vq.image"])
    codebook_loss = F.mse_loss(model.vq.lookup(chosen), F.normalize(latents, dim=1).detach())
    (text_loss + picture_loss + reconstruction + codebook_loss).backward()
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad, name
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        # A bias of keys shifts all scores of a query alike: its gradient is zero but for rounding.
        assert parameter.grad.any() or name.endswith(".k.bias"), name


@torch.no_grad()
def test_bfloat16_stays_near_float32(data: Path, model: Janus, golden: dict[str, Tensor]) -> None:
    half = Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.dtype == torch.bfloat16
    ids, mask = golden["und2.input_ids"], golden["und2.attention_mask"].bool()
    pictures = golden["und2.pixel_values"][golden["und2.images_emb_mask"].bool().any(-1)]
    inputs = (ids, pictures, golden["und2.images_seq_mask"].bool())
    hidden = half.hidden_states(half.embed(*inputs), mask)
    codes = golden["vq.ids"].view(2, 8, 8)
    results = {
        "hidden": (hidden, model.hidden_states(model.embed(*inputs), mask)),
        "pixels": (half.vq.decode(codes), model.vq.decode(codes)),
        "codes": (half.image_logits(hidden), model.image_logits(hidden.float())),
    }
    for name, (actual, expected) in results.items():
        assert actual.dtype == torch.bfloat16, name
        # Eight bits of mantissa are 0.4 % at every rounding, and roundings pile up over the layers; a wrong
        # rotation, norm or mask moves these tensors by a third of their size or more.
        error = (actual.float() - expected).norm() / expected.norm()
        assert error < 0.06, f"{name}: {error:.3f}"


def test_device_and_dtype_are_the_weights(model: Janus) -> None:
    assert model.dtype == torch.float32
    assert model.device == torch.device("cpu")
    assert not model.training
