"""How the model is run: by which processes, in which precision, with which attention, compiled or not.

Each is handed to whoever does it: diffusers' ``enable_parallelism``, ``set_attention_backend`` and
``compile_repeated_blocks``, torchao's ``quantize_``. What cannot be had here is refused with its reason before any
work. The order: weights, attention, then the cache, then processes, then compilation. All of it stays when the engine
is gone.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from dit_cache_backends.configuration.settings import Settings
from dit_cache_backends.errors import ConfigError, PlacementError, UnknownTransformerError, near
from dit_cache_backends.hosts.parallel import Parallelism
from dit_cache_backends.hosts.quantize import Quantization
from dit_cache_backends.models import uncompiled
from dit_cache_backends.pipelines import transformers_of

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Placement"]


class Placement:
    """What ``settings`` say beside the cache, for a model on ``device``.

    Raises:
        ConfigError: A name is not known, or two of them contradict each other.
        PlacementError: It is not to be had on this platform.
    """

    def __init__(self, settings: Settings, device: torch.device) -> None:
        self._attention = _attention(settings)
        self._compile = settings.compile
        if self._compile is not None:
            _check_compiler(self._compile.get("backend"))
        self._quantization = Quantization(settings.quantization, device)
        self._parallelism = Parallelism(settings.parallelism, device)

    @property
    def shared(self) -> bool:
        """Whether several processes compute each request."""
        return self._parallelism.active

    @property
    def groups(self) -> tuple[ProcessGroup, ...]:
        """The groups over which caches decide together."""
        return self._parallelism.groups

    @property
    def agree(self) -> Callable[[bool], bool] | None:
        """Whether any process has a wish; None where there is one process."""
        return self._parallelism.agree if self.shared else None

    def check(self, pipeline: Any) -> None:
        """Raise why it cannot be had with this pipeline, before anything is done to it.

        Raises:
            PlacementError: telling what is missing.
        """
        for name, module in self._transformers(pipeline).items():
            self._parallelism.check(name, module)
            if self._attention is not None:
                _try_attention(self._attention, module)

    def prepare(self, pipeline: Any) -> None:
        """What comes before the cache.

        Raises:
            PlacementError: torchao or diffusers refuse it.
        """
        transformers = self._transformers(pipeline)
        self._quantization.apply(pipeline, transformers)
        if self._attention is not None:
            for module in transformers.values():
                model: Any = uncompiled(module)
                if not hasattr(model, "set_attention_backend"):
                    raise PlacementError(
                        f"attention_backend: {type(model).__name__} does not let it be chosen; leave it out."
                    )
                try:
                    model.set_attention_backend(self._attention)
                except (ImportError, RuntimeError, ValueError) as error:
                    raise PlacementError(f"attention_backend {self._attention!r}: {error}") from error

    def finish(self, pipeline: Any) -> None:
        """What comes behind the cache.

        Raises:
            PlacementError: diffusers refuses it.
        """
        for module in self._transformers(pipeline).values():
            self._parallelism.apply(module)
            if self._compile is not None:
                model: Any = uncompiled(module)
                if getattr(model, "_repeated_blocks", None):
                    model.compile_repeated_blocks(**self._compile)
                else:
                    model.compile(**self._compile)

    def lifted(self) -> AbstractContextManager[None]:
        """To be entered while the wrappers of caches are put on or taken off."""
        return self._parallelism.lifted()

    def _transformers(self, pipeline: Any) -> dict[str, nn.Module]:
        if self._attention is None and self._compile is None and not self._quantization and not self.shared:
            return {}
        try:
            found = transformers_of(pipeline)
        except UnknownTransformerError as error:
            raise PlacementError(
                f"There is no transformer in {type(pipeline).__name__} to be placed: {error}"
            ) from error
        return {name: module for name, module in found.items() if module is not None}


def _attention(settings: Settings) -> str | None:
    names = [settings.attention_backend, settings.parallelism.get("attention_backend")]
    given = list(dict.fromkeys(name for name in names if name is not None))
    if len(given) > 1:
        raise ConfigError(
            f"attention_backend is {given[0]!r} and, in parallelism_config, {given[1]!r}. Give one of them."
        )
    if not given:
        return None
    from diffusers.models.attention_dispatch import AttentionBackendName

    known = [each.value for each in AttentionBackendName]
    name = given[0].lower()
    if name not in known:
        raise ConfigError(
            f"attention_backend: diffusers has none named {given[0]!r}.{near(name, known)} Known: {', '.join(known)}."
        )
    return name


def _try_attention(name: str, module: nn.Module) -> None:
    """Compute one attention, since whether a kernel is there shows only when it is called."""
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    like = next(module.parameters())
    dtype = like.dtype if like.dtype.is_floating_point else torch.float32
    query = torch.zeros(1, 8, 2, 64, device=like.device, dtype=dtype)
    try:
        with torch.no_grad():
            dispatch_attention_fn(query, query, query, backend=AttentionBackendName(name))
    except Exception as error:  # whatever a kernel raises where it cannot run
        raise PlacementError(
            f"attention_backend {name!r} cannot compute in {dtype} on {like.device}: {error}. 'native' always can."
        ) from error


def _check_compiler(name: str | None) -> None:
    if name is None:
        return
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise ConfigError(
            f"compile: torch has no backend {name!r}.{near(name, known)} Known: {', '.join(known)}."
        )
