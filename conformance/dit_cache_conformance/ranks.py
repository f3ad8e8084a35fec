"""Two processes with a gloo group between them, each with its own shard."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch.multiprocessing.spawn import spawn

from dit_cache_backends import CacheBackend
from dit_cache_conformance.counting import counted
from dit_cache_conformance.stage import STEPS, Bare, inputs

DRIFTS = ((0.0, 1.0), (0.0, 8.0), (1.0, 30.0))
"""How fast the input of each rank moves, in the tiny models' own drift a step."""


def decisions_of_two_ranks(
    cls: type[CacheBackend], options: Mapping[str, Any]
) -> list[tuple[list[int], list[int]]]:
    """The number of blocks that ran at each step, on both ranks, for several pairs of shards.

    The class has to be importable in another process.
    """
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, args=(folder, cls, dict(options)), nprocs=2)  # type: ignore[no-untyped-call]
        first, second = (torch.load(Path(folder) / f"{rank}.pt") for rank in range(2))
    return list(zip(first, second, strict=True))


def _rank(rank: int, folder: str, cls: type[CacheBackend], options: dict[str, Any]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    try:
        with torch.no_grad():
            found = [_blocks(cls(dict(options)), drifts[rank]) for drifts in DRIFTS]
        torch.save(found, Path(folder) / f"{rank}.pt")
    finally:
        torch.distributed.destroy_process_group()


def _blocks(backend: CacheBackend, drift: float) -> list[int]:
    bare = Bare("flux")
    still, moving = inputs("flux", steps=STEPS), inputs("flux", steps=STEPS)
    for first, arguments in zip([still[0]] * STEPS, moving, strict=True):
        start = first["hidden_states"]
        arguments["hidden_states"] = start + drift * (arguments["hidden_states"] - start)
    backend.enable(bare.model)
    with counted({"transformer": bare.model}) as counter:
        bare.run({"cond": moving}, backend)
    return [len(call.blocks) for call in counter.calls]
