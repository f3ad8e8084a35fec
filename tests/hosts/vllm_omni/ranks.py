"""One of two processes that share the work of a picture: run by `test_ranks.py`, not collected itself."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from dit_cache_backends.hosts.vllm_omni.groups import groups_of_request
from dit_cache_backends.hosts.vllm_omni.plugin import register

SHARES: dict[str, dict[str, int]] = {
    "sequence": {"sequence_parallel_size": 2, "ulysses_degree": 2},
    "guidance": {"cfg_parallel_size": 2},
}
"""How two processes share the work."""


def drawn(backend: str, options: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Draw one picture in this process; what came of it on this rank."""
    from .counting import executed
    from .running import draw, request, runner

    made: Any = runner(backend, options, **more)
    first = made.pipeline.transformer.transformer_blocks[0]
    tokens: set[int] = set()
    hook = first.register_forward_pre_hook(
        lambda _, __, given: tokens.add(given["hidden_states"].shape[1]), with_kwargs=True
    )
    with executed(made.pipeline.transformer, ["transformer_blocks"]) as ran:
        latents = draw(made, request(steps=20))
    hook.remove()
    differences = made.cache_backend.summary().diffs()
    return {
        "latents": latents,
        "first": differences[min(differences)],
        "tokens": sorted(tokens),
        "groups": [group.size() for group in groups_of_request()],
        "blocks": ran.take(),
        "skipped": [(row.step, row.branch, row.blocks_skipped) for row in made.cache_backend.summary().rows],
    }


def main(rank: int, backend: str, options: str, folder: str, *ports: str) -> None:
    """Both ways to share, one after the other."""
    from .host import worker

    torch.set_num_threads(1)
    register()
    for (share, sizes), port in zip(SHARES.items(), ports, strict=True):
        with worker(rank, 2, int(port), **sizes):
            found = drawn(backend, json.loads(options), num_gpus=2, parallel_config=sizes)
            torch.save(found, Path(folder) / f"{share}-{rank}.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
