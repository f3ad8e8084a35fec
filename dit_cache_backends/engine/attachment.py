"""One backend on one transformer: every forward gets its step and session here."""

import inspect
import threading
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from dit_cache_backends.engine.call import Call
from dit_cache_backends.engine.clock import Clock, CountedClock, Reading, Step, Timestep
from dit_cache_backends.engine.compiled_call import WholeCall
from dit_cache_backends.engine.graphs import Compiled, Region
from dit_cache_backends.engine.host import Host
from dit_cache_backends.engine.plan import Site, Strategy, make_plans
from dit_cache_backends.engine.ranks import Ranks, agreeing, is_shared
from dit_cache_backends.engine.retired import RetiredCall
from dit_cache_backends.engine.sessions import Mark, Session, Sessions
from dit_cache_backends.engine.through import Inner, stop
from dit_cache_backends.errors import CardError
from dit_cache_backends.models import uncompiled
from dit_cache_backends.models.card import Card

_Run = Callable[..., Any]
_Args = tuple[Any, ...]
_TIMESTEP_NAMES = ("timestep", "timesteps", "t", "vision_timesteps", "decoder_noise_time")


class _Local(threading.local):
    call: Call | RetiredCall | None = None
    plain: bool = False
    """Within a call of the transformer that runs as if no backend were enabled."""
    branch: str | None = None


class Attachment:
    """Joins a transformer to a strategy, the sessions and a clock. Holds no reference to the transformer."""

    def __init__(
        self,
        transformer: nn.Module,
        name: str,
        card: Card,
        strategy: Strategy,
        sessions: Sessions,
        host: Host,
        clock: Clock | None,
        counted: CountedClock,
        ranks: Ranks,
    ) -> None:
        self.name = name
        self.transformer = weakref.ref(transformer)
        self.local = _Local()
        self.inner: dict[tuple[int, int], Inner] = {}
        """The blocks in the midst of each span, by the numbers of its stack and its own."""
        self.writes_in_place = card.writes_in_place
        self._card = card
        self._restarts = strategy.part(name).restarts
        self._sessions = sessions
        self._host = host
        self._clock = clock
        self._counted = counted
        self._ranks = ranks
        model = uncompiled(transformer)
        self._parameters = list(inspect.signature(type(model).forward).parameters)[1:]
        self._timestep = next((n for n in _TIMESTEP_NAMES if n in self._parameters), None)
        self.plans, self._sites = make_plans(model, card, strategy, name)
        self._spans = sum(len(plan.spans) for plan in self.plans)
        self.compiled = Compiled()

    def sites(self) -> list[tuple[nn.Module, Site]]:
        """Every block with its site, until ``sites_done``."""
        return self._sites

    def place(self, sites: list[tuple[nn.Module, Site]]) -> None:
        """Have every block again, to be attached anew."""
        self._sites = sites

    def pass_through(self, block: nn.Module, site: Site) -> None:
        """Note a block that only hands its streams on when its span is skipped."""
        self.inner.setdefault((site.plan.number, site.span or 0), Inner()).add(block, site)

    def sites_done(self) -> None:
        """Let go of the blocks."""
        self._sites = []

    def busy(self) -> bool:
        """Whether a call of the transformer is under way in this thread."""
        return self.local.call is not None or self.local.plain

    def forward(
        self, run: _Run, args: _Args, kwargs: dict[str, Any], grad: bool, region: Region | None = None
    ) -> Any:
        """Stand in for a call of the transformer; ``run`` is its own ``__call__``, ``region`` where it is compiled."""
        if self.busy():
            return run(*args, **kwargs)
        ranks = self._ranks
        if ranks.groups and not ranks.votes and not is_shared():
            with agreeing(ranks.groups):
                return self.forward(run, args, kwargs, grad, region)
        plain = "gradients are enabled" if grad else self._must_run(args, kwargs)
        if plain:
            self._event("plain_call", f"{plain}, so the call ran as if no backend were enabled.")
            self.local.plain = True
            try:
                return run(*args, **kwargs) if region is None else region.plain(args, kwargs)
            finally:
                self.local.plain = False
        if region is not None:
            region.check(self.name)
        session, step = self._begin(args, kwargs)
        make = partial(self._call, session, step, region, self.argument_of(args, kwargs))
        call = self.local.call = make()
        try:
            out = (run if region is None else call.forward)(*args, **kwargs)
            if not call.finish():
                session.summary.count(
                    "forward_repeated",
                    f"{self.name}, branch {step.branch}: the model called other blocks than when the skipped span "
                    "last ran; the forward was made again in full.",
                )
                session.drop(self.name)
                stop()
                call = self.local.call = make("other blocks called")
                out = (run if region is None else call.forward)(*args, **kwargs)
                call.finish()
        except BaseException:
            # Nobody knows how far it came; what follows is another generation.
            self._sessions.renew(session.key, session.total)
            raise
        finally:
            self.local.call = None
            stop()
        if step.last:
            session.release(self.name, step)
        elif isinstance(call, Call) and (reasons := call.retired(self._spans)) is not None:
            session.retire(self.name, step.branch, reasons)
        return out

    def obstacle(self) -> str:
        """Why no call can be compiled as a whole; empty where calls can."""
        if self._card.must_run:
            return "some calls of it fill a store that later ones read"
        return "the ranks vote on each decision" if self._ranks.groups and self._ranks.votes else ""

    def argument_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[str], Any]:
        """Gives an argument of a call of the transformer by its name."""
        return partial(self._argument, args=args, kwargs=kwargs)

    def _call(
        self, session: Session, step: Step, region: Region | None, argument: Any, forced: str = ""
    ) -> Any:
        reasons = None if forced else session.retired.get((self.name, step.branch))
        if region is not None:
            return WholeCall(self, session, step, argument, region, forced, reasons)
        if reasons is not None:
            return RetiredCall(self.name, session, step, reasons)
        return Call(self, session, step, argument, self._ranks.groups if self._ranks.votes else (), forced)

    def model(self) -> nn.Module | None:
        """The transformer, as the model's library made it; None once it is gone."""
        transformer = self.transformer()
        return None if transformer is None else uncompiled(transformer)

    def timesteps(self) -> Sequence[float] | None:
        """The timesteps of the run at hand in this thread; None where no scheduler tells them."""
        counted = self._sessions.get(self._host.key).mark(self.name).tally.distrusted
        if self._clock is None or self._host.step is not None or counted:
            return None
        return self._clock.timesteps()

    def generation_over(self) -> None:
        """The host says that its generation has ended: forget what it left."""
        self._sessions.drop(self._host.key)

    def called_outside(self, site: Site) -> None:
        """A block was called, but not by a call of its transformer that came through the wrapper."""
        if site.index == 0 and not self.local.plain and not torch.is_grad_enabled():
            self._event(
                "called_outside",
                "its blocks were called without the transformer being called (as by a module that torch.compile made "
                "before the backend was enabled, or by another thread), and ran in full.",
            )

    def _event(self, kind: str, what: str) -> None:
        session = self._sessions.get(self._host.key)
        session.started = True
        session.summary.count(kind, f"{self.name}: {what}")

    def _must_run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        for path, values in self._card.must_run:
            name, *parts = path.split(".")
            value = self._argument(name, args, kwargs)
            if value is None and parts:
                continue
            value = self._follow(value, parts, path)
            if any(value is wanted or value == wanted for wanted in values):
                return f"{path}={value!r} fills a store that later calls read"
        return ""

    def _follow(self, value: Any, parts: list[str], path: str) -> Any:
        part = ""
        try:
            for part in parts:
                if isinstance(value, Mapping):
                    value = value.get(part)
                else:
                    value = value[int(part)] if part.isdigit() else getattr(value, part)
        except (AttributeError, IndexError, TypeError):
            raise CardError(
                f"The card of {self._card.transformer} says that {path} tells which calls must run, but there is no "
                f"{part!r} in the {type(value).__name__}. Correct `must_run` in the card."
            ) from None
        return value

    def _argument(self, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if name in kwargs or name not in self._parameters:
            return kwargs.get(name)
        position = self._parameters.index(name)
        return args[position] if position < len(args) else None

    def _begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Session, Step]:
        """Find the session and the step of this call."""
        session = self._sessions.get(self._host.key)
        told = self._host.step
        branch = self.local.branch
        if told is not None:
            branch = told.branch or branch
            mark = session.mark(self.name)
            again = branch is not None and told.index == mark.run_index and branch in mark.calls
            if again or session.is_behind(told.index):
                session = self._sessions.renew(session.key, told.total)
            session.started = True
            reading = Reading(told.index, told.total if told.total is not None else session.total)
        else:
            argument = None if self._timestep is None else self._argument(self._timestep, args, kwargs)
            session, reading = self._read(session, branch, Timestep(argument))
        step = session.place(self.name, reading, branch, self._restarts)
        return session, step

    def _read(self, session: Session, branch: str | None, timestep: Timestep) -> tuple[Session, Reading]:
        clock = self._clock
        if clock is None:
            return self._count(session, timestep, None)
        run = clock.run()
        if not session.belongs_to(run):
            session = self._sessions.renew(session.key, session.total)
        mark = session.mark(self.name)
        reading = None if mark.tally.distrusted else clock.read(self.name, mark.tally, timestep)
        if reading is None:
            return self._count(session, timestep, run)
        if self._stands_still(mark, reading, branch, timestep):
            session = self._sessions.renew(session.key)
            session.summary.count(
                "scheduler_stands_still",
                f"{self.name}: the pipeline's scheduler does not move although the timestep does, so another pipeline "
                "drives this transformer; its steps are counted from the timestep argument.",
            )
            session.mark(self.name).tally.distrusted = True
            return self._count(session, timestep, run)
        if session.is_behind(reading.index):
            session = self._sessions.renew(session.key, session.total)
            mark = session.mark(self.name)
        session.adopt(run)
        if mark.first_timestep is None:
            mark.first_timestep = timestep
        mark.last_timestep = timestep
        return session, reading

    @staticmethod
    def _stands_still(mark: Mark, reading: Reading, branch: str | None, timestep: Timestep) -> bool:
        """Whether the scheduler shows the run of another pipeline, whose transformer this one shares."""
        if reading.total is not None and reading.index >= reading.total:
            return True
        last, first = mark.last_timestep, mark.first_timestep
        if last is None or first is None:
            return False
        if reading.index == mark.run_index and branch in mark.calls:
            return last.value() != timestep.value()
        # Back at the first timestep in the middle of a run: seen only where looking costs no wait for a device.
        if reading.index > mark.run_index and timestep.at_hand and last.at_hand and first.at_hand:
            return timestep.value() == first.value() != last.value()
        return False

    def _count(self, session: Session, timestep: Timestep, run: object | None) -> tuple[Session, Reading]:
        tally = session.mark(self.name).tally
        reading = self._counted.read(tally, timestep, session.total)
        if reading is None:
            session = self._sessions.renew(session.key, session.total)
            session.mark(self.name).tally.distrusted = tally.distrusted
            reading = self._counted.read(session.mark(self.name).tally, timestep, session.total)
        session.adopt(run)
        return session, reading or Reading(0, session.total)
