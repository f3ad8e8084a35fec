"""The graphs of a transformer that is compiled as a whole: a function for each way through its blocks, each compiled.

torch.compile is asked for nothing here. What the user asked for (``torch.compile(transformer, ...)`` before or after a
backend was enabled, or ``transformer.compile(...)``) is at work when the transformer is called. It is switched off
while the engine decides, and on again for each graph.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from torch._C._dynamo.eval_frame import set_eval_frame
from torch.nn.modules.module import _has_any_global_hook

from dit_cache_backends.engine.compiled_blocks import Track, scope, way
from dit_cache_backends.engine.offload import HOOKS
from dit_cache_backends.engine.plan import Site, StackPlan
from dit_cache_backends.engine.survey import Survey, survey
from dit_cache_backends.errors import CompileError

if TYPE_CHECKING:
    from dit_cache_backends.engine.attachment import Attachment

Blocks = list[tuple[nn.Module, Site]]

_known: "weakref.WeakKeyDictionary[nn.Module, dict[object, Graphs]]" = weakref.WeakKeyDictionary()


class Graphs:
    """Those of one model with one layout. They outlive an ``enable``: another with that layout finds them compiled.

    One thread runs at a time: what the traced code reads stands in one place.
    """

    def __init__(self, plans: Sequence[StackPlan]) -> None:
        self.tracks = {plan.number: Track() for plan in plans}
        self.scope = scope(self.tracks)
        self.classes: dict[tuple[int, int], type] = {}
        """The class of each block while it is traced, by stack and index."""
        self.order: list[int] = []
        """The numbers of the stacks in the order in which the model calls them."""
        self.reason: str | None = None
        """Why they cannot be made; empty where they can, None until a forward has shown it."""
        self.known: set[tuple[int, ...]] = set()
        """Which blocks the model has been seen to call: of each stack a bit each."""
        self._functions: dict[object, Callable[..., Any]] = {}
        self._lock = threading.RLock()
        self._thread = 0
        for track in self.tracks.values():
            track.mine = self._mine

    def learn(self, seen: Survey) -> None:
        """Take over what the first forward has shown."""
        self.reason, self.order = seen.reason, seen.order
        self.known.add(seen.blocks(self.order))
        for number, track in self.tracks.items():
            track.clones, track.followed = seen.writes, self.order[-1:] != [number]

    @contextmanager
    def running(self) -> Iterator[None]:
        """A forward of this thread; nothing is held after it."""
        with self._lock:
            self._thread = threading.get_ident()
            try:
                yield
            finally:
                self._thread = 0
                for track in self.tracks.values():
                    track.clear()

    def function(self, model: nn.Module, key: tuple[object, ...], name: str) -> Callable[..., Any]:
        """The function that is compiled for ``key``; ``name`` is how torch's logs call it."""
        found = self._functions.get(key)
        if found is None:
            code = way.__code__.replace(co_name=f"{type(model).__name__}_{name}")
            found = self._functions[key] = FunctionType(code, self.scope, code.co_name)
        return found

    def _mine(self) -> bool:
        return self._thread == threading.get_ident()


class Whole:
    """A transformer with a backend enabled, seen as a whole: its graphs, and the engine's own plans of its stacks."""

    def __init__(self, model: nn.Module, plans: Sequence[StackPlan], blocks: Blocks) -> None:
        self.plans = {plan.number: plan for plan in plans}
        self.ends: dict[int, tuple[Site | None, Site | None]] = {}
        """The sites where the span of a stack begins and ends."""
        self.spans: dict[int, int] = {}
        """The blocks of the span of a stack, a bit each."""
        self.looking: set[int] = set()
        """The stacks whose gates look at a step's tensors when told of it, although they knew it to be skipped."""
        self._first: dict[int, weakref.ref[nn.Module]] = {}
        for plan in plans:
            inside = [(block, site) for block, site in blocks if site.plan is plan and site.span is not None]
            enters = next(((block, site) for block, site in inside if site.enters), None)
            exits = next((site for _, site in inside if site.exits), None)
            self.ends[plan.number] = (None if enters is None else enters[1], exits)
            self.spans[plan.number] = sum(site.bit for _, site in inside)
            if enters is not None:
                self._first[plan.number] = weakref.ref(enters[0])
        known = _known.setdefault(model, {})
        key = _layout(plans, blocks)
        if key not in known:
            known[key] = Graphs(plans)
        self.graphs = known[key]

    def first_block(self, number: int) -> Any:
        """The block that the span of stack ``number`` begins with."""
        return self._first[number]()


class Compiled:
    """What an attachment keeps for a transformer that is compiled."""

    def __init__(self) -> None:
        self.whole: Whole | None = None
        self.traced: Graphs | None = None
        """The graphs that its blocks are traced for, while they are."""
        self.entrance: tuple[Any, Callable[..., Any]] | None = None
        """What torch.compile made of the user's arguments, and of a call by them."""


class Region:
    """One call of a transformer within what the user had compiled."""

    def __init__(
        self, attachment: "Attachment", whole: Whole, model: nn.Module, callback: Any, arguments: object
    ) -> None:
        self.whole = whole
        self._attachment = attachment
        self.graphs = whole.graphs
        self.shapes = _shapes(arguments)
        """Of everything that the transformer was called with."""
        self.reason: str | None = None
        """Why the call cannot be made as a whole; empty where it can."""
        self._model = model
        self._callback = callback

    def check(self, name: str) -> None:
        """Refuse a call that was to be one graph and cannot be.

        Raises:
            CompileError: with the reason, and what to do.
        """
        if self.reason:
            raise CompileError(
                f"{name} ({type(self._model).__name__}) was compiled with fullgraph=True. With a cache backend enabled "
                f"on it, it cannot be: {self.reason}. Compile its blocks instead, with "
                "transformer.compile_repeated_blocks(fullgraph=True), or leave fullgraph out."
            )

    def graph(self, modes: Sequence[str], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model on one way, compiled as the user said. ``modes``: of each stack, in their order."""
        tracks = [self.graphs.tracks[number] for number in self.graphs.order]
        kinds = [track.kinds for track, mode in zip(tracks, modes, strict=True) if mode in ("probe", "skip")]
        function = self.graphs.function(self._model, (*modes, *kinds), "_".join(modes))
        return self._run(function, tracks, modes, args, kwargs)

    def plain(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call the model as if no backend were enabled."""
        tracks = list(self.graphs.tracks.values())
        function = self.graphs.function(self._model, ("plain",), "plain")
        with self.graphs.running():
            return self._run(function, tracks, ["plain"] * len(tracks), args, kwargs)

    def within(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """``run``, with torch.compile at work as it was when the transformer was called."""

        def compiled(*args: Any, **kwargs: Any) -> Any:
            set_eval_frame(self._callback)
            try:
                return run(*args, **kwargs)
            finally:
                set_eval_frame(None)

        return compiled

    def seen(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, ...]:
        """Which blocks the model calls when nothing is traced: of each stack a bit each."""
        return survey(self._attachment, self._model, args, kwargs).blocks(self.graphs.order)

    def _run(
        self,
        function: Callable[..., Any],
        tracks: list[Track],
        modes: Sequence[str],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        for track, mode in zip(tracks, modes, strict=True):
            track.begin()
            track.mode = mode
        set_eval_frame(self._callback)
        try:
            return function(self._model, *args, **kwargs)
        finally:
            set_eval_frame(None)
            for track in tracks:
                track.end()


def obstacle(plans: Sequence[StackPlan], blocks: Blocks) -> str:
    """Why a model cannot be compiled as a whole with these plans, as far as can be seen without calling it."""
    if any(len(plan.spans) > 1 for plan in plans):
        return "the strategy has several spans in a stack, and decides on each behind the one before"
    if any(plan.alternate is not None for plan in plans):
        return "the blocks of a stack have the main stream in different layouts"
    if any(site.shown for _, site in blocks):
        return "what skipped blocks give is also taken by other blocks than the next"
    if any(None in site.order for _, site in blocks):
        return "blocks give something that is no stream"
    if any(hasattr(block, "_orig_mod") for block, _ in blocks):
        return "its blocks are modules that torch.compile made"
    if any(HOOKS in block.__dict__ for block, _ in blocks):
        return "its blocks have hooks of diffusers (group offloading, for one)"
    return ""


def hooked(*modules: nn.Module) -> str:
    """What is said where hooks would be called twice; empty where there are none."""
    everywhere: Callable[[], bool] = _has_any_global_hook
    if everywhere() or any(module._forward_hooks or module._forward_pre_hooks for module in modules):
        return "it has forward hooks, which would be called once a graph"
    return ""


def _layout(plans: Sequence[StackPlan], blocks: Blocks) -> tuple[object, ...]:
    """All that the traced code depends on."""
    return (
        tuple((plan.number, plan.depth, plan.spans, plan.streams) for plan in plans),
        tuple(
            (id(block), site.plan.number, site.index, site.slots, site.order, site.bare)
            for block, site in blocks
        ),
    )


def _shapes(value: Any) -> object:
    """The shapes, types and devices of the tensors in ``value``, in their order."""
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if isinstance(value, (list, tuple, dict)):
        items = value.values() if isinstance(value, dict) else value
        return [_shapes(item) for item in items if item is not None]
    return None
