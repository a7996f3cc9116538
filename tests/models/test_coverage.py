"""No tensor of the original's is left untested: each is an input, reproduced by one test, or named here."""

import importlib.util
import re
from pathlib import Path

import pytest
from torch import Tensor

# The files whose `REPRODUCED` says what they reproduce.
CLAIMANTS = ("models/test_golden.py", "inference/test_text.py", "inference/test_draw.py")
# What the tests start from. The ids and masks among them are the processor's results, and tested there.
INPUTS = (
    r"vision\.pixel_values",
    r"und\d\.(input_ids|attention_mask|pixel_values|images_seq_mask|images_emb_mask)",
    r"eps_probe\.\w+\.in\d",
    r"gen_head\.input|gen_embed\.ids|vq\.image|vq\.nonsquare_ids|imagegen\.prompt_tokens",
)
# The pooling head that the released checkpoints hold and never run; it is not built.
EXCLUDED = {"vision.attn_pool_output_unused"}


def claimed(path: Path) -> list[str]:
    """The names of a test file's `REPRODUCED`; tests are no package, so the file is run by its path."""
    specification = importlib.util.spec_from_file_location(f"claims_of_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return list(module.REPRODUCED)


def test_every_tensor_is_covered_once(golden: dict[str, Tensor]) -> None:
    folder = Path(__file__).resolve().parents[1]
    reproduced = [name for file in CLAIMANTS for name in claimed(folder / file)]
    assert len(reproduced) == len(set(reproduced))
    rest = set(golden) - set(reproduced) - EXCLUDED
    uncovered = sorted(name for name in rest if not re.fullmatch("|".join(INPUTS), name))
    assert not uncovered
    assert set(reproduced) | EXCLUDED <= set(golden)


@pytest.mark.parametrize("name", ["und0.logits_last4", "vq.ids", "eps_probe.llm.out"])
def test_results_do_not_pass_as_inputs(name: str) -> None:
    assert not re.fullmatch("|".join(INPUTS), name)
