"""What a forward knows of the spans that a gate has looked ahead to."""

from typing import NamedTuple

from dit_cache_backends.engine.gates import Probe
from dit_cache_backends.engine.sessions import Slot
from dit_cache_backends.engine.spans import Streams

READY_BYTES = 32 * 2**20
"""Of results made ahead that one forward keeps. Making one again costs no more than adding two tensors; what counts is
that models with small tensors, whose time goes into Python, need not."""


class HandedOut(NamedTuple):
    """What a skipped span gave to the model, to know it again at the next span's entry."""

    span: int
    streams: Streams
    versions: tuple[int, ...]

    def comes_in(self, span: int, streams: Streams) -> bool:
        """Whether span number ``span`` follows and gets just that main stream, with nothing written into it."""
        main = streams[0]
        return (
            span == self.span + 1
            and main is self.streams[0]
            and main is not None
            and main._version == self.versions[0]
        )

    def all_come_in(self, streams: Streams) -> bool:
        """Whether the other streams are the same, too."""
        for now, then, version in zip(streams, self.streams, self.versions, strict=True):
            if now is not then:
                return False
            # Below 0: made in inference mode, where nobody counts writes, so that it may have been written into.
            if now is not None and (version < 0 or now._version != version):
                return False
        return True


class Foretold:
    """A span as it will be entered if all spans before it are skipped."""

    __slots__ = ("difference", "holds", "probe", "result", "slot")

    def __init__(self, slot: Slot, probe: Probe) -> None:
        self.slot = slot
        self.probe = probe
        self.difference: float | None = None
        """The number that its gate measured ahead."""
        self.holds = True
        """Whether every stream will come in as foretold; else the main one alone does."""
        self.result: Streams | None = None
        """What it hands out if it is skipped too, where that was made, and kept."""

    def tell(self, difference: float) -> None:
        """Note what was measured."""
        self.difference = difference


class Horizon:
    """How far a stack was looked ahead in this forward."""

    __slots__ = ("_bytes", "foretold", "handed_out", "ready")

    def __init__(self) -> None:
        self.foretold: dict[int, Foretold] = {}
        """By its number, each span that was looked ahead to, and not entered yet."""
        self.ready: Streams | None = None
        """What the span that was looked ahead from hands out if it is skipped."""
        self.handed_out: HandedOut | None = None
        self._bytes = 0

    def keep(self, number: int, result: Streams) -> None:
        """Keep what span ``number`` will hand out, as long as all of that is little."""
        for stream in result:
            if stream is not None:
                self._bytes += stream.nbytes
        if self._bytes > READY_BYTES:
            return
        foretold = self.foretold.get(number)
        if foretold is None:
            self.ready = result
        else:
            foretold.result = result

    def reach(self, number: int, streams: Streams) -> Foretold | None:
        """What was foretold of span ``number``, which is entered now with these streams, as far as it holds."""
        handed_out = self.handed_out
        if handed_out is None or not handed_out.comes_in(number, streams):
            self.forget()
            return None
        if not handed_out.all_come_in(streams):
            for each in self.foretold.values():
                each.holds, each.result = False, None
        return self.foretold.pop(number, None)

    def forget(self) -> None:
        """What was made and measured ahead does not come to be."""
        self.foretold.clear()
        self.ready = self.handed_out = None
        self._bytes = 0
