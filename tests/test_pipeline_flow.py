"""The four verbs on a JanusFlow: the original's answers and picture, its autoencoder, what it refuses."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from torch import Tensor

import janus
from janus.drawing import flow as flow_drawing
from janus.drawing.flow import latent_size
from janus.evaluation.shapes import evaluate
from janus.inference import flow as inference_flow
from janus.inference.draw_batch import Picture
from janus.inference.flow import FlowSampling, decode_latents, flow_steps
from janus.models.vae import SDXL, VAE
from janus.processing.image import to_pictures
from janus.weights.vae import RELEASED, load_vae, save_vae

SIZE = 64
DRAWING = "A stunning princess from kabul in red, white traditional clothing, blue eyes, brown hair"
FEW = {"steps": 2, "seed": 7}


@pytest.fixture(scope="module")
def folder(data: Path) -> Path:
    return data / "janusflow" / "checkpoint"


@pytest.fixture(scope="module")
def vae(data: Path) -> VAE:
    return load_vae(data / "janusflow" / "vae", device="cpu", dtype="float32")


@pytest.fixture(scope="module")
def pipe(folder: Path, flow: janus.JanusFlow, vae: VAE) -> janus.Pipeline:
    return janus.Pipeline(flow, janus.Processor.from_pretrained(folder), vae=vae)


@pytest.fixture(scope="module")
def pictures(flow_golden: dict[str, Tensor]) -> list[Image.Image]:
    """The three golden pictures at the model's own size, where processing only maps them back."""
    values = ((flow_golden["vision.pixel_values"] + 1) * 127.5).round().byte()
    return [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in values]


@pytest.fixture
def unreachable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is out of reach, and its cache empty."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """Where autoencoders were loaded from while the test ran, and how."""
    found: list[tuple[Any, dict[str, Any]]] = []

    def noted(path: Any, **options: Any) -> VAE:
        found.append((path, options))
        return load_vae(path, **options)

    monkeypatch.setattr(flow_drawing, "load_vae", noted)
    return found


def arrays(pictures: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(picture) for picture in pictures])


# Against the original


@pytest.mark.parametrize("name", ["und0", "und1", "und2"])
def test_the_originals_answers(
    name: str,
    pipe: janus.Pipeline,
    flow_golden: dict[str, Tensor],
    flow_facts: dict[str, Any],
    pictures: list[Image.Image],
) -> None:
    shown = flow_golden[f"{name}.pixel_values"][flow_golden[f"{name}.images_emb_mask"].bool().any(-1)]
    known = flow_golden["vision.pixel_values"]
    numbers = iter(
        next(number for number, pixels in enumerate(known) if torch.equal(pixels, own)) for own in shown
    )
    conversations = [
        [
            message | {"images": [pictures[next(numbers)] for _ in range(message["content"].count("<image"))]}
            for message in conversation
        ]
        for conversation in flow_facts["conversations"][name]
    ]
    decode = pipe.processor.tokenizer.decode
    expected = [decode(row.tolist()) for row in flow_golden[f"{name}.greedy_sequences"]]
    assert [pipe.chat(each, max_new_tokens=20) for each in conversations] == expected
    assert pipe.chat(conversations, max_new_tokens=20) == expected


def test_the_pictures_of_the_originals_readme(
    pipe: janus.Pipeline, flow_golden: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From its noise, at the size of its run, which is not that at which this small model sees."""
    monkeypatch.setattr(inference_flow, "normal_noise", lambda *given: flow_golden["flow.z0"].flatten(1))
    drawn = arrays(pipe.draw(DRAWING, n=2, seed=0, steps=6, size=128)).astype(int)
    expected = flow_golden["flow.image_uint8_readme"].numpy()
    # Where the original's own value lies within a trajectory's tolerance (tests/inference/test_flow.py) of
    # where rounding takes it elsewhere, the order of summation decides.
    values = ((flow_golden["flow.image"] + 1) * 127.5 + 0.5).permute(0, 2, 3, 1).numpy()
    near = np.abs(values - values.round()) < 1e-4 * float(flow_golden["flow.image"].abs().max()) * 127.5
    assert np.abs(drawn - expected).max() <= 1
    assert near[drawn != expected].all()
    assert (drawn != expected).mean() < 1e-3


def test_reconstruct_is_the_mean_through_the_autoencoder(
    pipe: janus.Pipeline, vae: VAE, pictures: list[Image.Image]
) -> None:
    rebuilt = pipe.reconstruct(pictures[0])
    values = torch.from_numpy(np.array(pictures[0])).permute(2, 0, 1)[None] / 127.5 - 1
    with torch.no_grad():
        expected = vae.decode(vae.encode(values).mean)[0].permute(1, 2, 0).clamp(-1, 1)
    # Rounded to 8 bits, so off by half of one at most.
    assert np.abs(np.asarray(rebuilt) - (expected.numpy() + 1) * 127.5).max() < 0.501
    wide = Image.new("RGB", (3 * SIZE, SIZE))
    wide.paste(pictures[0], (SIZE, 0))
    assert np.array_equal(pipe.reconstruct(wide), rebuilt), "the center square"


# Pictures and their options


def test_parts(pipe: janus.Pipeline, flow: janus.JanusFlow) -> None:
    assert pipe.model is flow
    assert pipe.config is flow.config
    assert pipe.config.picture_size == SIZE
    assert isinstance(pipe.processor, janus.Processor)


def test_a_picture_is_the_same_whatever_is_drawn_beside_it(pipe: janus.Pipeline) -> None:
    drawn = arrays(pipe.draw("a cat", n=3, **FEW))
    assert drawn.shape == (3, SIZE, SIZE, 3)
    assert len({picture.tobytes() for picture in drawn}) == 3
    assert not np.array_equal(arrays(pipe.draw("a cat", steps=2, seed=8))[0], drawn[0])
    others = {
        "alone": arrays(pipe.draw("a cat", **FEW)),
        "two by two": arrays(pipe.draw("a cat", n=3, batch_size=2, **FEW)),
        "behind another prompt": arrays(pipe.draw(["a big red dog", "a cat"], n=2, **FEW))[2:],
    }
    for case, again in others.items():
        # A batch of another size rounds otherwise in the last bits, so a value may round to its neighbor.
        different = np.abs(again.astype(int) - drawn[: len(again)])
        assert different.max() <= 1, case
        assert (different > 0).mean() < 1e-3, case
    assert pipe.draw([]) == []


def test_torch_gives_the_seed(pipe: janus.Pipeline) -> None:
    torch.manual_seed(5)
    first, second = pipe.draw("a cat", steps=1)[0], pipe.draw("a cat", steps=1)[0]
    torch.manual_seed(5)
    assert np.array_equal(pipe.draw("a cat", steps=1)[0], first)
    assert not np.array_equal(first, second)


def test_options_count(pipe: janus.Pipeline) -> None:
    """Each changes the picture, and midpoint and Heun do as they do below this pipeline."""
    kinds: list[dict[str, Any]] = [
        {},
        {"guidance": 1},
        {"guidance": 4},
        {"method": "midpoint"},
        {"method": "heun"},
        {"steps": 3},
    ]
    drawn = [pipe.draw("a cat", **{**FEW, **kind})[0] for kind in kinds]
    assert len({picture.tobytes() for picture in drawn}) == len(kinds)
    assert np.array_equal(pipe.draw("a cat", guidance=2, method="euler", **FEW)[0], drawn[0])


@pytest.mark.parametrize(("size", "shown"), [(32, (32, 32)), ((32, 48), (48, 32)), (np.int64(32), (32, 32))])
def test_another_size(size: Any, shown: tuple[int, int], pipe: janus.Pipeline) -> None:
    """(height, width), and Pillow has the width first."""
    assert pipe.draw("a cat", size=size, **FEW)[0].size == shown


def test_what_is_left_out_is_the_checkpoints_own_else_the_originals(
    folder: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def noted(model: Any, pictures: Any, *, sampling: Any, **options: Any) -> list[Tensor]:
        asked.append((sampling.steps, sampling.guidance, sampling.method))
        return []

    monkeypatch.setattr(flow_drawing, "draw_latents", noted)
    stating = Path(shutil.copytree(folder, tmp_path / "stating"))
    written = {"guidance_scale": 3.5, "num_inference_steps": 12, "temperature": 0.5}
    (stating / "generation_config.json").write_text(json.dumps(written))
    for source in (folder, stating):
        pipe = janus.load(source, device="cpu", vae=data / "janusflow" / "vae")
        pipe.draw("a cat", seed=1)
        pipe.draw("a cat", seed=1, steps=4, guidance=1.5, method="heun")
    given = (4, 1.5, "heun")
    assert asked == [(30, 2.0, "euler"), given, (12, 3.5, "euler"), given]
    (stating / "generation_config.json").write_text('{"num_inference_steps": 0}')
    with pytest.raises(ValueError, match="num_inference_steps = 0: must be a positive whole number"):
        janus.load(stating, device="cpu")
    (stating / "generation_config.json").write_text('{"temperature": -1}')
    with pytest.raises(
        ValueError, match=r"stating/generation_config\.json: temperature = -1: must be at least 0"
    ):
        janus.load(stating, device="cpu")


@pytest.mark.parametrize(("method", "each"), [("euler", 1), ("midpoint", 2), ("heun", 2)])
def test_progress_counts_evaluations(method: str, each: int, pipe: janus.Pipeline) -> None:
    told: list[tuple[int, int]] = []
    pipe.draw("a cat", n=3, batch_size=2, method=method, progress=lambda *counts: told.append(counts), **FEW)
    total = 3 * 2 * each
    assert told == [(each * done, total) for done in (2, 4, 5, 6)]


def test_preview(pipe: janus.Pipeline, vae: VAE) -> None:
    """Where a straight line would end; what comes after the last step is the picture itself."""
    previews: list[list[Image.Image]] = []
    options = {"n": 3, "seed": 7, "steps": 6, "batch_size": 2}
    final = pipe.draw("a cat", preview=previews.append, preview_every=2, **options)
    assert np.array_equal(arrays(final), arrays(pipe.draw("a cat", **options))), "watching changes nothing"
    prompt = tuple(pipe.processor.draw_prompt("a cat"))
    asked = [Picture(prompt=prompt, seed=7, number=number) for number in range(3)]
    expected = [
        to_pictures(decode_latents(vae, step.predicted), rounded=True)
        for batch in (asked[:2], asked[2:])
        for step in flow_steps(pipe.model, batch, size=(8, 8), sampling=FlowSampling(steps=6))
        if step.number in (2, 4)
    ]
    assert [len(batch) for batch in previews] == [2, 2, 1, 1]
    for shown, wanted in zip(previews, expected, strict=True):
        assert np.array_equal(arrays(shown), arrays(wanted))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.5}, "temperature=0.5 is for models that draw by codes, and a JanusFlow .* leave"),
        ({"top_k": 3}, "top_k=3 is for models that draw by codes"),
        ({"top_p": 0.9}, "top_p=0.9 is for models that draw by codes"),
        ({"speculate": 4}, "speculate=4 is for models that draw by codes"),
        ({"prefix": Image.new("RGB", (SIZE, SIZE)), "rows": 2}, "prefix is for models that draw by codes"),
        ({"rows": 2}, "rows=2 is for models that draw by codes"),
        ({"n": 0}, "n must be a whole number of at least 1, not 0"),
        ({"steps": 0}, "steps must be a whole number of at least 1, not 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, not 2.5"),
        (
            {"guidance": float("nan")},
            "guidance must be a number from -1000000 to 1000000, 1 for none, not nan",
        ),
        ({"method": "rk4"}, "method must be one of euler, midpoint, heun, not 'rk4'"),
        ({"size": 40}, "size 40 cannot be drawn: one or two multiples of 16"),
        ({"size": (32, 32, 32)}, r"size \(32, 32, 32\) cannot be drawn"),
        ({"size": 0}, "a side of size must be a whole number of at least 1, not 0"),
        ({"size": "large"}, "a side of size must be a whole number of at least 1, not 'large'"),
        ({"size": 1024}, "over the context window of 1024"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1, not 0"),
        ({"preview_every": 0}, "preview_every must be a whole number of at least 1, not 0"),
        ({"progress": "bar"}, "progress must be None, True, False or a function"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_cannot_be_drawn_is_told_before_the_model_runs(
    options: dict[str, Any], message: str, pipe: janus.Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipe.model, "velocity_after", lambda *given: pytest.fail("the model was run"))
    with pytest.raises(ValueError, match=message) as raised:
        pipe.draw("a cat", **options)
    assert "\n" not in str(raised.value)


def test_processors_files_of_a_janus_do_not_fit(folder: Path, data: Path, tmp_path: Path) -> None:
    """They mark one place less for each picture that is seen."""
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    stated = json.loads((copied / "processor_config.json").read_text())
    del stated["image_gen_tag"]
    (copied / "processor_config.json").write_text(json.dumps(stated))
    with pytest.raises(ValueError, match="makes 17 tokens of a picture, and the processor's files say 16"):
        janus.load(copied, device="cpu")


# The autoencoder


def test_it_is_loaded_when_it_is_needed_once_and_as_the_model(
    folder: Path, data: Path, loads: list[Any], unreachable: None
) -> None:
    source = data / "janusflow" / "vae"
    pipe = janus.load(folder, device="cpu", dtype="float32", vae=source, token="secret")
    pipe.ask("Hello", max_new_tokens=3)
    assert loads == []
    pipe.draw("a cat", **FEW)
    pipe.reconstruct(Image.new("RGB", (SIZE, SIZE)))
    pipe.draw("a cat", **FEW)
    options = {"device": torch.device("cpu"), "dtype": torch.float32, "token": "secret"}
    assert loads == [(source, options)]


def test_the_checkpoints_own_folder_goes_before_the_released_one(
    folder: Path, data: Path, vae: VAE, loads: list[Any], tmp_path: Path, unreachable: None
) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    save_vae(vae, copied / "vae")
    janus.load(copied, device="cpu").reconstruct(Image.new("RGB", (SIZE, SIZE)))
    named = data / "janusflow" / "vae"
    janus.load(copied, device="cpu", vae=named).reconstruct(Image.new("RGB", (SIZE, SIZE)))
    with pytest.raises(FileNotFoundError):
        janus.load(folder, device="cpu").reconstruct(Image.new("RGB", (SIZE, SIZE)))
    assert [path for path, _ in loads] == [copied / "vae", named, RELEASED]


def test_the_checkpoints_own_is_saved_with_it(folder: Path, vae: VAE, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(folder, tmp_path / "copied"))
    save_vae(vae, copied / "vae")
    model = janus.JanusFlow.from_pretrained(copied, device="cpu", dtype="float32")
    for saved in (tmp_path / "saved", copied):  # elsewhere, and where it was
        model.save_pretrained(saved)
        for file in (copied / "vae").iterdir():
            assert (saved / "vae" / file.name).read_bytes() == file.read_bytes()
    janus.JanusFlow.from_pretrained(folder, device="cpu").save_pretrained(tmp_path / "without")
    assert not (tmp_path / "without" / "vae").exists()


def test_without_it_answers_come_and_one_line_says_what_drawing_lacks(
    folder: Path, unreachable: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = janus.load(folder, device="cpu", dtype="float32")
    assert isinstance(pipe.ask("Hello", max_new_tokens=3), str)
    monkeypatch.setattr(pipe.model, "velocity_after", lambda *given: pytest.fail("the model was run"))
    calls: list[Callable[[], Any]] = [
        lambda: pipe.draw("a cat"),
        lambda: pipe.reconstruct(Image.new("RGB", (SIZE, SIZE))),
    ]
    for call in calls:
        with pytest.raises(FileNotFoundError) as raised:
            call()
        message = str(raised.value)
        assert f"the autoencoder of JanusFlow's pictures is not there: {RELEASED}: no copy in" in message
        assert "HF_HUB_OFFLINE is set; unset it once to download" in message
        assert message.endswith("vae= (or --vae) names its folder")
        assert "\n" not in message


def test_an_autoencoder_of_other_latents(folder: Path, flow: janus.JanusFlow) -> None:
    other = VAE(replace(SDXL, channels=(32, 32), residual_blocks=1, latent_channels=16))
    with pytest.raises(ValueError, match="latents have 4 channels, and the autoencoder's 16: name the one"):
        janus.Pipeline(flow, janus.Processor.from_pretrained(folder), vae=other)


def test_only_a_flow_has_one(data: Path, vae: VAE, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = data / "januspro" / "checkpoint"
    message = "is for a JanusFlow, and this model has its own picture tokenizer: leave it out"
    with monkeypatch.context() as patch:
        patch.setattr("janus.pipeline.load_model", lambda *given, **options: pytest.fail("weights were read"))
        with pytest.raises(ValueError, match=f"^vae=some/where {message}$"):
            janus.load(folder, vae="some/where")
    pipe = janus.load(folder, device="cpu", dtype="float32")
    with pytest.raises(ValueError, match=f"^vae=VAE {message}$"):
        janus.Pipeline(pipe.model, pipe.processor, vae=vae)


@pytest.mark.parametrize(
    ("size", "expected"),
    [(384, (48, 48)), ((256, 512), (32, 64)), ([16, 32], (2, 4)), (np.int32(64), (8, 8))],
)
def test_latent_size(size: Any, expected: tuple[int, int]) -> None:
    assert latent_size(size, SDXL) == expected


# Everything else that loads and judges a pipeline


@pytest.mark.parametrize(
    "options",
    [{"dtype": "bfloat16"}, {"dtype": "float16"}, {"quantize": "int8"}, {"quantize": "int4"}],
    ids=lambda options: next(iter(options.values())),
)
def test_lower_precision(options: dict[str, Any], folder: Path, data: Path, pipe: janus.Pipeline) -> None:
    other = janus.load(folder, device="cpu", vae=data / "janusflow" / "vae", **options)
    assert isinstance(other.ask("Hello", max_new_tokens=3), str)
    drawn, exact = (arrays(each.draw("a cat", **FEW)).astype(float) for each in (other, pipe))
    unrelated = arrays(pipe.draw("a cat", steps=2, seed=8)).astype(float)
    # 4 bits of a small model with random weights are the coarsest; another seed is far further away.
    assert np.abs(drawn - exact).mean() < 0.3 * np.abs(unrelated - exact).mean()


def test_evaluation_on_shapes(pipe: janus.Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model of random weights gets nothing right but by chance; every task is done and counted."""
    monkeypatch.setattr("janus.evaluation.shapes.MOST_ANSWER_TOKENS", 2)
    monkeypatch.setattr(pipe.processor, "files", {"generation_config.json": b'{"num_inference_steps": 1}'})
    scores = evaluate(pipe, samples=2, seed=3, progress=False)
    assert [part.whole.total for part in scores.parts.values()] == [4, 4, 4]
