"""Text to ids and back, from a checkpoint's own tokenizer file; ids are looked up by name, never assumed."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from typing import Any, Protocol

from tokenizers import Tokenizer as JsonTokenizer

from janus.checks import one_line
from janus.processing.chat import Segment
from janus.weights.processor_config import (
    BOS_TOKEN,
    EOS_TOKEN,
    PAD_TOKEN,
    read_added_tokens,
    read_side_files,
    read_special_tokens,
)

# For a folder whose configuration names none: the released names, then sentencepiece's own.
BOS_TOKENS = (BOS_TOKEN, "<s>")
EOS_TOKENS = (EOS_TOKEN, "</s>")
REPLACEMENT = "\ufffd"
MARKUP = re.compile(r"<[^<>\s]+>")
BYTE_PIECE = re.compile(r"<0x[0-9A-Fa-f]{2}>")


class Backend(Protocol):
    """What a tokenizer file must be able to do."""

    vocabulary: Mapping[str, int]
    specials: frozenset[str]

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        """Ids of `text`; `special`: special tokens spelled in it count; `start`: a text begins here."""
        ...

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of `ids`."""
        ...


class JsonBackend:
    """A `tokenizer.json`, read by the `tokenizers` package."""

    def __init__(self, content: bytes, where: str) -> None:
        try:
            description = json.loads(content)
            self.tokenizer = JsonTokenizer.from_buffer(content)
            self.plain = JsonTokenizer.from_buffer(json.dumps(_with_special_markup(description)).encode())
        # Any class of exception: what is raised depends on which part of the file has the wrong shape.
        except Exception as error:
            raise ValueError(
                f"{where} is not a tokenizer file ({one_line(error)}): download it again"
            ) from error
        self.plain.encode_special_tokens = True
        for each in (self.tokenizer, self.plain):
            # Transformers stores what its last call asked for; a prompt is never cut or padded here.
            each.no_truncation()
            each.no_padding()
        self.vocabulary: Mapping[str, int] = self.tokenizer.get_vocab(with_added_tokens=True)
        added = self.tokenizer.get_added_tokens_decoder().values()
        self.specials = frozenset(
            token.content for token in added if token.special or _is_markup(token.content)
        )

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        """Ids of `text`, without what the file's post-processor would add."""
        chosen = self.tokenizer if special else self.plain
        ids: list[int] = chosen.encode(text, add_special_tokens=False).ids
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of `ids`; bytes that are no character become U+FFFD."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)


class SentencePieceBackend:
    """A `tokenizer.model`, read by the `sentencepiece` package, with the tokens added beside it."""

    # In no vocabulary, so nothing merges with it: what follows it is encoded as if inside a text.
    GUARD = "\ue000"

    def __init__(self, content: bytes, where: str, added: Mapping[str, int]) -> None:
        from sentencepiece import SentencePieceProcessor

        if not content:
            raise ValueError(f"{where} is empty: download it again")
        try:
            self.model = SentencePieceProcessor(model_proto=content)
        except (RuntimeError, OSError) as error:
            raise ValueError(
                f"{where} is not a sentencepiece model ({one_line(error)}): download it again"
            ) from error
        pieces = [self.model.id_to_piece(index) for index in range(self.model.get_piece_size())]
        self.vocabulary: Mapping[str, int] = {piece: index for index, piece in enumerate(pieces)} | dict(
            added
        )
        inside = {piece for index, piece in enumerate(pieces) if self._is_special(index, piece)}
        self.specials = frozenset(inside | set(added))
        self.special_ids = frozenset(self.vocabulary[token] for token in self.specials)
        self.spelled = {index: token for token, index in self.vocabulary.items() if token in self.specials}
        # Control pieces and added tokens never match inside a text; pieces defined by the user always do.
        self.matched = _any_of(piece for piece in inside if not self.model.is_control(self.vocabulary[piece]))
        self.split = _any_of(self.specials)
        self.guard = self.model.encode(self.GUARD)

    def _is_special(self, index: int, piece: str) -> bool:
        # Control pieces and those defined by the user have the score 0; learned ones a negative one.
        defined = _is_markup(piece) and self.model.get_score(index) == 0
        special = self.model.is_control(index) or self.model.is_unknown(index) or defined
        return bool(special and not self.model.is_byte(index))

    def encode(self, text: str, *, special: bool, start: bool = True) -> list[int]:
        """Ids of `text`; the model's leading space is put only where a text starts."""
        if not special:
            return self._encode_plain(text, start=start)
        ids: list[int] = []
        position = 0
        for match in self.split.finditer(text) if self.specials else ():
            ids += self._encode_plain(text[position : match.start()], start=start and not ids)
            ids.append(self.vocabulary[match.group()])
            position = match.end()
        return ids + self._encode_plain(text[position:], start=start and not ids)

    def _encode_plain(self, text: str, *, start: bool) -> list[int]:
        # A piece defined by the user is cut after its first character: the halves are no longer it.
        cuts = [match.start() + 1 for match in self.matched.finditer(text)]
        ids: list[int] = []
        for begin, end in zip([0, *cuts], [*cuts, len(text)], strict=True):
            stretch = text[begin:end]
            if not stretch:
                continue
            if start and not ids:
                ids += self.model.encode(stretch)
            else:
                ids += self.model.encode(self.GUARD + stretch)[len(self.guard) :]
        return ids

    def decode(self, ids: Sequence[int], *, skip_special: bool) -> str:
        """Text of `ids`; specials are dropped or spelled."""
        text, run = "", list[int]()
        for index in [*ids, None]:
            if index is not None and index not in self.special_ids:
                if not 0 <= index < self.model.get_piece_size():
                    continue
                run.append(index)
            elif index is None or not skip_special:
                if run and text:
                    text += self.model.decode(self.guard + run)[len(self.model.decode(self.guard)) :]
                elif run:
                    text = self.model.decode(run)
                run = []
                if index is not None:
                    text += self.spelled[index]
        return text


class Tokenizer:
    """A checkpoint's tokenizer. `bos_id`, `eos_id` and `pad_id` are the ids of its own special tokens."""

    def __init__(self, backend: Backend, files: Mapping[str, bytes], *, where: str) -> None:
        self.backend = backend
        self.where = where
        special = read_special_tokens(files, where=where)
        self.bos_id = self.id(special.bos or self._first_known(BOS_TOKENS))
        self.eos_id = self.id(special.eos or self._first_known(EOS_TOKENS))
        pad = special.pad or (PAD_TOKEN if PAD_TOKEN in self else None)
        self.pad_id = self.id(pad) if pad else self.eos_id
        self.additional = special.additional
        self._split = _any_of(backend.specials)

    @classmethod
    def from_pretrained(cls, folder: str | PathLike[str]) -> "Tokenizer":
        """Read `tokenizer.json`, else `tokenizer.model`, of a folder.

        Raises FileNotFoundError where the folder holds neither, ValueError where a file is malformed.
        """
        return cls.from_files(read_side_files(folder), where=str(folder))

    @classmethod
    def from_files(cls, files: Mapping[str, bytes], *, where: str) -> "Tokenizer":
        """The same from files' contents; `where` is the folder to name in errors."""
        if "tokenizer.json" in files:
            backend: Backend = JsonBackend(files["tokenizer.json"], f"{where}/tokenizer.json")
        elif "tokenizer.model" in files:
            added = read_added_tokens(files, where=where)
            backend = SentencePieceBackend(files["tokenizer.model"], f"{where}/tokenizer.model", added)
        else:
            raise FileNotFoundError(
                f"{where} holds neither tokenizer.json nor tokenizer.model: add one of them"
            )
        return cls(backend, files, where=where)

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Ids without BOS; with `special` False a special token's spelling is plain text."""
        _check_text(text)
        return self.backend.encode(text, special=special)

    def encode_segments(self, segments: Iterable[Segment]) -> list[int]:
        """Ids without BOS of a prompt in which only the segments marked special may hold special tokens.

        What stands between two special tokens is encoded in one go, so the ids are those of the joined text
        wherever a user's text spells no special token.
        """
        segments = list(segments)
        _check_text("".join(segment.text for segment in segments))
        if all(segment.special for segment in segments):
            return self.encode("".join(segment.text for segment in segments))
        ids: list[int] = []
        stretch = ""
        for segment in segments:
            position = 0
            for match in self._split.finditer(segment.text) if segment.special else ():
                stretch += segment.text[position : match.start()]
                ids += self.backend.encode(stretch, special=False, start=not ids)
                ids.append(self.id(match.group()))
                stretch, position = "", match.end()
            stretch += segment.text[position:]
        return ids + self.backend.encode(stretch, special=False, start=not ids)

    def decode(self, ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of `ids`; bytes that are no character become U+FFFD, ids without a token are left out."""
        return self.backend.decode([int(index) for index in ids], skip_special=skip_special)

    def id(self, token: str) -> int:
        """The id of a token. Raises ValueError where the vocabulary does not have it."""
        if token not in self.backend.vocabulary:
            raise ValueError(
                f"the tokenizer of {self.where} has no token {token!r}: use the checkpoint's own files"
            )
        return self.backend.vocabulary[token]

    def _first_known(self, names: Sequence[str]) -> str:
        return next((name for name in names if name in self), names[0])

    def __contains__(self, token: object) -> bool:
        return token in self.backend.vocabulary

    def __len__(self) -> int:
        return len(self.backend.vocabulary)

    @property
    def largest_id(self) -> int:
        return max(self.backend.vocabulary.values())


class TextStream:
    """Ids to text as they come, never half a character; the pieces joined are the text of all ids."""

    def __init__(self, tokenizer: Tokenizer, *, skip_special: bool = True) -> None:
        self.tokenizer = tokenizer
        self.skip_special = skip_special
        vocabulary = tokenizer.backend.vocabulary
        # A run of byte pieces is decoded as a whole: its text is certain only once something else is shown.
        pieces = [f"<0x{value:02X}>" for value in range(256)]
        self._uncertain = {vocabulary[piece] for piece in pieces if piece in vocabulary}
        if self._uncertain:
            self._uncertain |= {vocabulary[token] for token in tokenizer.backend.specials}
        # Decoded before what is new: a tokenizer may treat the first word of a text differently.
        self._context: list[int] = []
        self._context_length = 0
        self._new: list[int] = []

    def push(self, token_id: int) -> str:
        """Add an id; returns the text that became complete, often "" or more than this id's."""
        self._new.append(int(token_id))
        if token_id in self._uncertain:
            return ""
        text = self._text()
        return "" if text.endswith(REPLACEMENT) else self._release(text)

    def flush(self) -> str:
        """The text still held back; what is left of a broken character becomes U+FFFD."""
        return self._release(self._text())

    def _text(self) -> str:
        text = self.tokenizer.decode(self._context + self._new, skip_special=self.skip_special)
        return text[self._context_length :]

    def _release(self, text: str) -> str:
        # Only ids that show text make a context: a word's leading space is dropped after anything else.
        length = len(self.tokenizer.decode(self._new, skip_special=self.skip_special))
        if length:
            self._context, self._context_length = self._new, length
        else:
            self._context = self._context + self._new
            self._context_length += len(text)
        self._new = []
        return text


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"the text holds {text[error.start]!r}, half of a character: mend its encoding"
        ) from error


def _is_markup(token: str) -> bool:
    return MARKUP.fullmatch(token) is not None and BYTE_PIECE.fullmatch(token) is None


def _with_special_markup(description: dict[str, Any]) -> dict[str, Any]:
    """The same tokenizer with every added token of the form <…> marked special, and so possible to ignore."""
    added = [
        token | {"special": token["special"] or _is_markup(token["content"])}
        for token in description.get("added_tokens") or []
    ]
    return description | {"added_tokens": added}


def _any_of(spellings: Iterable[str]) -> re.Pattern[str]:
    """Matches the longest of the spellings; nothing at all when there are none."""
    ordered = sorted(spellings, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, ordered)) if ordered else r"(?!)")
