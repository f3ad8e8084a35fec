"""What a host tells a backend in a thread."""

import threading
from collections.abc import Hashable

from dit_cache_backends.engine.clock import ToldStep


class Host(threading.local):
    """What the host tells in this thread: the request and, where it wants to, the step."""

    key: Hashable = None
    step: ToldStep | None = None


class Telling:
    """Within it a host tells something in this thread. A class: entered at every step, a generator costs ten times."""

    __slots__ = ("_host", "_name", "_outer", "_value")

    def __init__(self, host: Host, name: str, value: object) -> None:
        self._host = host
        self._name = name
        self._value = value

    def __enter__(self) -> None:
        self._outer = getattr(self._host, self._name)
        setattr(self._host, self._name, self._value)

    def __exit__(self, *_: object) -> None:
        setattr(self._host, self._name, self._outer)
