"""Janus and Janus-Pro: how the parts meet.

Pictures that are seen go through SigLIP and an adapter; pictures that are drawn are codes of the VQ
tokenizer, embedded by a table of their own and an adapter. Both stand in one sequence with the words, which
one language model reads; two heads leave it, one to words and one to codes.

B rows, T codes of a picture, D width.
"""

from torch import Tensor, nn

from janus.config import JanusConfig
from janus.models.adapters import ImageHead, build_adapter
from janus.models.llama import Llama
from janus.models.multimodal import MultimodalModel
from janus.models.siglip import SigLIP
from janus.models.vq import VQ


class Janus(MultimodalModel):
    """The modules of a Janus or Janus-Pro; `files` holds the small files of its checkpoint, by name."""

    config: JanusConfig

    def __init__(self, config: JanusConfig) -> None:
        super().__init__(config)
        self.vision = SigLIP(config.vision)
        self.vision_adapter = build_adapter(config.vision_adapter)
        self.vq = VQ(config.vq)
        self.code_embedding = nn.Embedding(config.vq.codes, config.vq.code_width)
        self.code_adapter = build_adapter(config.code_adapter)
        self.language = Llama(config.language)
        self.image_head = ImageHead(config.language.width, config.image_head_width, config.vq.codes)

    def embed_codes(self, codes: Tensor) -> Tensor:
        """(B, T) -> (B, T, D): the codes' table and its adapter."""
        return self.code_adapter(self.code_embedding(codes))

    def image_logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., codes)."""
        return self.image_head(hidden)
