"""One forward of one transformer: spans are entered, run or skipped, and left."""

import math
from collections.abc import Callable, Container, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import nn

from dit_cache_backends.engine.ahead import look_ahead, with_versions
from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.foretold import HandedOut
from dit_cache_backends.engine.gates import Decision, Place, Probe
from dit_cache_backends.engine.offload import HOOKS, bring_in
from dit_cache_backends.engine.passing import check_passed, passed
from dit_cache_backends.engine.plan import Site, StackPlan
from dit_cache_backends.engine.ranks import agreeing, summed_over_ranks
from dit_cache_backends.engine.residuals import predicted, refuse_writes, store
from dit_cache_backends.engine.sessions import Session, Slot, SlotKey, signature
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.engine.through import Inner
from dit_cache_backends.engine.visit import (
    StackState,
    Visit,
    copied,
    fitted,
    versions,
)
from dit_cache_backends.summary import Row

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


class Frame(Protocol):
    """What a call asks of the transformer it is made on."""

    name: str
    writes_in_place: bool
    inner: dict[tuple[int, int], Inner]

    def model(self) -> nn.Module | None: ...
    def timesteps(self) -> Sequence[float] | None: ...


class Call:
    """Drives the blocks of one transformer through one forward."""

    __slots__ = (
        "_argument",
        "_closed",
        "_forced",
        "_frame",
        "_name",
        "_session",
        "_skipped",
        "_states",
        "_step",
        "_votes",
    )

    def __init__(
        self,
        frame: Frame,
        session: Session,
        step: Step,
        argument: Callable[[str], Any],
        votes: "tuple[ProcessGroup, ...]" = (),
        forced: str = "",
    ) -> None:
        self._frame = frame
        self._name = frame.name
        self._argument = argument
        """Gives an argument of the transformer's own call. No method of this object, which the probes would hold."""
        self._session = session
        self._step = step
        self._votes = votes
        """The groups whose ranks vote on each decision, where the strategy does not see to it that they agree."""
        self._forced = forced
        """Why nothing may be skipped in this forward; empty where something may."""
        self._states: dict[int, StackState] = {}
        self._closed: list[Visit] = []
        self._skipped: list[Container[int]] = []
        """The blocks that were skipped, by their ``id``."""

    def block(
        self, site: Site, module: nn.Module, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Stand in for the call of one block; ``run`` is its class's own ``__call__``."""
        state = self._states.get(site.plan.number)
        if state is None:
            state = self._begin_stack(site.plan)
        elif site.index == 0:
            self._pass_again(state)
        if not site.checked:
            self._check(state, site, args, kwargs)
        number = site.span
        visit = None
        if number is not None:
            visit = state.visits[number]
            if visit is None and site.enters:
                visit = self._enter(state, site, number, module, args, kwargs)
            if visit is not None:
                visit.called |= site.bit
                if visit.skipped:
                    return self._skip(visit, site, module, run, args, kwargs)
        elif state.entry is None:
            state.entry, state.entry_layout = self._keep(site.read(args, kwargs)), site.layout
        if self._skipped and HOOKS in module.__dict__:
            bring_in(module, self._skipped)
        out = run(module, *args, **kwargs)
        if not site.checked:
            site.check_form(out)
            state.passed = passed(site, state.passes, args, kwargs, out)
        state.row.blocks_run += 1
        if visit is not None:
            if site.seen and visit.decision.store and not self._step.last:
                visit.note(site, out)
            if site.exits:
                self._leave(state, visit, site, out)
        return out

    def _begin_stack(self, plan: StackPlan) -> StackState:
        step = self._step
        row = Row(self._name, plan.name, step.branch, step.run_index, step.run_total)
        state = self._states[plan.number] = StackState(plan, row)
        return state

    @staticmethod
    def _check(state: StackState, site: Site, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Compare a block's arguments with its card, as long as it has not run."""
        streams = site.read(args, kwargs)
        site.check_streams(streams)
        if state.passed is not None:
            check_passed(state.passed, site, state.passes, streams)

    def _skip(
        self,
        visit: Visit,
        site: Site,
        module: nn.Module,
        run: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        """What a block of a skipped span hands out."""
        self._skipped.append((id(module),))
        if visit.left:
            # It is called again, of which the engine knows nothing: ``finish`` has it all run.
            visit.called = 0
            return site.hand_on(args, kwargs)
        held: tuple[Any, ...] = ()
        if None in site.order:
            kept = visit.slot.held.get(site.index)
            # Without one it was not called when the span ran, so ``finish`` will have the forward made again.
            held = site.held(run(module, *args, **kwargs)) if kept is None else copied(kept)
        if site.exits:
            inner = self._frame.inner.get((site.plan.number, site.span or 0))
            if inner is not None:
                visit.called |= inner.end()
                self._skipped.append(inner.sites)
            return site.give(visit.leave(), held)
        if not site.seen:
            return site.hand_on(args, kwargs)
        streams = site.read(args, kwargs)
        return site.give(visit.inside(site, streams) if site.shown else streams, held)

    def finish(self) -> bool:
        """Close the books of this forward; False if a skipped span was not called the way it was when it ran.

        Then what came out is wrong and the forward has to be made again with every span running.
        """
        rows = self._session.summary.rows
        for state in self._states.values():
            self._closed += [visit for visit in state.visits if visit is not None]
        skipped: dict[int, int] = {}
        for visit in self._closed:
            if visit.skipped:
                if not visit.left or visit.called != visit.slot.called:
                    return False
                number = visit.entered.plan.number
                blocks = skipped.get(number, 0)
                if blocks & visit.called:  # the stack was run through again
                    self._states[number].row.skip(blocks)
                    blocks = 0
                skipped[number] = blocks | visit.called
            elif not visit.left:
                self._session.summary.count(
                    "blocks_not_called",
                    f"{self._name}, branch {self._step.branch}: the model did not call the last block of a span, which "
                    f"therefore cannot be skipped.",
                )
        for number, blocks in skipped.items():
            self._states[number].row.skip(blocks)
        rows.extend([state.row for state in self._states.values()])
        return True

    def retired(self, spans: int) -> dict[int, str] | None:
        """Why nothing will be skipped any more on this branch, by the number of the stack; None while something may.

        Known once the gates of all ``spans`` of the transformer were asked and say that they will never skip again.
        """
        closed = self._closed
        if self._votes or any(visit.decision.store for visit in closed):
            return None
        if len({(visit.entered.plan.number, visit.entered.span) for visit in closed}) < spans:
            return None
        return {number: state.row.reason for number, state in self._states.items()}

    def _pass_again(self, state: StackState) -> None:
        if any(visit is not None for visit in state.visits):
            self._closed.extend(visit for visit in state.visits if visit is not None)
            state.visits = [None] * len(state.visits)
            state.horizon.forget()
            state.entry = None
            state.passes += 1

    def _keep(self, streams: Streams) -> Streams:
        if self._frame.writes_in_place:
            return tuple([None if stream is None else stream.clone() for stream in streams])
        return streams

    def _enter(
        self,
        state: StackState,
        site: Site,
        number: int,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Visit:
        """Span ``number`` of a stack is entered: decide, and where it is skipped make what it hands out."""
        step, plan, in_place = self._step, site.plan, self._frame.writes_in_place
        streams = site.read(args, kwargs)
        kept = self._keep(streams) if in_place else streams
        if state.entry is None:
            state.entry, state.entry_layout = kept, site.layout
        ahead = None
        if len(plan.spans) > 1 and not in_place:
            ahead = look_ahead, (self._session, self._name, step, state, plan, number)
        horizon = state.horizon
        handed_out = horizon.handed_out
        foretold = horizon.reach(number, streams)
        if foretold is not None and foretold.holds:
            # Nothing has to be found, made or compared again: half of what a skipped block costs.
            slot, result = foretold.slot, foretold.result
            probe = foretold.probe.entered(module, args, kwargs, ahead, self._argument, foretold.difference)
            fits = True
        else:
            key = (self._name, plan.first_span + number, step.branch, state.passes)
            slot = self._session.slot(*key) or self._new_slot(SlotKey(*key), plan, number)
            if slot.follows is None:
                slot.follows = state.hands_on(number, streams)
            elif handed_out is not None and horizon.handed_out is None and handed_out.span + 1 == number:
                slot.follows = False  # Something else came in than what was handed out.
            entry = state.entry
            if plan.alternate is not None and state.entry_layout != site.layout:
                entry = fitted(plan.alternate, entry, kept)
            measured = None if foretold is None else foretold.difference
            probe = Probe(entry, kept, module, args, kwargs, ahead, self._argument, measured)
            fits, result = False, None
        slot.last_step = step.run_index
        decision = self._decide(slot, probe, None if fits else streams)
        if self._votes:
            decision = _voted(decision, streams, self._votes)
        probe.decided()
        state.note(decision)
        visit = state.visits[number] = Visit(site, slot, probe, decision)
        if decision.run:
            horizon.forget()
            if decision.store:
                visit.watch()
            return visit
        if number + 1 in horizon.foretold:
            result = result or horizon.ready or with_versions(slot, plan, step, streams)
            horizon.ready = None
            counted = versions(result)
            horizon.handed_out = HandedOut(number, result, counted) if counted[0] >= 0 else None
        visit.result = result or predicted(slot, plan, step, streams)
        inner = self._frame.inner.get((plan.number, number))
        if inner is not None:
            inner.begin()
        slot.gate.observe(step, probe, decision)
        return visit

    def _new_slot(self, key: SlotKey, plan: StackPlan, number: int) -> Slot:
        session = self._session
        strategy = plan.strategy.for_steps(self._step.total)
        storage = strategy.storage()
        place = Place(
            self._name,
            plan.name,
            plan.spans[number],
            plan.depth,
            key.branch,
            session.peers(key),
            session.shared.setdefault((self._name, key.branch), {}),
            session.summary.count,
            self._frame.model,
            self._frame.timesteps,
            storage,
        )
        session.summary.settings.setdefault((self._name, plan.name), dict(strategy.settings()))
        slot = session.slots[key] = Slot(strategy.gate(place), strategy.predictor, storage)
        return slot

    def _decide(self, slot: Slot, probe: Probe, streams: Streams | None) -> Decision:
        """Ask the gate; ``streams`` are None where they are known to fit what is stored."""
        if self._forced:
            return Decision(True, self._forced)
        decision = slot.gate.should_run(self._step, probe)
        if decision.difference is not None and not math.isfinite(decision.difference):
            self._session.summary.count(
                "non_finite_difference",
                f"{self._name}, branch {self._step.branch}: the difference was {decision.difference}; the blocks ran.",
            )
            return Decision(True, "non-finite difference", decision.difference)
        if decision.run:
            return decision
        if streams is None:
            return decision
        if slot.signature is None:
            return Decision(True, "nothing stored", decision.difference)
        if slot.signature != signature(streams):
            self._session.summary.count(
                "shape_changed",
                f"{self._name}, branch {self._step.branch}: the streams have another shape, dtype or device than what "
                f"was stored; the blocks ran.",
            )
            return Decision(True, "shape changed", decision.difference)
        return decision

    def _leave(self, state: StackState, visit: Visit, site: Site, out: Any) -> None:
        """A span that ran was left: keep what it added."""
        slot, probe, decision = visit.slot, visit.probe, visit.decision
        if probe is None:
            return  # Its last block was called again.
        probe.exit = after = site.streams_from(out, visit.streams)
        state.ran(site.span or 0, after)
        if decision.store:
            if not self._frame.writes_in_place:
                refuse_writes(visit, site)
            if not self._step.last:
                store(visit, site, self._step, after)
        slot.gate.observe(self._step, probe, decision)
        visit.leave()


def _voted(decision: Decision, streams: Streams, groups: "tuple[ProcessGroup, ...]") -> Decision:
    """What the ranks decide together: where one has to run, all run."""
    main = streams[0]
    votes = torch.tensor(float(decision.run), device=None if main is None else main.device)
    with agreeing(groups):
        votes = summed_over_ranks(votes)
    if not votes.item() or decision.run:
        return decision
    return Decision(True, "another rank runs", decision.difference)
