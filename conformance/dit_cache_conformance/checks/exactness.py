"""What comes out is right: bit for bit where nothing is skipped, and as exact as can be where something is."""

from __future__ import annotations

import torch

from dit_cache_conformance.check import check, distance, expect, expect_same
from dit_cache_conformance.runs import course, plain
from dit_cache_conformance.stage import BARE, PIPELINES, STEPS, STILL, Bare, Stage, inputs
from dit_cache_conformance.subject import Subject


@check("exactness", on=PIPELINES)
def never_skipping_changes_no_bit(subject: Subject, model: str) -> None:
    """A configuration that never skips gives the bits that the model gives without a cache.

    If this fails, look at what is done to the tensors on the way although nothing is skipped: adding a residual to the
    entry again is not the same bits as handing on what the blocks gave.
    """
    for number, seed in enumerate(course(subject, model, never=True).seeds):
        found = course(subject, model, never=True).run(number)
        expect_same(
            found.latents, plain(model, seed=seed).latents, f"the latents of run {number} that never skips"
        )


@check("exactness", on=PIPELINES)
def a_still_input_is_reproduced(subject: Subject, model: str) -> None:
    """Where every step sees the same input, a skipped step gives what a computed one gives.

    If this fails, what stands in for the skipped blocks is not what they add: kept at the wrong place, of the wrong
    stream, handed out in the wrong order, or added twice.
    """
    stage, backend = Stage(model), subject.eagerly()
    expected = plain(model, frozen=True).latents
    backend.enable(stage.pipe)
    with stage.frozen():
        found = stage.run().latents
    off = distance(found, expected)
    expect(off <= STILL, f"latents {off:.2g} off although every step saw the same input (allowed: {STILL:g})")


@check("exactness", on=("flux_controlled", "chroma"), needs=["bare_transformers"])
def what_a_model_adds_between_its_blocks_survives(subject: Subject, model: str) -> None:
    """What a model adds between two blocks (ControlNet's residuals, into a returned tensor even) is there once.

    If this fails, the sum of a skipped span is made at its first block, or the residual is taken from somewhere within
    it: make it at the entry, and hand it out at the exit of the span; copy what the model may write into.
    """
    bare, backend = Bare(model), subject.eagerly()
    run = inputs(model)
    expected = bare.call(run[0])
    first = {key: _copied(value) for key, value in run[0].items()}
    backend.enable(bare.model)
    bare.model.register_forward_pre_hook(lambda *_: ((), dict(first)), with_kwargs=True)
    for step, found in enumerate(bare.run({"cond": run}, backend)["cond"]):
        off = distance(found, expected)
        expect(
            off <= STILL, f"step {step} is {off:.2g} off although its input stood still (allowed: {STILL:g})"
        )


@check("exactness", on=BARE, needs=["bare_transformers"])
def a_host_may_write_into_what_it_is_given(subject: Subject, model: str) -> None:
    """A host may overwrite a model's output, and its own inputs once the call is over, without harm to later steps.

    If this fails, a tensor is kept by reference that belongs to the model or to the host; keep a copy.
    """
    outputs = []
    for overwritten in (False, True):
        bare, backend = Bare(model), subject.eagerly()
        backend.enable(bare.model)
        backend.refresh(bare.model, STEPS)
        found = []
        for arguments in inputs(model):
            sample = bare.call(arguments)
            found.append(sample.clone())
            if overwritten:
                sample.fill_(7.0)
                arguments["hidden_states"].fill_(7.0)
        outputs.append(found)
    for step, (left, written) in enumerate(zip(*outputs, strict=True)):
        expect_same(written, left, f"step {step}, after the host wrote into earlier tensors")


@check("exactness", on=BARE, needs=["bare_transformers"])
def the_inputs_of_a_model_are_not_written_into(subject: Subject, model: str) -> None:
    """The tensors that a host calls the model with are the same after the call.

    If this fails, a residual is added in place to a tensor that came from outside; add into a new one.
    """
    bare, backend = Bare(model), subject.eagerly()
    run = inputs(model)
    copies = [{key: _copied(value) for key, value in arguments.items()} for arguments in run]
    backend.enable(bare.model)
    bare.run({"cond": run}, backend)
    for step, (arguments, before) in enumerate(zip(run, copies, strict=True)):
        for key, value in arguments.items():
            for now, then in zip(_tensors(value), _tensors(before[key]), strict=True):
                expect_same(now, then, f"the argument {key} after step {step}")


@check("exactness", on=PIPELINES)
def the_same_run_twice_gives_the_same_bits(subject: Subject, model: str) -> None:
    """Two runs of one pipeline with the same seed skip the same blocks and give the same bits.

    If this fails, something of the first run decides in the second, or decisions hang on chance or on time.
    """
    first, second = (course(subject, model).run(number) for number in (0, 1))
    expect(first.decisions == second.decisions, "the second run skipped other blocks than the first")
    expect_same(second.latents, first.latents, "the second run")


@check("exactness", on=PIPELINES)
def no_random_number_is_drawn(subject: Subject, model: str) -> None:
    """The random states of torch and of Python are what they were: a host's later noise does not change.

    If this fails, draw from a generator of your own.
    """
    for never in (False, True):
        runs = course(subject, model, never)
        runs.run(len(runs.seeds) - 1)
        expect(not runs.drew, f"the random state of {runs.drew} has moved")


def _tensors(value: object) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    return [each for item in value for each in _tensors(item)] if isinstance(value, (list, tuple)) else []


def _copied(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return [_copied(each) for each in value] if isinstance(value, list) else value
