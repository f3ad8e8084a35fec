"""What is read from a pipeline object: its transformers, and the step clock that its scheduler is.

Pipelines of diffusers and of vLLM-Omni have the same shape here: attributes named ``transformer``,
``transformer_2``, ... and a ``scheduler`` with ``timesteps``. Neither library is imported.
"""

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from dit_cache_backends.engine.clock import Clock, Reading, Tally, Timestep
from dit_cache_backends.errors import UnknownTransformerError
from dit_cache_backends.models import find_card, uncompiled

# The last is Ideogram 4's.
_NAMES = ("transformer", "transformer_2", "transformer_3", "unconditional_transformer")


def transformers_of(pipeline: object) -> dict[str, nn.Module]:
    """The transformers of ``pipeline`` by name; a bare module is its own and is called ``transformer``.

    Raises:
        UnknownTransformerError: if there is none.
    """
    if isinstance(pipeline, nn.Module) and not _named(pipeline):
        return {"transformer": pipeline}
    found = _named(pipeline)
    if not found:
        components: Mapping[str, Any] = getattr(pipeline, "components", {})
        found = {
            name: module
            for name, module in components.items()
            if isinstance(module, nn.Module) and _known(module)
        }
    if not found:
        modules = [f"{name} ({type(value).__name__})" for name, value in _modules(pipeline).items()]
        raise UnknownTransformerError(
            f"{type(pipeline).__name__} has no transformer to cache: expected an attribute `transformer` or a "
            "component whose "
            f"class has a card. Its modules: {', '.join(modules) or 'none'}. Pass the transformer itself, or "
            "write a card "
            f"(dit_cache_backends.register_card)."
        )
    return found


def name_of(transformer: nn.Module, pipeline: object) -> str:
    """The name that ``pipeline`` has for one of its transformers; ``transformer`` where it has none."""
    modules = transformers_of(pipeline).items()
    return next(
        (name for name, module in modules if uncompiled(module) is uncompiled(transformer)), "transformer"
    )


def _named(pipeline: object) -> dict[str, nn.Module]:
    """By the names that a vLLM-Omni pipeline declares, else by those that pipelines of diffusers have.

    A dotted name may be that of a part (the language model in a transformer): then the innermost module with a card.
    """
    found: dict[str, nn.Module] = {}
    for name in getattr(type(pipeline), "_dit_modules", None) or _NAMES:
        parts = name.split(".")
        for end in range(len(parts), 0, -1):
            value: Any = pipeline
            for part in parts[:end]:
                value = getattr(value, part, None)
            if isinstance(value, nn.Module) and (not isinstance(pipeline, nn.Module) or _known(value)):
                found[".".join(parts[:end])] = value
                break
    return found


def _known(module: nn.Module) -> bool:
    return find_card(type(uncompiled(module))) is not None


def _modules(pipeline: object) -> dict[str, nn.Module]:
    components = getattr(pipeline, "components", None) or vars(pipeline)
    return {name: value for name, value in components.items() if isinstance(value, nn.Module)}


def weakly(thing: object) -> Callable[[], object]:
    """A weak reference to ``thing``; a strong one where it allows no other."""
    try:
        return weakref.ref(thing)
    except TypeError:
        return lambda: thing


class SchedulerClock(Clock):
    """Reads step and total from the scheduler of a diffusers pipeline, without patching it.

    A run begins when ``set_timesteps`` has made a new ``timesteps`` tensor. The total is the number of the timesteps
    from the begin index on: with second-order schedulers that is the number of model evaluations. Schedulers without
    ``step_index`` (DDIM, CogVideoX's) are followed by the changes of the timestep argument, PNDM by its ``counter``.
    """

    def __init__(self, pipeline: object) -> None:
        self._pipeline = weakly(pipeline)
        self._run: weakref.ReferenceType[Tensor] | None = None
        self._shares: dict[str, tuple[int, int]] = {}

    def run(self) -> object | None:
        timesteps = getattr(self._scheduler(), "timesteps", None)
        return timesteps if isinstance(timesteps, Tensor) else None

    def timesteps(self) -> Sequence[float] | None:
        timesteps = self.run()
        if not isinstance(timesteps, Tensor):
            return None
        return [float(value) for value in timesteps[self._begin(timesteps) :].tolist()]

    def read(self, name: str, tally: Tally, timestep: Timestep) -> Reading | None:
        scheduler = self._scheduler()
        timesteps = getattr(scheduler, "timesteps", None)
        if not isinstance(timesteps, Tensor):
            return None
        begin = self._begin(timesteps)
        total = len(timesteps) - begin
        if hasattr(scheduler, "step_index"):
            at = scheduler.step_index
            index = 0 if at is None else at - begin
        elif isinstance(getattr(scheduler, "counter", None), int):
            index = scheduler.counter
        else:
            index = tally.count(timestep.value(), 1)
        first, count = self._share(timesteps).get(name, (None, None))
        return Reading(index, total, first, count)

    def _begin(self, timesteps: Tensor) -> int:
        begin: int | None = getattr(self._scheduler(), "begin_index", None)
        if begin is None:
            # Some pipelines cut the timesteps for image-to-image without telling the scheduler.
            made = getattr(self._pipeline(), "_num_timesteps", None)
            begin = max(len(timesteps) - made, 0) if made else 0
        return begin

    def _scheduler(self) -> Any:
        return getattr(self._pipeline(), "scheduler", None)

    def _share(self, timesteps: Tensor) -> dict[str, tuple[int, int]]:
        """For two experts (Wan 2.2): the first step and the number of steps of each, known before the run."""
        if self._run is not None and self._run() is timesteps:
            return self._shares
        self._run, self._shares = weakref.ref(timesteps), {}
        pipeline = self._pipeline()
        ratio = getattr(getattr(pipeline, "config", None), "boundary_ratio", None)
        if ratio is None:  # where vLLM-Omni's pipelines have it
            ratio = getattr(pipeline, "boundary_ratio", None)
        both = (
            getattr(pipeline, "transformer", None) is not None
            and getattr(pipeline, "transformer_2", None) is not None
        )
        if ratio is not None and both:
            boundary = ratio * self._scheduler().config.num_train_timesteps
            high = int((timesteps >= boundary).sum().item())
            self._shares = {"transformer": (0, high), "transformer_2": (high, len(timesteps) - high)}
        return self._shares
