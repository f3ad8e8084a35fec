"""The backends of an engine: one for each cache setting that its requests ask for."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import TYPE_CHECKING

from torch import Tensor

from dit_cache_backends.backend import CacheBackend, SpanBackend
from dit_cache_backends.configuration.settings import NOT_SAID, Settings
from dit_cache_backends.engine.wrap import is_attached
from dit_cache_backends.errors import AlreadyEnabledError, DitCacheError
from dit_cache_backends.hosts.calls import transformers_in
from dit_cache_backends.hosts.copies import Front

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

__all__ = ["Caches", "Served"]

KEPT = 8
"""Backends that nobody uses at the moment and that are kept for the next who asks for the same."""

REMEMBERED = 256
"""Settings of requests that are not read anew when they come again."""


class Served:
    """A backend for the requests that ask for one setting."""

    def __init__(self, backend: CacheBackend) -> None:
        self.backend = backend
        self.users = 0
        self._suspended = False

    @property
    def interleaves(self) -> bool:
        """Whether it keeps a state for each request, so that others can have their turn between two steps of one."""
        return isinstance(self.backend, SpanBackend) and self.backend.capabilities.interleaved_requests

    @contextmanager
    def session(self, key: str) -> Iterator[None]:
        """The request whose state the forwards within use, in this thread."""
        if isinstance(self.backend, SpanBackend):
            with self.backend.session(key):
                yield
        else:
            yield

    def end_session(self, key: str) -> None:
        """The request is over: forget its state."""
        if isinstance(self.backend, SpanBackend):
            self.backend.end_session(key)

    def held_tensors(self) -> list[Tensor]:
        """What it holds for the requests under way."""
        return self.backend.held_tensors() if isinstance(self.backend, SpanBackend) else []

    def attach(self, front: Front) -> None:
        """Put it on the model, with what it remembers."""
        if self._suspended and isinstance(self.backend, SpanBackend):
            self.backend.resume(front)
        else:
            self.backend.enable(front)
        self._suspended = False

    def detach(self, front: Front) -> None:
        """Take it off the model; a backend with sessions keeps them."""
        if isinstance(self.backend, SpanBackend):
            self.backend.suspend(front)
            self._suspended = True
        else:
            self.backend.disable(front)

    def drop(self, front: Front) -> None:
        """Forget everything. It has been detached, or never was attached."""
        self.backend.disable(front)


class Caches:
    """Finds the backend for a request, and puts the one whose turn it is on the model."""

    def __init__(
        self,
        front: Front,
        settings: Settings,
        around_switch: Callable[[], AbstractContextManager[object]] = nullcontext,
    ) -> None:
        self._front = front
        self._around_switch = around_switch
        self._groups: tuple[ProcessGroup, ...] = ()
        self._settings = settings
        self._lock = threading.Lock()
        self._served: dict[str, Served] = {}
        self._answers: dict[str, Settings] = {}
        self._attached: Served | None = None
        made = settings.make_backend()
        self.default: Served | None = None if made is None else Served(made)
        self.attach(self.default)
        self.refuse_others()

    def take(self, backend: object, config: object) -> Served | None:
        """The backend for a request with these settings; to be given back.

        Raises:
            ConfigError: They do not fit the backend, or the backend the model.
            UnknownBackendError: No backend of that name is installed.
        """
        if backend is NOT_SAID and config is None:
            with self._lock:
                return _used(self.default)
        given = self._asked(backend, config)
        if given.backend is None:
            return None
        if (given.backend, given.options) == (self._settings.backend, self._settings.options):
            with self._lock:
                return _used(self.default)
        name = f"{given.backend} {json.dumps(given.options, sort_keys=True, default=repr)}"
        with self._lock:
            if name in self._served:
                # The newest last: those that nobody has asked for in a while are dropped first.
                self._served[name] = served = self._served.pop(name)
                return _used(served)
        made = given.make_backend()
        if made is None:
            return None
        if isinstance(made, SpanBackend):
            made.check(self._front)
        if self._groups:
            made.agree_over(*self._groups)
        with self._lock:
            return _used(self._served.setdefault(name, Served(made)))

    def _asked(self, backend: object, config: object) -> Settings:
        """What a request asks for. Looking up a backend takes milliseconds, so what was asked before is remembered."""
        named = backend is NOT_SAID or backend is None or isinstance(backend, str)
        text = ""
        if named and (config is None or isinstance(config, Mapping)):
            with suppress(TypeError, ValueError):
                text = json.dumps([repr(backend), config], sort_keys=True)
        with self._lock:
            if text in self._answers:
                return self._answers[text]
        given = self._settings.for_request(backend, config)
        if text:
            with self._lock:
                self._answers[text] = given
                while len(self._answers) > REMEMBERED:
                    del self._answers[next(iter(self._answers))]
        return given

    def give_back(self, served: Served | None) -> None:
        """A request has ended."""
        if served is None:
            return
        with self._lock:
            served.users -= 1
            idle = [name for name, each in self._served.items() if each.users == 0]
            for name in idle[: max(len(idle) - KEPT, 0)]:
                each = self._served[name]
                if each is not self._attached:
                    del self._served[name]
                    each.drop(self._front)

    def attach(self, served: Served | None) -> None:
        """Have ``served`` on the model, and no other. Whoever calls has the turn."""
        if served is self._attached:
            return
        with self._around_switch():
            if self._attached is not None:
                self._attached.detach(self._front)
                self._attached = None
            if served is not None:
                served.attach(self._front)
                self._attached = served

    def refuse_others(self) -> None:
        """Raise where a cache that is none of these is on the model: it would take all requests for one.

        Raises:
            AlreadyEnabledError: naming the transformer.
        """
        if self._attached is not None:
            return  # with it on, no other can be
        for module in transformers_in(self._front):
            if is_attached(module) or getattr(module, "is_cache_enabled", False):
                raise AlreadyEnabledError(
                    f"A cache is enabled on this {type(module).__name__} already, which cannot tell the requests of an"
                    " engine apart. Disable it and give its name to the engine as cache_backend."
                )

    def agree_over(self, *groups: ProcessGroup) -> None:
        """Have all backends agree over these groups, also those that come."""
        self._groups = groups
        if groups and self.default is not None:
            self.default.backend.agree_over(*groups)

    def rest(self) -> None:
        """Put the default back, which claims the model while nothing runs. Whoever calls has the turn."""
        # If somebody put another cache there meanwhile, whoever runs next will tell.
        with suppress(DitCacheError):
            self.attach(self.default)

    def held_tensors(self) -> list[Tensor]:
        """What all of them hold."""
        with self._lock:
            every = [*self._served.values(), *([self.default] if self.default else [])]
        return [tensor for each in every for tensor in each.held_tensors()]

    def close(self) -> None:
        """Take everything off the model. Nothing may run any more."""
        with suppress(DitCacheError):
            self.attach(None)
        with self._lock:
            for served in [*self._served.values(), *([self.default] if self.default else [])]:
                served.drop(self._front)
            self._served.clear()


def _used(served: Served | None) -> Served | None:
    if served is not None:
        served.users += 1
    return served
