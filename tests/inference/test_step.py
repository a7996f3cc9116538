"""Steps of fixed shapes, as a GPU records and a compiler sees them, against steps that are simply taken."""

import contextlib
import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from janus.inference import step as step_module
from janus.inference.draw import draw_codes, draw_steps
from janus.inference.draw_batch import DrawBatch, Picture, PromptCaches
from janus.inference.prepare import compiles, is_compiled, prepare
from janus.inference.sampling import Sampling
from janus.inference.text import generate
from janus.kernels import choice
from janus.models.janus import Janus
from janus.weights.config_files import read_config
from janus.weights.load import empty_model

PICTURES = [
    Picture(prompt=(1, 2, 3, 4), seed=1),
    Picture(prompt=(1, 2, 5, 6, 7, 8), seed=2**40, number=3),
]


@pytest.fixture(scope="module")
def model(data: Path) -> Janus:
    return Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="float32")


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps run on fixed shapes, though nothing is compiled or recorded."""
    monkeypatch.setattr(step_module, "is_compiled", lambda model: True)


def draw(model: Janus, pictures: list[Picture] = PICTURES, **options: Any) -> tuple[Tensor, Tensor]:
    """The codes of some pictures, (P, T), and the logits they were chosen by, (T, P, V)."""
    steps = list(draw_steps(model, pictures, pad_id=0, **options))
    return torch.stack([step.codes for step in steps], dim=1), torch.stack([s.conditional for s in steps])


@pytest.mark.parametrize("guidance", [5.0, 1.0])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_p=0.9), Sampling(temperature=0)], ids=str)
@pytest.mark.parametrize("start", [0, 5])
def test_fixed_shapes_change_nothing(
    guidance: float,
    sampling: Sampling,
    start: int,
    model: Janus,
    request: pytest.FixtureRequest,
    close: Callable[[Tensor, Tensor], None],
) -> None:
    pictures = [replace(p, start=(3,) * start) for p in PICTURES]
    plain, logits = draw(model, pictures, guidance=guidance, sampling=sampling)
    request.getfixturevalue("fixed")
    codes, its_logits = draw(model, pictures, guidance=guidance, sampling=sampling)
    assert torch.equal(codes, plain)
    close(its_logits, logits)


def test_noise_from_elsewhere(model: Janus, request: pytest.FixtureRequest) -> None:
    def noise(position: int) -> Tensor:
        generator = torch.Generator().manual_seed(position)
        return torch.rand(2, model.config.vq.codes, generator=generator) + 0.1

    plain, _ = draw(model, noise=noise)
    request.getfixturevalue("fixed")
    assert torch.equal(draw(model, noise=noise)[0], plain)


def test_packed_layers_and_a_compiler(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Packed weights are none that Inductor takes: beside them attention is compiled."""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    model = Janus.from_pretrained(data / "januspro" / "checkpoint", device="cpu", dtype="bfloat16")
    compiled = prepare(copy.deepcopy(model), compile=True)
    assert compiles(compiled)
    assert not compiles(model)
    assert not is_compiled(compiled)
    (first, _), (expected, _) = (draw(its, PICTURES[:1]) for its in (compiled, prepare(model)))
    # Fused operations round less often, so that sooner or later another code is the likeliest.
    assert torch.equal(first[:, :2], expected[:, :2])
    assert "compiling" in capsys.readouterr().err


def test_compiled_steps_draw_the_same(
    model: Janus, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    expected, _ = draw(model)
    assert capsys.readouterr().err == ""
    compiled = prepare(copy.deepcopy(model), compile=True)
    assert is_compiled(compiled)
    assert not is_compiled(model)
    assert torch.equal(draw(compiled)[0], expected)
    assert "compiling" in capsys.readouterr().err


@pytest.mark.parametrize("implementation", choice.IMPLEMENTATIONS)
def test_a_step_of_fixed_shapes_reads_no_number_on_the_host(
    implementation: str, data: Path, fixed: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the meta device, where there are none to read: by kernels, and on a GPU that cannot run them."""
    monkeypatch.setattr(choice, "implementation", lambda *arguments, **facts: implementation)
    model = empty_model(read_config(data / "januspro" / "checkpoint")[0])
    batch = DrawBatch(model, 2, 6, 5.0, Sampling(top_k=10))
    with torch.no_grad():
        for _ in range(2):
            codes, logits = batch.step()
    assert codes.shape == (2,)
    assert logits.shape == (4, model.config.vq.codes)
    with pytest.raises((RuntimeError, NotImplementedError), match="meta"):
        codes.tolist()  # the check can fail


def test_prompts_of_many_lengths_are_compiled_for_once(model: Janus, monkeypatch: pytest.MonkeyPatch) -> None:
    """After eight graphs torch compiles no more: they would be gone after a few answers."""
    graphs: list[Any] = []

    def counting(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=counting))
    compiled = prepare(copy.deepcopy(model), compile=True)
    for length in range(4, 15):
        embeds = compiled.language.embed(torch.arange(1, length)[None])
        own, expected = (
            [step.tokens for step in generate(its, embeds, end_id=-1, max_new_tokens=3)]
            for its in (compiled, model)
        )
        assert torch.equal(torch.cat(own), torch.cat(expected))
    assert len(graphs) == 1


BUILD = step_module.Step.__init__


class Recorder(TorchDispatchMode):
    """Keeps every operation with the very tensors that it reads and makes, and can run all of them again.

    So does a CUDA graph: recording changes nothing, no Python runs at a replay, and results land where the
    recording left them.
    """

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, Any, Any, Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []
        self.replays = 0

    def __torch_dispatch__(self, operation: Any, types: Any, arguments: Any = (), options: Any = None) -> Any:
        for argument, given in zip(operation._schema.arguments, arguments, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                self.before.append((given, given.clone()))
        result = operation(*arguments, **(options or {}))
        self.operations.append((operation, arguments, options or {}, result))
        return result

    def undo(self) -> None:
        for tensor, kept in reversed(self.before):
            tensor.copy_(kept)

    def replay(self) -> None:
        self.replays += 1
        for operation, arguments, options, result in self.operations:
            again = operation(*arguments, **options)
            # A view still shows its tensor's memory; what was written in place has been written again.
            if not any(each.alias_info for each in operation._schema.returns):
                for kept, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    kept.copy_(new)


@pytest.fixture
def recordings(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """A GPU's steps on this CPU: recorded and replayed, with every kernel's op in one piece."""
    made: list[Recorder] = []

    def graph() -> Recorder:
        made.append(Recorder())
        return made[-1]

    @contextlib.contextmanager
    def recording(recorder: Recorder, *, stream: Any) -> Iterator[None]:
        assert stream == "a stream of cpu", "torch's own would be of the device that was recorded on first"
        with recorder:
            yield
        recorder.undo()

    # Where somebody compiles, an op of ours is called as one even where its reference serves.
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", recording)
    monkeypatch.setattr(torch.cuda, "Event", Mock)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: f"a stream of {device}")
    monkeypatch.setattr(torch.cuda, "device", lambda device: contextlib.nullcontext())

    def as_on_a_gpu(self: step_module.Step, *arguments: Any, recordable: bool = True, **options: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(step_module, "is_compiled", lambda model: recordable)
            BUILD(self, *arguments, recordable=recordable, **options)
        self.recorded = recordable

    monkeypatch.setattr(step_module.Step, "__init__", as_on_a_gpu)
    return made


@pytest.mark.parametrize("guidance", [5.0, 1.0])
def test_recorded_steps_draw_the_same(guidance: float, model: Janus, recordings: list[Recorder]) -> None:
    """Two batches with one recording, and prompts of other lengths in the second."""
    others = [replace(PICTURES[1], seed=5), replace(PICTURES[0], seed=6)]
    drawn = list(draw_codes(model, [*PICTURES, *others], pad_id=0, guidance=guidance, batch_size=2))
    (recording,) = recordings
    assert recording.replays == 2 * (model.config.picture_tokens - 1) - step_module.WARM_UPS
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(step_module.Step, "__init__", BUILD)
        expected = list(draw_codes(model, [*PICTURES, *others], pad_id=0, guidance=guidance, batch_size=2))
    assert len(recordings) == 1
    assert torch.equal(torch.cat(drawn), torch.cat(expected))


def test_a_board_serves_only_what_it_was_made_for(model: Janus) -> None:
    prompt_caches = PromptCaches(model)
    draw(model, prompt_caches=prompt_caches)
    batch = prompt_caches.batch
    assert batch is not None
    draw(model, list(reversed(PICTURES)), prompt_caches=prompt_caches)
    assert prompt_caches.batch is batch
    for pictures, options in (
        (PICTURES[:1], {}),
        (PICTURES, {"guidance": 2.0}),
        (PICTURES, {"sampling": Sampling(temperature=0.5)}),
        ([replace(PICTURES[0], prompt=tuple(range(1, 12)))] * 2, {}),
    ):
        before = prompt_caches.batch
        expected, _ = draw(model, pictures, **options)
        assert torch.equal(draw(model, pictures, prompt_caches=prompt_caches, **options)[0], expected)
        assert prompt_caches.batch is not before
