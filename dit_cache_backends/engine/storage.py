"""Where what is remembered between steps is kept, and in which dtype."""

from __future__ import annotations

import functools
import re

import torch
from torch import Tensor

from dit_cache_backends.errors import ConfigError, near

DTYPES: dict[str, torch.dtype] = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float8_e4m3fn": torch.float8_e4m3fn,
}
"""By the name that a user gives."""
DEVICES = ("cpu", "cuda", "xpu", "mps", "npu", "hpu", "mtia", "xla")
"""Kinds of devices whose names are understood, also before the module that adds one to torch is imported."""

_MEANT = {"gpu": "cuda", "ram": "cpu", "host": "cpu"}
_SCALED = (torch.float16, torch.float8_e4m3fn)
"""Dtypes of a range so small that what blocks add may lie outside of it."""


class Packed:
    """A tensor as it is stored: on another device, in another dtype, or both. ``give`` makes it again."""

    __slots__ = ("_ready", "device", "dtype", "scale", "shape", "tensor")

    def __init__(self, given: Tensor, device: torch.device | None, dtype: torch.dtype | None) -> None:
        self.shape = given.shape
        self.dtype = given.dtype
        """That of the tensor which was given, as its shape and its device."""
        self.device = given.device
        self.scale: Tensor | None = None
        """What a sample's stored numbers are to be multiplied with, a power of two: ``[batch, 1, ...]``."""
        self._ready: torch.cuda.Event | None = None
        tensor = given
        if dtype is not None:
            if dtype in _SCALED and given.numel():
                self.scale = _scale(given, dtype)
                tensor = given.to(torch.float32) / self.scale
            tensor = tensor.to(dtype)
        if device is not None:
            tensor = self._sent(tensor, device)
            self.scale = None if self.scale is None else self._sent(self.scale, device)
        self.tensor = tensor

    def give(self) -> Tensor:
        """The tensor, of the shape, dtype and device that it had; a new one each time."""
        tensor = self.fetched()
        if self.scale is not None:
            tensor = tensor.to(torch.float32) * self._fetched(self.scale)
        return tensor.to(self.dtype)

    def fetched(self) -> Tensor:
        """The stored numbers, on the device of the tensor that was given."""
        if self._ready is not None:
            torch.cuda.current_stream(self.device).wait_event(self._ready)
        return self._fetched(self.tensor)

    def _sent(self, tensor: Tensor, device: torch.device) -> Tensor:
        """A copy there, for which nobody waits.

        From a CUDA device to the host that takes pinned memory. Its contents are complete only when the stream has come
        so far, so nothing on the host may read them: ``_fetched`` alone does, by a copy that is queued behind this one
        (on another stream the event makes it wait). Neither memory is used again too early: torch hands out freed
        pinned memory only when the copies that it noted for it are done, and freed device memory only behind what was
        queued before on the stream that it was made on, which is this one: what comes in here was made a moment ago.
        """
        if tensor.device.type != "cuda":
            return tensor.to(device)
        if device.type != "cpu":
            sent = tensor.to(device, non_blocking=True)
        else:
            sent = torch.empty(tensor.shape, dtype=tensor.dtype, device=device, pin_memory=True)
            sent.copy_(tensor.contiguous(), non_blocking=True)
        self._ready = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._ready.record(torch.cuda.current_stream(tensor.device))
        return sent

    def _fetched(self, tensor: Tensor) -> Tensor:
        return tensor.to(self.device, non_blocking=self.device.type == "cuda")


Kept = Tensor | Packed
"""What ``Storage.keep`` gives: the tensor itself where it is to stay as it is."""


class Storage:
    """Keeps tensors between steps: on a device of their own, in a dtype of their own, or as they come."""

    __slots__ = ("device", "dtype")

    def __init__(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        self.device = device
        self.dtype = dtype
        """Of floating-point tensors; others keep their own."""

    def keep(self, tensor: Tensor) -> Kept:
        """``tensor`` as it is to be kept; where nothing is to be changed, ``tensor`` itself.

        It has to be the keeper's own, made a moment ago on the present stream: nobody writes into it later.
        """
        device, dtype = self.device, self.dtype
        if dtype is not None and (tensor.dtype == dtype or not tensor.is_floating_point()):
            dtype = None
        if device is not None and _is_on(tensor.device, device):
            device = None
        return tensor if device is None and dtype is None else Packed(tensor, device, dtype)

    @staticmethod
    def give(kept: Kept) -> Tensor:
        """What was kept, of the shape, dtype and device that it had."""
        return kept.give() if isinstance(kept, Packed) else kept

    def pair(self, kept: Kept, now: Tensor) -> tuple[Tensor, Tensor]:
        """What was kept and what is to be compared with it, both rounded as in the storage, and in one dtype.

        Then what stands still differs by nothing, and what moves by less than the rounding differs in the mean by as
        much as it moved, since then few numbers fall to the other side of a step, but by a whole one.
        """
        if not isinstance(kept, Packed):
            return kept, now
        if kept.tensor.dtype == now.dtype:
            return kept.fetched(), now
        rounded = Packed(now, None, kept.tensor.dtype)
        if kept.scale is None:
            return kept.fetched(), rounded.tensor
        return kept.give(), rounded.give()

    def check(self) -> None:
        """See whether there is such a device.

        Raises:
            ConfigError: if this process does not have it; with what it has.
        """
        device = self.device
        if device is None or device.type == "cpu":
            return
        try:
            torch.empty(1, device=device)
        except (RuntimeError, AssertionError, NotImplementedError):
            raise ConfigError(_absent(str(device))) from None


PLAIN = Storage()
"""Everything stays as it is and where it is."""


@functools.cache
def storage(device: str | None, dtype: str | None) -> Storage:
    """The storage that a user's two words stand for.

    Raises:
        ConfigError: if torch does not know the device (yet: some are added to it by a module of their own).
    """
    if device is None and dtype is None:
        return PLAIN
    try:
        where = None if device is None else torch.device(device)
    except RuntimeError:
        raise ConfigError(_absent(str(device))) from None
    return Storage(where, None if dtype is None else DTYPES[dtype])


def device_pattern() -> str:
    """What the name of a device looks like, as a regular expression."""
    return rf"^({'|'.join(_kinds())})(:[0-9]+)?$"


def device_problem(name: str) -> str:
    """What is wrong with the name of a device; nothing if it could be one."""
    if re.match(device_pattern(), name):
        return ""
    kind = name.partition(":")[0].strip().lower()
    return (
        f"expected the name of a device such as cpu, cuda or cuda:1, got {name!r}."
        f"{near(_MEANT.get(kind, kind), _kinds())}"
    )


def _kinds() -> list[str]:
    added: str = torch._C._get_privateuse1_backend_name()
    return [*DEVICES, *([added] if added not in (*DEVICES, "privateuseone") else [])]


def _absent(name: str) -> str:
    there = ["cpu"]
    accelerator = torch.accelerator.current_accelerator()
    if accelerator is not None:
        there += [f"{accelerator.type}:{number}" for number in range(torch.accelerator.device_count())]
    return f"cache_device: this process has no {name}; it has {', '.join(there)}."


def _is_on(here: torch.device, device: torch.device) -> bool:
    return here.type == device.type and (
        device.index is None or device.type == "cpu" or here.index == device.index
    )


def _scale(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """For each sample the power of two by which its largest number comes to lie near the upper end of the range.

    A batch gives what its samples give alone. It is known on the device alone, so that nobody waits for it. A sample
    with a number that is not finite becomes NaN as a whole: these dtypes would make the largest number of infinity.
    """
    dims = tuple(range(1 if tensor.dim() > 1 else 0, tensor.dim()))
    # vector_norm of order infinity does this in one go, but on a CPU takes a hundred times as long.
    largest = torch.maximum(tensor.amax(dims, keepdim=True), -tensor.amin(dims, keepdim=True)).to(
        torch.float32
    )
    exponent = torch.frexp(largest / torch.finfo(dtype).max).exponent.clamp(-126, 126)
    return torch.exp2(exponent.to(torch.float32)).where(largest.isfinite(), torch.nan)
