"""Several processes for one request, by diffusers' own ``enable_parallelism``.

Every process of a ``torch.distributed`` group (as started by ``torchrun``) runs the same requests; each computes its
share of the tokens (``ulysses_size``, ``ring_size``) or of the weights (``tp_size``). ``auto`` stands for all processes
that the other sizes leave. Caches decide over all of them at once (``agree_over``).
"""

from __future__ import annotations

import atexit
import math
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh

from dit_cache_backends.errors import PlacementError
from dit_cache_backends.hosts.splits import OuterSplit
from dit_cache_backends.models import uncompiled

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Parallelism"]

_SIZES = ("ulysses_size", "ring_size", "tp_size")
_LACKING = {
    "ulysses_float8": "diffusers sends attention's inputs as they are",
    "ulysses_async": "diffusers has no asynchronous form of it",
    "extra_parallel_modules": "diffusers shares the transformers only",
    "extra_parallel_kwargs": "diffusers' plans take no further arguments; give a cp_plan instead",
}


class Parallelism:
    """What a ``parallelism_config`` asks for, in canonical keys; nothing where it is empty or says 1 everywhere.

    Raises:
        PlacementError: This platform, these processes or diffusers cannot do it.
    """

    def __init__(self, config: Mapping[str, Any], device: torch.device) -> None:
        self._config = dict(config)
        self._device = device
        self._splits: list[OuterSplit] = []
        self.sizes = dict.fromkeys(_SIZES, 1)
        self._refuse_rest()
        if all(config.get(name) in (None, 1) for name in _SIZES):
            return
        self._refuse_platform()
        self._join()
        self._resolve()

    @property
    def active(self) -> bool:
        """Whether there are several processes."""
        return math.prod(self.sizes.values()) > 1

    @property
    def groups(self) -> tuple[ProcessGroup, ...]:
        """The groups that hold shards of one request."""
        # Tensor parallel ranks hold the same activations but for rounding, which may tip a decision.
        world = distributed.group.WORLD if self.active else None
        return () if world is None else (world,)

    def agree(self, wish: bool) -> bool:
        """Whether any of the processes has this wish."""
        votes = torch.tensor([wish], dtype=torch.int32, device=self._device)
        distributed.all_reduce(votes, op=distributed.ReduceOp.MAX)
        return bool(votes.item())

    def check(self, name: str, module: nn.Module) -> None:
        """Raise why this transformer cannot be shared, before anything is done.

        Raises:
            PlacementError: It has no plan, or its heads cannot be divided.
        """
        if not self.active:
            return
        model = uncompiled(module)
        kind = "_tp_plan" if self.sizes["tp_size"] > 1 else "_cp_plan"
        if getattr(model, kind, None) is None and not (kind == "_cp_plan" and self._config.get("cp_plan")):
            what = "weights" if kind == "_tp_plan" else "tokens"
            raise PlacementError(
                f"diffusers has no plan ({kind}) to share the {what} of {name} ({type(model).__name__}) by. Take"
                " parallelism_config out, or give a cp_plan."
            )
        heads = getattr(getattr(model, "config", None), "num_attention_heads", None)
        for size in ("ulysses_size", "tp_size"):
            shares = self.sizes[size]
            if isinstance(heads, int) and heads % shares and not self._config.get("ulysses_anything"):
                raise PlacementError(
                    f"{size} is {shares}, but the {heads} attention heads of {name} ({type(model).__name__}) cannot be"
                    f" divided by it. Choose a divisor of {heads}."
                )

    def apply(self, module: nn.Module) -> None:
        """Share one transformer.

        Raises:
            PlacementError: diffusers refuses it.
        """
        if not self.active:
            return
        from diffusers import ContextParallelConfig, TensorParallelConfig

        model: Any = uncompiled(module)
        try:
            with _one_cpu(self._device):
                if self.sizes["tp_size"] > 1:
                    model.enable_parallelism(config=TensorParallelConfig(tp_degree=self.sizes["tp_size"]))
                    return
                config = ContextParallelConfig(
                    ulysses_degree=self.sizes["ulysses_size"],
                    ring_degree=self.sizes["ring_size"],
                    ulysses_anything=bool(self._config.get("ulysses_anything")),
                    convert_to_fp32=self._config.get("ring_convert_to_fp32") is not False,
                    mesh=init_device_mesh(
                        self._device.type,
                        (self.sizes["ring_size"], self.sizes["ulysses_size"]),
                        mesh_dim_names=("ring", "ulysses"),
                    ),
                )
                plan = dict(self._config.get("cp_plan") or model._cp_plan)
                outer = {path: plan.pop(path) for path in list(plan) if re.search(r"\.\d+$", path)}
                model.enable_parallelism(config=config, cp_plan=plan)
        except (ValueError, RuntimeError, AssertionError) as error:
            raise PlacementError(f"diffusers cannot share {type(model).__name__}: {error}") from error
        self._splits += [OuterSplit(model.get_submodule(path), each, config) for path, each in outer.items()]

    @contextmanager
    def lifted(self) -> Iterator[None]:
        """While the wrappers of a cache are put on or taken off, nothing may lie around them."""
        with ExitStack() as stack:
            for split in self._splits:
                stack.enter_context(split.lifted())
            yield

    def _refuse_rest(self) -> None:
        for name, reason in _LACKING.items():
            if self._config.get(name):
                raise PlacementError(f"parallelism_config: {name} is not to be had: {reason}. Leave it out.")
        backend = self._config.get("backend")
        if backend is not None and str(backend).lower() not in ("auto", "native_diffuser"):
            raise PlacementError(
                f"parallelism_config: backend {backend!r} is not to be had; diffusers' own is used (auto or"
                " native_diffuser)."
            )
        if self._config.get("ring_rotate_method") not in (None, "allgather"):
            raise PlacementError(
                "parallelism_config: diffusers' ring knows ring_rotate_method 'allgather' only."
            )

    def _join(self) -> None:
        if not distributed.is_available():
            raise PlacementError(
                "This torch is built without torch.distributed, which several processes need."
            )
        if distributed.is_initialized():
            return
        if "RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
            raise PlacementError(
                "parallelism_config asks for several processes, and this is one alone. Start the program with"
                " `torchrun --nproc-per-node N`, or call torch.distributed.init_process_group before."
            )
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        distributed.init_process_group("nccl" if self._device.type == "cuda" else "gloo")
        _joined.append(self._device)

    def _resolve(self) -> None:
        world = distributed.get_world_size()
        given = {name: self._config.get(name) or 1 for name in _SIZES}
        fixed = math.prod(size for size in given.values() if isinstance(size, int))
        for name, size in given.items():
            if isinstance(size, str):
                if world % fixed:
                    raise PlacementError(
                        f"{name} is auto, but {world} processes cannot be divided by the other sizes ({fixed})."
                    )
                given[name] = world // fixed
        self.sizes = {name: int(size) for name, size in given.items()}
        if math.prod(self.sizes.values()) != world:
            raise PlacementError(
                f"{' x '.join(f'{name} {size}' for name, size in self.sizes.items())} make"
                f" {math.prod(self.sizes.values())} processes, but {world} are running. Start as many, or say auto."
            )

    def _refuse_platform(self) -> None:
        wanted = [name for name in _SIZES if self._config.get(name) not in (None, 1)]
        if "tp_size" in wanted and len(wanted) > 1:
            raise PlacementError("diffusers cannot share weights (tp_size) and tokens at once. Choose one.")
        if self._device.type != "cpu":
            return
        reasons = {
            "tp_size": "diffusers shares weights on CUDA, Neuron, TPU and XPU devices only",
            "ring_size": "the ring needs attention's log-sum-exp, which no attention kernel for CPUs gives",
        }
        for name, reason in reasons.items():
            if name in wanted:
                raise PlacementError(
                    f"{name} {self._config[name]} is not to be had on a CPU: {reason}. Use ulysses_size."
                )
        if self._config.get("ulysses_anything"):
            raise PlacementError(
                "ulysses_anything is not to be had on a CPU: gloo gathers only parts of one size. Leave it out."
            )


_joined: list[torch.device] = []


@atexit.register
def _leave() -> None:
    """Leave the process group that was joined here.

    Not with the engine: one that is left and joined again may meet keys of the former one in the store.
    """
    if _joined and distributed.is_initialized():
        distributed.destroy_process_group()


@contextmanager
def _one_cpu(device: torch.device) -> Iterator[None]:
    """Let diffusers 0.42 work there: it divides by the number of accelerators, which is 0 on a CPU."""
    if device.type != "cpu" or torch.accelerator.device_count():
        yield
        return
    count = torch.accelerator.device_count
    torch.accelerator.device_count = lambda: 1
    try:
        yield
    finally:
        torch.accelerator.device_count = count
