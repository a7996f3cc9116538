"""JanusFlow: the member of the family that draws by a rectified flow through the language model.

Pictures that are seen go through SigLIP, as Janus' do. A picture that is drawn is a latent of a separate
autoencoder: a shallow U-ViT cuts it into tokens that stand after the prompt and the time, and turns what the
language model makes of them into the latent's velocity. Source: Ma et al., "JanusFlow: Harmonizing
Autoregression and Rectified Flow for Unified Multimodal Understanding and Generation" (2024).

B rows, L tokens of a prompt, D width, N pictures, c channels of a latent, h and w its sides, T = h/2 * w/2
its tokens in reading order, C the encoder's channels.
"""

from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange
from torch import Tensor, nn

from janus.config import LATENT_PATCH, JanusFlowConfig
from janus.models.llama import KeyValueCache, Llama, RMSNorm
from janus.models.multimodal import MultimodalModel
from janus.models.siglip import SigLIP
from janus.models.uvit import UViTDecoder, UViTEncoder


@dataclass(frozen=True)
class EmbeddedLatents:
    """Latents at their times as the language model reads them, and what the decoder wants of them again.

    `tokens` (B, 1 + T, D): the time's token, then the latent's; `features` (B, C, h/2, w/2), the encoder's;
    `time` (B, D).
    """

    tokens: Tensor
    features: Tensor
    time: Tensor


class JanusFlow(MultimodalModel):
    """The modules of a JanusFlow; `files` holds the small files of its checkpoint, by name.

    Its autoencoder is another checkpoint, and another model (`janus.models.vae`); `autoencoder` is the folder
    of one that came with this checkpoint, and is saved with it.
    """

    config: JanusFlowConfig
    autoencoder: Path | None = None

    def __init__(self, config: JanusFlowConfig) -> None:
        super().__init__(config)
        width = config.language.width
        self.vision = SigLIP(config.vision)
        self.vision_adapter = nn.Linear(config.vision.width, width)
        self.begin_embedding = nn.Parameter(torch.empty(1, width).normal_(std=0.02))
        self.encoder = UViTEncoder(config.uvit)
        self.latent_adapter = nn.Linear(config.uvit.width, width)
        self.language = Llama(config.language)
        self.velocity_norm = RMSNorm(width, config.language.norm_eps)
        self.velocity_adapter = nn.Linear(width, config.uvit.decoder_width)
        self.decoder = UViTDecoder(config.uvit)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 1 + patches, D): the embedding with which seeing begins, then the patches.

        The first stands in place of the image's start token, so that `image_mask` marks that too.
        """
        features = super().encode_images(pixels)
        begin = self.begin_embedding.expand(len(features), 1, -1)
        return torch.cat((begin.to(features.dtype), features), dim=1)

    def velocity(
        self, input_ids: Tensor, latents: Tensor, t: Tensor, *, attention_mask: Tensor | None = None
    ) -> Tensor:
        """One evaluation of the flow: (B, L) ids, (B, c, h, w), (B,) times in [0, 1000] -> (B, c, h, w).

        Noise is at time 0, pictures are at 1000, and the velocity is that of a path of length 1. The last
        token of a prompt only marks where the picture begins: the time's stands in its place. The mask,
        (B, L + T), is false where nothing is seen of L - 1 tokens of the prompt, the time's and T of latents;
        positions count on through it, as in the original.
        ValueError where shapes do not fit each other.
        """
        embedded = self.embed_latents(latents, t)
        self._check_prompt(input_ids, len(latents))
        embeds = torch.cat((self.embed(input_ids[:, :-1]), embedded.tokens), dim=1)
        positions = torch.arange(embeds.shape[1], device=embeds.device)[None]
        return self.decode_velocity(self.language(embeds, attention_mask, positions=positions), embedded)

    def read_prompt(
        self, input_ids: Tensor, cache: KeyValueCache, *, attention_mask: Tensor | None = None
    ) -> None:
        """Put the keys and values of a prompt, (B, L) ids without the last, into an empty cache.

        The mask, (B, L - 1), is false where nothing is seen; positions count on through it.
        """
        self._check_prompt(input_ids, len(input_ids))
        length = input_ids.shape[1] - 1
        if length:
            positions = torch.arange(length, device=input_ids.device)[None]
            self.language(self.embed(input_ids[:, :-1]), attention_mask, cache, positions=positions)

    def velocity_after(
        self, cache: KeyValueCache, latents: Tensor, t: Tensor, *, start: int | Tensor
    ) -> Tensor:
        """As `velocity`, of prompts whose keys and values a cache holds, as `read_prompt` leaves it.

        `start` is the position of the time's token, L - 1, or (B,) of them: keys are rotated when they are
        stored, so that a row need not hold those of its prompt that it does not see. The cache holds the
        latents' tokens too afterwards: truncate it to the prompts before the next evaluation.
        """
        embedded = self.embed_latents(latents, t)
        steps = torch.arange(embedded.tokens.shape[1], device=latents.device)
        first = torch.as_tensor(start, device=latents.device).view(-1, 1)
        return self.decode_velocity(
            self.language(embedded.tokens, None, cache, positions=first + steps), embedded
        )

    def embed_latents(self, latents: Tensor, t: Tensor) -> EmbeddedLatents:
        """(B, c, h, w) latents and (B,) times in [0, 1000] -> their tokens, and what `decode_velocity` needs.

        ValueError for another number of channels, sides that are odd, or another number of times.
        """
        channels = self.config.uvit.latent_channels
        if (
            latents.ndim != 4
            or latents.shape[1] != channels
            or any(side % LATENT_PATCH for side in latents.shape[2:])
        ):
            raise ValueError(
                f"latents must be (B, {channels}, h, w) with h and w multiples of {LATENT_PATCH}, "
                f"not {tuple(latents.shape)}"
            )
        if t.shape != latents.shape[:1]:
            raise ValueError(f"t must be one time for each of {len(latents)} latents, not {tuple(t.shape)}")
        features, time = self.encoder(latents.to(self.dtype), t)
        tokens = self.latent_adapter(rearrange(features, "B C h w -> B (h w) C"))
        return EmbeddedLatents(torch.cat((time[:, None], tokens), dim=1), features, time)

    def decode_velocity(self, hidden: Tensor, embedded: EmbeddedLatents) -> Tensor:
        """(B, T or more, D), of which the last T are the latents' hidden states -> velocity (B, c, h, w)."""
        height, width = embedded.features.shape[2:]
        own = self.velocity_adapter(self.velocity_norm(hidden[:, -height * width :]))
        x = rearrange(own, "B (h w) C -> B C h w", h=height)
        return self.decoder(x, embedded.features, embedded.time)

    def _check_prompt(self, input_ids: Tensor, rows: int) -> None:
        if input_ids.ndim != 2 or len(input_ids) != rows or not input_ids.shape[1]:
            raise ValueError(
                f"input_ids must be ({rows}, L): a prompt for each latent, of one token at least, "
                f"not {tuple(input_ids.shape)}"
            )
