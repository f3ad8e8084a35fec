"""Blocks that hand out sums that nobody has added yet: FLUX.2 on Blackwell gives (residual, update, gate)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from torch import nn

from dit_cache_backends.models import uncompiled

__all__ = ["give_whole"]


def give_whole(transformer: nn.Module) -> Callable[[], None]:
    """Have every block of a FLUX.2 of SGLang give tensors; the result undoes it. Other models are left alone.

    A cache adds to what a block gives, and takes differences of it. It is the module's own function that adds up.
    """
    model = uncompiled(transformer)
    homes = [sys.modules.get(cls.__module__) for cls in type(model).__mro__]
    found = [add for home in homes if (add := getattr(home, "_materialize_gated_residual", None))]
    if not found:
        return lambda: None
    add = found[0]

    def added(item: Any) -> Any:
        return add(item) if isinstance(item, tuple) else item

    def settle(block: nn.Module, args: Any, out: Any) -> Any:
        single = isinstance(out, tuple) and len(out) == 3
        return added(out) if single or not isinstance(out, tuple) else tuple(map(added, out))

    lists = [getattr(model, name) for name in ("transformer_blocks", "single_transformer_blocks")]
    handles = [block.register_forward_hook(settle) for blocks in lists for block in blocks]

    def undo() -> None:
        for handle in handles:
            handle.remove()

    return undo
