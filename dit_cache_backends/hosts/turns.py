"""Turns: of several threads one computes at a time, each a step before the next one's turn."""

from __future__ import annotations

import threading
from collections import deque

__all__ = ["Stopped", "Ticket", "Turns"]


class Stopped(BaseException):
    """Unwinds a thread that was stopped. No ``Exception``, so that no pipeline takes it for one of its own."""


class Ticket:
    """A thread's place among those that take turns."""

    def __init__(self) -> None:
        self.called = threading.Event()
        self.stopped = False

    def check(self) -> None:
        """Raise ``Stopped`` if it was stopped."""
        if self.stopped:
            raise Stopped


class Turns:
    """Hands the turn round, in the order of arrival, so that everybody waits for one step of each of the others."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._line: deque[Ticket] = deque()
        self._holder: Ticket | None = None

    def enter(self, ticket: Ticket) -> None:
        """Get in line; returns when it is one's turn for the first time.

        Raises:
            Stopped: The ticket was stopped meanwhile.
        """
        with self._lock:
            ticket.check()
            if self._holder is None:
                self._holder = ticket
                return
            self._line.append(ticket)
        self._wait(ticket)

    def pass_on(self, ticket: Ticket) -> None:
        """Let all others have their turn; returns when it is one's own again.

        Raises:
            Stopped: The ticket was stopped meanwhile.
        """
        with self._lock:
            ticket.check()
            if not self._line:
                return
            self._line.append(ticket)
            self._call_next()
        self._wait(ticket)

    def leave(self, ticket: Ticket) -> None:
        """Take no more turns."""
        with self._lock:
            if self._holder is ticket:
                self._call_next()

    def holds(self, ticket: Ticket) -> bool:
        """Whether it is the ticket's turn."""
        return self._holder is ticket

    def stop(self, ticket: Ticket) -> bool:
        """Stop a thread: at once if it waits for its turn, else when it looks next.

        Returns:
            Whether it waited, so that it ends now, without having its turn.
        """
        with self._lock:
            ticket.stopped = True
            waited = ticket in self._line
            if waited:
                self._line.remove(ticket)
                ticket.called.set()
        return waited

    def _call_next(self) -> None:
        self._holder = self._line.popleft() if self._line else None
        if self._holder is not None:
            self._holder.called.set()

    @staticmethod
    def _wait(ticket: Ticket) -> None:
        ticket.called.wait()
        ticket.called.clear()
        ticket.check()
