"""One forward of one transformer: spans are entered, run or skipped, and left."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.gates import Ahead, Decision, Place, Probe
from dit_cache_backends.engine.offload import HOOKS, bring_in
from dit_cache_backends.engine.passing import check_passed, passed
from dit_cache_backends.engine.plan import Site, StackPlan
from dit_cache_backends.engine.sessions import Session, Slot, SlotKey, signature
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.engine.visit import (
    ABSENT,
    SAME,
    SUM,
    HandedOut,
    StackState,
    Visit,
    copied,
    fitted,
    versions,
)
from dit_cache_backends.errors import CardError
from dit_cache_backends.summary import Row


class Call:
    """Drives the blocks of one transformer through one forward."""

    __slots__ = (
        "_argument",
        "_card_writes",
        "_closed",
        "_forced",
        "_model",
        "_name",
        "_session",
        "_skipped",
        "_states",
        "_step",
        "_timesteps",
    )

    def __init__(
        self,
        name: str,
        session: Session,
        step: Step,
        writes_in_place: bool,
        model: Callable[[], nn.Module | None],
        timesteps: Callable[[], Sequence[float] | None],
        argument: Callable[[str], Any],
        forced: str = "",
    ) -> None:
        self._name = name
        self._argument = argument
        self._model = model
        self._timesteps = timesteps
        self._session = session
        self._step = step
        self._card_writes = writes_in_place
        self._forced = forced
        """Why nothing may be skipped in this forward; empty where something may."""
        self._states: dict[int, StackState] = {}
        self._closed: list[Visit] = []
        self._skipped: set[int] = set()

    def block(
        self, site: Site, module: nn.Module, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Stand in for the call of one block; ``run`` is the block's own ``__call__``."""
        plan = site.plan
        state = self._states.get(plan.number)
        if state is None:
            step = self._step
            row = Row(self._name, plan.name, step.branch, step.run_index, step.run_total)
            state = self._states[plan.number] = StackState(plan, row)
        elif site.index == 0:
            self._pass_again(state)
        if not site.checked:
            streams = site.read(args, kwargs)
            site.check_streams(streams)
            if state.passed is not None:
                check_passed(state.passed, site, state.passes, streams)
        visit = None
        if site.span is None:
            if state.entry is None:
                state.entry, state.entry_layout = self._keep(site.read(args, kwargs)), site.layout
        else:
            visit = state.visits[site.span]
            if site.enters and visit is None:
                streams = site.read(args, kwargs)
                if state.entry is None:
                    state.entry, state.entry_layout = self._keep(streams), site.layout
                visit = state.visits[site.span] = self._enter(state, site, module, streams, args, kwargs)
        if visit is not None:
            visit.called |= 1 << site.index
            if visit.result is not None:
                state.row.blocks_skipped += 1
                self._skipped.add(id(module))
                held = self._held(visit.slot, site, run, args, kwargs) if None in site.order else ()
                if site.exits:
                    visit.left = True
                    return site.give(visit.result, held)
                streams = site.read(args, kwargs)
                return site.give(visit.inside(site, streams) if site.shown else streams, held)
        if self._skipped and HOOKS in module.__dict__:
            bring_in(module, self._skipped)
        out = run(*args, **kwargs)
        if not site.checked:
            site.check_form(out)
            state.passed = passed(site, state.passes, args, kwargs, out)
        state.row.blocks_run += 1
        if visit is not None:
            if (site.shown or None in site.order) and visit.decision.store and not self._step.last:
                visit.note(site, out)
            if site.exits:
                self._leave(visit, site, out)
        return out

    @staticmethod
    def _held(
        slot: Slot, site: Site, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, ...]:
        """What a skipped block gave last that is no stream."""
        held = slot.held.get(site.index)
        if held is None:
            # It was not called when the span ran, so ``finish`` will have the forward made again.
            return site.held(run(*args, **kwargs))
        return copied(held)

    def finish(self) -> bool:
        """Close the books of this forward; False if a skipped span was not called the way it was when it ran.

        Then what came out is wrong and the forward has to be made again with every span running.
        """
        for state in self._states.values():
            self._pass_again(state)
        for visit in self._closed:
            if visit.result is not None:
                if not visit.left or visit.called != visit.slot.called:
                    return False
            elif not visit.left:
                self._session.summary.count(
                    "blocks_not_called",
                    f"{self._name}, branch {self._step.branch}: the model did not call the last block of a span, which "
                    f"therefore cannot be skipped.",
                )
        self._session.summary.rows.extend(state.row for state in self._states.values())
        return True

    def _pass_again(self, state: StackState) -> None:
        if any(visit is not None for visit in state.visits):
            self._closed.extend(visit for visit in state.visits if visit is not None)
            state.visits = [None] * len(state.visits)
            state.foretold.clear()
            state.entry = None
            state.passes += 1

    def _keep(self, streams: Streams) -> Streams:
        if self._card_writes:
            return tuple(None if stream is None else stream.clone() for stream in streams)
        return streams

    def _enter(
        self,
        state: StackState,
        site: Site,
        module: nn.Module,
        streams: Streams,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Visit:
        step, session, plan = self._step, self._session, site.plan
        number = site.span or 0
        key = SlotKey(self._name, plan.first_span + number, step.branch, state.passes)
        slot = session.slots.get(key)
        if slot is None:
            peers = session.peers(key)
            place = Place(
                self._name,
                plan.name,
                plan.spans[number],
                plan.depth,
                step.branch,
                peers,
                session.shared.setdefault((self._name, step.branch), {}),
                session.summary.count,
                self._model,
                self._timesteps,
            )
            strategy = plan.strategy.for_steps(step.total)
            session.summary.settings.setdefault((self._name, plan.name), dict(strategy.settings()))
            slot = session.slots[key] = Slot(strategy.gate(place), strategy.predictor)
        slot.last_step = step.run_index
        if slot.follows is None:
            slot.follows = state.hands_on(number, streams)
        kept = self._keep(streams)
        ahead = None if self._card_writes else partial(self._ahead, state, plan, number)
        entry = state.entry or kept
        if plan.alternate is not None and state.entry_layout != site.layout:
            entry = fitted(plan.alternate, entry, kept)
        probe = Probe(entry, kept, module, args, kwargs, ahead, self._argument)
        if state.foretold:
            handed_out = state.handed_out
            if handed_out is not None and handed_out.comes_in(number, streams[0]):
                probe.measured = state.foretold.get(number)
            else:
                state.foretold.clear()
                if handed_out is not None and handed_out.span + 1 == number:
                    slot.follows = False
        decision = self._decide(slot, probe, streams)
        probe.decided()
        row = state.row
        if decision.difference is not None:
            row.differences.append(decision.difference)
        if decision.reason != row.reason and decision.reason not in ("", *row.reason.split(", ")):
            row.reason = f"{row.reason}, {decision.reason}" if row.reason else decision.reason
        if decision.run:
            return Visit(site, slot, probe, decision, None)
        if number + 1 in state.foretold:
            # Tensors of inference mode have no version by which a write of the model between its blocks could be seen.
            with torch.inference_mode(False), torch.no_grad():
                result = self._predict(plan, slot, streams)
            main = result[0]
            state.handed_out = (
                None if main is None or main.is_inference() else HandedOut(number, main, main._version)
            )
        else:
            result = self._predict(plan, slot, streams)
        slot.gate.observe(step, probe, decision)
        return Visit(site, slot, probe, decision, result)

    def _ahead(self, state: StackState, plan: StackPlan, number: int, probe: Probe) -> Iterator[Ahead]:
        """What ``Probe.ahead`` gives for span ``number``."""
        state.foretold.clear()
        slots, step, spans = self._session.slots, self._step, plan.spans
        slot = slots.get(SlotKey(self._name, plan.first_span + number, step.branch, state.passes))
        while slot is not None and slot.signature == signature(probe.streams):
            number += 1
            if number == len(spans) or spans[number].start != spans[number - 1].stop:
                return
            following = slots.get(SlotKey(self._name, plan.first_span + number, step.branch, state.passes))
            if following is None or following.follows is False:
                return
            result = self._predict(plan, slot, probe.streams)
            probe = Probe(probe.entry, result, probe.block, probe.args, probe.kwargs)
            slot = following
            yield Ahead(slot.gate, probe, partial(state.foretold.__setitem__, number))

    def _decide(self, slot: Slot, probe: Probe, streams: Streams) -> Decision:
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

    def _predict(self, plan: StackPlan, slot: Slot, streams: Streams) -> Streams:
        result: list[Tensor | None] = []
        if slot.exit_shape is not None and plan.alternate is not None:
            main = streams[0]
            streams = (None if main is None else plan.alternate(main, slot.exit_shape), *streams[1:])
        for stream, kind, predictor, dtype in zip(
            streams, slot.kinds, slot.predictors, slot.dtypes, strict=True
        ):
            if stream is None or kind is ABSENT:
                result.append(None)
            elif kind is SAME or predictor is None:
                result.append(stream)
            elif predictor.of == "output":
                # A copy: the predictor may keep what it gave, and the model may write into what it gets.
                result.append(predictor.predict(self._step).clone())
            else:
                result.append((stream + predictor.predict(self._step)).to(dtype))
        return tuple(result)

    def _leave(self, visit: Visit, site: Site, out: Any) -> None:
        slot, probe, step = visit.slot, visit.probe, self._step
        visit.left = True
        before, after = probe.streams, site.streams_from(out, probe.streams)
        probe.exit, entered = after, before
        if not self._card_writes:
            self._refuse_writes(visit, site, before)
        alternate = site.plan.alternate
        turned = alternate is not None and visit.entered.layout != site.layout
        if alternate is not None and turned:
            before = fitted(alternate, before, after)
        if not step.last and visit.decision.store:
            found = signature(entered)
            slot.exit_shape = after[0].shape if turned and after[0] is not None else None
            if found != slot.signature:
                slot.signature = found
                slot.predictors = tuple(slot.predictor(stream) for stream in site.plan.streams)
            slot.called = visit.called
            slot.dtypes = tuple(None if stream is None else stream.dtype for stream in after)
            slot.kinds = tuple(
                self._observe(slot, site, number, before[number], after[number])
                for number in range(len(before))
            )
        slot.gate.observe(step, probe, visit.decision)

    def _observe(
        self, slot: Slot, site: Site, number: int, before: Tensor | None, after: Tensor | None
    ) -> str:
        if after is None:
            return ABSENT
        if before is None:
            raise CardError(
                f"{site.label}: the stream {site.plan.streams[number].name!r} is None where it enters the span, and a "
                "tensor where it leaves it, so that nothing can be added to it. The card names the wrong streams."
            )
        if after is before:
            return SAME
        if after.shape != before.shape:
            raise CardError(
                f"{site.label}: the stream {site.plan.streams[number].name!r} enters the span as "
                f"{tuple(before.shape)} and "
                f"leaves it as {tuple(after.shape)}, so that nothing can be added to it. The card names the "
                "wrong streams, "
                f"gives them in the wrong order, or joins lists that are not one stack."
            )
        predictor = slot.predictors[number]
        if predictor is not None:
            # A copy of the output: the model may write into the tensor that its block returned.
            predictor.observe(self._step, after.clone() if predictor.of == "output" else after - before)
        return SUM

    def _refuse_writes(self, visit: Visit, site: Site, before: Streams) -> None:
        if visit.copies:
            pairs = zip(before, visit.copies, strict=True)
            wrote = any(now is not None and then is not None and not _same(now, then) for now, then in pairs)
            visit.entered.writes_known = True
        else:
            wrote = visit.versions != versions(before) if visit.versions else False
        if wrote:
            raise CardError(
                f"{site.label}: the blocks write into the tensors they are given, so that what they add cannot be "
                "seen. Set `writes_in_place=True` in the card of this model."
            )


def _same(one: Tensor, other: Tensor) -> bool:
    return bool(((one == other) | (one != one)).all())  # NaN is not written, it was there
