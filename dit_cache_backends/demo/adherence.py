"""How well a picture keeps to its prompt: colour, shape, size, background and relation, measured from the pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from dit_cache_backends.demo.scenes import PALETTE, SHAPES, SIDE, Scene, Thing, draw, parse

if TYPE_CHECKING:
    from PIL.Image import Image

APART = 45.0  # RGB distance from the background that makes a thing; the two nearest colours are 98 apart
SPECK = 20  # pixels; the smallest drawn thing has 140
# Half the longer side in pixels; between them is neither.
EXTENTS = {"small": (5.5, 11.5), "large": (14.0, 22.0)}
LIKENESS = 0.7  # intersection over union with a shape's template; different shapes reach 0.78 at most
GRID = 32

Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Seen:
    """One thing found in a picture: nearest colour, most similar shape, size (each None if unclear), centre."""

    color: str
    shape: str | None
    size: str | None
    x: float
    y: float


@dataclass(frozen=True)
class Adherence:
    """What of a sentence a picture keeps; None where the sentence does not say it. `total` is all of it at once."""

    background: bool
    color: bool
    shape: bool
    size: bool | None
    relation: bool | None
    total: bool


def nearest_color(rgb: NDArray[np.float64]) -> str:
    """The palette's name for a colour of three values in 0..255."""
    return min(PALETTE, key=lambda name: float(np.square(rgb - np.array(PALETTE[name])).sum()))


def look(picture: Image) -> tuple[str, list[Seen]]:
    """The background's colour and the things on it; specks below `SPECK` pixels are overlooked."""
    from skimage.measure import label, regionprops
    from skimage.morphology import dilation, erosion

    rgb = np.asarray(picture.convert("RGB"), dtype=np.float64)
    frame = np.concatenate([rgb[:2].reshape(-1, 3), rgb[-2:].reshape(-1, 3), rgb[:, :2].reshape(-1, 3)])
    ground = np.median(frame, axis=0)
    away = np.linalg.norm(rgb - ground, axis=2)
    things = []
    labels: Any = label(away > APART, connectivity=2)
    for region in regionprops(labels):
        if region.area < SPECK:
            continue
        mask: Mask = labels == region.label
        inner = erosion(mask)
        if inner.sum() < 8:
            inner = mask & (away >= np.median(away[mask]))
        paint = np.median(rgb[inner], axis=0)
        # Anti-aliased edges: a pixel belongs to the thing when it is nearer to its paint than to the ground.
        span = paint - ground
        share = (rgb - ground) @ span / max(float(span @ span), 1e-9)
        clear: Mask = (share > 0.5) & dilation(mask)
        if not clear.any():
            continue
        ys, xs = np.nonzero(clear)
        extent = max(np.ptp(ys) + 1, np.ptp(xs) + 1) / 2
        size = next((name for name, (least, most) in EXTENTS.items() if least <= extent <= most), None)
        middle = (float(xs.min() + xs.max()) / 2, float(ys.min() + ys.max()) / 2)
        things.append(Seen(nearest_color(paint), shape_of(clear), size, *middle))
    return nearest_color(ground), things


def shape_of(mask: Mask) -> str | None:
    """The shape whose template a mask is most like, or None below `LIKENESS`."""
    found = _framed(mask)
    if found is None:
        return None
    likeness = {
        shape: float(np.minimum(found, t).sum() / np.maximum(found, t).sum())
        for shape, t in _templates().items()
    }
    best = max(likeness, key=lambda shape: likeness[shape])
    return best if likeness[best] >= LIKENESS else None


def _framed(mask: Mask) -> NDArray[np.float64] | None:
    """A mask cut to its bounding box and stretched to `GRID`; None if the box is far from square."""
    from skimage.transform import resize

    ys, xs = np.nonzero(mask)
    cut = mask[ys.min() : ys.max() + 1, xs.min() : xs.max() + 1].astype(np.float64)
    if min(cut.shape) < 0.65 * max(cut.shape):
        return None
    framed: NDArray[np.float64] = resize(cut, (GRID, GRID), order=1, anti_aliasing=False)
    return framed


@cache
def _templates() -> dict[str, NDArray[np.float64]]:
    import random

    templates = {}
    for shape in SHAPES:
        scene = Scene((Thing("white", shape, "large"),), "black")
        drawn = np.asarray(draw(scene, random.Random(0), wander=0).convert("L"))
        framed = _framed(drawn > 127)
        if framed is None:
            raise RuntimeError(f"the template of {shape} is not about as wide as high")
        templates[shape] = framed
    return templates


def score(prompt: str, picture: Image) -> Adherence:
    """What `picture` (RGB, 64x64) keeps of `prompt`; ValueError if the prompt is not of the demo's grammar."""
    if picture.size != (SIDE, SIDE):
        raise ValueError(f"a picture of {SIDE}x{SIDE} pixels is needed, this one has {picture.size}")
    scene = parse(prompt)
    ground, seen = look(picture)
    wanted = scene.things
    background = ground == scene.background
    color = sorted(s.color for s in seen) == sorted(t.color for t in wanted)
    shape = sorted(str(s.shape) for s in seen) == sorted(t.shape for t in wanted)
    size = relation = None
    same = False
    if scene.relation is None:
        size = len(seen) == 1 and seen[0].size == wanted[0].size
        same = color and shape and size
    else:
        relation = False
        if len(seen) == 2:
            down = abs(seen[0].y - seen[1].y) > abs(seen[0].x - seen[1].x)
            seen = sorted(seen, key=lambda s: s.y if down else s.x)
            in_order = [s.color for s in seen] == [t.color for t in wanted]
            relation = in_order and down == (scene.relation == "above")
            same = relation and [s.shape for s in seen] == [t.shape for t in wanted]
    return Adherence(background, color, shape, size, relation, background and same)


def shares(scores: Sequence[Adherence]) -> dict[str, float]:
    """For each attribute the share of pictures that keep it, among those whose sentence says it, 0 to 1."""
    found = {}
    for field in fields(Adherence):
        said = [value for s in scores if (value := getattr(s, field.name)) is not None]
        if said:
            found[field.name] = sum(said) / len(said)
    return found
