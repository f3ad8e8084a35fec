"""Two processes with a gloo group between them, each with a shard of one request, and one process that holds it all."""

from __future__ import annotations

import sys
import tempfile
import warnings
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import start_processes

from dit_cache_backends import CacheBackend
from dit_cache_conformance.counting import counted
from dit_cache_conformance.stage import BARE, Bare, inputs
from dit_cache_conformance.subject import Subject

DRIFTS = ((0.0, 1.0), (0.0, 8.0), (1.0, 30.0))
"""How fast the two samples of a request move, in the tiny models' own drift a step; each rank holds one of them."""


@dataclass(frozen=True)
class Decisions:
    """How many blocks ran step by step, for each of ``DRIFTS``."""

    ranks: tuple[list[list[int]], list[list[int]]]
    whole: list[list[int]]
    """In one process that holds both samples."""


def decisions(subject: Subject) -> Decisions:
    """Run requests of two samples on two ranks with a sample each, whose backends agree over the group, and as a whole.

    Raises:
        Exception: What was raised in a rank.
    """
    model = subject.one_of(BARE)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        # A forked rank has everything imported; the parent's other threads (a progress display) hold nothing it needs.
        warnings.filterwarnings("ignore", ".*fork.*", DeprecationWarning)
        start_processes(  # type: ignore[no-untyped-call]
            _rank,
            args=(folder, subject.cls, dict(subject.eager), model),
            nprocs=2,
            start_method="fork" if sys.platform == "linux" else "spawn",
        )
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(2))
    whole = [_blocks(subject.eagerly(), model, _request(model, drifts)) for drifts in DRIFTS]
    return Decisions((first, second), whole)


def _rank(rank: int, folder: str, cls: type[CacheBackend], options: dict[str, Any], model: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    found = []
    try:
        for drifts in DRIFTS:
            backend = cls(dict(options))
            backend.agree_over(dist.distributed_c10d._get_default_group())
            found.append(_blocks(backend, model, _shard(model, _request(model, drifts), rank)))
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        dist.destroy_process_group()


def _request(model: str, drifts: tuple[float, float]) -> list[dict[str, Any]]:
    """The calls of a run of two samples, each with its drift."""
    run = inputs(model, batch=2)
    start = run[0]["hidden_states"]
    by_sample = torch.tensor(drifts).reshape(2, *[1] * (start.dim() - 1))
    for arguments in run:
        arguments["hidden_states"] = start + by_sample * (arguments["hidden_states"] - start)
    return run


def _shard(model: str, run: list[dict[str, Any]], rank: int) -> list[dict[str, Any]]:
    """The same calls with one of the samples alone."""
    return [
        {key: _sample(value, one[key], rank) for key, value in two.items()}
        for two, one in zip(run, inputs(model), strict=True)
    ]


def _sample(two: Any, one: Any, rank: int) -> Any:
    """An argument for one sample, from that for two and the like of it."""
    if isinstance(two, torch.Tensor):
        return two if two.shape == one.shape else two[rank : rank + 1]
    if isinstance(two, list):
        alike = len(two) == len(one)
        return [_sample(*pair, rank) for pair in zip(two, one, strict=True)] if alike else [two[rank]]
    return two


def _blocks(backend: CacheBackend, model: str, run: list[dict[str, Any]]) -> list[int]:
    bare = Bare(model)
    backend.enable(bare.model)
    with torch.no_grad(), counted({"transformer": bare.model}) as counter:
        bare.run({"cond": run}, backend)
    backend.disable()
    return [len(call.blocks) for call in counter.calls]
