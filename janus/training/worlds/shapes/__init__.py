"""A world of colored shapes on gray: pictures, captions, questions, and the exact verifier of both.

`drawing`, `conversation` and `text` are the endless streams that training draws from; `seen_prompts`,
`held_out_prompts` and `questions` the lists that evaluation uses, `verify` and `correct` their judges.
"""

from janus.training.worlds.shapes.answers import correct
from janus.training.worlds.shapes.captions import caption, describe_scene
from janus.training.worlds.shapes.conversations import text
from janus.training.worlds.shapes.held_out import HELD_OUT_KINDS, held_out_reason, is_held_out_pair
from janus.training.worlds.shapes.parsing import parse
from janus.training.worlds.shapes.questions import QUESTION_CATEGORIES, ask
from janus.training.worlds.shapes.raster import PALETTE, SIDE, render
from janus.training.worlds.shapes.sampling import CATEGORIES, HeldOut, Places, sample
from janus.training.worlds.shapes.scene import (
    COLORS,
    NEW_COLORS,
    SHAPES,
    Object,
    Scene,
    Spec,
    Thing,
    holds,
    relation,
)
from janus.training.worlds.shapes.stream import (
    Conversation,
    Drawing,
    Question,
    conversation,
    drawing,
    held_out_prompts,
    question,
    questions,
    seen_prompts,
    vocabulary_texts,
)
from janus.training.worlds.shapes.verifier import Reading, describe, verify

__all__ = [
    "CATEGORIES",
    "COLORS",
    "HELD_OUT_KINDS",
    "NEW_COLORS",
    "PALETTE",
    "QUESTION_CATEGORIES",
    "SHAPES",
    "SIDE",
    "Conversation",
    "Drawing",
    "HeldOut",
    "Object",
    "Places",
    "Question",
    "Reading",
    "Scene",
    "Spec",
    "Thing",
    "ask",
    "caption",
    "conversation",
    "correct",
    "describe",
    "describe_scene",
    "drawing",
    "held_out_prompts",
    "held_out_reason",
    "holds",
    "is_held_out_pair",
    "parse",
    "question",
    "questions",
    "relation",
    "render",
    "sample",
    "seen_prompts",
    "text",
    "verify",
    "vocabulary_texts",
]
