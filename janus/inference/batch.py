"""How many pictures or answers are computed at once where nobody says."""

from janus.devices import free_memory
from janus.inference.cache import bytes_per_position
from janus.inference.ranks import from_all_ranks
from janus.models.multimodal import MultimodalModel

MOST = 16
MEMORY_SHARE = 0.5  # of what is free, for their caches


def max_batch_size(model: MultimodalModel, positions: int) -> int:
    """At most 16 that need so many positions of a cache each, and half of the free memory for all caches.

    Of the ranks of a model split over several, what the fullest has room for.
    """
    free = free_memory(model.device)
    each = positions * bytes_per_position(model.language.config, model.dtype)
    fitting = MOST if free is None else int(free * MEMORY_SHARE) // each
    return max(1, min(MOST, *from_all_ranks(model, fitting)))
