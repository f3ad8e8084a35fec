"""What a host sees of a backend, and what the author of a strategy subclasses."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from typing_extensions import Self

from dit_cache_backends.config import make_config
from dit_cache_backends.engine.attachment import Attachment
from dit_cache_backends.engine.clock import CountedClock, ToldStep
from dit_cache_backends.engine.enabled import Enabled, refuse_others
from dit_cache_backends.engine.gates import Gate, Place
from dit_cache_backends.engine.host import Host, Telling
from dit_cache_backends.engine.predictors import Predictor, Reuse
from dit_cache_backends.engine.ranks import Ranks
from dit_cache_backends.engine.sessions import Sessions
from dit_cache_backends.engine.spans import Span, Stream
from dit_cache_backends.engine.storage import PLAIN, Storage
from dit_cache_backends.errors import AlreadyEnabledError, ConfigError, NotEnabledError
from dit_cache_backends.models import card_for, uncompiled
from dit_cache_backends.models.card import Card
from dit_cache_backends.parts import Parts, given_options
from dit_cache_backends.pipelines import SchedulerClock, transformers_of, weakly
from dit_cache_backends.storage_options import StorageOptions
from dit_cache_backends.summary import Summary

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


@dataclass(frozen=True)
class Capabilities:
    """What a backend can do beyond what every backend must; the conformance suite switches checks on by it."""

    interleaved_requests: bool = True
    """Keeps a state for each request, so that several can share one transformer step by step."""
    batch_decision: str = "shared"
    """How a batch is decided: "shared" takes one decision for all samples, "per_sample" one for each, so that a batch
    gives what its samples give one by one."""
    bare_transformers: bool = True
    """Can be enabled on a bare transformer, which a host calls itself; its steps are counted from its timestep."""
    rank_agreement: bool = False
    """Where ranks hold shards of one request, each decision is that of one process which holds it all: what is measured
    is added up over the ranks (``relative_difference`` does, ``summed_over_ranks`` does for anything else), or nothing
    is measured. Without it the ranks vote on each decision, and where one has to run all run."""

    @property
    def decides_per_sample(self) -> bool:
        """Whether each sample of a batch is decided by itself."""
        return self.batch_decision == "per_sample"


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

    def agree_over(self, *groups: "ProcessGroup") -> None:
        """Name the process groups whose ranks hold shards (or copies) of one request: they take one decision.

        It may be called before or after ``enable``, and again; without groups there is nobody to agree with. The ranks
        have to call the transformers in step with each other, with shards that change their shapes together.

        Raises:
            ConfigError: if this backend cannot agree with other ranks.
        """
        if groups:
            raise ConfigError(f"{self.name} cannot agree with other ranks: it has no agree_over of its own.")

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
        self._parts = Parts(self, given_options(type(self).Config, config))
        self._host = Host()
        self._ranks = Ranks(votes=not self.capabilities.rank_agreement)
        self._enabled: list[Enabled] = []
        self._generations: list[Sessions] = []

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

    def prepare(self, transformer: nn.Module, card: Card, pipeline: object) -> None:
        """Told each transformer that is about to be enabled, for what depends on the model and not on its depth alone.

        Raises:
            ConfigError: if the configuration does not fit the model; then nothing is enabled.
        """

    @classmethod
    def preset(cls, name: str, steps: int | None) -> Mapping[str, Any]:
        """The options that the preset ``name`` stands for in a run of ``steps`` steps (None: not known).

        They may not change the layout, which is made before the number of steps is known.

        Raises:
            ConfigError: unless overridden, since a strategy has no presets of itself.
        """
        raise ConfigError(
            f"{cls.name} has no presets; preset {name!r} was asked for. Give its options themselves."
        )

    def part(self, transformer: str, stack: str | None = None) -> "SpanBackend":
        """The backend that serves one transformer, or one stack of it: this one where no override names it."""
        return self._parts.of(transformer, stack)

    def for_steps(self, total: int | None) -> "SpanBackend":
        """The backend with the options of its preset for a run of ``total`` steps: this one where it has no preset."""
        return self._parts.for_steps(total)

    def settings(self) -> dict[str, Any]:
        """The options that were given or that a preset stands for, for the summary."""
        return self._parts.settings()

    def storage(self) -> Storage:
        """Where what is remembered between steps is kept: where the ``Config`` says, if it has ``StorageOptions``.

        Raises:
            ConfigError: if torch does not know the device.
        """
        config = self.config
        return config.storage() if isinstance(config, StorageOptions) else PLAIN

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
        for name, module in transformers_of(pipeline).items():
            refuse_others(name, module)
        sessions = Sessions()
        made = self._attachments(pipeline, card, sessions)
        enabled = Enabled(weakly(pipeline), sessions)
        try:
            for attachment, module in made:
                enabled.put_on(attachment, module)
        except AlreadyEnabledError:
            enabled.take_off()
            raise
        self._enabled.append(enabled)
        # After disable the last summary can still be read, so what is enabled no more is kept until the next enable.
        self._generations = [each.sessions for each in self._enabled]

    def check(self, pipeline: object, card: Card | None = None) -> None:
        """Raise what ``enable`` would raise about the model and the options, without touching the model.

        Raises:
            UnknownTransformerError: if the class of a transformer has no card.
            CardError: if its card does not fit it.
            ConfigError: if the configuration does not fit the model.
        """
        self._attachments(pipeline, card, Sessions())

    def suspend(self, pipeline: object) -> None:
        """Leave the models of ``pipeline`` as they were for a while; what its requests remember is kept for ``resume``.

        Only one backend can be on a transformer. A host whose requests ask for different ones changes them between two
        forwards: with ``suspend``, since ``disable`` forgets.

        Raises:
            NotEnabledError: if it is not enabled there.
        """
        for enabled in self._of(pipeline):
            enabled.suspend()

    def resume(self, pipeline: object) -> None:
        """Attach again where ``suspend`` took the backend off; the requests go on where they were.

        Raises:
            AlreadyEnabledError: if another backend is enabled there.
            NotEnabledError: if it was not enabled there, or was disabled since.
        """
        for enabled in self._of(pipeline):
            enabled.resume()

    def refresh(self, pipeline: object, num_inference_steps: int, verbose: bool = True) -> None:
        """A new generation begins. Needed only where no scheduler shows it, as with a bare transformer."""
        for enabled in self._of(pipeline):
            enabled.sessions.renew(self._host.key, num_inference_steps or None)

    def disable(self, pipeline: object = None) -> None:
        """Take the wrappers off and forget the generations; harmless when done before."""
        for enabled in list(self._enabled) if pipeline is None else self._of(pipeline, must=False):
            enabled.take_off()
            self._enabled.remove(enabled)

    def agree_over(self, *groups: "ProcessGroup") -> None:
        self._ranks.groups = groups

    def is_enabled(self) -> bool:
        return any(enabled.modules() for enabled in self._enabled)

    def summary(self, key: Hashable = None) -> Summary:
        key = self._host.key if key is None else key
        newest_last = sorted(self._generations, key=lambda each: each.latest)
        found = [summary for sessions in newest_last if (summary := sessions.summary(key)) is not None]
        return found[-1] if found else Summary()

    def held_tensors(self) -> list[Tensor]:
        """Every tensor kept for the generations under way, as it is stored; none once their last step has passed."""
        return [
            tensor
            for each in self._enabled
            for session in each.sessions.live()
            for tensor in session.tensors()
        ]

    def session(self, key: Hashable) -> AbstractContextManager[None]:
        """The request whose state the forwards within use, in this thread.

        Leaving it does not end the request: several can be interleaved step by step. A request ends with its last step,
        or by ``end_session``.
        """
        return Telling(self._host, "key", key)

    def end_session(self, key: Hashable) -> None:
        """A request is over, or was cancelled: forget its state. Its summary is kept for a while."""
        for enabled in self._enabled:
            enabled.sessions.end(key)

    def step(
        self, index: int, total: int | None = None, branch: str | None = None
    ) -> AbstractContextManager[None]:
        """Tell the step and the branch of the forwards within, in this thread; no clock is asked then.

        A step that lies before the last one told, or that its branch has had already, begins a new generation. Without
        ``branch`` several calls at one step are taken for several branches, so name it where a run may have one step.
        """
        return Telling(self._host, "step", ToldStep(index, total, branch))

    def _attachments(
        self, pipeline: object, card: Card | None, sessions: Sessions
    ) -> list[tuple[Attachment, nn.Module]]:
        """What joins each transformer to this backend; attached to nothing yet."""
        transformers = {
            id(module): (name, module) for name, module in reversed(transformers_of(pipeline).items())
        }
        clock = None if id(pipeline) in transformers else SchedulerClock(pipeline)
        counted = CountedClock(self.calls_per_step())
        made: list[tuple[Attachment, nn.Module]] = []
        for name, module in reversed(transformers.values()):
            known = card or card_for(module)
            attachment = Attachment(
                module, name, known, self, sessions, self._host, clock, counted, self._ranks
            )
            made.append((attachment, module))
        self._parts.check_names((each.name, plan.name) for each, _ in made for plan in each.plans)
        for attachment, module in made:
            for plan in attachment.plans:
                plan.strategy.storage().check()
                plan.strategy.prepare(uncompiled(module), card or card_for(module), pipeline)
        return made

    def _of(self, pipeline: object, must: bool = True) -> list[Enabled]:
        # Its transformer may have been exchanged since: what was attached then is meant as well.
        found = [each for each in self._enabled if each.target() is pipeline]
        if not found and (must or any(each.modules() for each in self._enabled)):
            modules = {id(module) for module in transformers_of(pipeline).values()}
            found = [each for each in self._enabled if modules & {id(module) for module in each.modules()}]
        if must and not found:
            raise NotEnabledError(
                f"{self.name} is not enabled on this {type(pipeline).__name__}. Call enable(pipeline) on it first."
            )
        return found
