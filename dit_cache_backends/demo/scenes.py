"""The world of the demo model: flat scenes, the sentences that describe them, and how they are drawn."""

from __future__ import annotations

import hashlib
import random
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image
    from PIL.ImageDraw import ImageDraw

SIDE = 64  # pixels
PALETTE: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 40),
    "orange": (250, 135, 20),
    "yellow": (250, 225, 60),
    "green": (40, 160, 70),
    "blue": (40, 90, 220),
    "purple": (165, 50, 190),
    "white": (245, 245, 245),
    "black": (20, 20, 20),
    "gray": (130, 130, 130),
}
COLORS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")
BACKGROUNDS = ("white", "black", "gray", "yellow", "green", "blue")
SHAPES = ("circle", "square", "triangle", "cross", "ring")
RADII = {"small": (8.0, 9.5), "large": (18.0, 20.0), None: (10.5, 12.0)}  # pixels, least and most
JITTER = {"small": 5.0, "large": 3.0, None: 2.0}  # pixels that a centre may move along each axis
RELATIONS = {"above": (0.0, -15.5), "left of": (-15.5, 0.0)}  # from the middle to the first thing's centre
PAIRS = 0.25  # share of scenes with two things: fewer, and the relation is learned last and worst
SUPERSAMPLING = 4


@dataclass(frozen=True)
class Thing:
    """One drawn object; `size` is None in scenes of two, where the sentence does not tell it."""

    color: str
    shape: str
    size: str | None = None

    def __str__(self) -> str:
        words = f"{self.size} {self.color} {self.shape}" if self.size else f"{self.color} {self.shape}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """What a sentence says: one thing, or two and the place of the first as seen from the second."""

    things: tuple[Thing, ...]
    background: str
    relation: str | None = None

    @property
    def prompt(self) -> str:
        between = f" {self.relation} "
        return f"{between.join(map(str, self.things))} on a {self.background} background"

    @property
    def held_out(self) -> bool:
        """True for about one combination in ten, chosen by a hash of the sentence: training never sees these."""
        return hashlib.sha256(self.prompt.encode()).digest()[0] % 10 == 0


def vocabulary() -> list[str]:
    """Every word a sentence may hold, in a fixed order."""
    grammar = ["a", "an", "on", "background", *(word for r in RELATIONS for word in r.split())]
    return list(dict.fromkeys([*grammar, "small", "large", *COLORS, *BACKGROUNDS, *SHAPES]))


def single_scenes() -> list[Scene]:
    """All scenes of one thing."""
    return [
        Scene((Thing(color, shape, size),), background)
        for size in ("small", "large")
        for color in COLORS
        for shape in SHAPES
        for background in BACKGROUNDS
        if color != background
    ]


def random_scene(rng: random.Random, held_out: bool = False) -> Scene:
    """One scene of the training set, or of the held-out set; a share `PAIRS` of them has two things."""
    pair = rng.random() < PAIRS
    while True:
        background = rng.choice(BACKGROUNDS)
        colors = rng.sample([color for color in COLORS if color != background], 2)
        shapes = rng.choices(SHAPES, k=2)
        if pair:
            things = tuple(Thing(color, shape) for color, shape in zip(colors, shapes, strict=True))
            scene = Scene(things, background, rng.choice(list(RELATIONS)))
        else:
            scene = Scene((Thing(colors[0], shapes[0], rng.choice(("small", "large"))),), background)
        if scene.held_out == held_out:
            return scene


def parse(prompt: str) -> Scene:
    """The scene that a sentence of this grammar describes; ValueError for any other sentence."""
    words = prompt.lower().split()
    relation = next((r for r in RELATIONS if f" {r} " in prompt.lower()), None)
    if words[-1:] == ["background"] and words[-4:-2] == ["on", "a"]:
        parts = " ".join(words[:-4]).split(f" {relation} ") if relation else [" ".join(words[:-4])]
        named = [part.split()[1:] for part in parts]
        if all(len(n) in (2, 3) for n in named):
            things = tuple(Thing(n[-2], n[-1], n[0] if len(n) == 3 else None) for n in named)
            scene = Scene(things, words[-2], relation)
            known = all(t.color in COLORS and t.shape in SHAPES and t.size in RADII for t in things)
            if known and scene.background in BACKGROUNDS and scene.prompt == " ".join(words):
                return scene
    example = single_scenes()[0].prompt
    raise ValueError(f"not a sentence of the demo's grammar: {prompt!r}; one is {example!r}")


def draw(scene: Scene, rng: random.Random, wander: float = 0.4) -> Image:
    """An anti-aliased RGB picture of `SIDE` by `SIDE` pixels; `rng` moves and sizes the things a little.

    `wander` scales how far things move from their places: 0 is not at all, 1 is `JITTER`.
    """
    from PIL import Image as Images
    from PIL import ImageDraw as Drawing

    big = SIDE * SUPERSAMPLING
    picture = Images.new("RGB", (big, big), PALETTE[scene.background])
    pen = Drawing.Draw(picture)
    away = RELATIONS[scene.relation] if scene.relation else (0.0, 0.0)
    for thing, sign in zip(scene.things, (1.0, -1.0), strict=False):
        radius = rng.uniform(*RADII[thing.size]) * SUPERSAMPLING
        jitter = wander * JITTER[thing.size]
        x, y = ((SIDE / 2 + sign * shift + rng.uniform(-jitter, jitter)) * SUPERSAMPLING for shift in away)
        _draw_thing(pen, thing, x, y, radius, PALETTE[scene.background])
    return picture.resize((SIDE, SIDE), Images.Resampling.BOX)


def _draw_thing(
    pen: ImageDraw, thing: Thing, x: float, y: float, r: float, background: tuple[int, int, int]
) -> None:
    fill = PALETTE[thing.color]
    if thing.shape in ("circle", "ring"):
        pen.ellipse((x - r, y - r, x + r, y + r), fill=fill)
        if thing.shape == "ring":
            hole = 0.55 * r
            pen.ellipse((x - hole, y - hole, x + hole, y + hole), fill=background)
    elif thing.shape == "square":
        half = 0.88 * r
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    elif thing.shape == "triangle":
        pen.polygon([(x, y - r), (x + r, y + 0.8 * r), (x - r, y + 0.8 * r)], fill=fill)
    else:
        arm = 0.34 * r
        pen.rectangle((x - r, y - arm, x + r, y + arm), fill=fill)
        pen.rectangle((x - arm, y - r, x + arm, y + r), fill=fill)
