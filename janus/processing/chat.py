"""Conversations to prompts, with the templates of the released code, character for character.

A prompt is a list of `Segment`s. Joined they are the exact prompt string; apart they say which stretches
are the template's (special tokens spelled in them are special tokens) and which are a user's text (only ever
text).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from janus.weights.processor_config import EOS_TOKEN, JANUS_PRO_ROLES, JANUS_ROLES

DEFAULT_SYSTEM_PROMPT = (
    "You are a helpful language and vision assistant. You are able to understand the visual content that the "
    "user provides, and assist the user with a variety of tasks using natural language."
)
OPENAI_ROLES = ("user", "assistant", "system")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Segment:
    """A stretch of a prompt; `special` tells whether special tokens spelled in it are special tokens."""

    text: str
    special: bool = False


@dataclass(frozen=True, kw_only=True)
class Template:
    """How a released format writes a conversation: its roles, and what follows even and odd turns."""

    style: Literal["deepseek", "llama-2", "plain"]
    roles: tuple[str, str]
    separators: tuple[str, str]

    def system(self, text: str) -> tuple[str, str]:
        """What stands before and after the system prompt `text`, also where that is empty."""
        if self.style == "deepseek":
            return ("", "\n\n") if text else ("", "")
        if self.style == "llama-2":
            return ("[INST] <<SYS>>\n", "\n<</SYS>>\n\n") if text else ("[INST] ", "")
        return "", ""

    def turn(self, index: int, role: str, *, filled: bool) -> tuple[str, str]:
        """What stands before and after the content of message `index`; an empty one is an open turn.

        Separators, and in llama-2 the roles too, follow the position, as in the released code.
        """
        after = self.separators[index % 2]
        if self.style == "deepseek":
            return (f"{role}: ", after) if filled else (f"{role}:", "")
        if self.style == "llama-2":
            tag = self.roles[index % 2]
            if not filled:
                return tag, ""
            return ("" if index == 0 else f"{tag} "), after
        return "", after


def choose_template(sft_format: str, *, pro_roles: bool) -> Template:
    """The template called `sft_format`; `pro_roles` tells whether the tokenizer has Janus-Pro's role tokens.

    "deepseek" and "deepseek_old" are one template: the released files use the names loosely, so the tokenizer
    decides the roles. Raises ValueError for an unknown name.
    """
    if sft_format in ("deepseek", "deepseek_old"):
        roles = JANUS_PRO_ROLES if pro_roles else JANUS_ROLES
        return Template(style="deepseek", roles=roles, separators=("\n\n", EOS_TOKEN))
    if sft_format in ("llama-2", "llava_llama2"):
        return Template(style="llama-2", roles=("[INST]", "[/INST]"), separators=(" ", " </s><s>"))
    if sft_format == "plain":
        return Template(style="plain", roles=("", ""), separators=("", ""))
    raise ValueError(
        f"sft_format is {sft_format!r}: use one of deepseek, deepseek_old, llama-2, llava_llama2, plain"
    )


def format_conversation(
    messages: Sequence[Message], template: Template, *, image_tag: str, system: str | None = None
) -> list[Segment]:
    """The prompt of one conversation; `system` None is the default system prompt, "" is none.

    Raises ValueError naming the message's index where a conversation is malformed.
    """
    if _style(messages) == "released":
        return _format_released(messages, template, _system_text(system))
    return _format_openai(messages, template, image_tag, system)


def format_drawing(prompt: str, template: Template, *, image_start_tag: str) -> list[Segment]:
    """The prompt after which the model draws: no system prompt, and the image's start tag at the end."""
    if not isinstance(prompt, str):
        raise ValueError(f"a prompt is {type(prompt).__name__}: give a str")
    segments = _format_openai([{"role": "user", "content": prompt}], template, "", "")
    return [*segments, Segment(image_start_tag, special=True)]


def conversation_images(messages: Sequence[Message]) -> list[Any]:
    """The pictures that the messages themselves hold, in reading order."""
    if _style(messages) == "released":
        return [image for message in messages for image in message.get("images") or []]
    in_parts = [message["content"] for message in messages if not isinstance(message["content"], str)]
    return [part["image"] for parts in in_parts for part in parts if part["type"] == "image"]


def _system_text(system: str | None) -> str:
    if system is None:
        return DEFAULT_SYSTEM_PROMPT
    if not isinstance(system, str):
        raise ValueError(f"system is {type(system).__name__}: give a str, or None for the default")
    return system


def _style(messages: Sequence[Message]) -> Literal["released", "openai"]:
    """Check what both styles require of messages, and tell the styles apart by the roles."""
    if not isinstance(messages, (list, tuple)):
        raise ValueError(f"a conversation is {type(messages).__name__}: give a list of messages")
    if not messages:
        raise ValueError("a conversation is empty: give at least one message")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping):
            raise ValueError(
                f"message {index} is {type(message).__name__}: give a dict with role and content"
            )
        for key in ("role", "content"):
            if key not in message:
                raise ValueError(f"message {index} has no {key!r}: give a dict with role and content")
        if not isinstance(message["role"], str):
            raise ValueError(f"message {index}: role is {message['role']!r}: give a str")
    openai = [message["role"] in OPENAI_ROLES for message in messages]
    style: Literal["released", "openai"] = "openai" if openai[0] else "released"
    if any(openai) and not all(openai):
        index = openai.index(not openai[0])
        raise ValueError(
            f"message {index}: role {messages[index]['role']!r} after {messages[0]['role']!r}: "
            "a conversation uses either user/assistant/system or the template's own roles"
        )
    for index, message in enumerate(messages):
        (_check_released if style == "released" else _check_openai)(index, message)
    return style


def _check_released(index: int, message: Message) -> None:
    if not isinstance(message["content"], str):
        raise ValueError(
            f"message {index}: content is {type(message['content']).__name__}: give a str with this role "
            f"({message['role']!r}), or use the roles user and assistant"
        )
    if not isinstance(message.get("images"), (list, tuple, type(None))):
        raise ValueError(
            f"message {index}: images is {type(message['images']).__name__}: give a list of pictures"
        )


def _check_openai(index: int, message: Message) -> None:
    role, content = message["role"], message["content"]
    if "images" in message:
        raise ValueError(
            f"message {index}: role {role!r} does not go with 'images': put pictures into the content, "
            'as parts {"type": "image", "image": picture}'
        )
    if isinstance(content, str):
        return
    if not isinstance(content, (list, tuple)):
        raise ValueError(
            f"message {index}: content is {type(content).__name__}: give a str or a list of parts"
        )
    for number, part in enumerate(content):
        where = f"message {index}, part {number}"
        kind = part.get("type") if isinstance(part, Mapping) else None
        if kind not in ("text", "image"):
            found = f"of type {kind!r}" if isinstance(part, Mapping) else type(part).__name__
            raise ValueError(
                f'{where} is {found}: give {{"type": "text", "text": …}} or {{"type": "image", "image": …}}'
            )
        if part.get(kind) is None:
            raise ValueError(f"{where} has no {kind!r}: a part of type {kind!r} needs it")
        if kind == "text" and not isinstance(part["text"], str):
            raise ValueError(f"{where}: text is {type(part['text']).__name__}: give a str")
        if kind == "image" and role == "system":
            raise ValueError(f"{where}: a system message holds text only: move the image to a user message")


def _format_released(messages: Sequence[Message], template: Template, system: str) -> list[Segment]:
    """One segment: in this style a special token spelled anywhere is one, as in the released code."""
    before, after = template.system(system)
    prompt = before + (system if template.style != "plain" else "") + after
    for index, message in enumerate(messages):
        content = message["content"].strip()
        before, after = template.turn(index, message["role"], filled=bool(content))
        prompt += before + content + after
    return [Segment(prompt.strip(), special=True)]


def _format_openai(
    messages: Sequence[Message], template: Template, image_tag: str, system: str | None
) -> list[Segment]:
    if messages[0]["role"] == "system":
        if system is not None:
            raise ValueError("a system message and system= are both given: use one of them")
        opening = "".join(segment.text for segment in _content(messages[0]["content"], image_tag))
        turns = messages[1:]
    else:
        opening, turns = _system_text(system), messages
    _check_order(turns, offset=len(messages) - len(turns))

    before, after = template.system(opening)
    segments = [Segment(before, True)]
    if template.style != "plain":
        segments.append(Segment(opening))
    segments.append(Segment(after, True))
    for index, message in enumerate(turns):
        content = _content(message["content"], image_tag)
        role = template.roles[index % 2]
        before, after = template.turn(index, role, filled=bool(content))
        segments += [Segment(before, True), *content, Segment(after, True)]
    if turns[-1]["role"] == "user":
        before, _ = template.turn(len(turns), template.roles[1], filled=False)
        segments.append(Segment(before, True))
    return _strip(segments)


def _check_order(turns: Sequence[Message], *, offset: int) -> None:
    if not turns:
        raise ValueError("message 0 is the system message and no other follows: add a user message")
    for index, message in enumerate(turns):
        expected = OPENAI_ROLES[index % 2]
        if message["role"] != expected:
            raise ValueError(
                f"message {offset + index}: role {message['role']!r} where {expected!r} is due: after an "
                "optional system message, user and assistant alternate, beginning with user"
            )


def _content(content: str | Sequence[Message], image_tag: str) -> list[Segment]:
    """A message's parts: a line break between an image and its neighbor, a space between texts, stripped."""
    if isinstance(content, str):
        return _strip([Segment(content)])
    segments: list[Segment] = []
    previous = ""
    for part in content:
        kind = part["type"]
        if kind == "text" and not part["text"]:
            continue
        if previous:
            segments.append(Segment("\n" if "image" in (kind, previous) else " "))
        segments.append(Segment(image_tag, special=True) if kind == "image" else Segment(part["text"]))
        previous = kind
    return _strip(segments)


def _strip(segments: Iterable[Segment]) -> list[Segment]:
    """The segments of the joined text without the white space at its two ends; empty segments are dropped."""
    kept = [segment for segment in segments if segment.text]
    while kept and (text := kept[0].text.lstrip()) != kept[0].text:
        kept[:1] = [Segment(text, kept[0].special)] if text else []
    while kept and (text := kept[-1].text.rstrip()) != kept[-1].text:
        kept[-1:] = [Segment(text, kept[-1].special)] if text else []
    return kept
