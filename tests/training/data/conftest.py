"""The small checkpoint's processors and geometry, and what the tests of training data share."""

import json
from pathlib import Path

import pytest

from janus.config import JanusConfig
from janus.processing.processor import Processor
from janus.training.data.outline import Geometry
from janus.weights.config_files import read_config
from janus.weights.processor_config import read_side_files


@pytest.fixture(scope="session")
def folder(data: Path) -> Path:
    return data / "januspro" / "checkpoint"


@pytest.fixture(scope="session")
def processor(folder: Path) -> Processor:
    return Processor(read_side_files(folder), where=str(folder))


@pytest.fixture(scope="session")
def plain_roles(folder: Path) -> Processor:
    """The same with the roles of Janus, which are words like others and no tokens of their own."""
    files = read_side_files(folder)
    declared = json.loads(files["special_tokens_map.json"]) | {"additional_special_tokens": []}
    return Processor({**files, "special_tokens_map.json": json.dumps(declared).encode()}, where=str(folder))


@pytest.fixture(scope="session")
def config(folder: Path) -> JanusConfig:
    return read_config(folder)[0]


@pytest.fixture(scope="session")
def geometry(config: JanusConfig) -> Geometry:
    return Geometry.of(config)
