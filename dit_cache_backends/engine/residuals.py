"""What a span that ran added to its streams is stored; what a skipped one hands out is made of it."""

from torch import Tensor

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.plan import Site, StackPlan
from dit_cache_backends.engine.sessions import Slot, signature
from dit_cache_backends.engine.spans import Streams
from dit_cache_backends.engine.visit import Visit, fitted, versions
from dit_cache_backends.errors import CardError

ABSENT, SAME, SUM = "absent", "same", "sum"
"""What a span does to a stream: returns None for it, hands on the very tensor, or adds to it."""


def predicted(slot: Slot, plan: StackPlan, step: Step, streams: Streams) -> Streams:
    """What a span hands out if it is skipped at ``step`` with ``streams`` coming in."""
    if slot.exit_shape is not None and plan.alternate is not None:
        main = streams[0]
        streams = (None if main is None else plan.alternate(main, slot.exit_shape), *streams[1:])
    result: list[Tensor | None] = []
    for stream, kind, predictor, dtype in zip(streams, slot.kinds, slot.predictors, slot.dtypes, strict=True):
        if stream is None or kind is ABSENT:
            result.append(None)
        elif kind is SAME or predictor is None:
            result.append(stream)
        elif predictor.of == "output":
            # A copy: the predictor may keep what it gave, and the model may write into what it gets.
            result.append(predictor.predict(step).clone())
        else:
            value = stream + predictor.predict(step)
            result.append(value if value.dtype is dtype else value.to(dtype))
    return tuple(result)


def store(visit: Visit, site: Site, step: Step, after: Streams) -> None:
    """Show the predictors what the span added, or its output; ``site`` is that of its last block."""
    slot, before, alternate = visit.slot, visit.streams, site.plan.alternate
    found = signature(before)
    slot.exit_shape = None
    if alternate is not None and visit.entered.layout != site.layout:
        before = fitted(alternate, before, after)
        slot.exit_shape = None if after[0] is None else after[0].shape
    if found != slot.signature:
        slot.signature = found
        slot.predictors = tuple([slot.predictor(stream) for stream in site.plan.streams])
    slot.called = visit.called
    slot.dtypes = tuple([None if stream is None else stream.dtype for stream in after])
    slot.kinds = tuple(
        [
            _observe(slot, site, step, number, *pair)
            for number, pair in enumerate(zip(before, after, strict=True))
        ]
    )


def _observe(
    slot: Slot, site: Site, step: Step, number: int, before: Tensor | None, after: Tensor | None
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
            f"{site.label}: the stream {site.plan.streams[number].name!r} enters the span as {tuple(before.shape)} "
            f"and leaves it as {tuple(after.shape)}, so that nothing can be added to it. The card names the wrong "
            "streams, gives them in the wrong order, or joins lists that are not one stack."
        )
    predictor = slot.predictors[number]
    if predictor is not None:
        # A copy of the output: the model may write into the tensor that its block returned.
        predictor.observe(step, after.clone() if predictor.of == "output" else after - before)
    return SUM


def refuse_writes(visit: Visit, site: Site) -> None:
    """See whether the blocks wrote into the streams that came in, after which nothing can be said of what they added.

    Raises:
        CardError: if they did.
    """
    before = visit.streams
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
