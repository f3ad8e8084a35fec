"""Pairs of pictures, measured one after the other."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from dit_cache_backends.compare import measures
from dit_cache_backends.compare.measures import ALWAYS, MEASURES, capped
from dit_cache_backends.compare.pairs import Pair
from dit_cache_backends.compare.pixels import Pixels, same_size
from dit_cache_backends.compare.spread import Spread, spread
from dit_cache_backends.compare.video import frames_of
from dit_cache_backends.errors import ConfigError, near


@dataclass(frozen=True)
class Frame:
    """Two pictures to be compared; of two videos one of their frames."""

    pair: str
    number: int
    reference: Pixels
    other: Pixels
    prompt: str | None = None


@dataclass
class Measured:
    """The values of one pair, one for each of its frames."""

    name: str
    values: dict[str, list[float]] = field(default_factory=dict)
    reference_values: dict[str, list[float]] = field(default_factory=dict)
    """Those of the reference, in measures that look at one picture."""

    @property
    def frames(self) -> int:
        """1 for pictures."""
        return len(next(iter(self.values.values()), ()))


@dataclass
class Comparison:
    """All pairs, measured."""

    measures: tuple[str, ...]
    pairs: list[Measured] = field(default_factory=list)
    of_all: dict[str, float] = field(default_factory=dict)
    """Measures of all pictures at once."""

    @property
    def single(self) -> tuple[str, ...]:
        """The measures that every picture has."""
        return tuple(name for name in self.measures if not MEASURES[name].of_all)

    def spread(self, measure: str, reference: bool = False) -> Spread:
        """Over every frame of every pair; ``reference`` gives that of the references, where they have values."""
        names, values = [], []
        for pair in self.pairs:
            found = (pair.reference_values if reference else pair.values)[measure]
            values += found
            names += [pair.name if len(found) == 1 else f"{pair.name}, frame {n}" for n in range(len(found))]
        return spread(measure, values, names)

    def to_dict(self) -> dict[str, Any]:
        """As plain data, for JSON; the PSNR of equal pictures, which is infinite, is 100."""
        return {
            "measures": {
                name: {
                    **vars(self.spread(name)),
                    **(
                        {"reference_mean": self.spread(name, True).mean}
                        if MEASURES[name].needs_prompt
                        else {}
                    ),
                }
                for name in self.single
            },
            "of_all": dict(self.of_all),
            "pairs": [
                {
                    "name": pair.name,
                    "frames": pair.frames,
                    **{
                        name: capped(values) if name == "psnr" else values
                        for name, values in pair.values.items()
                    },
                    **{f"{name}_reference": values for name, values in pair.reference_values.items()},
                }
                for pair in self.pairs
            ],
        }


@dataclass(frozen=True)
class Scorers:
    """What measures, by the measures' names."""

    of_two: Mapping[str, Callable[[Pixels, Pixels], float]]
    of_one: Mapping[str, Callable[[Pixels, str], float]] = field(default_factory=dict)
    of_all: Mapping[str, Any] = field(default_factory=dict)


def checked(names: Iterable[str]) -> tuple[str, ...]:
    """The measures of these names, and those that are always made, in the order of ``MEASURES``.

    Raises:
        ConfigError: there is no measure of a name.
    """
    wanted = [name.strip().lower() for name in names]
    for name in wanted:
        if name not in MEASURES:
            raise ConfigError(
                f"there is no measure {name!r}.{near(name, MEASURES)} There are {', '.join(MEASURES)}."
            )
    return tuple(name for name in MEASURES if name in (*ALWAYS, *wanted))


def scorers(names: Sequence[str], clip_model: str | None = None, device: str = "cpu") -> Scorers:
    """Load what the measures need, before anything is drawn or read.

    Raises:
        ConfigError: a package or weights are missing.
    """
    from dit_cache_backends.compare import learned

    of_two: dict[str, Callable[[Pixels, Pixels], float]] = {
        name: getattr(measures, name) for name in names if name in ALWAYS
    }
    of_one: dict[str, Callable[[Pixels, str], float]] = {}
    if "lpips" in names:
        of_two["lpips"] = learned.LPIPS(device)
    if "clip" in names:
        of_one["clip"] = learned.CLIPScore(clip_model or learned.CLIP_MODEL, device)
    if "image_reward" in names:
        of_one["image_reward"] = learned.ImageReward(device)
    return Scorers(of_two, of_one, {"fid": learned.FID(device)} if "fid" in names else {})


def compare(frames: Iterable[Frame], scores: Scorers) -> Comparison:
    """Measure all frames; those of one pair come one after the other.

    Raises:
        ConfigError: two sizes differ, or a measure needs a prompt that there is not.
    """
    names = tuple(name for name in MEASURES if name in {**scores.of_two, **scores.of_one, **scores.of_all})
    found = Comparison(names)
    for frame in frames:
        same_size(frame.reference, frame.other, (f"the reference of {frame.pair}", frame.pair))
        if not found.pairs or found.pairs[-1].name != frame.pair:
            found.pairs.append(Measured(frame.pair))
        pair = found.pairs[-1]
        for name, measure in scores.of_two.items():
            pair.values.setdefault(name, []).append(measure(frame.reference, frame.other))
        for name, judge in scores.of_one.items():
            if frame.prompt is None:
                raise ConfigError(
                    f"{name} needs the prompt of {frame.pair}. Give all of them by --prompts FILE."
                )
            pair.values.setdefault(name, []).append(judge(frame.other, frame.prompt))
            pair.reference_values.setdefault(name, []).append(judge(frame.reference, frame.prompt))
        for collector in scores.of_all.values():
            collector.add(frame.reference, frame.other)
    if not found.pairs:
        raise ConfigError("there is nothing to compare")
    found.of_all = {name: collector.result() for name, collector in scores.of_all.items()}
    return found


def frames_of_files(
    pairs: Iterable[Pair], prompts: Sequence[str] | None = None, background: str | None = None
) -> Iterator[Frame]:
    """The frames of pairs of files, read as they are asked for; ``prompts`` has one for each pair.

    Raises:
        ConfigError: a file cannot be read, or two videos turn out to have different numbers of frames.
    """
    for place, pair in enumerate(pairs):
        both = (_read(path, background) for path in (pair.reference, pair.other))
        for number, (reference, other) in enumerate(zip_longest(*both)):
            if reference is None or other is None:
                shorter = pair.reference if reference is None else pair.other
                raise ConfigError(
                    f"{shorter} has {number} frames, and its partner has more ({pair.reference}, {pair.other})"
                )
            yield Frame(pair.name, number, reference, other, None if prompts is None else prompts[place])


def _read(path: Any, background: str | None) -> Iterator[Pixels]:
    from dit_cache_backends.compare.pixels import read_picture
    from dit_cache_backends.compare.video import VIDEOS, extent_of

    if path.suffix.lower() not in VIDEOS and extent_of(path).frames == 1:
        yield read_picture(path, background)
    else:
        yield from frames_of(path, background)
