"""Numbers that users pass, checked alike everywhere: one line that names option, bound and value."""

import math
from typing import Any


def require_whole(name: str, value: Any, least: int | None = None) -> None:
    """ValueError unless `value` is a whole number, and at least `least`."""
    if isinstance(value, bool) or not isinstance(value, int) or (least is not None and value < least):
        bound = "" if least is None else f" of at least {least}"
        raise ValueError(f"{name} must be a whole number{bound}, not {value!r}")


def require_number(
    name: str, value: Any, wanted: str, least: float = -math.inf, most: float = math.inf
) -> None:
    """ValueError unless `value` is a finite number from `least` to `most`; `wanted` says so in words."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not number or not least <= value <= most:
        raise ValueError(f"{name} must be {wanted}, not {value!r}")
