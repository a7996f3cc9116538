"""The length guard: what becomes of a document over the limit, decided before any of its pictures is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from janus.checks import require_whole
from janus.processing.processor import Processor
from janus.training.data.outline import IGNORE, Geometry, Outline, outline
from janus.training.data.rows import Row

Policy = Literal["drop", "error", "truncate_text"]


@dataclass(frozen=True)
class Guard:
    """At most `limit` tokens a document; `policy` says what happens to a longer one.

    "drop" leaves it out, "error" raises, "truncate_text" cuts text after the last picture, and leaves the
    document out where that is not enough or nothing to learn would remain.
    """

    limit: int
    policy: Policy = "error"

    def __post_init__(self) -> None:
        require_whole("the limit of tokens", self.limit, least=1)
        if self.policy not in get_args(Policy):
            raise ValueError(
                f"the policy for long documents is {self.policy!r}: use one of {', '.join(get_args(Policy))}"
            )

    def __call__(self, document: Outline, where: str) -> Outline | None:
        """The document, what is left of it, or None. Raises ValueError naming `where` and both counts."""
        if len(document) <= self.limit:
            return document
        if self.policy == "error":
            raise ValueError(
                f"{where}: {len(document)} tokens, over the limit of {self.limit}: shorten it, "
                "raise the limit, or choose the policy drop or truncate_text"
            )
        if self.policy == "drop" or document.end_of_pictures > self.limit:
            return None
        short = document.cut(self.limit)
        return short if bool((short.labels != IGNORE).any()) else None


def count_tokens(
    row: Row, processor: Processor, geometry: Geometry | None = None, *, system: str | None = None
) -> int:
    """The length of a row's document, from its text and its number of pictures alone."""
    return len(outline(row, processor, geometry, system=system))
