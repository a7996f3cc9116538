"""What most people need: a checkpoint loaded, and four verbs on it: ask, chat, draw, reconstruct."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from janus.checks import require_whole
from janus.config import AnyConfig
from janus.devices import resolve_device, resolve_dtype
from janus.drawing.choose import AnyVAE, choose_drawing, choose_vae
from janus.drawing.common import Options, Preview, Watch
from janus.inference import ranks
from janus.inference.answers import Question, answer
from janus.inference.draw_batch import Picture
from janus.inference.prepare import prepare
from janus.inference.sampling import Sampling
from janus.inference.text import Memory, TextStep, check_window, generate
from janus.models.janus import Janus
from janus.models.janusflow import JanusFlow
from janus.models.quantized import check_quantization
from janus.processing.chat import OPENAI_ROLES
from janus.processing.processor import Batch, Processor
from janus.processing.tokenizer import TextStream
from janus.progress import Report
from janus.weights.hub import EXAMPLE, SHAPES, find
from janus.weights.load import load as load_model

Message = Mapping[str, Any]


def load(
    path: str | Path | None = None,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    quantize: str | None = None,
    vae: str | Path | None = None,
    revision: str | None = None,
    token: str | None = None,
    corrected_pictures: bool = False,
    tensor_parallel: bool = False,
    compile: bool = False,
) -> "Pipeline":
    """The pipeline of a hub id or a local folder; of neither, of `shapes`, the small model that is shipped.

    Device: cuda, mps or cpu, the first there is. Dtype: that of the weights where the device computes it
    well, else float32, but bfloat16 beside quantized weights on a CPU that has kernels for them. `quantize`,
    "int8" or "int4", makes the language model's weights integers while they are read; leave it out for a
    checkpoint that is quantized already. `vae` names the autoencoder that a JanusFlow draws
    and reconstructs with, by folder or hub id: left out, it is that in the checkpoint's own folder `vae`,
    else stabilityai/sdxl-vae. It is loaded when it is first needed. `corrected_pictures` turns pictures
    upright by their EXIF tag, scales 16 bits to 8 and lays transparency on the background, none of which the
    original does. `tensor_parallel` splits the language model over the processes that `torchrun` started,
    each on the CUDA device of its own number or all on the CPU; all must make the same calls, and get the
    same results. (Not a JanusFlow's, nor a quantized one.) `compile` gives the steps of the language model to
    torch.compile: the first then takes much longer, and the others less. (Steps are of a token or a code: a
    flow's drawings gain nothing.) `revision` is the model's, not the autoencoder's; `token` gives access to
    gated and private models of the hub. The model is prepared for inference: to train, take that of
    `janus.Janus.from_pretrained`.

    Raises ValueError (an option, a malformed id, files that do not fit each other), FileNotFoundError (not
    there), PermissionError (gated, a token that is refused), ConnectionError (no network) or OSError (a full
    disk), each with the remedy.
    """
    if path is None:
        _introduce_shapes()
        path = SHAPES
    target, mesh = ranks.meet(device) if tensor_parallel else (resolve_device(device), None)
    resolve_dtype(dtype, target)  # a wrong name raises before anything is fetched
    if quantize is not None:
        check_quantization(quantize)
    folder = find(path, revision=revision, token=token)
    autoencoder = choose_vae(folder, vae)
    processor = Processor.from_pretrained(folder, corrected_pictures=corrected_pictures)
    model = load_model(folder, device=target, dtype=dtype, quantize=quantize, mesh=mesh)
    return Pipeline(prepare(model, compile=compile), processor, vae=autoencoder, token=token)


class Pipeline:
    """A model and its processor. One call at a time: it keeps the cache of the last chat.

    `vae` is the autoencoder of a JanusFlow, or where to find it, and `token` the hub's, as in `load`.
    ValueError where model, processor and autoencoder do not belong together.
    """

    def __init__(
        self,
        model: Janus | JanusFlow,
        processor: Processor,
        *,
        vae: AnyVAE | None = None,
        token: str | None = None,
    ) -> None:
        made = model.config.seen_tokens
        stated = processor.config.num_image_tokens + processor.config.marks_start
        if made != stated:
            raise ValueError(
                f"the model makes {made} tokens of a picture, and the processor's files say {stated}"
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
        self.drawing = choose_drawing(model, processor, vae, token=token)
        self._memory = Memory()

    @property
    def config(self) -> AnyConfig:
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

        A string, or with `stream` an iterator of pieces that together are the same string. `system` None
        is the family's own system prompt, "" none. It has at most `max_new_tokens` tokens. Temperature 0
        is greedy; else tokens are drawn from the likeliest that together have a share of `top_p`, by the
        `seed`, without which torch's default generator gives one. Raises FileNotFoundError or ValueError
        for a picture that is not there or cannot be read, and ValueError for an option that is none and
        where question and answer exceed the model's window.
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

        A conversation is a list of messages {"role": "user", "content": "Hello"}, of "user" and
        "assistant", before which one of "system" may stand; the content of one with pictures is a list:
        [{"type": "image", "image": "cat.png"}, {"type": "text", "text": "What is it?"}].

        What a conversation shares with the last one, from its first token on, is not computed again. Each of
        a list is answered as if it were alone, at most `batch_size` at once: whenever one is done the next
        takes its place. Without a batch size there are 16, or as many as half of the free memory has room
        for. Options and errors as in `ask`; ValueError too for what is no conversation that a turn of the
        assistant's can follow, and for `stream` of several.
        """
        sampling = Sampling(temperature=temperature, top_p=top_p)
        if not isinstance(messages, list | tuple):
            raise ValueError(f"messages must be a list of messages, not {type(messages).__name__}")
        many = bool(messages) and not isinstance(messages[0], Mapping)
        if many and stream:
            raise ValueError(f"stream=True is for one conversation, and these are {len(messages)}")
        for conversation in messages if many else [messages]:
            _check_turn(conversation, self.processor.roles)
        if batch_size is not None:
            require_whole("batch_size", batch_size, least=1)
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
        steps: int | None = None,
        method: str | None = None,
        batch_size: int | None = None,
        speculate: int | None = None,
        size: int | tuple[int, int] | None = None,
        prefix: Any = None,
        rows: int | None = None,
        progress: bool | Report | None = None,
        preview: Preview | None = None,
        preview_every: int = 4,
    ) -> list[Image.Image]:
        """`n` pictures of a prompt, or of each of several, prompts in order.

        Picture i of a seed is the same, up to rounding, whatever `n`, `batch_size` and the other prompts
        are; without a seed torch's default generator gives one. Without a batch size, at most 16 pictures
        are drawn at once, and their caches take at most half of the free memory. `progress`: None for a
        bar on a terminal, True, False, or a function (done, total). `preview` gets the pictures of the
        batch so far after every `preview_every` rows of codes (the rest is gray) or steps of a flow. What
        is left out is the checkpoint's own, else the original's. Raises ValueError for an option that is
        none or that the model cannot honor, and for a prompt over its window; of a JanusFlow, whatever
        loading its autoencoder raises.

        Janus: `guidance` 5 and `temperature` 1, of which 0 is greedy; `top_k` and `top_p` limit the codes to
        choose from. `speculate` = k reads k codes at once, all but the first of them guessed, and keeps those
        that are right: the same picture, up to rounding, in fewer runs of the model, of which each takes
        longer; None, 0 and 1 guess nothing.
        `prefix` with `rows` = k keeps the first k rows of codes of a picture of the model's own size and
        draws the rest.

        JanusFlow: `guidance` 2 and `steps` 30 of "euler", or of "midpoint" or "heun" as `method`, which
        evaluate the model twice a step; progress counts evaluations. `size` in pixels, or (height, width), is
        that of its training if left out.
        """
        require_whole("n", n, least=1)
        watch = Watch(progress=progress, preview=preview, preview_every=preview_every)
        options = Options(
            guidance=guidance,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            steps=steps,
            method=method,
            batch_size=batch_size,
            speculate=speculate,
            size=size,
            prefix=prefix,
            rows=rows,
        )
        prompts = [prompt] if isinstance(prompt, str) else prompt
        if not isinstance(prompts, list | tuple) or not all(isinstance(each, str) for each in prompts):
            raise ValueError(f"a prompt must be a string, or a list of strings, not {prompt!r}")
        seed = self._chosen_seed(seed)
        pictures = [
            Picture(prompt=ids, seed=seed, number=number)
            for ids in [tuple(self.processor.draw_prompt(each)) for each in prompts]
            for number in range(n)
        ]
        return self.drawing.draw(pictures, options, watch)

    def reconstruct(self, picture: Any) -> Image.Image:
        """A picture (path, data: URI, PIL image, numpy array) through the picture tokenizer or autoencoder.

        What comes back is its center square, at the model's own size. Raises FileNotFoundError or ValueError
        for a picture that is not there or cannot be read; of a JanusFlow as `draw`.
        """
        return self.drawing.reconstruct(self.processor.image.open(picture))

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


@cache
def _introduce_shapes() -> None:
    """Say, once in a process, which model it is that nobody named."""
    print(
        "No model is named, so this is shapes, a small one that comes with janus and knows colored shapes "
        f"only. To get a released one, name it: janus.load({EXAMPLE!r}), or -m {EXAMPLE}.",
        file=sys.stderr,
    )


def _as_list(images: Any) -> list[Any]:
    if images is None:
        return []
    return list(images) if isinstance(images, list | tuple) else [images]


def _check_turn(conversation: Any, own: tuple[str, str]) -> None:
    """Raise for roles of another model than that with these `own`, and where there is nothing to say next.

    Of what is malformed otherwise the processor tells.
    """
    if not isinstance(conversation, list | tuple) or not conversation:
        return
    roles = [message.get("role") for message in conversation if isinstance(message, Mapping)]
    for index, role in enumerate(roles):
        if isinstance(role, str) and role not in (*OPENAI_ROLES, *own):
            raise ValueError(
                f"message {index}: role {role!r} is none of this model's: use user and assistant"
                + (f", or {own[0]} and {own[1]}" if all(own) else "")
            )
    last = conversation[-1]
    if not isinstance(last, Mapping):
        return
    if last.get("role") in ("assistant", own[1]) and last.get("content"):
        raise ValueError("the last message is the assistant's: a chat goes on after a message of the user's")
    if all(own) and last.get("role") == own[0]:
        raise ValueError(
            f"the last message has the role {own[0]}: an empty one of the role {own[1]} follows it"
        )
