"""What torch keeps for each thread, taken along to another one."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack

import torch

__all__ = ["surroundings"]


def surroundings(device: torch.device) -> Callable[[], AbstractContextManager[object]]:
    """The grad mode, inference mode and autocast of this thread, to be entered in another one.

    A new thread has gradients on and autocast off whatever is around the call that made it.

    Args:
        device: Where the model is; a GPU becomes the thread's own.
    """
    inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()
    casts = {
        kind: (torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())
        for kind in {"cpu", device.type}
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    }

    def enter() -> AbstractContextManager[object]:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(inference))
            stack.enter_context(torch.set_grad_enabled(grad))
            for kind, (dtype, cache) in casts.items():
                stack.enter_context(torch.autocast(kind, dtype=dtype, cache_enabled=cache))
            if device.type == "cuda":
                stack.enter_context(torch.cuda.device(device))
            return stack.pop_all()

    return enter
