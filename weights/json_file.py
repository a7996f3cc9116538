"""Checked access to a JSON file: a value that cannot be honoured is one error naming file, key and value."""

import json
from collections.abc import Mapping
from typing import Any


class JsonFile:
    """One JSON object of a folder with checked access; absent means empty unless `required`."""

    def __init__(self, files: Mapping[str, bytes], name: str, *, where: str) -> None:
        self.path = f"{where}/{name}"
        self.present = name in files
        self.values: dict[str, Any] = {}
        if not self.present:
            return
        try:
            values = json.loads(files[name])
        except ValueError as error:
            raise ValueError(f"{self.path} is not JSON ({error}): download it again") from error
        if not isinstance(values, dict):
            raise ValueError(f"{self.path} holds {type(values).__name__}: a JSON object is needed")
        self.values = values

    def wrong(self, key: str, value: object, remedy: str) -> ValueError:
        """The error for a value that cannot be honoured."""
        return ValueError(f"{self.path}: {key} is {value!r}: {remedy}")

    def section(self, key: str) -> "JsonFile":
        """The object under `key`, with its own keys."""
        value = self.values[key]
        if not isinstance(value, dict):
            raise self.wrong(key, value, "an object is needed")
        inner = JsonFile({}, "", where="")
        inner.path, inner.present, inner.values = f"{self.path}: {key}", True, value
        return inner

    def text(self, key: str) -> str | None:
        """A string, or the content of a token written as an object; None where absent or null."""
        value = self.values.get(key)
        if isinstance(value, dict):
            value = value.get("content", value)
        if value is not None and not isinstance(value, str):
            raise self.wrong(key, value, "a string is needed")
        return value or None

    def count(self, key: str, default: int) -> int:
        """A positive whole number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
            raise self.wrong(key, value, "a positive whole number is needed")
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        value = self.values.get(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
            raise self.wrong(key, value, "a number is needed")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.values.get(key, default)
        if not isinstance(value, bool):
            raise self.wrong(key, value, "true or false is needed")
        return value

    def channels(self, key: str, default: tuple[float, float, float]) -> tuple[float, float, float] | None:
        """Three finite numbers, or None where the file says null."""
        value = self.values.get(key, default)
        if value is None:
            return None
        numbers = isinstance(value, (list, tuple)) and len(value) == 3
        if not numbers or any(isinstance(x, bool) or not isinstance(x, (int, float)) for x in value):
            raise self.wrong(key, value, "three numbers are needed, one per channel")
        if not all(abs(x) < float("inf") for x in value):
            raise self.wrong(key, value, "finite numbers are needed")
        return value[0], value[1], value[2]
