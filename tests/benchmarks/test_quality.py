"""What quantization costs, of the small checkpoint: which numbers are compared, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import janus
import quality
from janus.weights.load import load

SMALL = ["--cases", "1", "--tokens", "2", "--codes", "2", "--device", "cpu"]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_all_are_computed_in_the_dtype_of_full_precision(
    dtype: str,
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Not in that which each would choose: beside integers, a CPU's is another."""
    loaded = []
    load_pipeline = janus.load

    def noted(*given: Any, **options: Any) -> janus.Pipeline:
        pipe = load_pipeline(*given, **options)
        loaded.append((options["quantize"], str(pipe.model.dtype)))
        return pipe

    monkeypatch.setattr(janus, "load", noted)
    monkeypatch.setattr("janus.devices.computes_bfloat16", lambda device: dtype == "bfloat16")
    monkeypatch.setattr(quality, "photographs", lambda: [str(quality.PHOTOGRAPH)])
    file = tmp_path / "rows.json"
    assert quality.main([str(data / "januspro" / "checkpoint"), *SMALL, "--json", str(file)]) == 0
    assert loaded == [(name, f"torch.{dtype}") for name in (None, "int8", "int4")]
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"All in {dtype}:"
    rows = json.loads(file.read_text())
    assert [(row["quantization"], row["head"]) for row in rows] == [
        (name, head) for name in ("int8", "int4") for head in ("text", "image")
    ]
    assert {row["dtype"] for row in rows} == {dtype}
    assert len(printed) == 4 + len(rows)


def test_what_cannot_be_compared_is_one_line(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    quantized = tmp_path / "quantized"
    load(data / "januspro" / "checkpoint", device="cpu", quantize="int8").save_pretrained(quantized)
    monkeypatch.setattr(janus, "load", lambda *given, **options: pytest.fail("a model was loaded"))
    for folder, message in (
        (data / "janusflow" / "checkpoint", "is a JanusFlow, which draws without codes: name a Janus"),
        (quantized, "is quantized to int8: name the checkpoint that it was made from"),
        (tmp_path / "none", "no such folder"),
    ):
        assert quality.main([str(folder), *SMALL]) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.startswith("quality.py: ")
        assert message in printed.err
        assert printed.err.count("\n") == 1
