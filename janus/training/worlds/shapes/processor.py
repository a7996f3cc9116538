"""The files that turn words and pictures of this world into tensors, in the released layout.

The tokenizer is trained on the world's own sentences and has the tokens by which Janus-Pro marks turns and
pictures, so a model of this world is loaded, asked and taught like a released one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from janus.checks import require_whole
from janus.processing.chat import DEFAULT_SYSTEM_PROMPT
from janus.training.worlds.shapes.stream import vocabulary_texts
from janus.weights.processor_config import BOS_TOKEN, EOS_TOKEN, PAD_TOKEN

LISTED = ("<image_placeholder>", "<patch_placeholder>", "<|User|>", "<|Assistant|>")
GENERATION = "<｜begin▁of▁generation｜>"  # as JanusFlow's files have it
SPECIAL = (BOS_TOKEN, EOS_TOKEN, PAD_TOKEN, *LISTED, "<begin_of_image>", "<end_of_image>")
BYTES = 256  # each is a token, so any text can be said
SENTENCES = 20_000
BACKGROUND = 127  # what pads a picture to a square, and this world's own gray


def train_tokenizer(
    size: int, seed: int = 0, sentences: int = SENTENCES, *, extra: Sequence[str] = ()
) -> Tokenizer:
    """Byte-pair encoding of at most `size` tokens, special ones included; the same for the same seed.

    `extra` are special ones beside those that all models of the world have. They come first, so that they
    take the ids of the rarest words and all others stay what they are without them: a JanusFlow of this world
    can begin with the language model of a Janus.
    """
    special = (*extra, *SPECIAL)
    least = BYTES + len(special)
    if require_whole("size", size) < least:
        raise ValueError(f"a tokenizer of {size} tokens has no room for bytes and special ones: give {least}")
    tokenizer = Tokenizer(models.BPE())
    # A word with the space before it, marks of punctuation and digits stand alone, as in the released files.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            *(
                pre_tokenizers.Split(Regex(pattern), "isolated")
                for pattern in (r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+")
            ),
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # What stands before every question as well: it must not cost a question dozens of tokens.
    texts = chain(vocabulary_texts(sentences, seed), repeat(DEFAULT_SYSTEM_PROMPT, sentences // 10))
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    return tokenizer


def write_processor(
    folder: str | Path,
    *,
    image_size: int,
    image_tokens: int,
    vocabulary: int,
    flow: bool = False,
    seed: int = 0,
) -> None:
    """Write what `janus.Processor.from_pretrained` reads, for pictures of `image_size` pixels to a side.

    `image_tokens` are the features of a picture that is seen, `vocabulary` the ids that a model has. Of a
    `flow`, a JanusFlow, they name the token that its pictures begin with, which no other model has.
    """
    require_whole("image_size", image_size, least=1)
    require_whole("image_tokens", image_tokens, least=1)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    extra = (GENERATION,) if flow else ()
    train_tokenizer(vocabulary, seed, extra=extra).save(str(folder / "tokenizer.json"))
    named = {"bos_token": BOS_TOKEN, "eos_token": EOS_TOKEN, "pad_token": PAD_TOKEN}
    half = [0.5] * 3
    files: dict[str, dict[str, Any]] = {
        "tokenizer_config.json": {**named, "tokenizer_class": "LlamaTokenizer"},
        "special_tokens_map.json": {**named, "additional_special_tokens": [*LISTED, *extra]},
        "preprocessor_config.json": {
            "background_color": [BACKGROUND] * 3,
            "do_normalize": True,
            "image_mean": half,
            "image_processor_type": "VLMImageProcessor",
            "image_size": image_size,
            "image_std": half,
            "min_size": 14,
            "processor_class": "VLChatProcessor",
            "rescale_factor": 1 / 255,
        },
        "processor_config.json": {
            "add_special_token": False,
            "ignore_id": -100,
            "image_tag": LISTED[0],
            "mask_prompt": True,
            "num_image_tokens": image_tokens,
            "processor_class": "VLChatProcessor",
            "sft_format": "deepseek",
            **({"image_gen_tag": GENERATION} if flow else {}),
        },
    }
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
