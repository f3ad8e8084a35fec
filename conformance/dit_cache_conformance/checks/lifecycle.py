"""Enable, refresh, run, break off, disable: in any order, and nothing is remembered or left behind."""

from __future__ import annotations

import copy
from contextlib import suppress

import torch
from torch import nn

from dit_cache_backends import AlreadyEnabledError, CacheBackend
from dit_cache_backends.errors import DitCacheError
from dit_cache_conformance.check import check, expect, expect_same
from dit_cache_conformance.runs import alone, course, fresh, plain
from dit_cache_conformance.stage import ANY, BARE, PIPELINES, STEPS, Bare, Stage, inputs
from dit_cache_conformance.state import differences, newborn, state_of
from dit_cache_conformance.subject import Subject
from dit_cache_conformance.tiny import TINY, TINY_TRANSFORMERS


@check("lifecycle", on=PIPELINES)
def a_new_generation_remembers_nothing(subject: Subject, model: str) -> None:
    """A run after another one gives the bits, and skips the blocks, that it does on a fresh pipeline.

    If this fails, something outlives its generation: a stored residual, a reference to compare with, a counter.
    """
    expected = fresh(subject, model, seed=1)
    for number in (2, 4):
        found = course(subject, model).run(number)
        expect(found.decisions == expected.decisions, "after another run, other blocks were skipped")
        expect_same(found.latents, expected.latents, "a run after another one")


@check("lifecycle", on=PIPELINES)
def a_run_after_an_exception_is_fresh(subject: Subject, model: str) -> None:
    """After an exception inside the transformer, the next run is as on a fresh pipeline.

    If this fails, state is put right only when a forward ends as planned; clean up in ``finally``, or throw the
    generation away.
    """
    stage, backend = Stage(model), subject.eagerly()
    expected = fresh(subject, model, seed=1).latents
    backend.enable(stage.pipe)
    for after in (0, 1, 5):
        stage.broken_off(after, ZeroDivisionError, inside=True)
        expect_same(stage.run(seed=1).latents, expected, f"after an exception in call {after}")


@check("lifecycle", on=PIPELINES)
def a_run_after_a_cancelled_one_is_fresh(subject: Subject, model: str) -> None:
    """After a run that was cancelled between two steps, the next run is as on a fresh pipeline.

    If this fails, a run is believed to be over only when its last step has come; notice where the next one begins.
    """
    stage, backend = Stage(model), subject.eagerly()
    expected = fresh(subject, model, seed=1).latents
    backend.enable(stage.pipe)
    for after in (0, 2, 6):
        stage.broken_off(after, KeyboardInterrupt, inside=False)
        expect_same(stage.run(seed=1).latents, expected, f"after a run that was cancelled in step {after}")


@check("lifecycle", on=PIPELINES)
def disable_restores_the_model(subject: Subject, model: str) -> None:
    """After disable every module has its class and its dictionary back, and so has every class; the model runs plain.

    If this fails, undo what enable did, in the opposite order: attributes, hooks, replaced methods, changed classes.
    """
    stage, backend = Stage(model), subject.eagerly()
    stage.run()  # diffusers leaves attributes of its own on what has run
    before = {name: state_of(each) for name, each in stage.transformers.items()}
    attributes = set(vars(stage.pipe)), set(vars(stage.pipe.scheduler)), set(vars(type(stage.pipe)))
    backend.enable(stage.pipe)
    stage.run()
    backend.disable(stage.pipe)
    for name, each in stage.transformers.items():
        changed = differences(before[name], state_of(each))
        expect(not changed, f"{len(changed)} things are not as before in {name}, among them {changed[:3]}")
    expect_same(stage.run().latents, plain(model).latents, "a run after disable")
    after = set(vars(stage.pipe)), set(vars(stage.pipe.scheduler)), set(vars(type(stage.pipe)))
    left = [name for one, two in zip(attributes, after, strict=True) for name in one ^ two]
    expect(not left, f"the pipeline or its scheduler has other attributes: {left}")


@check("lifecycle", on=PIPELINES)
def disable_after_a_cancelled_run_restores_the_model(subject: Subject, model: str) -> None:
    """Disable leaves the model as it was also where a run was cancelled or failed before.

    If this fails, disable relies on what only the end of a run puts right.
    """
    stage, backend = Stage(model), subject.eagerly()
    stage.broken_off(0, ZeroDivisionError, inside=True)
    stage.run()
    before = {name: state_of(each) for name, each in stage.transformers.items()}
    backend.enable(stage.pipe)
    stage.broken_off(3, ZeroDivisionError, inside=True)
    stage.broken_off(2, KeyboardInterrupt, inside=False)
    backend.disable(stage.pipe)
    for name, each in stage.transformers.items():
        changed = differences(before[name], state_of(each))
        expect(not changed, f"{len(changed)} things are not as before in {name}, among them {changed[:3]}")
    expect_same(stage.run().latents, plain(model).latents, "a run after disable")


@check("lifecycle", on=PIPELINES)
def disabling_twice_is_harmless(subject: Subject, model: str) -> None:
    """Disable does nothing where nothing is enabled, with a pipeline and without one.

    If this fails, disable takes for granted that enable came before.
    """
    stage, backend = Stage(model), subject.eagerly()
    before = {name: state_of(each) for name, each in stage.transformers.items()}
    backend.disable(stage.pipe)
    backend.enable(stage.pipe)
    for _ in range(2):
        backend.disable(stage.pipe)
        backend.disable()
    expect(not backend.is_enabled(), "is_enabled() after disable")
    for name, each in stage.transformers.items():
        expect(not differences(before[name], state_of(each)), f"{name} is not as before")


@check("lifecycle", on=PIPELINES)
def enabling_twice_is_refused(subject: Subject, model: str) -> None:
    """A second cache on one model is an AlreadyEnabledError, and the first one goes on as if nothing had been.

    If this fails, two caches skip in one model, and the result is neither's.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    expected = stage.run().latents
    for second in (backend, subject.eagerly()):
        expect(_refused(second, stage.pipe), "enabling a second time on the same pipeline was not refused")
    expect_same(stage.run().latents, expected, "a run after the refused second enable")
    expect(backend.is_enabled(), "the first backend is not enabled any more")


def _refused(backend: CacheBackend, pipeline: object) -> bool:
    try:
        backend.enable(pipeline)
    except AlreadyEnabledError:
        return True
    return False


@check("lifecycle", on=PIPELINES)
def enabling_again_begins_anew(subject: Subject, model: str) -> None:
    """Enabled again after disable, a backend works as it did the first time.

    If this fails, disable leaves state in the backend, or enable works only once.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    first = stage.run()
    backend.disable(stage.pipe)
    expect_same(stage.run().latents, plain(model).latents, "a run while it was disabled")
    backend.enable(stage.pipe)
    again = stage.run()
    expect(again.decisions == first.decisions, "enabled again, it skips other blocks than the first time")
    expect_same(again.latents, first.latents, "a run after it was enabled again")


@check("lifecycle", on=PIPELINES)
def is_enabled_says_so(subject: Subject, model: str) -> None:
    """``is_enabled`` follows enable and disable, and a ``with`` block disables at its end, after an exception too.

    If this fails, ``is_enabled`` asks the configuration instead of what is attached, or ``__exit__`` was overridden.
    """
    stage, backend = Stage(model), subject.eagerly()
    stage.broken_off(0, ZeroDivisionError, inside=True)
    before = {name: state_of(each) for name, each in stage.transformers.items()}
    expect(not backend.is_enabled(), "is_enabled() before enable")
    with suppress(ZeroDivisionError), backend:
        backend.enable(stage.pipe)
        expect(backend.is_enabled(), "not is_enabled() after enable")
        stage.broken_off(0, ZeroDivisionError, inside=True)
        _ = 1 / 0
    expect(not backend.is_enabled(), "is_enabled() after the `with` block")
    for name, each in stage.transformers.items():
        expect(not differences(before[name], state_of(each)), f"{name} is not as before the `with` block")


@check("lifecycle", on=PIPELINES)
def refresh_is_called_as_vllm_omni_does(subject: Subject, model: str) -> None:
    """``refresh(pipeline, steps)``, two positional arguments before every run, is accepted, and hits are had.

    If this fails, keep to ``refresh(self, pipeline, num_inference_steps, verbose=True)``: that is what hosts call.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    expected = fresh(subject, model, seed=1)
    for seed in (0, 1):
        backend.refresh(stage.pipe, STEPS)
        found = stage.run(seed=seed)
    backend.refresh(stage.pipe, STEPS, False)
    expect(found.blocks < plain(model).blocks, "nothing was skipped")
    expect_same(found.latents, expected.latents, "a run with refresh, compared with one without")


@check("lifecycle", on=PIPELINES)
def refresh_need_not_be_called(subject: Subject, model: str) -> None:
    """On a pipeline whose scheduler shows where a run begins, hits are had without any refresh, in every run.

    If this fails, read the step from the pipeline's scheduler: a host that knows no caches calls no refresh.
    """
    for number in range(5):
        blocks = course(subject, model).run(number).blocks
        expect(blocks < plain(model).blocks, f"nothing was skipped in run {number}")


@check("lifecycle", on=BARE, needs=["bare_transformers"])
def refresh_begins_anew(subject: Subject, model: str) -> None:
    """Refresh in the middle of a run forgets it, with the number of steps to come and without (0).

    If this fails, refresh skips the forgetting where the number of steps is unknown or the same as before.
    """
    run, other = inputs(model, seed=1), inputs(model, seed=2)
    expected = alone(subject, model, seed=1)
    for steps in (STEPS, 0):
        bare, backend = Bare(model), subject.eagerly()
        backend.enable(bare.model)
        backend.refresh(bare.model, steps)
        for arguments in other[:3]:
            bare.call(arguments)
        for step, found in enumerate(bare.run({"cond": run}, backend)["cond"]):
            expect_same(found, expected[step], f"step {step} after refresh")


@check("lifecycle", on=PIPELINES)
def no_tensor_outlives_its_run(subject: Subject, model: str) -> None:
    """When the last step of a run has passed, no tensor is alive that was made in it for the cache's sake.

    If this fails, drop what is kept when the last step has passed, and let go of a run's tensors with its state; a
    closure or an exception's trace keeps them as well.
    """
    stage = Stage(model)
    stage.run()
    with newborn() as alive:
        stage.run()
        without = alive()
        backend = subject.eagerly()
        backend.enable(stage.pipe)
        for number in range(2):
            stage.run()
            expect(alive() <= without, f"{alive() - without} tensors are left after run {number}")
        backend.disable(stage.pipe)
        expect(alive() <= without, f"{alive() - without} tensors are left after disable")


@check("lifecycle", on=PIPELINES)
def a_cancelled_run_is_let_go_of(subject: Subject, model: str) -> None:
    """What a cancelled run left goes with the next run, and with disable.

    If this fails, state is freed by the last step alone, which a cancelled run never sees.
    """
    stage = Stage(model)
    stage.run()
    with newborn() as alive:
        stage.broken_off(4, KeyboardInterrupt, inside=False)
        stage.run()
        without = alive()
        backend = subject.eagerly()
        backend.enable(stage.pipe)
        stage.broken_off(4, KeyboardInterrupt, inside=False)
        stage.run()
        expect(alive() <= without, f"{alive() - without} tensors are left after the run that followed")
        stage.broken_off(4, KeyboardInterrupt, inside=False)
        backend.disable(stage.pipe)
        stage.run()
        expect(alive() <= without, f"{alive() - without} tensors are left after disable")


@check("lifecycle", on=PIPELINES)
def weights_that_change_between_runs_are_used(subject: Subject, model: str) -> None:
    """A run after the weights changed (a LoRA was loaded) is as on a pipeline that always had them.

    If this fails, an output of the old weights is reused; nothing of a run may be kept for the next.
    """
    found = []
    for ran_before in (False, True):
        stage, backend = Stage(model), subject.eagerly()
        backend.enable(stage.pipe)
        if ran_before:
            stage.run()
        for transformer in stage.transformers.values():
            for parameter in transformer.parameters():
                parameter.data.mul_(1.01)
        found.append(stage.run().latents)
    expect_same(found[1], found[0], "a run after the weights changed")


@check("lifecycle", on=PIPELINES)
def a_copied_pipeline_is_plain(subject: Subject, model: str) -> None:
    """A deep copy of an enabled pipeline runs as without a cache, and the original goes on caching.

    If this fails, the copy shares state with the original: keep what belongs to an instance out of its dictionary.
    """
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    cached = stage.run()
    other = Stage(model)
    for name, transformer in stage.transformers.items():
        setattr(other.pipe, name, copy.deepcopy(transformer))
    expect(torch.equal(other.run().latents, plain(model).latents), "the copy does not run as the plain model")
    again = stage.run()
    expect_same(again.latents, cached.latents, "the original, after its copy ran")
    expect(again.decisions == cached.decisions, "the original skips other blocks after its copy ran")


@check("lifecycle", on=ANY, refused=True)
def a_refused_model_is_left_alone(subject: Subject, model: str) -> None:
    """Where a backend declares to refuse a model, enable raises an error that names its class, and changes nothing.

    If this fails, the model is not refused (take it out of ``refuses``), or only when something was done to it already:
    refuse in ``prepare``, which is called before anything is enabled, by a ``ConfigError`` that names the class.
    """
    targets: list[tuple[object, dict[str, nn.Module]]] = []
    if model in TINY:
        stage = Stage(model)
        targets.append((stage.pipe, stage.transformers))
    if model in TINY_TRANSFORMERS and subject.capabilities.bare_transformers:
        bare = Bare(model).model
        targets.append((bare, {"the model": bare}))
    for target, transformers in targets:
        before = {name: state_of(each) for name, each in transformers.items()}
        backend = subject.eagerly()
        classes = {type(each).__name__ for each in transformers.values()}
        try:
            backend.enable(target)
        except DitCacheError as error:
            expect(any(each in str(error) for each in classes), f"the error does not name {classes}: {error}")
        else:
            expect(False, f"a {type(target).__name__} was enabled, which it declares to refuse")
        expect(not backend.is_enabled(), f"is_enabled() after a {type(target).__name__} was refused")
        for name, each in transformers.items():
            changed = differences(before[name], state_of(each))
            expect(
                not changed, f"{len(changed)} things are not as before in {name}, among them {changed[:3]}"
            )
