"""A device that this machine does not have: tensors that lie there can be fetched, and nothing else."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from dit_cache_backends import CacheBackend, SpanBackend, Storage
from dit_cache_backends.engine.storage import Packed

NOWHERE = torch.device("meta")
"""Stands for it where a device is named."""


class Elsewhere(Tensor):
    """A tensor that lies there. Computing with it is an error, as between two devices."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(function, "__name__", "")
        if name in ("__get__", "untyped_storage", "numel", "element_size", "is_floating_point", "size"):
            found: Any = super().__torch_function__(function, types, args, kwargs or {})  # type: ignore[no-untyped-call]
            return found
        raise AssertionError(f"{name} was computed with a tensor that lies elsewhere")


def send(self: Packed, tensor: Tensor, device: torch.device) -> Tensor:
    """Takes the place of ``Packed._sent``."""
    assert device == NOWHERE
    assert not isinstance(tensor, Elsewhere)
    return tensor.detach().clone().as_subclass(Elsewhere)


def fetch(self: Packed, tensor: Tensor) -> Tensor:
    """Takes the place of ``Packed._fetched``."""
    with torch._C.DisableTorchFunctionSubclass():
        return tensor.as_subclass(Tensor).clone() if isinstance(tensor, Elsewhere) else tensor


def keeping(cls: type[CacheBackend], storage: Storage) -> type[SpanBackend]:
    """A backend like ``cls`` that keeps what it remembers in ``storage``, whatever its options say."""
    made: type[SpanBackend] = type(cls.__name__, (cls,), {"storage": lambda self: storage})  # type: ignore[assignment]
    return made
