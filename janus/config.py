"""Architectures as frozen data: every number of a model stands here, and the presets of the released models.

What can be computed from other numbers is a property. Numbers that contradict each other raise where they
meet. Reading and writing `config.json`, in either dialect, is `janus.weights.config_files`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

AdapterKind = Literal["identity", "linear", "mlp_gelu"]
# Far above any model, and low enough that a damaged file cannot fill the memory with modules.
MOST_LAYERS = 1000
MOST_LEVELS = 16
LATENT_PATCH = 2  # sides of a latent to sides of JanusFlow's grid of tokens


def _require_positive(owner: object, *names: str) -> None:
    for name in names:
        value = getattr(owner, name)
        if value <= 0:
            raise ValueError(f"{type(owner).__name__}.{name} must be positive, not {value}")


def _require_equal(what: str, left: int, right: int) -> None:
    if left != right:
        raise ValueError(f"{what} must be equal: {left} and {right}")


def _require_known_quantization(quantization: str | None) -> None:
    if quantization not in (None, "int8", "int4"):
        raise ValueError(f"quantization {quantization!r} is unknown: name int8 or int4")


def _require_buildable(owner: object, name: str) -> None:
    value = getattr(owner, name)
    if not 0 < value <= MOST_LAYERS:
        raise ValueError(f"{type(owner).__name__}.{name} must be from 1 to {MOST_LAYERS}, not {value}")


@dataclass(frozen=True, kw_only=True)
class VisionConfig:
    """SigLIP's vision tower: square pictures in, one feature per patch out.

    `select_layer` is the original's: negative k builds the tower up to that layer counted from the end (-1:
    all), positive k the first k layers, 0 all of them; the final norm follows whichever is last.
    """

    image_size: int
    patch_size: int
    width: int
    layers: int
    heads: int
    mlp_ratio: float
    select_layer: int
    norm_eps: float

    def __post_init__(self) -> None:
        _require_positive(self, "image_size", "patch_size", "width", "heads", "mlp_ratio", "norm_eps")
        _require_buildable(self, "layers")
        if self.width % self.heads:
            raise ValueError(f"vision: width {self.width} is not a multiple of {self.heads} heads")
        if self.image_size < self.patch_size:
            raise ValueError(f"vision: image_size {self.image_size} is below patch_size {self.patch_size}")
        if self.depth < 1:
            raise ValueError(f"vision: select_layer {self.select_layer} leaves none of {self.layers} layers")

    @property
    def depth(self) -> int:
        """How many blocks are built: what `select_layer` leaves of `layers`."""
        wanted = self.select_layer if self.select_layer > 0 else self.layers + self.select_layer + 1
        return min(self.layers, wanted)

    @property
    def mlp_width(self) -> int:
        return int(self.width * self.mlp_ratio)

    @property
    def tokens(self) -> int:
        """Features per picture."""
        return (self.image_size // self.patch_size) ** 2


@dataclass(frozen=True, kw_only=True)
class AdapterConfig:
    """What carries features of one width into another.

    Nothing, one linear layer, or `depth` linear layers with GELU between them.
    """

    kind: AdapterKind
    depth: int
    input_width: int
    output_width: int

    def __post_init__(self) -> None:
        _require_positive(self, "input_width", "output_width")
        _require_buildable(self, "depth")
        if self.kind == "identity" and self.input_width != self.output_width:
            raise ValueError(
                f"an identity adapter cannot turn width {self.input_width} into {self.output_width}"
            )


@dataclass(frozen=True, kw_only=True)
class VQConfig:
    """The VQ tokenizer of pictures.

    The multipliers run from the finest level to the coarsest, one per level.
    """

    codes: int
    code_width: int
    channels: int
    encoder_multipliers: tuple[int, ...]
    decoder_multipliers: tuple[int, ...]
    residual_blocks: int
    latent_channels: int

    def __post_init__(self) -> None:
        _require_positive(self, "codes", "code_width", "channels", "latent_channels")
        _require_buildable(self, "residual_blocks")
        if len(self.encoder_multipliers) > MOST_LEVELS:
            raise ValueError(f"vq: {len(self.encoder_multipliers)} levels are more than {MOST_LEVELS}")
        for multipliers in (self.encoder_multipliers, self.decoder_multipliers):
            if not multipliers or min(multipliers) <= 0:
                raise ValueError(
                    f"vq: channel multipliers must be positive and at least one, not {multipliers}"
                )
        if len(self.encoder_multipliers) != len(self.decoder_multipliers):
            raise ValueError(
                f"vq: {len(self.encoder_multipliers)} encoder levels and "
                f"{len(self.decoder_multipliers)} decoder levels: pictures would come back at another size"
            )
        if self.channels % 32:
            raise ValueError(
                f"vq: channels must be a multiple of 32 (the groups of its norms), not {self.channels}"
            )

    @property
    def factor(self) -> int:
        """Pixels per code along each side."""
        return 2 ** (len(self.encoder_multipliers) - 1)


@dataclass(frozen=True, kw_only=True)
class LanguageConfig:
    """Llama: `vocabulary` ids, `layers` blocks of `width`, an MLP of `mlp_width`, positions up to `window`.

    `heads` of queries of `head_width` share `kv_heads` of keys and values; `rope_theta` is the base of the
    rotary positions' periods, and with `tied_head` words are chosen by the table that embeds them. ValueError
    for sizes that contradict each other.
    """

    vocabulary: int
    width: int
    mlp_width: int
    layers: int
    heads: int
    kv_heads: int
    head_width: int
    norm_eps: float
    rope_theta: float
    window: int
    tied_head: bool

    def __post_init__(self) -> None:
        _require_positive(self, "vocabulary", "width", "mlp_width", "heads", "kv_heads", "head_width")
        _require_buildable(self, "layers")
        _require_positive(self, "norm_eps", "rope_theta", "window")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"language: {self.heads} heads cannot share {self.kv_heads} key-value heads evenly"
            )
        if self.head_width % 2:
            raise ValueError(f"language: rotary positions need an even head width, not {self.head_width}")


@dataclass(frozen=True, kw_only=True)
class JanusConfig:
    """A whole Janus or Janus-Pro.

    `dtype` names the precision that the checkpoint was released in; `quantization` is "int8" or "int4" where
    the language model's weights are integers (`janus.models.quantized`). `extra` holds, by dialect, the
    `config.json` that this was read from, so that keys which say nothing to this library survive a rewrite;
    it takes no part in equality.
    """

    vision: VisionConfig
    vision_adapter: AdapterConfig
    vq: VQConfig
    code_adapter: AdapterConfig
    image_head_width: int
    language: LanguageConfig
    dtype: str
    quantization: str | None = None
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        _require_positive(self, "image_head_width")
        _require_known_quantization(self.quantization)
        _require_equal(
            "the vision tower's width and its adapter's input",
            self.vision.width,
            self.vision_adapter.input_width,
        )
        _require_equal(
            "the vision adapter's output and the language width",
            self.vision_adapter.output_width,
            self.language.width,
        )
        _require_equal(
            "the code width and its adapter's input", self.vq.code_width, self.code_adapter.input_width
        )
        _require_equal(
            "the code adapter's output and the language width",
            self.code_adapter.output_width,
            self.language.width,
        )

    @property
    def seen_tokens(self) -> int:
        """Positions that a picture takes which is seen."""
        return self.vision.tokens

    @property
    def grid(self) -> int:
        """Codes along each side of a drawn picture."""
        return self.vision.image_size // self.vq.factor

    @property
    def picture_tokens(self) -> int:
        """Codes of a drawn picture."""
        return self.grid**2

    @property
    def picture_size(self) -> int:
        """Pixels along each side of a drawn picture."""
        return self.grid * self.vq.factor


@dataclass(frozen=True, kw_only=True)
class UViTConfig:
    """JanusFlow's shallow U-ViT, which halves the sides of a latent and doubles them again.

    `width` is that of the encoder, whose first convolution has the kernel and padding; `decoder_width` that
    of what the decoder takes from the language model, beside the encoder's features; `time_width` that of the
    time's embedding. The blocks are ConvNeXt's.
    """

    latent_channels: int
    width: int
    decoder_width: int
    time_width: int
    kernel_size: int
    padding: int
    encoder_blocks: int
    decoder_blocks: int
    encoder_norm_eps: float
    decoder_norm_eps: float

    def __post_init__(self) -> None:
        _require_positive(self, "latent_channels", "width", "decoder_width", "time_width", "kernel_size")
        _require_positive(self, "encoder_norm_eps", "decoder_norm_eps")
        _require_buildable(self, "encoder_blocks")
        _require_buildable(self, "decoder_blocks")
        if self.width % 2:
            raise ValueError(
                f"uvit: a time has a sine for each cosine, which an odd width {self.width} splits"
            )
        if not self.kernel_size - LATENT_PATCH <= 2 * self.padding < self.kernel_size:
            raise ValueError(
                f"uvit: kernel_size {self.kernel_size} with padding {self.padding} does not halve a latent's "
                "sides: velocities would come back at another size"
            )


@dataclass(frozen=True, kw_only=True)
class JanusFlowConfig:
    """A whole JanusFlow, but for the autoencoder of its latents; `JanusConfig` says what the last three are.

    Each adapter is one linear layer between the widths that it joins.
    """

    vision: VisionConfig
    uvit: UViTConfig
    language: LanguageConfig
    dtype: str
    quantization: str | None = None
    extra: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        _require_known_quantization(self.quantization)
        _require_equal(
            "the width of the time's embedding, which is a token, and the language width",
            self.uvit.time_width,
            self.language.width,
        )

    @property
    def seen_tokens(self) -> int:
        """Positions that a picture takes which is seen: that where seeing begins, and its features."""
        return self.vision.tokens + 1

    @property
    def picture_size(self) -> int:
        """Pixels along each side of a drawn picture, unless another size is named.

        No file states it; the released model draws at the size at which it sees.
        """
        return self.vision.image_size


AnyConfig = JanusConfig | JanusFlowConfig

# Sizes of SigLIP's towers, which no released file states: they come from the name alone. Source:
# `SigLIP_MODEL_CONFIG` in the original's siglip_vit.py.
_SO400M = {"patch_size": 14, "width": 1152, "layers": 27, "heads": 16, "mlp_ratio": 3.7362}
SIGLIP_PRESETS: dict[str, dict[str, Any]] = {
    "siglip_large_patch16_384": {
        "image_size": 384,
        "patch_size": 16,
        "width": 1024,
        "layers": 24,
        "heads": 16,
        "mlp_ratio": 4,
    },
    "siglip_so400m_patch14_384": {"image_size": 384, **_SO400M},
    "siglip_so400m_patch14_224": {"image_size": 224, **_SO400M},
}

_JANUS_1B = JanusConfig(
    vision=VisionConfig(**SIGLIP_PRESETS["siglip_large_patch16_384"], select_layer=-1, norm_eps=1e-6),
    vision_adapter=AdapterConfig(kind="mlp_gelu", depth=2, input_width=1024, output_width=2048),
    vq=VQConfig(
        codes=16384,
        code_width=8,
        channels=128,
        encoder_multipliers=(1, 1, 2, 2, 4),
        decoder_multipliers=(1, 1, 2, 2, 4),
        residual_blocks=2,
        latent_channels=256,
    ),
    code_adapter=AdapterConfig(kind="mlp_gelu", depth=2, input_width=8, output_width=2048),
    image_head_width=2048,
    language=LanguageConfig(
        vocabulary=102400,
        width=2048,
        mlp_width=5632,
        layers=24,
        heads=16,
        kv_heads=16,
        head_width=128,
        norm_eps=1e-6,
        rope_theta=10000.0,
        window=16384,
        tied_head=False,
    ),
    dtype="bfloat16",
)

_JANUS_7B = replace(
    _JANUS_1B,
    vision_adapter=replace(_JANUS_1B.vision_adapter, output_width=4096),
    code_adapter=replace(_JANUS_1B.code_adapter, output_width=4096),
    image_head_width=4096,
    language=replace(_JANUS_1B.language, width=4096, mlp_width=11008, layers=30, heads=32, kv_heads=32),
)

_JANUS_FLOW = JanusFlowConfig(
    vision=_JANUS_1B.vision,
    uvit=UViTConfig(
        latent_channels=4,
        width=768,
        decoder_width=768,
        time_width=2048,
        kernel_size=2,
        padding=0,
        encoder_blocks=2,
        decoder_blocks=2,
        encoder_norm_eps=1e-6,
        decoder_norm_eps=1e-6,
    ),
    language=_JANUS_1B.language,
    dtype="bfloat16",
)

# Janus-1.3B and Janus-Pro-1B are one architecture: they differ in training, vocabulary and chat roles.
PRESETS: dict[str, JanusConfig] = {
    "Janus-1.3B": _JANUS_1B,
    "Janus-Pro-1B": _JANUS_1B,
    "Janus-Pro-7B": _JANUS_7B,
}
FLOW_PRESETS: dict[str, JanusFlowConfig] = {"JanusFlow-1.3B": _JANUS_FLOW}
