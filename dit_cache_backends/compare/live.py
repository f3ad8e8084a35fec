"""The same prompts drawn dense and cached, side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dit_cache_backends.compare.comparison import Frame
from dit_cache_backends.compare.pixels import Pixels, pixels_of
from dit_cache_backends.compare.video import frames_in
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.trials import DENSE, Drawing, Prompt, Setting, Trial


@dataclass(frozen=True)
class LivePair:
    """One prompt under both settings."""

    prompt: Prompt
    dense: Drawing
    cached: Drawing


@dataclass
class Cost:
    """What the cached drawings cost beside the dense ones."""

    seconds: list[tuple[float, float]] = field(default_factory=list)
    """Dense and cached, of each whole call."""
    transformer_seconds: list[tuple[float, float]] = field(default_factory=list)
    blocks_run: int = 0
    blocks: int = 0
    """Blocks that the dense drawings ran."""

    @classmethod
    def of(cls, pairs: Sequence[LivePair]) -> Cost:
        """The cost of some pairs."""
        return cls(
            [(pair.dense.seconds, pair.cached.seconds) for pair in pairs],
            [(pair.dense.transformer_seconds, pair.cached.transformer_seconds) for pair in pairs],
            sum(pair.cached.blocks_run for pair in pairs),
            sum(pair.dense.blocks_run for pair in pairs),
        )

    def to_dict(self) -> dict[str, Any]:
        """As plain data. A speed-up is the median over the prompts of dense over cached."""
        return {
            "seconds_dense": statistics.median(dense for dense, _ in self.seconds),
            "seconds_cached": statistics.median(cached for _, cached in self.seconds),
            "speed_up": ratio(self.seconds),
            "transformer_speed_up": ratio(self.transformer_seconds),
            "blocks_run": self.blocks_run,
            "blocks": self.blocks,
            "blocks_speed_up": self.blocks / self.blocks_run if self.blocks_run else float("inf"),
        }


def ratio(pairs: Sequence[tuple[float, float]]) -> float:
    """The median of slow over fast, each pair measured one after the other."""
    return float(statistics.median(slow / fast for slow, fast in pairs))


def draw_pairs(
    trial: Trial,
    prompts: Sequence[Prompt],
    setting: Setting,
    steps: int | None = None,
    call: Mapping[str, Any] | None = None,
    advance: Callable[[str], None] = lambda _: None,
) -> list[LivePair]:
    """Draw every prompt dense and cached. Which comes first alternates, so that a busy machine is unfair to neither.

    Args:
        trial: the model.
        prompts: what to draw.
        setting: the cached one.
        steps: denoising steps; the pipeline's own unless said.
        call: further arguments of the pipeline's call.
        advance: told what is drawn next.

    Raises:
        ConfigError: something does not fit; before anything is drawn.
    """
    trial.check(setting, {**prompts[0].call, **(call or {})})
    advance("warming up")
    for each in (DENSE, setting):  # the first call of a process pays for what others find ready
        trial.draw(prompts[0], each, steps=steps, call=call)
    pairs = []
    for number, prompt in enumerate(prompts):
        drawn: dict[str, Drawing] = {}
        order = ((DENSE, "dense"), (setting, "cached"))
        for each, kind in order if number % 2 == 0 else reversed(order):
            advance(f"{kind}: {prompt.text}")
            drawn[kind] = trial.draw(prompt, each, steps=steps, call=call)
        pairs.append(LivePair(prompt, drawn["dense"], drawn["cached"]))
    return pairs


def pixels_drawn(drawing: Drawing, name: str = "the drawing") -> list[list[Pixels]]:
    """For each thing drawn its frames, as pictures of 8 bits. Transparency counts as drawn over white.

    Raises:
        ConfigError: the pipeline gave no pictures.
    """
    if not drawing.images:
        raise ConfigError(f"{name}: the pipeline gave no pictures")
    return [[pixels_of(frame, "white", name) for frame in frames_in(drawn)] for drawn in drawing.images]


def frames_of_pairs(pairs: Sequence[LivePair]) -> Iterator[Frame]:
    """What there is to compare in pairs that were drawn; named by number and prompt."""
    for number, pair in enumerate(pairs):
        both = zip(pixels_drawn(pair.dense), pixels_drawn(pair.cached), strict=True)
        for place, (dense, cached) in enumerate(both):
            name = f"{number}{f'.{place}' if place else ''}: {pair.prompt.text}"
            for frame, (reference, other) in enumerate(zip(dense, cached, strict=True)):
                yield Frame(name, frame, reference, other, pair.prompt.text)


def keep(pairs: Sequence[LivePair], folder: Path) -> None:
    """Write what was drawn as PNG into ``folder/dense`` and ``folder/cached``, under one name each.

    Of a video each frame is a file of its own, in a folder: in an animated one equal frames would become one.
    """
    from PIL import Image as Images

    for number, pair in enumerate(pairs):
        for kind in ("dense", "cached"):
            for place, frames in enumerate(pixels_drawn(getattr(pair, kind))):
                name = f"{number:03}{f'_{place}' if place else ''}"
                for frame, pixels in enumerate(frames):
                    path = folder / kind / (f"{name}/{frame:04}.png" if len(frames) > 1 else f"{name}.png")
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Images.fromarray(pixels).save(path)
