"""Dense pictures of held-out prompts, scored: `python -m dit_cache_backends.demo.evaluate [FOLDER]`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit_cache_backends import demo
from dit_cache_backends.demo import adherence
from dit_cache_backends.demo.adherence import Adherence

if TYPE_CHECKING:
    from PIL.Image import Image

BATCH = 20


def measure(pipeline: Any, prompts: Sequence[str], **call: Any) -> tuple[list[Image], list[Adherence]]:
    """The pictures that `pipeline` paints of `prompts`, and what each keeps of its prompt."""
    pictures: list[Image] = []
    for begin in range(0, len(prompts), BATCH):
        pictures += demo.paint(pipeline, list(prompts[begin : begin + BATCH]), seed=begin, **call)
    return pictures, [
        adherence.score(prompt, picture) for prompt, picture in zip(prompts, pictures, strict=True)
    ]


def report(scores: Sequence[Adherence]) -> str:
    """One line per attribute, then the totals of one and of two things, in per cent."""
    lines = [f"{name:<11} {100 * share:5.1f} %" for name, share in adherence.shares(scores).items()]
    for name, is_pair in (("one thing", False), ("two things", True)):
        kind = [s for s in scores if (s.relation is not None) == is_pair]
        if kind:
            lines.append(f"{name:<11} {100 * adherence.shares(kind)['total']:5.1f} % of {len(kind)}")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """The command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m dit_cache_backends.demo.evaluate", description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?", default=demo.MODEL)
    parser.add_argument("--count", type=int, default=200, help="held-out prompts")
    parser.add_argument("--guidance", type=float, default=1.0, help="true_cfg_scale")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--grid", type=Path, help="write the pictures here as one PNG")
    parser.add_argument("--wrong", action="store_true", help="name the prompts that were missed")
    given = parser.parse_args(arguments)
    torch.set_num_threads(given.threads)
    prompts = demo.held_out_prompts(given.count)
    call = {"true_cfg_scale": given.guidance, "negative_prompt": ""} if given.guidance > 1 else {}
    pictures, scores = measure(demo.load_demo(given.folder), prompts, **call)
    print(report(scores))
    for prompt, picture, found in zip(prompts, pictures, scores, strict=True):
        if given.wrong and not found.total:
            print(f"missed: {prompt}; seen: {adherence.look(picture)}")
    if given.grid:
        from PIL import Image as Images

        across = 10
        grid = Images.new("RGB", (across * 96, -(-len(pictures) // across) * 96))
        for place, picture in enumerate(pictures):
            grid.paste(picture.resize((94, 94)), (place % across * 96, place // across * 96))
        grid.save(given.grid)


if __name__ == "__main__":
    main()
