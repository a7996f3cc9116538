"""The contract: the names and signatures that users rely on, and what importing and using them brings in."""

import inspect
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

import janus
from janus.models.vq import VQ

REPOSITORY = Path(__file__).resolve().parents[1]
REQUIRED = inspect.Parameter.empty
ASK = {"question": REQUIRED, "images": ()}
ASK_OPTIONS = {
    "system": None,
    "max_new_tokens": 512,
    "temperature": 0.0,
    "top_p": 1.0,
    "seed": None,
    "stream": False,
}
DRAW_OPTIONS = {
    "n": 1,
    "seed": None,
    "guidance": None,
    "temperature": None,
    "top_k": None,
    "top_p": None,
    "batch_size": None,
    "progress": None,
}
PLACE = {"device": None, "dtype": None}
MODEL = janus.Janus
FLOW = janus.JanusFlow
# Every function with what may be given by position and what by name only, and the defaults. More may be added
# behind the former and among the latter; none of these may change.
SIGNATURES: list[tuple[Callable[..., Any], dict[str, Any], dict[str, Any]]] = [
    (janus.load, {"path": None}, PLACE),
    (janus.weights.load, {"path": REQUIRED}, PLACE),
    (janus.Pipeline.ask, ASK, ASK_OPTIONS),
    (janus.Pipeline.chat, {"messages": REQUIRED}, ASK_OPTIONS),
    (janus.Pipeline.draw, {"prompt": REQUIRED}, DRAW_OPTIONS),
    (janus.Pipeline.reconstruct, {"picture": REQUIRED}, {}),
    (MODEL.from_pretrained, {"path": REQUIRED}, PLACE),
    (MODEL.save_pretrained, {"path": REQUIRED}, {"layout": "deepseek"}),
    (MODEL.encode_images, {"pixels": REQUIRED}, {}),
    (MODEL.embed, {"input_ids": REQUIRED, "pixels": None, "image_mask": None}, {}),
    (MODEL.embed_codes, {"codes": REQUIRED}, {}),
    (MODEL.hidden_states, {"embeds": REQUIRED, "attention_mask": None, "cache": None}, {}),
    (MODEL.text_logits, {"hidden": REQUIRED}, {}),
    (MODEL.image_logits, {"hidden": REQUIRED}, {}),
    (FLOW.from_pretrained, {"path": REQUIRED}, PLACE),
    (
        FLOW.velocity,
        {"input_ids": REQUIRED, "latents": REQUIRED, "t": REQUIRED},
        {"attention_mask": None},
    ),
    (janus.Pipeline.draw, {"prompt": REQUIRED}, {"steps": None, "method": None, "size": None}),
    (janus.load, {"path": None}, {"vae": None}),
    (VQ.encode, {"pixels": REQUIRED}, {}),
    (VQ.decode, {"codes": REQUIRED}, {}),
    (janus.Processor.from_pretrained, {"path": REQUIRED}, {"revision": None, "token": None}),
    (janus.Processor.__call__, {"messages": REQUIRED, "images": None}, {}),
    (janus.Processor.format, {"messages": REQUIRED, "system": None}, {}),
]


@pytest.mark.parametrize(
    ("function", "by_position", "by_name"),
    SIGNATURES,
    ids=[f"{row[0].__qualname__}-{number}" for number, row in enumerate(SIGNATURES)],
)
def test_signatures(
    function: Callable[..., Any], by_position: dict[str, Any], by_name: dict[str, Any]
) -> None:
    parameters = [
        parameter for name, parameter in inspect.signature(function).parameters.items() if name != "self"
    ]
    positional = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind == inspect.Parameter.POSITIONAL_OR_KEYWORD
    }
    named = {
        parameter.name: parameter.default
        for parameter in parameters
        if parameter.kind == inspect.Parameter.KEYWORD_ONLY
    }
    assert len(positional) + len(named) == len(parameters), "no *args, no **kwargs"
    # Positions are a contract too; `layout` and its like may be given by name only.
    assert list(positional.items())[: len(by_position)] == list(by_position.items())
    assert by_name.items() <= named.items()
    assert REQUIRED not in named.values()
    assert REQUIRED not in list(positional.values())[len(by_position) :]


def test_a_processor_is_of_the_revision_that_is_asked_for(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, Any]] = []

    def find(source: str, **options: Any) -> Path:
        asked.append({"source": source, **options})
        return data / "januspro" / "checkpoint"

    monkeypatch.setattr("janus.weights.hub.find", find)
    janus.Processor.from_pretrained("a/b", revision="v1", token="t")
    assert asked == [{"source": "a/b", "weights": False, "revision": "v1", "token": "t"}]


def test_the_packages_own_names() -> None:
    assert sorted(janus.__all__) == dir(janus)
    # What is needed first, and no more: the rest has a module to find it in.
    assert {name: getattr(janus, name) for name in janus.__all__} == {
        "Janus": janus.models.janus.Janus,
        "JanusConfig": janus.config.JanusConfig,
        "JanusFlow": janus.models.janusflow.JanusFlow,
        "Pipeline": janus.pipeline.Pipeline,
        "Processor": janus.processing.processor.Processor,
        "load": janus.pipeline.load,
        "weights": sys.modules["janus.weights"],
    }
    assert janus.__version__ == version("janus-torch")
    with pytest.raises(AttributeError, match="module 'janus' has no attribute 'JanusXL'"):
        janus.JanusXL  # noqa: B018


def test_what_a_pipeline_and_its_parts_have(data: Path) -> None:
    pipe = janus.load(data / "januspro" / "checkpoint", device="cpu")
    assert isinstance(pipe.model, janus.Janus)
    assert isinstance(pipe.model.vq, VQ)
    assert isinstance(pipe.processor, janus.Processor)
    assert isinstance(pipe.config, janus.JanusConfig)
    assert callable(pipe.processor.image)


def run(code: str, *arguments: str) -> list[str]:
    """The lines that a fresh interpreter prints."""
    finished = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, cwd=REPOSITORY, check=False
    )
    assert finished.returncode == 0, finished.stderr
    assert finished.stderr == ""
    return finished.stdout.splitlines()


def test_importing_imports_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "triton", "numpy", "PIL", "tokenizers", "huggingface_hub")
    assert run(f"import sys, janus; print([name for name in {heavy} if name in sys.modules])") == ["[]"]


def test_the_compiler_is_not_imported_unless_it_is_asked_for(data: Path) -> None:
    """It takes longer than all else of loading a small model."""
    code = """
import sys, torch, janus
torch.set_num_threads(1)
pipe = janus.load(sys.argv[1], device="cpu", dtype="float32")
pipe.ask("What is it?", pipe.draw("a cat", seed=1), max_new_tokens=2)
print("torch._dynamo" in sys.modules)
"""
    assert run(code, str(data / "januspro" / "checkpoint")) == ["False"]


def test_transformers_is_never_imported(data: Path) -> None:
    code = """
import sys, torch, janus
torch.set_num_threads(1)
options = {} if sys.argv[2] == "None" else {"vae": sys.argv[2]}
pipe = janus.load(sys.argv[1], device="cpu", **options)
picture = pipe.draw("a cat", **({"steps": 2} if options else {"temperature": 0}))[0]
print(type(pipe.ask("What is it?", picture, max_new_tokens=2)).__name__, pipe.reconstruct(picture).size)
pipe.chat([[{"role": "user", "content": "Hi"}]], max_new_tokens=2, temperature=1.0)
print([name for name in ("transformers", "diffusers", "timm") if name in sys.modules])
"""
    assert run(code, str(data / "januspro" / "checkpoint"), "None") == ["str (64, 64)", "[]"]
    flow = data / "janusflow"
    assert run(code, str(flow / "checkpoint"), str(flow / "vae")) == ["str (64, 64)", "[]"]
