"""When blocks run and when they do not, as the suite's own counters saw it."""

from __future__ import annotations

import torch

from dit_cache_conformance.check import check, expect, expect_same
from dit_cache_conformance.counting import counted
from dit_cache_conformance.runs import alone, bare_alone, course, fresh, plain
from dit_cache_conformance.stage import BARE, PIPELINES, Bare, calls_per_step, inputs
from dit_cache_conformance.subject import Subject


@check("decisions", on=PIPELINES)
def an_eager_configuration_skips(subject: Subject, model: str) -> None:
    """With the eager configuration fewer blocks run than without a cache, counted by the suite and not by the backend.

    If this fails, the cache silently does nothing: the wrong module was wrapped, a comparison with NaN is never true,
    the run is believed to be shorter than the warm-up, or the eager configuration is not eager.
    """
    found = fresh(subject, model).blocks
    expect(found < plain(model).blocks, f"all of {plain(model).blocks} blocks ran")


@check("decisions", on=PIPELINES)
def a_never_skipping_configuration_runs_every_block(subject: Subject, model: str) -> None:
    """With the never skipping configuration every block of every call runs, in order and once.

    If this fails, the option that should switch the skipping off is not heeded in every place where something is
    skipped, or a block is called twice.
    """
    found = course(subject, model, never=True).run(0)
    expect(found.blocks == plain(model).blocks, f"{found.blocks} of {plain(model).blocks} blocks ran")
    expect(found.decisions == plain(model).decisions, "the blocks ran in another order or in other calls")


@check("decisions", on=PIPELINES)
def the_first_step_runs(subject: Subject, model: str) -> None:
    """In the first step every block runs, on every branch, and of each expert: there is nothing to skip with.

    If this fails, a buffer that was never filled is handed out (zeros, or the run before); run where nothing is stored.
    """
    for number, seed in ((0, 0), (1, 0), (2, 1)):
        found, full = course(subject, model).run(number).calls, plain(model, seed=seed).calls
        first = {call.transformer: call for call in reversed(full)}
        for name, call in first.items():
            mine = [each for each in found if each.transformer == name][: calls_per_step(model)]
            expect(
                mine and all(each.blocks == call.blocks for each in mine),
                f"{name}: {[len(each.blocks) for each in mine]} of {len(call.blocks)} blocks ran at its first step",
            )


@check("decisions", on=PIPELINES)
def the_first_step_is_the_model_s_own(subject: Subject, model: str) -> None:
    """The output of the first step has the bits that it has without a cache, with an eager configuration too.

    If this fails, the tensors are changed while they are stored: normalised in place, cast, or scaled.
    """
    for number, expected in enumerate(plain(model).outputs[: calls_per_step(model)]):
        for run in (0, 1):
            found = course(subject, model).run(run).outputs[number]
            expect_same(found, expected, f"the output of the first step of run {run}, call {number}")


@check("decisions", on=BARE, needs=["bare_transformers"])
def an_input_that_leaps_is_not_followed_blindly(subject: Subject, model: str) -> None:
    """A skipped step still follows its own input: two runs that part at a step give different outputs there.

    If this fails, a whole output is handed out whatever came in. A strategy that means to do so lists this check among
    its expected failures.
    """
    run, other = inputs(model), inputs(model, seed=5)
    parted = [*run[:2], *other[2:]]
    found, different = alone(subject, model), bare_alone(model, subject.eagerly, parted)
    for step in range(2, len(run)):
        expect(
            not torch.equal(found[step], different[step]),
            f"step {step} is the same although another input came in",
        )


@check("decisions", on=BARE, needs=["bare_transformers"])
def numbers_that_are_none_are_not_kept(subject: Subject, model: str) -> None:
    """A step with NaN in its input spoils neither the generations that follow nor the count of hits.

    If this fails, a difference that is NaN is compared with a threshold, which is never true, and stays in a sum
    that is carried on; or the NaN is stored and handed out in the next run.
    """
    run, spoilt = inputs(model), inputs(model)
    spoilt[3]["hidden_states"].fill_(float("nan"))
    expected = alone(subject, model)
    bare, backend = Bare(model), subject.eagerly()
    backend.enable(bare.model)
    bare.run({"cond": spoilt}, backend)
    with counted({"transformer": bare.model}) as counter:
        found = bare.run({"cond": run}, backend)["cond"]
    full = len(counter.calls[0].blocks)
    expect(counter.blocks < full * len(run), "nothing was skipped in the run after one with NaN in it")
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        expect_same(one, other, f"step {step} of the run after one with NaN in it")


@check("decisions", on=BARE, needs=["bare_transformers"])
def a_nan_is_never_silent(subject: Subject, model: str) -> None:
    """Where NaN comes in, it comes out, or the summary has an event: it is never hidden behind a stored value.

    If this fails, a step whose input is not finite is skipped, and looks as if all were well.
    """
    bare, backend = Bare(model), subject.eagerly()
    backend.enable(bare.model)
    run = inputs(model)
    for step in (3, 4):
        run[step]["hidden_states"].fill_(float("nan"))
    found = bare.run({"cond": run}, backend)["cond"]
    for step in (3, 4):
        expect(
            not torch.isfinite(found[step]).all() or backend.summary().events,
            f"step {step} had NaN for an input, a finite output, and no event in the summary",
        )
