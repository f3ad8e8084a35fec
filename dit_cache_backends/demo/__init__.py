"""The shipped text-to-image model: a real diffusers `FluxPipeline`, 64x64 pixels, small enough for any CPU.

>>> pipeline = load_demo()
>>> picture = paint(pipeline, ["a large red circle on a white background"])[0]
"""

from __future__ import annotations

import random
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_cache_backends.demo.scenes import random_scene, single_scenes

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["DEMO_PROMPTS", "MODEL", "held_out_prompts", "load_demo", "paint"]

MODEL = Path(__file__).parent / "model"

DEMO_PROMPTS = (  # of the held-out combinations
    "a large red circle on a blue background",
    "a small orange triangle on a green background",
    "a large purple ring on a white background",
    "a green triangle above a yellow ring on a blue background",
    "a small white cross on a yellow background",
    "a yellow ring left of a blue circle on a black background",
)


def load_demo(folder: Path | str = MODEL, device: str = "cpu") -> Any:
    """The demo's `diffusers.FluxPipeline` in float32, read from `folder` and nothing else (no network).

    FileNotFoundError if the folder holds no pipeline; ImportError without the extra `demo`.
    """
    if not (Path(folder) / "model_index.json").exists():
        raise FileNotFoundError(f"no demo model in {folder}: `make train-demo` makes one")
    import torch
    from diffusers import FluxPipeline

    from dit_cache_backends.demo.assembly import CALL

    pipeline = FluxPipeline.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    pipeline.set_progress_bar_config(disable=True)
    # FluxPipeline's own defaults are for 1024 pixels and 512 tokens; the host `Omni` takes these.
    pipeline.call_defaults = {"guidance_scale": 1.0, **CALL}
    return pipeline.to(device)


def held_out_prompts(count: int, seed: int = 0) -> list[str]:
    """`count` sentences of combinations that training never saw, with the training set's share of two things.

    Scenes of one thing come round again when all have come: only 39 of them are held out (and 1,347 of two).
    """
    rng = random.Random(seed)
    singles = [scene.prompt for scene in single_scenes() if scene.held_out]
    rng.shuffle(singles)
    around = cycle(singles)
    found: list[str] = []
    while len(found) < count:
        scene = random_scene(rng, held_out=True)
        if scene.relation is None:
            found.append(next(around))
        elif scene.prompt not in found:
            found.append(scene.prompt)
    return found


def paint(pipeline: Any, prompts: list[str], seed: int = 0, **call: Any) -> list[Image]:
    """One picture per prompt, each from a noise of its own (`seed` + place); `call` goes to the pipeline."""
    from dit_cache_backends.demo import assembly

    return assembly.paint(pipeline, prompts, seed, **call)
