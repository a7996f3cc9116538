"""A decoding step: tokens in, the next tokens out, with nothing on the host that changes from step to step.

So a GPU can record it once, as one CUDA graph with the choice of tokens included, and replay it: some 300
launches of kernels become one, and nothing waits for the host. A compiler, too, sees it but once.

P tokens per step, R rows of the cache.
"""

from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from janus.inference.cache import FixedCache, StaticCache
from janus.inference.prepare import compiles, is_compiled
from janus.models.multimodal import MultimodalModel
from janus.progress import announce

AHEAD = 8  # steps that wait for the GPU at most
WARM_UPS = 2  # steps before the recording: in the first, kernels are compiled and workspaces taken


class Step:
    """Feeds `tokens` (P,) to the rows of a filled cache, and puts the tokens chosen next in their place.

    `feed` makes embeddings (R, 1, D) of the tokens. `pick` chooses: from the last hidden states (R, D) and
    `place` to the next tokens, and whatever else a caller wants to see. `place` counts the choices made and
    is advanced by 1 after each. What `feed` and `pick` use must be tensors that stay where they are, and host
    values that stay the same; where they are not, the step is not `recordable`. `fixed` asks for a cache
    whose rows may be exchanged between steps (see `FixedCache`).
    """

    def __init__(
        self,
        model: MultimodalModel,
        cache: StaticCache,
        *,
        tokens: Tensor,
        place: Tensor,
        feed: Callable[[Tensor], Tensor],
        pick: Callable[[Tensor, Tensor], tuple[Tensor, ...]],
        recordable: bool = True,
        fixed: bool = False,
    ) -> None:
        self.model = model
        self.cache = cache
        self.tokens, self.place = tokens, place
        self.feed, self.pick = feed, pick
        aligned = cache.valid is None or cache.starts is not None
        self.recorded = recordable and aligned and model.device.type == "cuda"
        steady = fixed or self.recorded or (aligned and is_compiled(model))
        self.fixed = FixedCache(cache) if steady else None
        self.run = 0
        self.graph: torch.cuda.CUDAGraph | None = None
        self.seen: tuple[Tensor, ...] = ()
        self.queued: deque[torch.cuda.Event] = deque()

    def first(self, hidden: Tensor) -> tuple[Tensor, ...]:
        """Choose from the hidden states (R, D) that a cache filled anew ends with; -> what `pick` gave."""
        self.resume()
        return self._choose(hidden)

    def resume(self) -> None:
        """Go on from where the cache now is: something else than a step has filled it, or moved it."""
        if self.fixed is not None:
            self.fixed.continue_cache()

    def __call__(self) -> tuple[Tensor, ...]:
        """One step; -> what `pick` gave, which the next step may overwrite."""
        if self.cache.length == self.cache.capacity:
            raise ValueError(f"all {self.cache.capacity} positions of the cache are filled")
        if self.run == 0 and compiles(self.model):
            announce("compiling a step of the language model: the first one of its shapes takes a while")
        if self.recorded and self.run >= WARM_UPS:
            with torch.cuda.device(self.model.device):  # graphs and events are of the device that is current
                self._replay()
        else:
            self.seen = self._compute()
        self.run += 1
        if self.fixed is not None:
            self.cache.length += 1
        return self.seen

    def _compute(self) -> tuple[Tensor, ...]:
        embeds, language = self.feed(self.tokens), self.model.language
        if self.fixed is None:
            hidden = language(embeds, None, self.cache)
        else:
            hidden = language(embeds, None, self.fixed, positions=self.fixed.positions)
        return self._choose(hidden[:, -1])

    def _replay(self) -> None:
        """One step of the recording, which is made first if there is none."""
        if self.graph is None:
            self.graph = torch.cuda.CUDAGraph()
            # torch's own stream for this is one for all, of the device that was recorded on first.
            with torch.cuda.graph(self.graph, stream=torch.cuda.Stream(self.model.device)):
                self.seen = self._compute()
        self.graph.replay()
        self._keep_pace()

    def _keep_pace(self) -> None:
        """Wait for the step before the last few: the GPU never idles, and what is shown as done nearly is."""
        self.queued.append(torch.cuda.Event())
        self.queued[-1].record()
        if len(self.queued) > AHEAD:
            self.queued.popleft().synchronize()

    def _choose(self, hidden: Tensor) -> tuple[Tensor, ...]:
        chosen = self.pick(hidden, self.place)
        self.tokens.copy_(chosen[0])
        self.place += 1
        return chosen
