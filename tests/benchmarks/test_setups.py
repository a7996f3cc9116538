"""Every benchmark: its implementations agree on each of its cases, made small, and on its smallest one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

import bench_codebook
import bench_load
import models
import run
from cases import (
    AttentionCase,
    Case,
    CodebookCase,
    DecodeCase,
    FlowCase,
    LanguageCase,
    LinearCase,
    ModelCase,
    SampleCase,
)
from janus.config import JanusConfig, JanusFlowConfig
from measure import Judge, differs, ready, title
from peers import cuvs, flex, sdpa

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def small_language(language: Any) -> Any:
    return replace(language, width=64, mlp_width=96, heads=4, kv_heads=2, head_width=64)


def small_attention(case: AttentionCase) -> AttentionCase:
    """A few rows, with the shortest and the longest among them. Some peers take no grouped heads."""
    rows = case.documents[:2] + case.documents[2:][-1:]
    documents = tuple(tuple(length // 16 for length in row) for row in rows)
    length = max(sum(row) for row in documents)
    return replace(case, heads=4, kv_heads=4, length=length, documents=documents)


def small_decode(case: DecodeCase) -> DecodeCase:
    return replace(case, language=small_language(case.language), keys=case.keys // 8, starts=case.starts[:8])


def small_layer(case: LanguageCase) -> LanguageCase:
    return replace(
        case, language=small_language(case.language), rows=min(case.rows, 3), positions=min(case.positions, 5)
    )


def small_janus(model: JanusConfig) -> JanusConfig:
    """Of 16 codes and features, and such as transformers' class can be, too."""
    language = replace(
        model.language, width=64, mlp_width=96, layers=2, heads=4, kv_heads=4, head_width=16, vocabulary=320
    )
    return replace(
        model,
        vision=replace(model.vision, image_size=64, width=48, layers=2, heads=3),
        vision_adapter=replace(model.vision_adapter, input_width=48, output_width=64),
        vq=replace(model.vq, codes=256, channels=32, residual_blocks=1, latent_channels=32),
        code_adapter=replace(model.code_adapter, output_width=64),
        image_head_width=64,
        language=language,
    )


def small_model(case: ModelCase) -> ModelCase:
    return replace(
        case, model=small_janus(case.model), keys=min(case.keys, 24), pictures=min(case.pictures, 2)
    )


def small_janusflow(model: JanusFlowConfig) -> JanusFlowConfig:
    return replace(
        model,
        vision=replace(model.vision, image_size=64, width=48, layers=2, heads=3),
        uvit=replace(model.uvit, width=32, decoder_width=48, time_width=64),
        language=replace(
            model.language,
            width=64,
            mlp_width=96,
            layers=2,
            heads=4,
            kv_heads=4,
            head_width=16,
            vocabulary=320,
        ),
    )


def small_flow(case: FlowCase) -> FlowCase:
    """16 tokens of latents after a prompt of 8."""
    return replace(case, model=small_janusflow(case.model), keys=24, side=8, pictures=2)


SMALL: dict[type[Case], Callable[[Any], Case]] = {
    AttentionCase: small_attention,
    CodebookCase: lambda case: replace(case, pictures=min(case.pictures, 2), side=3, codes=200),
    DecodeCase: small_decode,
    FlowCase: small_flow,
    LanguageCase: small_layer,
    LinearCase: lambda case: replace(case, inputs=64, outputs=96),
    ModelCase: small_model,
    SampleCase: lambda case: replace(case, pictures=min(case.pictures, 3), codes=256, top_k=case.top_k // 20),
}


@pytest.fixture(autouse=True)
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints go where they are tidied up; test_load_memory.py starts the process that measures one."""
    monkeypatch.setattr(models, "cache", tmp_path)
    monkeypatch.setattr(bench_load, "peak", lambda *given: 0)


def smallest(module: ModuleType) -> Case:
    return min((case for case in module.CASES if case.cpu), key=lambda case: module.cost(case).flop)


MODULES = [
    pytest.param(module, id=title(module)) for module in run.benchmarks() if type(module.CASES[0]) in SMALL
]
# Whole models take gigabytes at full size.
KERNELS = [parameter for parameter in MODULES if not isinstance(parameter.values[0].CASES[0], ModelCase)]


@pytest.fixture(autouse=True)
def uncompiled() -> Iterator[None]:
    """torch.compile does nothing here: what it makes of these functions is compared when they are timed."""
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    models.forget()


def disagreements(module: ModuleType, case: Case) -> list[str]:
    if isinstance(case, ModelCase):
        pytest.importorskip("transformers")
    torch.manual_seed(0)
    notes: list[str] = []
    implementations = module.setup(case, DEVICE)
    assert len(implementations) > 1
    assert "janus" in implementations
    with torch.no_grad():
        inputs = [module.inputs(case, DEVICE)]
        calls, _ = ready(
            module,
            case,
            implementations,
            inputs,
            DEVICE,
            Judge(module, case, inputs[0]),
            lambda name, text: notes.append(f"{case.name}: {name} {text}"),
        )
    assert notes or set(calls) == set(implementations)
    return notes


@pytest.mark.parametrize("module", MODULES)
def test_implementations_agree(module: ModuleType) -> None:
    small = SMALL[type(module.CASES[0])]
    notes = [note for case in module.CASES for note in disagreements(module, small(case))]
    assert not notes


@pytest.mark.parametrize("module", KERNELS)
def test_implementations_agree_at_full_size(module: ModuleType) -> None:
    assert not disagreements(module, smallest(module))


@pytest.mark.parametrize("module", MODULES)
def test_what_there_is_is_said_without_the_device(module: ModuleType) -> None:
    for case in module.CASES:
        for device in ("cpu", "cuda:7"):
            assert "janus" in module.setup(case, torch.device(device))


@pytest.mark.parametrize("documents", [((5, 3), (2, 6)), ((3,), (8,)), ((2, 4), (7,))])
@pytest.mark.parametrize("causal", [False, True])
def test_flex_attention_sees_what_the_others_see(
    documents: tuple[tuple[int, ...], ...], causal: bool
) -> None:
    """All but padding, which there sees itself, for some kernels' sake."""
    from torch.nn.attention.flex_attention import create_mask

    numbers = sdpa.numbered(documents, 8, torch.device("cpu"))
    mask = create_mask(flex.seeing(numbers, causal), len(documents), None, 8, 8, device="cpu")
    real = (numbers >= 0)[:, None, :, None]
    assert torch.equal(mask, sdpa.dense_mask(numbers, causal) & real)


def test_cuvs_is_given_torchs_stream_and_its_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What stands in for it finds neighbors as its documentation says, into tensors that are given."""
    seen: list[Any] = []

    def search(
        index: Tensor, queries: Tensor, k: int, neighbors: Tensor, distances: Tensor, *, resources: Any
    ) -> None:
        found = torch.cdist(queries, index).square().topk(k, largest=False)
        neighbors.copy_(found.indices)
        distances.copy_(found.values)
        seen.append(resources)

    brute_force = SimpleNamespace(build=lambda entries, metric, resources: entries, search=search)
    common = SimpleNamespace(Resources=lambda stream: f"on {stream}")
    monkeypatch.setitem(sys.modules, "cuvs", ModuleType("cuvs"))
    monkeypatch.setitem(sys.modules, "cuvs.common", common)
    monkeypatch.setitem(sys.modules, "cuvs.neighbors", SimpleNamespace(brute_force=brute_force))
    monkeypatch.setattr(cuvs, "installed", lambda name: True)
    stream = SimpleNamespace(cuda_stream=0)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    case = SMALL[CodebookCase](bench_codebook.CASES[0])
    given = bench_codebook.inputs(case, torch.device("cpu"))
    everything = bench_codebook.setup(case, torch.device("cuda"))
    try:
        call = everything["cuvs"](*given)
        expected = everything["einsum"](*given)()
        assert bench_codebook.problem(case, given, "cuvs", call(), expected) is None
        stream.cuda_stream = 17
        call()
    finally:
        cuvs._resources.cache_clear()
    assert seen == ["on 1", "on 17"]  # 0 would be no stream to it


@pytest.mark.parametrize("module", MODULES)
def test_a_wrong_result_is_seen(module: ModuleType) -> None:
    """Each benchmark's own comparison refuses what ours would be with one number off."""
    for case in module.CASES:
        case = SMALL[type(case)](case)
        torch.manual_seed(0)
        given = module.inputs(case, DEVICE)
        prepare = module.setup(case, DEVICE)["janus"]
        with torch.no_grad():
            expected, result = prepare(*given)(), prepare(*given)()
            if isinstance(result, torch.nn.Module):
                result.requires_grad_(False)
                tensors = list(result.parameters())[:1]
            else:
                tensors = [result] if isinstance(result, torch.Tensor) else list(result)
            for tensor in tensors:
                # Of codes another one, of floats more than rounding; the last, which is no padding.
                last = tensor.flatten()[-1]
                wrong = (last + 1) % 200 if tensor.dtype == torch.int64 else last + tensor.abs().max()
                before = last.clone()
                tensor[(-1,) * tensor.ndim] = wrong
                check = getattr(module, "problem", differs)
                assert check(case, given, "janus", result, expected), case.name
                tensor[(-1,) * tensor.ndim] = before
