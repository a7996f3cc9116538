"""Checked access to a JSON object: a value that cannot be honored is an error naming file, key and value."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from janus.checks import is_number

LARGEST = 2**31 - 1  # no size of a model is above it, and tensors cannot count much further


def parse_object(content: bytes | str, where: str) -> dict[str, Any]:
    """The object that a JSON file holds. ValueError naming the file, `where`, for anything else."""
    try:
        values = json.loads(content)
    except (ValueError, RecursionError) as error:  # ValueError also for a number of thousands of digits
        raise ValueError(f"{where} is not valid JSON ({error}): fetch it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{where} must hold a JSON object, not {type(values).__name__}")
    return values


class JsonObject:
    """The values of one object; `path` stands before a key in errors. A key that is null counts as absent."""

    def __init__(self, values: Mapping[str, Any], path: str = "") -> None:
        self.values = values
        self.path = path

    def fail(self, key: str, problem: str) -> ValueError:
        """The error for the value under a key."""
        return ValueError(f"{self.path}{key} = {json.dumps(self.values.get(key))}: {problem}")

    def stated(self, key: str) -> bool:
        return self.values.get(key) is not None

    def section(self, key: str) -> JsonObject:
        """The object under `key`, an empty one where it is absent; its keys are named `key.inner`."""
        values = self.values[key] if self.stated(key) else {}
        if not isinstance(values, dict):
            raise self.fail(key, "must be an object")
        return JsonObject(values, f"{self.path}{key}.")

    def whole(self, key: str, default: int, *, least: int = -LARGEST) -> int:
        """A whole number."""
        value = self.values[key] if self.stated(key) else default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LARGEST:
            raise self.fail(key, "must be a positive whole number" if least > 0 else "must be a whole number")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number: JSON as Python reads it knows NaN and Infinity."""
        value = self.values[key] if self.stated(key) else default
        if not is_number(value):
            raise self.fail(key, "must be a number")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values[key] if self.stated(key) else default
        if not isinstance(value, bool):
            raise self.fail(key, "must be true or false")
        return value

    def text(self, key: str) -> str | None:
        """A string; None where it is absent or empty."""
        value = self.values.get(key)
        if value is not None and not isinstance(value, str):
            raise self.fail(key, "must be a string")
        return value or None

    def token(self, key: str) -> str | None:
        """A token's name, written as a string or an object with its content; None where absent or empty."""
        value = self.values.get(key)
        if isinstance(value, dict) and "content" in value:
            value = value["content"]
        if value is not None and not isinstance(value, str):
            raise self.fail(key, "must be a string, or an object with a string as its content")
        return value or None

    def wholes(self, key: str, default: tuple[int, ...]) -> tuple[int, ...]:
        """A list of whole numbers."""
        value = self.values[key] if self.stated(key) else list(default)
        whole = isinstance(value, list) and all(isinstance(x, int) and not isinstance(x, bool) for x in value)
        if not whole:
            raise self.fail(key, "must be a list of whole numbers")
        return tuple(value)

    def channels(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float] | None:
        """Three finite numbers, one per channel; here null is no absence but None."""
        value = self.values.get(key, list(default))
        if value is None:
            return None
        listed = isinstance(value, list) and len(value) == 3
        if not listed or not all(is_number(x) for x in value):
            raise self.fail(key, "must be three numbers, one per channel")
        return value[0], value[1], value[2]

    def require(self, key: str, *honored: object, absent: object = None) -> None:
        """Raise unless the value is one that this library computes; `absent` stands for a missing key."""
        value = self.values[key] if self.stated(key) else absent
        if value not in honored:
            supported = ", ".join(json.dumps(x) for x in honored)
            raise self.fail(key, f"cannot be honored; supported: {supported}")
