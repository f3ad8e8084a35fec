"""What a measurement is asked to do."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from dit_cache_backends.bench.peers import installed
from dit_cache_backends.bench.shapes import SHAPES, Shape, small
from dit_cache_backends.errors import ConfigError, near


def _silent(_: str) -> None:
    pass


def chosen_shapes(name: str) -> tuple[str, ...]:
    """The names of the shapes that a user means; "all" means every one.

    Raises:
        ConfigError: there is none of that name.
    """
    if name == "all":
        return tuple(SHAPES)
    if name not in SHAPES:
        raise ConfigError(
            f"there is no shape {name!r}.{near(name, [*SHAPES, 'all'])} There are {', '.join(SHAPES)}, and all."
        )
    return (name,)


@dataclass(frozen=True)
class Asked:
    """How much is measured, and beside whom."""

    shapes: tuple[str, ...] = tuple(SHAPES)
    """Of the section "steps"."""
    kinds: str = ""
    """In the section "steps", only kinds of steps whose name contains this."""
    rounds: int | None = None
    """Of the timings of steps; None: as many as the shape needs."""
    quick: bool = False
    """Small models and few rounds: shows that it works and not how fast it is."""
    cache_dit: bool = field(default_factory=lambda: installed("cache-dit") is not None)
    """Whether the cache-dit library is measured, too."""
    first_block: bool = True
    """Whether diffusers' FirstBlockCache is measured, too."""
    say: Callable[[str], None] = _silent
    """Told what is being measured now."""

    def sized(self, shape: Shape) -> Shape:
        """The shape, small where quick."""
        return small(shape) if self.quick else shape
