"""What a host sees of a backend, and what the author of a strategy subclasses."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, ClassVar

from torch import nn
from typing_extensions import Self

from dit_cache_backends.config import make_config
from dit_cache_backends.engine.attachment import Attachment, Host
from dit_cache_backends.engine.clock import CountedClock, ToldStep
from dit_cache_backends.engine.gates import Gate, Place
from dit_cache_backends.engine.predictors import Predictor, Reuse
from dit_cache_backends.engine.sessions import Sessions
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.engine.wrap import attach, detach, is_attached
from dit_cache_backends.errors import AlreadyEnabledError, NotEnabledError
from dit_cache_backends.models import card_for
from dit_cache_backends.models.card import Card
from dit_cache_backends.pipelines import SchedulerClock, transformers_of
from dit_cache_backends.summary import Summary


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do beyond what every backend must; the conformance suite switches checks on by it."""

    interleaved_requests: bool = True
    """Keeps a state for each request, so that several can share one transformer step by step."""
    batch_decision: str = "shared"
    """How a batch is decided: "shared" takes one decision for all samples."""


class CacheBackend(ABC):
    """A caching strategy as a host drives it. A superset of the verbs of vLLM-Omni 0.30's ``CacheBackend``."""

    name: ClassVar[str]
    Config: ClassVar[type]
    capabilities: ClassVar[Capabilities] = Capabilities()

    def __init__(self, config: Any = None) -> None:
        self.config: Any = make_config(type(self).Config, config, type(self).name)

    @abstractmethod
    def enable(self, pipeline: object) -> None:
        """Attach to the transformers of ``pipeline`` (or to a bare transformer)."""

    @abstractmethod
    def refresh(self, pipeline: object, num_inference_steps: int, verbose: bool = True) -> None:
        """A new generation of that many steps begins: forget the one before."""

    @abstractmethod
    def disable(self, pipeline: object = None) -> None:
        """Leave the models of ``pipeline`` exactly as they were; without one, every model it is attached to."""

    @abstractmethod
    def is_enabled(self) -> bool:
        """Whether the backend is attached to anything."""

    @abstractmethod
    def summary(self, key: Hashable = None) -> Summary:
        """What was done in the present, else the last generation (of the request ``key``)."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.disable()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.config!r}, enabled={self.is_enabled()})"


class SpanBackend(CacheBackend):
    """A strategy said by where, when and how: three methods, and a ``Config``.

    The engine does the rest: it wraps the blocks, keeps the state of each request, branch and span apart, and counts.
    """

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        self._sessions = Sessions()
        self._host = Host()
        self._attachments: list[Attachment] = []

    @abstractmethod
    def layout(self, depth: int) -> Sequence[Span]:
        """Where: the spans of a stack of ``depth`` blocks.

        Raises:
            ConfigError: if the configuration does not fit that depth.
        """

    @abstractmethod
    def gate(self, place: Place) -> Gate:
        """When: a fresh gate for one span on one branch of one generation."""

    def predictor(self, stream: Stream) -> Predictor:
        """How: a fresh predictor for one stream of one span. Plain reuse unless overridden."""
        return Reuse()

    def restarts(self, index: int, times: int) -> bool:
        """Whether a transformer forgets everything before its step ``index``, counted from its last start.

        ``times`` is how often it has done so in this run.
        """
        return False

    def calls_per_step(self) -> int:
        """Calls that a bare transformer makes in a step where no timestep argument tells the steps apart."""
        return 1

    def enable(self, pipeline: object, card: Card | None = None) -> None:
        """Attach to the transformers of ``pipeline``, or to a bare transformer.

        ``card`` says how to read a transformer whose class has no known card.

        Raises:
            UnknownTransformerError: if the class of a transformer has no card.
            CardError: if its card does not fit it.
            ConfigError: if the configuration does not fit its depth.
            AlreadyEnabledError: if a cache is enabled on it.
        """
        transformers = transformers_of(pipeline)
        bare = any(module is pipeline for module in transformers.values())
        clock = None if bare else SchedulerClock(pipeline)
        counted = CountedClock(self.calls_per_step())
        made: list[tuple[Attachment, nn.Module]] = []
        for name, module in transformers.items():
            _refuse_others(name, module)
            made.append(
                (
                    Attachment(
                        module,
                        name,
                        card or card_for(module),
                        self,
                        self.name,
                        self._sessions,
                        self._host,
                        clock,
                        counted,
                    ),
                    module,
                )
            )
        for attachment, module in made:
            attach(attachment, module)
            self._attachments.append(attachment)

    def refresh(self, pipeline: object, num_inference_steps: int, verbose: bool = True) -> None:
        """A new generation begins. Needed only where no scheduler shows it, as with a bare transformer."""
        self._mine(pipeline)
        self._sessions.renew(self._host.key, num_inference_steps or None)

    def disable(self, pipeline: object = None) -> None:
        """Take the wrappers off and forget the generations; harmless when done before."""
        wanted = None if pipeline is None else [id(module) for module in transformers_of(pipeline).values()]
        for attachment in list(self._attachments):
            module = attachment.transformer()
            if module is not None and wanted is not None and id(module) not in wanted:
                continue
            if module is not None:
                detach(module, attachment)
            self._attachments.remove(attachment)
        if not self._attachments:
            self._sessions.clear()

    def is_enabled(self) -> bool:
        return any(attachment.transformer() is not None for attachment in self._attachments)

    def summary(self, key: Hashable = None) -> Summary:
        return self._sessions.summary(self._host.key if key is None else key)

    @contextmanager
    def session(self, key: Hashable) -> Iterator[None]:
        """The request whose state the forwards within use, in this thread.

        Leaving it does not end the request: several can be interleaved step by step. A request ends with its last step,
        or by ``end_session``.
        """
        outer, self._host.key = self._host.key, key
        try:
            yield
        finally:
            self._host.key = outer

    def end_session(self, key: Hashable) -> None:
        """A request is over, or was cancelled: forget its state. Its summary is kept for a while."""
        self._sessions.end(key)

    @contextmanager
    def step(self, index: int, total: int | None = None, branch: str | None = None) -> Iterator[None]:
        """Tell the step and the branch of the forwards within, in this thread; no clock is asked then.

        A step that lies before the last one told, or that its branch has had already, begins a new generation.
        """
        outer, self._host.step = self._host.step, ToldStep(index, total, branch)
        try:
            yield
        finally:
            self._host.step = outer

    def _mine(self, pipeline: object) -> None:
        modules = list(transformers_of(pipeline).values())
        if not any(
            attachment.transformer() is module for attachment in self._attachments for module in modules
        ):
            raise NotEnabledError(
                f"{self.name} is not enabled on this {type(pipeline).__name__}. Call enable(pipeline) on it first."
            )


def _refuse_others(name: str, module: nn.Module) -> None:
    """Two caches on one transformer would both skip, and the result would be neither's."""
    if is_attached(module):
        raise AlreadyEnabledError(
            f"A cache backend is enabled on this {name} ({type(module).__name__}) already. Call its disable(...) first."
        )
    if getattr(module, "is_cache_enabled", False) or getattr(module, "_is_cached", False):
        raise AlreadyEnabledError(
            f"Another cache (diffusers' own, or the cache-dit library) is enabled on this {name} "
            f"({type(module).__name__}). "
            f"Disable it first: with two caches both would skip."
        )
