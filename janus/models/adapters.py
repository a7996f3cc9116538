"""What carries pictures into the language model's width, and the head that leads back to codes."""

from torch import Tensor, nn

from janus.config import AdapterConfig


def build_adapter(config: AdapterConfig) -> nn.Module:
    """(..., input_width) -> (..., output_width). `mlp_gelu` has its linear layers at the even indices.

    Source: `MlpProjector` in the original's projector.py.
    """
    if config.kind == "identity":
        return nn.Identity()
    if config.kind == "linear":
        return nn.Linear(config.input_width, config.output_width)
    layers: list[nn.Module] = [nn.Linear(config.input_width, config.output_width)]
    for _ in range(1, config.depth):
        layers += [nn.GELU(), nn.Linear(config.output_width, config.output_width)]
    return nn.Sequential(*layers)


class ImageHead(nn.Module):
    """Hidden states to logits over the picture's codes: (..., D) -> (..., codes)."""

    def __init__(self, width: int, inner_width: int, codes: int) -> None:
        super().__init__()
        self.up = nn.Linear(width, inner_width)
        self.activation = nn.GELU()
        self.out = nn.Linear(inner_width, codes)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.out(self.activation(self.up(hidden)))
