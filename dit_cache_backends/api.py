"""The one line most users need."""

from typing import Any

from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.config import named_backend
from dit_cache_backends.models.card import Card
from dit_cache_backends.registry import get_cache_backend


def enable_cache(
    pipeline: object,
    backend: str | CacheBackend | type[CacheBackend] | None = None,
    *,
    card: Card | None = None,
    **config: Any,
) -> CacheBackend:
    """Cache the transformers of ``pipeline``, or a bare transformer, from now on; ``disable`` ends it.

    Also a context manager: ``with enable_cache(pipe, "cache_dit") as backend: ...`` disables at the end.

    Args:
        pipeline: a diffusers pipeline, or a transformer.
        backend: the name of an installed backend (``dit-cache backends`` lists them), or a backend of your own. Left
            out: the one that the configuration names, else ``cache_dit``.
        card: how to read the transformer's blocks, where its class is not known.
        config: the backend's options; or ``cache_config``, a file with them.

    Raises:
        UnknownBackendError: if there is no such backend.
        ConfigError: if an option is unknown or wrong, or does not fit the model.
        UnknownTransformerError: if nothing is known of the transformer's class.
        AlreadyEnabledError: if a cache is enabled on it.
    """
    if backend is None:
        backend = named_backend(config or None) or "cache_dit"
    chosen = get_cache_backend(backend, config or None)
    if chosen is None:
        raise ValueError(
            "enable_cache(pipeline, 'none') would enable nothing; leave the call out, or name a backend."
        )
    if card is None:
        chosen.enable(pipeline)
    else:
        chosen.enable(pipeline, card=card)  # type: ignore[call-arg]
    return chosen
