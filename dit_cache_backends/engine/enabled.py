"""One ``enable``: what it was asked for, the transformers it attached to, and the generations on them."""

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import nn

from dit_cache_backends.engine.attachment import Attachment
from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.sessions import Sessions
from dit_cache_backends.engine.wrap import attach, detach, is_attached
from dit_cache_backends.errors import AlreadyEnabledError

_Sites = list[tuple["weakref.ref[nn.Module]", Site]]


@dataclass
class Enabled:
    """It can be taken off, for good or for a while."""

    target: Callable[[], object]
    """What was enabled, referred to weakly."""
    sessions: Sessions
    attachments: list[Attachment] = field(default_factory=list)
    suspended: "dict[Attachment, _Sites] | None" = None
    """The blocks of each attachment while they are off for a while; None while they are on."""

    def modules(self) -> list[nn.Module]:
        """The transformers that are still alive."""
        return [module for each in self.attachments if (module := each.transformer()) is not None]

    def put_on(self, attachment: Attachment, module: nn.Module) -> None:
        """Attach to one more transformer.

        Raises:
            AlreadyEnabledError: if a backend is enabled on it already.
        """
        attach(attachment, module)
        self.attachments.append(attachment)

    def take_off(self) -> None:
        """Give the transformers their own classes back, and end the generations."""
        self._detach()
        self.sessions.clear()

    def suspend(self) -> None:
        """Give the transformers their own classes back, and keep the generations. Harmless when done before."""
        if self.suspended is None:
            self.suspended = self._detach()

    def resume(self) -> None:
        """Attach again where ``suspend`` detached. Harmless where nothing is suspended.

        Raises:
            AlreadyEnabledError: if another backend is enabled there; then nothing is attached.
        """
        if self.suspended is None:
            return
        back: list[tuple[Attachment, nn.Module]] = []
        try:
            for attachment, sites in self.suspended.items():
                module = attachment.transformer()
                if module is not None:
                    found = [(block(), site) for block, site in sites]
                    attachment.place([(block, site) for block, site in found if block is not None])
                    attach(attachment, module)
                    back.append((attachment, module))
        except AlreadyEnabledError:
            for attachment, module in back:
                detach(module, attachment)
            raise
        self.suspended = None

    def _detach(self) -> "dict[Attachment, _Sites]":
        found = {}
        for attachment in self.attachments:
            module = attachment.transformer()
            if module is not None:
                found[attachment] = [(weakref.ref(block), site) for block, site in detach(module, attachment)]
        return found


def refuse_others(name: str, module: nn.Module) -> None:
    """Two caches on one transformer would both skip, and the result would be neither's.

    Raises:
        AlreadyEnabledError: if a cache is enabled on it, one of this package or another.
    """
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
