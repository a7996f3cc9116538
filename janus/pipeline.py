"""What most people need: a checkpoint loaded, and four verbs on it: ask, chat, draw, reconstruct."""

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from janus.checks import require_whole
from janus.config import JanusConfig
from janus.devices import resolve_device, resolve_dtype
from janus.inference import ranks
from janus.inference.answers import Question, answer
from janus.inference.board import Picture
from janus.inference.draw import decode_codes, draw_codes
from janus.inference.prepare import prepare
from janus.inference.progress import Progress, Report
from janus.inference.sampling import Sampling
from janus.inference.text import Memory, TextStep, check_window, generate
from janus.models.janus import Janus
from janus.models.quantized import check_quantization
from janus.processing.image import load_picture, square_picture, to_pictures, to_signed_pixels
from janus.processing.processor import Batch, Processor
from janus.processing.tokenizer import TextStream
from janus.weights.hub import EXAMPLE, find
from janus.weights.load import load as load_model
from janus.weights.processor_config import read_generation_defaults

Message = Mapping[str, Any]
GUIDANCE, TEMPERATURE = 5.0, 1.0  # the original's, where a checkpoint does not name its own


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    corrected_pictures: bool = False,
    tensor_parallel: bool = False,
    compile: bool = False,
) -> "Pipeline":
    """The pipeline of a hub id or a local folder; without either, of `shapes`, which comes with the library.

    Device: cuda, mps or cpu, the first there is. Dtype: that of the weights where the device computes it
    well, else float32. `quantize`, "int8" or "int4", makes the language model's weights integers while they
    are read; a checkpoint that was saved so needs no word. `corrected_pictures` turns pictures upright by
    their EXIF tag, scales 16 bits to 8 and lays transparency on the background, none of which the original
    does. `tensor_parallel` splits the language model over the processes that `torchrun` started, each on the
    CUDA device of its own number or all on the CPU; all must make the same calls, and get the same results.
    `compile` gives the steps of the language model to torch.compile: the first then takes much longer, and
    the others less. The model is prepared for inference: to train, take that of
    `janus.Janus.from_pretrained`. Raises FileNotFoundError or ValueError with the remedy.
    """
    if path is None:
        path = "shapes"
        _introduce_shapes()
    target, mesh = ranks.meet(device) if tensor_parallel else (resolve_device(device), None)
    resolve_dtype(dtype, target)  # a wrong name raises before anything is fetched
    if quantize is not None:
        check_quantization(quantize)
    folder = find(path, revision=revision, token=token)
    processor = Processor.from_pretrained(folder, corrected_pictures=corrected_pictures)
    model = load_model(folder, device=target, dtype=dtype, quantize=quantize, mesh=mesh)
    if not isinstance(model, Janus):
        raise ValueError(f"{path} is a JanusFlow, which has no pipeline: load it with janus.JanusFlow")
    return Pipeline(prepare(model, compile=compile), processor)


@cache
def _introduce_shapes() -> None:
    """Say once what answers where nobody has chosen a model."""
    print(
        "janus: no model named, so this is `shapes`, which comes with the library and knows colored shapes "
        f"only. A released one: janus.load({EXAMPLE!r}), or janus … -m {EXAMPLE}",
        file=sys.stderr,
    )


class Pipeline:
    """A model and its processor. One call at a time: it keeps the cache of the last chat."""

    def __init__(self, model: Janus, processor: Processor) -> None:
        tokens, stated = model.config.vision.tokens, processor.config.num_image_tokens
        if tokens != stated:
            raise ValueError(
                f"the model makes {tokens} tokens of a picture, and the processor's files say {stated}"
            )
        if model.config.vision.image_size != processor.config.image_size:
            raise ValueError(
                f"the model sees pictures of {model.config.vision.image_size} pixels, and the processor's "
                f"files say {processor.config.image_size}"
            )
        vocabulary, largest = model.config.language.vocabulary, processor.tokenizer.largest_id
        if largest >= vocabulary:
            raise ValueError(
                f"the tokenizer has the id {largest}, and the model knows {vocabulary} tokens only"
            )
        self.model = model
        self.processor = processor
        self._memory = Memory()

    @property
    def config(self) -> JanusConfig:
        return self.model.config

    def ask(
        self,
        question: str,
        images: Any = (),
        *,
        system: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stream: bool = False,
    ) -> Any:
        """The answer to one question about no, one or many pictures (paths, PIL images or numpy arrays).

        A string, or with `stream` an iterator of pieces that together are the same string. `system` None is
        the family's own system prompt, "" none. Temperature 0 is greedy.
        """
        parts = [{"type": "image", "image": image} for image in _as_list(images)]
        content = [*parts, {"type": "text", "text": question}]
        sampling = Sampling(temperature=temperature, top_p=top_p)
        batch = self._read([{"role": "user", "content": content}], system, max_new_tokens)
        pieces = self._stream(self._steps(batch, max_new_tokens, sampling, seed))
        return pieces if stream else "".join(pieces)

    def chat(
        self,
        messages: Sequence[Any],
        *,
        system: str | None = None,
        max_new_tokens: int = 512,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int | None = None,
        stream: bool = False,
        batch_size: int | None = None,
    ) -> Any:
        """The next turn of a conversation; of a list of conversations, a list of turns, computed together.

        What a conversation shares with the last one, from its first token on, is not computed again. Each of
        a list is answered as if it were alone, at most `batch_size` at once: whenever one is done the next
        takes its place. Without a batch size there are 16, or as many as half of the free memory has room
        for. Options and `stream` as in `ask`.
        """
        sampling = Sampling(temperature=temperature, top_p=top_p)
        if not isinstance(messages, list | tuple):
            raise ValueError(f"messages must be a list of messages, not {type(messages).__name__}")
        many = bool(messages) and not isinstance(messages[0], Mapping)
        if many and stream:
            raise ValueError(f"stream=True is for one conversation, and these are {len(messages)}")
        for conversation in messages if many else [messages]:
            _check_turn(conversation)
        batch = self._read(messages, system, max_new_tokens)
        if many:
            answers = answer(
                self.model,
                self._questions(batch),
                end_id=self.processor.tokenizer.eos_id,
                max_new_tokens=max_new_tokens,
                sampling=sampling,
                seed=self._chosen_seed(seed),
                batch_size=batch_size,
            )
            return [self.processor.tokenizer.decode(tokens) for tokens in answers]
        memory, self._memory = self._memory, Memory()
        pieces = self._stream(self._steps(batch, max_new_tokens, sampling, seed, memory), memory)
        return pieces if stream else "".join(pieces)

    def draw(
        self,
        prompt: str | Sequence[str],
        *,
        n: int = 1,
        seed: int | None = None,
        guidance: float | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        batch_size: int | None = None,
        speculate: int | None = None,
        size: int | tuple[int, int] | None = None,
        prefix: Any = None,
        rows: int | None = None,
        progress: bool | Report | None = None,
        preview: Callable[[list[Image.Image]], None] | None = None,
        preview_every: int = 4,
    ) -> list[Image.Image]:
        """`n` pictures of a prompt, or of each of several, prompts in order.

        Picture i of a seed is the same, up to rounding, whatever `n`, `batch_size` and the other prompts are;
        without a seed torch's default generator gives one. Guidance and temperature left out are the
        checkpoint's own, else 5 and 1; temperature 0 is greedy. Without a batch size, at most 16 pictures are
        drawn at once, and their caches take at most half of the free memory. `speculate` = k guesses k codes
        at once and keeps those that are right: the same picture, up to rounding, in fewer runs of the model,
        of which each takes longer; None and 0 guess nothing. `prefix` with `rows` = k keeps
        the first k rows of codes of a picture of the model's own size and draws the rest. `progress`: None
        for a bar on a terminal, True, False, or a function (done, total). `preview` gets the pictures of the
        batch so far after every `preview_every` rows of codes; the rest is grey.
        """
        require_whole("n", n, least=1)
        require_whole("preview_every", preview_every, least=1)
        self._check_size(size)
        defaults = read_generation_defaults(self.processor.files)
        guidance = defaults.get("guidance", GUIDANCE) if guidance is None else guidance
        temperature = defaults.get("temperature", TEMPERATURE) if temperature is None else temperature
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list | tuple) or not all(isinstance(each, str) for each in prompts):
            raise ValueError(f"a prompt must be a string, or a list of strings, not {prompt!r}")
        start = self._start(prefix, rows)
        seed = self._chosen_seed(seed)
        pictures = [
            Picture(prompt=ids, seed=seed, number=number, start=start)
            for ids in [tuple(self.processor.draw_prompt(each)) for each in prompts]
            for number in range(n)
        ]
        steps = self.config.picture_tokens - len(start)
        drawn: list[Image.Image] = []
        with Progress(len(pictures) * steps, "code", progress) as bar:

            def on_codes(codes: Tensor) -> None:
                bar.advance(len(codes))
                complete, beyond = divmod(codes.shape[1], self.config.grid)
                if preview and not beyond and not complete % preview_every and complete < self.config.grid:
                    preview(self._unfinished(codes.unflatten(1, (complete, self.config.grid))))

            for codes in draw_codes(
                self.model,
                pictures,
                pad_id=self.processor.tokenizer.pad_id,
                guidance=guidance,
                sampling=sampling,
                batch_size=batch_size,
                speculate=speculate,
                on_codes=on_codes,
            ):
                drawn += to_pictures(decode_codes(self.model, codes))
        return drawn

    def reconstruct(self, picture: Any) -> Image.Image:
        """A picture through the VQ tokenizer and back: its centre square, at the model's own size."""
        square = square_picture(load_picture(picture), self.config.picture_size)
        return to_pictures(decode_codes(self.model, self._encode(square)))[0]

    @torch.no_grad()
    def _encode(self, square: Image.Image) -> Tensor:
        return self.model.vq.encode(to_signed_pixels(square)[None].to(self.model.device))

    def _read(self, messages: Sequence[Any], system: str | None, max_new_tokens: int) -> Batch:
        require_whole("max_new_tokens", max_new_tokens, least=1)
        check = partial(check_window, self.model, new=max_new_tokens)
        return self.processor(messages, system=system, check_length=check).to(self.model.device)

    def _questions(self, batch: Batch) -> list[Question]:
        """The conversations of a batch, each without the others' padding."""
        counts = batch.image_mask.sum(dim=1) // self.config.seen_tokens
        return [
            Question(ids[real], pixels, image_mask[real])
            for ids, real, image_mask, pixels in zip(
                batch.input_ids,
                batch.attention_mask,
                batch.image_mask,
                batch.pixels.split(counts.tolist()),
                strict=True,
            )
        ]

    @torch.no_grad()
    def _steps(
        self,
        batch: Batch,
        max_new_tokens: int,
        sampling: Sampling,
        seed: int | None,
        memory: Memory | None = None,
    ) -> Iterator[TextStep]:
        """Answer the conversations of a batch, a token of each per step; `memory` serves one alone."""
        cache = None
        if memory is None:
            embeds = self.model.embed(batch.input_ids, batch.pixels, batch.image_mask)
        else:
            embeds, cache = memory.resume(
                self.model, batch.input_ids, batch.pixels, batch.image_mask, room=max_new_tokens
            )
        return generate(
            self.model,
            embeds,
            batch.attention_mask if cache is None else None,
            end_id=self.processor.tokenizer.eos_id,
            max_new_tokens=max_new_tokens,
            sampling=sampling,
            seeds=[self._chosen_seed(seed)] * len(batch.input_ids),
            cache=cache,
        )

    def _stream(self, steps: Iterator[TextStep], memory: Memory | None = None) -> Iterator[str]:
        """The text of one row, whole characters at a time; what was computed is kept even when broken off."""
        text = TextStream(self.processor.tokenizer)
        tokens: list[int] = []
        try:
            for step in steps:
                tokens.append(int(step.tokens[0]))
                if tokens[-1] != self.processor.tokenizer.eos_id and (piece := text.push(tokens[-1])):
                    yield piece
            if rest := text.flush():
                yield rest
        finally:
            if memory is not None:
                memory.extend(tokens)
                self._memory = memory

    def _chosen_seed(self, seed: int | None) -> int:
        """The seed named, else one from torch's default generator, so that `torch.manual_seed` governs."""
        if seed is None:
            return ranks.from_all_ranks(self.model, int(torch.randint(2**62, ())))[0]
        return require_whole("seed", seed)

    def _check_size(self, size: int | tuple[int, int] | None) -> None:
        own = self.config.picture_size
        if size is not None and size not in (own, (own, own)):
            raise ValueError(
                f"size {size} cannot be drawn: this model draws {own} x {own} pixels only; resize afterwards"
            )

    def _start(self, prefix: Any, rows: int | None) -> tuple[int, ...]:
        """The codes of the first `rows` rows of the picture `prefix`; none without either."""
        if prefix is None and rows is None:
            return ()
        if prefix is None or rows is None:
            raise ValueError("prefix and rows go together: a picture, and how many rows of its codes to keep")
        grid, size = self.config.grid, self.config.picture_size
        require_whole("rows", rows)
        if not 1 <= rows < grid:
            raise ValueError(
                f"rows must be from 1 to {grid - 1}, not {rows}: the picture has {grid} rows of codes"
            )
        picture = load_picture(prefix)
        if picture.size != (size, size):
            raise ValueError(
                f"the prefix is {picture.width} x {picture.height}, and this model draws {size} x {size} "
                "pixels only: resize it first"
            )
        return tuple(self._encode(picture)[0, :rows].flatten().tolist())

    def _unfinished(self, codes: Tensor) -> list[Image.Image]:
        """Pictures of which only the first rows of codes are known, the rest grey."""
        size = self.config.picture_size
        pictures = []
        for part in to_pictures(decode_codes(self.model, codes)):
            whole = Image.new("RGB", (size, size), (127, 127, 127))
            whole.paste(part, (0, 0))
            pictures.append(whole)
        return pictures


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _check_turn(conversation: Any) -> None:
    """Raise where a conversation ends with an answer: there is nothing to say next."""
    last = conversation[-1] if isinstance(conversation, list | tuple) and conversation else None
    if isinstance(last, Mapping) and last.get("role") == "assistant" and last.get("content"):
        raise ValueError("the last message is the assistant's: a chat goes on after a message of the user's")
