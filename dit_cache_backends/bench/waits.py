"""How often a step makes the host wait for the device: every time a number is read out of a tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.contenders import CacheDiT, FirstBlock, Ours, Plain
from dit_cache_backends.bench.document import Part, Table
from dit_cache_backends.bench.shapes import PYTHON, make_inputs, make_model
from dit_cache_backends.bench.steps import ALL, ALWAYS, NEVER

STEPS = 8
_READS = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
}
"""Operators after which the host knows something of what is in a tensor."""
_COPIES = {Tensor.tolist, Tensor.numpy, Tensor.cpu}
"""Methods that read a whole tensor: on a CPU no operator tells of them."""


class _Operators(TorchDispatchMode):  # type: ignore[no-untyped-call]
    reads = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.reads += func in _READS
        return func(*args, **(kwargs or {}))


class _Methods(TorchFunctionMode):
    reads = 0

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.reads += func in _COPIES
        return func(*args, **(kwargs or {}))


@contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """Count how often a tensor is read within, by whomever."""
    operators: Any = _Operators()  # type: ignore[no-untyped-call]
    with operators, _Methods() as methods:
        yield lambda: operators.reads + methods.reads


_MASK = {"steps_computation_mask": [1] + [0] * (STEPS - 1), "steps_computation_policy": "static"}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "static mask, cached": ("cache_dit", {**ALL, **_MASK}),
    "dynamic, computed": ("cache_dit", {**ALL, "residual_diff_threshold": NEVER}),
    "dynamic, cached": ("cache_dit", {**ALL, "residual_diff_threshold": ALWAYS}),
    "dynamic, cached, TaylorSeer 1": (
        "cache_dit",
        {**ALL, "residual_diff_threshold": ALWAYS, "enable_taylorseer": True},
    ),
    "dbprune, nothing pruned": ("dbprune", {**ALL, "residual_diff_threshold": NEVER}),
    "dbprune, all but one pruned": ("dbprune", {**ALL, "residual_diff_threshold": ALWAYS}),
}


def run(asked: Asked) -> dict[str, Any]:
    """Count the reads of each step of a short run."""
    shape = asked.sized(PYTHON)
    model, inputs = make_model(shape), make_inputs(shape)
    rows = [_row(Plain("dense", model, inputs))]
    for kind, (backend, options) in KINDS.items():
        asked.say(kind)
        rows.append(_row(Ours(kind, model, inputs, backend, options)))
        if asked.cache_dit:
            rows.append(_row(CacheDiT(kind, model, inputs, backend, options)))
        if asked.first_block and kind in ("dynamic, computed", "dynamic, cached"):
            rows.append(_row(FirstBlock(kind, model, inputs, options["residual_diff_threshold"])))
    return {"words": shape.words(), "blocks": shape.blocks, "rows": rows}


def _row(contender: Plain) -> dict[str, Any]:
    reads = []
    contender.restart(STEPS)
    contender.enter()
    with torch.no_grad():
        for _ in range(STEPS):
            with counted() as so_far:
                contender.step()
                reads.append(so_far())
    contender.leave()
    return {"kind": contender.kind, "who": contender.who, "reads": reads, "per_step": max(reads[1:])}


_WORDS = """
Each read of a number out of a tensor (`item()`, `bool()`, a comparison in Python) lets the host wait until a GPU has
done all that was asked of it. Counted in one call of the transformer, from outside, by a dispatch mode of torch: the
most of the steps after the first. dbprune has a block that is never pruned, and the others are compared one by one.
"""


def report(found: dict[str, Any]) -> list[Part]:
    """What ``run`` found, to be read."""
    kinds = list(dict.fromkeys(row["kind"] for row in found["rows"]))
    whose = list(dict.fromkeys(row["who"] for row in found["rows"]))
    reads = {(row["kind"], row["who"]): str(row["per_step"]) for row in found["rows"]}
    rows = [(kind, *(reads.get((kind, who), "-") for who in whose)) for kind in kinds]
    return [
        Part(
            "Waits for the device, per step",
            (_WORDS, f"Flux {found['words']}.", Table(("step", *whose), rows)),
        )
    ]
