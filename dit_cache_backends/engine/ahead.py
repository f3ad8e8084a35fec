"""Looking ahead: what spans hand out, and what their gates measure, if all spans before them are skipped."""

from collections.abc import Iterator

import torch

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.foretold import Foretold
from dit_cache_backends.engine.gates import Ahead, Probe
from dit_cache_backends.engine.plan import StackPlan
from dit_cache_backends.engine.residuals import predicted
from dit_cache_backends.engine.sessions import Session, Slot, signature
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.engine.visit import StackState


def look_ahead(
    session: Session, name: str, step: Step, state: StackState, plan: StackPlan, number: int, probe: Probe
) -> Iterator[Ahead]:
    """What ``Probe.ahead`` gives at the entry of span ``number`` of the transformer ``name``."""
    horizon = state.horizon
    horizon.forget()
    spans, first, branch, passes = plan.spans, plan.first_span, step.branch, state.passes
    slot = session.slot(name, first + number, branch, passes)
    make = with_versions if torch.is_inference_mode_enabled() else predicted
    while slot is not None and slot.signature == signature(probe.streams):
        number += 1
        if number == len(spans) or spans[number].start != spans[number - 1].stop:
            return
        following = session.slot(name, first + number, branch, passes)
        if following is None or following.follows is False:
            return
        result = make(slot, plan, step, probe.streams)
        horizon.keep(number - 1, result)
        probe = Probe(probe.entry, result, probe.block, probe.args, probe.kwargs)
        slot = following
        foretold = horizon.foretold[number] = Foretold(slot, probe)
        yield Ahead(slot.gate, probe, foretold.tell)


def with_versions(slot: Slot, plan: StackPlan, step: Step, streams: Streams) -> Streams:
    """What a skipped span hands out, in tensors that tell whether the model has written into them since."""
    if not torch.is_inference_mode_enabled():
        return predicted(slot, plan, step, streams)
    with torch.inference_mode(False), torch.no_grad():
        return predicted(slot, plan, step, streams)
