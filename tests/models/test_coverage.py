"""No tensor of the original's is left untested: each is an input, reproduced by one test, or named here."""

import importlib.util
import re
from pathlib import Path

import pytest
from torch import Tensor

Golden = dict[str, Tensor]

# The files whose `REPRODUCED`, or another constant, says what they reproduce.
CLAIMANTS = ("models/test_golden.py", "inference/test_text.py", "inference/test_draw.py")
FLOW_CLAIMANTS = (
    "models/test_golden.py:COMMON",
    "models/test_janusflow.py",
    "models/test_uvit.py",
    "models/test_vae.py",
    "inference/test_text.py",
    "inference/test_flow.py",
)
# What the tests start from. The ids and masks among them are the processor's results, and tested there.
INPUTS = (
    r"vision\.pixel_values",
    r"und\d\.(input_ids|attention_mask|pixel_values|images_seq_mask|images_emb_mask)",
    r"eps_probe\.\w+\.in\d",
    r"gen_head\.input|gen_embed\.ids|vq\.image|vq\.nonsquare_ids|imagegen\.prompt_tokens",
)
FLOW_INPUTS = (*INPUTS[:3], r"flow\.(tokens|attention_mask|z0|step\d\.z_in)", r"vae\.(image|latent)")
# The pooling head that the released checkpoints hold and never run; it is not built.
EXCLUDED = {"vision.attn_pool_output_unused"}
# Compared where positions are masked, by a test of its own.
BY_OTHER_TESTS = {"flow.step0.llm_last_hidden_state", "flow.step1.llm_last_hidden_state"}
TWICE = {"flow.v_trajectory"}  # by a step alone, and in a whole drawing


def claimed(claimant: str) -> list[str]:
    """The names that a test file reproduces; tests are no package, so the file is run by its path."""
    file, _, constant = claimant.partition(":")
    path = Path(__file__).resolve().parents[1] / file
    specification = importlib.util.spec_from_file_location(f"claims_of_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return list(getattr(module, constant or "REPRODUCED"))


def test_every_tensor_is_covered_once(golden: Golden) -> None:
    reproduced = [name for claimant in CLAIMANTS for name in claimed(claimant)]
    assert len(reproduced) == len(set(reproduced))
    rest = set(golden) - set(reproduced) - EXCLUDED
    assert not sorted(name for name in rest if not re.fullmatch("|".join(INPUTS), name))
    assert set(reproduced) | EXCLUDED <= set(golden)


def test_every_tensor_of_the_flow_is_covered_once(flow_golden: Golden) -> None:
    reproduced = [name for claimant in FLOW_CLAIMANTS for name in claimed(claimant)]
    assert {name for name in reproduced if reproduced.count(name) > 1} == TWICE
    rest = set(flow_golden) - set(reproduced) - BY_OTHER_TESTS - EXCLUDED
    assert not sorted(name for name in rest if not re.fullmatch("|".join(FLOW_INPUTS), name))
    assert set(reproduced) | BY_OTHER_TESTS | EXCLUDED <= set(flow_golden)


@pytest.mark.parametrize("name", ["und0.logits_last4", "vq.ids", "eps_probe.llm.out", "flow.z_final"])
def test_results_do_not_pass_as_inputs(name: str) -> None:
    assert not re.fullmatch("|".join((*INPUTS, *FLOW_INPUTS)), name)
