"""One of our backends with the verbs by which vLLM-Omni's runner drives a cache."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterable
from typing import Any

from torch import nn

from dit_cache_backends.backend import CacheBackend, SpanBackend
from dit_cache_backends.errors import UnknownTransformerError, near
from dit_cache_backends.hosts.vllm_omni.groups import groups_of_request, refuse_pipeline_stages
from dit_cache_backends.models import find_card, list_cards, uncompiled
from dit_cache_backends.pipelines import transformers_of
from dit_cache_backends.summary import Summary

__all__ = ["HostedBackend"]

log = logging.getLogger("vllm_omni.dit_cache_backends")


class HostedBackend:
    """Stands where vLLM-Omni keeps its own cache backends; counts as one of them for ``isinstance``."""

    def __init__(self, backend: CacheBackend, config: object = None) -> None:
        self.backend = backend
        self.config = config
        """As vLLM-Omni handed it over; ``backend.config`` has the options that came of it."""

    @property
    def enabled(self) -> bool:
        """Whether it is attached to a pipeline."""
        return self.backend.is_enabled()

    def is_enabled(self) -> bool:
        """The same, as the runner asks for it."""
        return self.backend.is_enabled()

    def enable(self, pipeline: object) -> None:
        """Attach to the transformers that the pipeline names in ``_dit_modules``.

        Called once, when weights are loaded, offloading is set up and blocks are compiled. What it raises ends the
        start of the server: a cache that was asked for is never left out silently.

        Raises:
            UnknownTransformerError: if there is no card for any of the pipeline's transformers.
            ConfigError: if the options do not fit the model, or its blocks lie on several ranks.
        """
        refuse_pipeline_stages(self.backend.name)
        _refuse_unknown(pipeline)
        self.backend.agree_over(*groups_of_request())
        self.backend.enable(pipeline)
        modules = ", ".join(
            f"{name} ({type(uncompiled(module)).__name__})"
            for name, module in transformers_of(pipeline).items()
        )
        log.info("Cache backend %s of dit-cache-backends is enabled on %s.", self.backend.name, modules)

    def refresh(self, pipeline: object, num_inference_steps: int | None = None, verbose: bool = True) -> None:
        """A batch of requests of that many steps begins; 0 and None stand for a number that is not known."""
        self.backend.refresh(pipeline, num_inference_steps or 0, verbose)

    def disable(self, pipeline: object = None) -> None:
        """Leave the transformers as they were."""
        self.backend.disable(pipeline)

    def summary(self, key: Hashable = None) -> Summary:
        """What was done in the last batch of requests; in step mode, for the request and chunk ``key``."""
        return self.backend.summary(key)

    def end(self, keys: Iterable[Hashable] = (None,)) -> None:
        """These requests are over, however they ended: what is kept for them is let go."""
        if isinstance(self.backend, SpanBackend):
            for key in keys:
                self.backend.end_session(key)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.backend!r})"


def _refuse_unknown(pipeline: Any) -> None:
    modules = _dit_modules(pipeline)
    known = [name for name, module in modules.items() if find_card(type(uncompiled(module))) is not None]
    if known or not modules:
        return
    classes = {name: type(uncompiled(module)) for name, module in modules.items()}
    named = ", ".join(f"{name} ({cls.__module__}.{cls.__qualname__})" for name, cls in classes.items())
    cards = sorted({card.transformer for card in list_cards() if card.library == "vllm_omni"})
    first = next(iter(classes.values())).__name__
    raise UnknownTransformerError(
        f"{type(pipeline).__name__} has no transformer that a card describes: {named}.{near(first, cards)} Known of "
        f"vLLM-Omni: {', '.join(cards)}. docs/vllm-omni.md says which are left out and why; a card of your own goes "
        "into a package with an entry point of the group 'dit_cache_backends.models'."
    )


def _dit_modules(pipeline: Any) -> dict[str, nn.Module]:
    names = getattr(pipeline, "_dit_modules", None) or ("transformer", "transformer_2")
    found: dict[str, nn.Module] = {}
    for name in names:
        value: Any = pipeline
        for part in name.split("."):
            value = getattr(value, part, None)
        if isinstance(value, nn.Module):
            found[name] = value
    return found
