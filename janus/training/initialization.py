"""The scales that random weights begin with, where PyTorch's own do not do."""

from __future__ import annotations

import torch

from janus.models.janusflow import JanusFlow
from janus.models.llama import Llama
from janus.models.siglip import Block, SigLIP

POSITIONS = 0.25  # standard deviation of a vision tower's positions


@torch.no_grad()
def begin_language(language: Llama, generator: torch.Generator) -> None:
    """Set, in place, the scales of a language model of random weights.

    Words begin as small as published models' do, where PyTorch's own tables would drown codes and pictures;
    and what 2 layers a block add up to shrinks, so that depth does not make it larger. Source: Radford et
    al., "Language Models are Unsupervised Multitask Learners" (2019).
    """
    language.embed.weight.normal_(std=0.02, generator=generator)
    factor = (2 * len(language.layers)) ** -0.5
    for name, weight in language.named_parameters():
        if name.endswith(("attention.o_proj.weight", "mlp.down_proj.weight")):
            weight.mul_(factor)


@torch.no_grad()
def begin_vision(vision: SigLIP, generator: torch.Generator) -> None:
    """Set, in place, the scales of a vision tower of random weights.

    Positions begin at a third of what a patch of one color comes to, for what is fainter drowns in it, and
    the tower learns what there is and not where. Their strength is our own choice (docs/training.md); the
    rest is of Google's big_vision, models/vit.py, by which SigLIP was trained from nothing, and whose
    positions of width ** -0.5 are a ninth at a width of 128.
    """
    patches = vision.patch_embed
    vision.pos_embed.normal_(std=POSITIONS, generator=generator)
    patches.weight.normal_(std=patches.weight[0].numel() ** -0.5, generator=generator)
    for block in vision.blocks:
        assert isinstance(block, Block)
        # The joined matrix is three of as many outputs as inputs.
        outputs = ((block.attn.qkv, 3), (block.attn.proj, 1), (block.mlp.fc1, 1), (block.mlp.fc2, 1))
        for linear, joined in outputs:
            bound = (6 / (linear.in_features + linear.out_features // joined)) ** 0.5
            linear.weight.uniform_(-bound, bound, generator=generator)
    for name, bias in vision.named_parameters():
        if name.endswith("bias"):
            bias.zero_()


@torch.no_grad()
def begin_velocity(model: JanusFlow) -> None:
    """Have the velocity of random weights be 0, in place: noise on noise would have to be unlearned first.

    Source: Ho et al., "Denoising diffusion probabilistic models" (2020), whose last convolution begins so.
    """
    for weight in model.decoder.out_conv.parameters():
        weight.zero_()
