"""Whether the streams go from block to block as the card says, seen in the first forward by which tensor goes where."""

from typing import Any, NamedTuple

from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.errors import CardError


class Passed(NamedTuple):
    """A block that has just run for the first time, with its streams before and after."""

    site: Site
    passes: int
    """How often its stack had been run through in this forward."""
    before: Streams
    after: Streams
    held: tuple[Any, ...]
    """What it gave that is no stream by the card."""


def check_passed(last: Passed, site: Site, passes: int, streams: Streams) -> None:
    """Compare what ``last`` gave with what comes in at ``site``, which has not run before either.

    A model may hand on something else than the very tensor (a sum, a part): of that nothing is said.

    Raises:
        CardError: if the blocks are called in another order than the card's, if a stream comes in as another one, or
            if the main one is not handed on.
    """
    former = last.site
    if site.index == 0 or (former.index > site.index and last.passes == passes):
        raise CardError(
            f"{site.label} was called after {former.label}, which comes behind it in the card. Name the lists of a "
            "stack in the order in which the model calls them, and lists that do not follow each other in stacks of "
            "their own; if their blocks are called in turns, the stack needs `alternate`."
        )
    if former.index + 1 != site.index or last.passes != passes:
        return
    names = [stream.name for stream in site.plan.streams]
    for number, given in enumerate(last.after):
        if given is None or streams[number] is given:
            continue
        for other, now in enumerate(streams):
            if now is given and last.after[other] is not given:
                raise CardError(
                    f"What {former.label} returned as its stream {names[number]!r} came in at {site.label} as "
                    f"{names[other]!r}. Correct the order of `gives` in the card."
                )
    for number, now in enumerate(streams):
        if now is not None and any(item is now for item in last.held):
            raise CardError(
                f"What the card says {former.label} gives beside its streams came in at {site.label} as "
                f"{names[number]!r}. Correct the order of `gives` in the card."
            )
    main = last.before[0]
    if main is not None and streams[0] is main and last.after[0] is not main:
        raise CardError(
            f"{site.label} was called with the very {names[0]!r} that {former.label} was called with, although "
            f"{former.label} returned another one: the blocks do not hand that stream on. Correct `takes` and `gives` "
            "in the card."
        )


def passed(site: Site, passes: int, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Passed:
    """Note a block that has run."""
    before = site.read(args, kwargs)
    return Passed(site, passes, before, site.streams_from(out, before), site.held(out))
