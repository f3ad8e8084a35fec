"""Which ranks of vLLM-Omni have to take one decision."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dit_cache_backends.errors import ConfigError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["groups_of_request", "refuse_pipeline_stages"]

_STATE = "vllm_omni.diffusion.distributed.parallel_state"


def groups_of_request() -> list[ProcessGroup]:
    """The groups over which what is measured is added up, as far as they have more than one rank.

    Sequence parallel ranks hold shards of one sequence and meet in its attention. Ranks among which weights are sharded
    (HSDP) meet in every block, also those that serve another guidance branch. Tensor parallel ranks hold copies and
    measure the same; guidance-parallel and data-parallel ranks meet in no block and decide for themselves.
    """
    found = (_coordinator("_SP"), _coordinator("_FS"))
    return [each.device_group for each in found if each is not None and each.world_size > 1]


def refuse_pipeline_stages(name: str) -> None:
    """Raise where the blocks of one transformer lie on several ranks.

    Raises:
        ConfigError: since no rank sees where a span begins and ends.
    """
    stages = _coordinator("_PP")
    if stages is not None and stages.world_size > 1:
        raise ConfigError(
            f"{name}: the transformer's blocks are spread over {stages.world_size} ranks (pipeline parallelism), so "
            "that no rank sees a whole span of them. Use sequence, tensor or guidance parallelism with a cache."
        )


def _coordinator(name: str) -> Any:
    """A group of vLLM-Omni's, which it keeps in its module; None before it is made, or where there is none."""
    return getattr(sys.modules.get(_STATE), name, None)
