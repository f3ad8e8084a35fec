"""Other shapes, dtypes, batches and lengths: from one run to the next, and within one."""

from __future__ import annotations

import torch

from dit_cache_backends import SpanBackend, StorageOptions
from dit_cache_conformance.check import NotForThisBackend, check, distance, expect, expect_same
from dit_cache_conformance.runs import alone, bare_alone, fresh, plain
from dit_cache_conformance.stage import BARE, PIPELINES, SIZES, STILL, Bare, Stage, inputs
from dit_cache_conformance.subject import Subject

_SIZED = ("flux", "qwen_image", "sd3", "wan22", "cogvideox", "hunyuan_video")
"""Those that are asked for a height and a width, and a control image of none."""
_HALVES = (torch.bfloat16, torch.float16)
_ROUNDED = 0.02
"""How far a still input may be off where what is kept has 8 bits, relative to the largest number, after a whole run."""
_STREAM = 32
"""Numbers: what is kept and larger than that is a stream's, not a number for each sample."""


@check("shapes", on=_SIZED)
def after_another_resolution(subject: Subject, model: str) -> None:
    """A run after one of another resolution is as on a fresh pipeline.

    If this fails, something kept has the shape of the run before; throw it away when a run begins.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    stage.run(**SIZES)
    expect_same(stage.run(seed=1).latents, fresh(subject, model, seed=1).latents, "after another resolution")
    expect_same(stage.run(**SIZES).latents, fresh(subject, model, **SIZES).latents, "and back at the other")


@check("shapes", on=PIPELINES)
def after_another_batch_size(subject: Subject, model: str) -> None:
    """A run after one of another batch size is as on a fresh pipeline.

    If this fails, something kept has the shape of the run before; throw it away when a run begins.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    stage.run(batch=2)
    expect_same(stage.run(seed=1).latents, fresh(subject, model, seed=1).latents, "after a batch of two")
    expect_same(
        stage.run(batch=2).latents, fresh(subject, model, batch=2).latents, "a batch of two after one"
    )


@check("shapes", on=PIPELINES)
def after_another_number_of_steps(subject: Subject, model: str) -> None:
    """A run after a shorter and a longer one is as on a fresh pipeline.

    If this fails, steps are counted on from the run before, or a number of steps from then is still believed.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    expected = fresh(subject, model, seed=1).latents
    for steps in (3, 10):
        stage.run(steps=steps)
        expect_same(stage.run(seed=1).latents, expected, f"after a run of {steps} steps")


@check("shapes", on=PIPELINES)
def after_another_dtype(subject: Subject, model: str) -> None:
    """A run after the pipeline was cast to another dtype is as on a pipeline that always had it.

    If this fails, something kept has the dtype of the run before; throw it away when a run begins.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    stage.run(seed=1)
    stage.pipe.to(dtype=torch.bfloat16)
    expected = fresh(subject, model, dtype=torch.bfloat16).latents
    expect_same(stage.run().latents, expected, "after a run in float32")


@check("shapes", on=PIPELINES)
def half_precision_is_kept(subject: Subject, model: str) -> None:
    """In bfloat16 and float16 the outputs have the model's dtype, and never skipping changes no bit there either.

    If this fails, a sum or a stored value is of another dtype: add and hand out in the dtype of the stream.
    """
    for dtype in _HALVES:
        for never in (True, False):
            found = fresh(subject, model, never=never, dtype=dtype)
            seen = {output.dtype for output in found.outputs}
            expect(seen == {dtype}, f"the model is in {dtype} and gave {seen}")
            expect(
                torch.isfinite(found.latents.float()).all(), f"the latents of a run in {dtype} are not finite"
            )
            if never:
                expect_same(found.latents, plain(model, dtype=dtype).latents, f"never skipping in {dtype}")


@check("shapes", on=PIPELINES)
def what_is_kept_has_the_dtype_asked_for(subject: Subject, model: str) -> None:
    """With ``cache_dtype`` all that is kept between steps has that dtype, and nothing that comes out has it for that.

    If this fails, a gate keeps a tensor in an attribute as it came: keep ``place.storage.keep(tensor)``, and compare by
    ``place.storage.pair(kept, now)``. Predictors need nothing.
    """
    if not (issubclass(subject.cls, SpanBackend) and issubclass(subject.cls.Config, StorageOptions)):
        raise NotForThisBackend("its options have no cache_dtype")
    never = subject.make(**{**subject.never, "cache_dtype": "bfloat16"})
    eager = subject.eagerly(cache_dtype="bfloat16")
    held: set[torch.dtype] = set()

    def look(*_: object) -> None:
        if isinstance(eager, SpanBackend):
            kept = [tensor for tensor in eager.held_tensors() if tensor.numel() > _STREAM]
            held.update(tensor.dtype for tensor in kept if tensor.is_floating_point())

    stage = Stage(model)
    never.enable(stage.pipe)
    expect_same(stage.run().latents, plain(model).latents, "never skipping, with cache_dtype")
    never.disable()
    for transformer in stage.transformers.values():
        transformer.register_forward_hook(look)
    eager.enable(stage.pipe)
    with stage.frozen(), stage.outputs() as outputs:
        found = stage.run().latents
    expect(held == {torch.bfloat16}, f"what is kept between steps is in {held or 'nothing'}")
    seen = {output.dtype for output in outputs}
    expect(seen == {torch.float32}, f"the model is in {torch.float32} and gave {seen}")
    off = distance(found, plain(model, frozen=True).latents)
    expect(
        off <= _ROUNDED,
        f"latents {off:.2g} off although every step saw the same input ({_ROUNDED:g} allowed)",
    )


@check("shapes", on=PIPELINES)
def a_run_of_one_step_runs_in_full(subject: Subject, model: str) -> None:
    """A run of a single step, as few-step models make it, is as without a cache, and the run after it as usual.

    If this fails, the first step is taken for a later one, or a run so short divides by zero somewhere.
    """
    if model == "wan22":
        model = "wan"  # with one step the second expert would have none
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    expect_same(stage.run(steps=1).latents, plain(model, steps=1).latents, "a run of one step")
    expect_same(stage.run(seed=1).latents, fresh(subject, model, seed=1).latents, "the run after it")


@check("shapes", on=BARE, needs=["bare_transformers"])
def a_shape_that_changes_within_a_run_is_computed(subject: Subject, model: str) -> None:
    """Where the batch changes in the middle of a run, the step at which it does is computed in full.

    If this fails, compare the shape (and dtype and device) of what is kept with what comes in before using it.
    """
    bare, backend = Bare(model), subject.eagerly()
    backend.enable(bare.model)
    run, wider = inputs(model), inputs(model, batch=2)
    mixed = [wider[step] if step >= 3 else run[step] for step in range(len(run))]
    found = bare.run({"cond": mixed}, backend)["cond"]
    expect_same(found[3], Bare(model).call(mixed[3]), "the step at which the batch grew")
    expect(all(one.shape[0] == 2 for one in found[3:]), "a later step has the batch size of before")


@check("shapes", on=BARE, needs=["bare_transformers"])
def a_batch_of_equals_is_as_each_alone(subject: Subject, model: str) -> None:
    """Samples that are alike are decided as one of them alone would be, whatever rule a batch is decided by.

    If this fails, a difference grows with the size of the batch: divide by as much as is summed.
    """
    run, doubled = inputs(model), inputs(model, batch=2)
    for one, two in zip(run, doubled, strict=True):
        two.update({key: _twice(value, two[key]) for key, value in one.items()})
    together = bare_alone(model, subject.eagerly, doubled)
    for step, (single, pair) in enumerate(zip(alone(subject, model), together, strict=True)):
        off = max(distance(sample[None], single) for sample in pair)
        expect(
            off <= 10 * STILL, f"step {step}: a sample in a batch of two equals is {off:.2g} off itself alone"
        )


@check("shapes", on=BARE, needs=["bare_transformers", "decides_per_sample"])
def each_sample_of_a_batch_is_decided_alone(subject: Subject, model: str) -> None:
    """A backend that decides per sample gives each sample of a batch what it gives it alone.

    If this fails, one sample's difference decides for another; decide each by its own, or declare
    ``batch_decision="shared"``.
    """
    for drift in (1.0, 6.0, 30.0):
        runs = [inputs(model, seed=seed) for seed in (0, 1)]
        start = runs[1][0]["hidden_states"]
        for arguments in runs[1]:
            arguments["hidden_states"] = start + drift * (arguments["hidden_states"] - start)
        both = inputs(model, batch=2)
        for first, second, two in zip(*runs, both, strict=True):
            two.update({key: _twice(first[key], two[key], second[key]) for key in first})
        together = bare_alone(model, subject.eagerly, both)
        for number, run in enumerate(runs):
            for step, by_itself in enumerate(bare_alone(model, subject.eagerly, run)):
                off = distance(together[step][number : number + 1], by_itself)
                expect(
                    off <= 10 * STILL,
                    f"sample {number} is {off:.2g} off itself alone at step {step}, beside one that moves "
                    f"{drift:g} times as fast",
                )


def _twice(one: object, two: object, other: object = None) -> object:
    """What makes a batch of two out of one sample's argument and another's, where there is a batch to it."""
    other = one if other is None else other
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor) and isinstance(other, torch.Tensor):
        return torch.cat([one, other]) if two.shape != one.shape else one
    if isinstance(one, list) and isinstance(two, list) and isinstance(other, list) and len(one) == len(two):
        return [_twice(a, b, c) for a, b, c in zip(one, two, other, strict=True)]
    return two
