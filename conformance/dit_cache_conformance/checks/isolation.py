"""Branches, pipelines, threads, requests and ranks: each as if it were alone."""

from __future__ import annotations

import threading
from typing import Any

import torch

from dit_cache_backends import CacheBackend
from dit_cache_conformance.check import NotForThisBackend, check, expect, expect_same
from dit_cache_conformance.ranks import Decisions, decisions
from dit_cache_conformance.runs import alone, fresh, once, plain
from dit_cache_conformance.stage import BARE, PIPELINES, Bare, Ran, Stage, inputs
from dit_cache_conformance.subject import Subject


@check("isolation", on=BARE, needs=["bare_transformers"])
def branches_do_not_mix(subject: Subject, model: str) -> None:
    """Two guidance branches, called in turns, each give what they give alone.

    If this fails, keep a state for each branch; its name is in ``Step.branch``, or it is the number of the call within
    the step. The parity of a counter is no name.
    """
    _branches(subject, model, ("cond", "uncond"))


@check("isolation", on=BARE, needs=["bare_transformers"])
def three_branches_do_not_mix(subject: Subject, model: str) -> None:
    """Three guidance branches (with a perturbed one, or two conditions) each give what they give alone.

    If this fails, branches are told apart by the parity of a counter, or there is room for two of them only.
    """
    _branches(subject, model, ("cond", "uncond", "perturbed"))


def _branches(subject: Subject, model: str, names: tuple[str, ...]) -> None:
    runs = {name: inputs(model, seed=seed) for seed, name in enumerate(names)}
    bare, backend = Bare(model), subject.eagerly()
    backend.enable(bare.model)
    together = bare.run(runs, backend)
    for seed, name in enumerate(names):
        expected_of = alone(subject, model, seed, branch=name)
        for step, (found, expected) in enumerate(zip(together[name], expected_of, strict=True)):
            expect_same(found, expected, f"branch {name} at step {step}, beside {len(names) - 1} others")


@check("isolation", on=("qwen_image", "wan"))
def a_branch_that_stops_leaves_the_other_going(subject: Subject, model: str) -> None:
    """Where guidance ends in the middle of a run, the other branch goes on skipping, and is not taken for it.

    If this fails, branches are told apart by counting calls, which are now half as many in a step.
    """
    off: dict[str, Any] = {"guidance_scale": 1.0} if model == "wan" else {"true_cfg_scale": 1.0}
    expected = fresh(subject, model, **off)
    expect(expected.blocks < plain(model, **off).blocks, "nothing was skipped in a run without guidance")
    stage, backend = Stage(model), subject.eagerly()
    backend.enable(stage.pipe)
    stage.run()
    expect_same(stage.run(**off).latents, expected.latents, "a run without guidance after one with it")


@check("isolation", on=BARE, needs=["bare_transformers"])
def two_models_do_not_mix(subject: Subject, model: str) -> None:
    """Two models of one class with a backend each, called in turns, give what each gives alone.

    If this fails, state is kept on the class of the model or of the backend, or by a name that both share.
    """
    runs = [inputs(model, seed=seed) for seed in (0, 1)]
    stages = []
    for _ in runs:
        bare, backend = Bare(model), subject.eagerly()
        backend.enable(bare.model)
        backend.refresh(bare.model, len(runs[0]))
        stages.append(bare)
    found: list[list[torch.Tensor]] = [[], []]
    for step in range(len(runs[0])):
        for number, bare in enumerate(stages):
            found[number].append(bare.call(runs[number][step]))
    for number in range(len(runs)):
        for step, expected in enumerate(alone(subject, model, number)):
            expect_same(found[number][step], expected, f"model {number} at step {step}")


@check("isolation", on=PIPELINES)
def two_pipelines_do_not_mix(subject: Subject, model: str) -> None:
    """Two enabled pipelines, and one that is not, run one after the other as if each were alone.

    If this fails, enable changes more than the model it is given: the class, a global, the library.
    """
    stages = [Stage(model) for _ in range(3)]
    for stage in stages[:2]:
        subject.eagerly().enable(stage.pipe)
    for seed in (0, 1):
        for number, stage in enumerate(stages[:2]):
            expected = fresh(subject, model, seed=seed).latents
            expect_same(stage.run(seed=seed).latents, expected, f"pipeline {number} of two")
    expect_same(stages[2].run().latents, plain(model).latents, "a pipeline that was not enabled")


@check("isolation", on=PIPELINES)
def threads_do_not_mix(subject: Subject, model: str) -> None:
    """Two pipelines that run at the same time in two threads give what each gives alone.

    If this fails, something global is set during a forward; keep it in the instance, or in ``threading.local``.
    """
    expected = [fresh(subject, model, seed=seed).latents for seed in (0, 1)]
    stages = [Stage(model) for _ in expected]
    found: dict[int, list[Ran | BaseException]] = {0: [], 1: []}
    both = threading.Barrier(2)
    for stage in stages:
        subject.eagerly().enable(stage.pipe)

    def work(number: int) -> None:
        with torch.no_grad():
            both.wait()
            for _ in range(2):
                found[number].append(_caught(stages[number], number))

    threads = [threading.Thread(target=work, args=(number,)) for number in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, runs in found.items():
        for ran in runs:
            if isinstance(ran, BaseException):
                expect(False, f"in a thread beside another, {type(ran).__name__} was raised: {ran}")
            else:
                expect_same(ran.latents, expected[number], f"pipeline {number}, in a thread beside another")


def _caught(stage: Stage, seed: int) -> Ran | BaseException:
    try:
        return stage.run(seed=seed)
    except BaseException as error:
        return error


@check("isolation", on=BARE, needs=["bare_transformers", "interleaved_requests"])
def interleaved_requests_do_not_mix(subject: Subject, model: str) -> None:
    """Requests of different lengths that take turns on one model, step by step, each give what they give alone.

    If this fails, state belongs to the model instead of the request: keep it by the key that ``session`` was given. A
    backend that cannot declares ``interleaved_requests=False``.
    """
    runs = {
        key: inputs(model, seed=seed, steps=steps)
        for seed, (key, steps) in enumerate({"a": 6, "b": 8, "c": 7}.items())
    }
    expected_of = {key: alone(subject, model, seed, len(run)) for seed, (key, run) in enumerate(runs.items())}
    bare = Bare(model)
    backend: Any = subject.eagerly()
    backend.enable(bare.model)
    found: dict[str, list[torch.Tensor]] = {key: [] for key in runs}
    for key, run in runs.items():
        with backend.session(key):
            backend.refresh(bare.model, len(run))
    for key in "abcbacabccbabcabacbcc":
        if len(found[key]) < len(runs[key]):
            with backend.session(key):
                found[key].append(bare.call(runs[key][len(found[key])]))
    for key, run in runs.items():
        while len(found[key]) < len(run):
            with backend.session(key):
                found[key].append(bare.call(run[len(found[key])]))
        for step, (one, expected) in enumerate(zip(found[key], expected_of[key], strict=True)):
            expect_same(one, expected, f"request {key} at step {step}")


@check("isolation", on=BARE, needs=["bare_transformers", "interleaved_requests"])
def an_ended_request_is_forgotten(subject: Subject, model: str) -> None:
    """A request that was cancelled (``end_session``) leaves nothing: its key can be used again, others go on.

    If this fails, ``end_session`` does not drop the state of that key, or drops that of another one.
    """
    run, other = inputs(model), inputs(model, seed=1)
    bare = Bare(model)
    backend: Any = subject.eagerly()
    backend.enable(bare.model)
    found = []
    with backend.session("kept"):
        backend.refresh(bare.model, len(run))
    for step, arguments in enumerate(run):
        with backend.session("kept"):
            found.append(bare.call(arguments))
        if step < 4:
            with backend.session("cancelled"):
                bare.call(other[step])
    backend.end_session("cancelled")
    with backend.session("cancelled"):
        again = bare.run({"cond": run}, backend)["cond"]
    for step, expected in enumerate(alone(subject, model)):
        expect_same(found[step], expected, f"step {step} of the request that went on")
        expect_same(again[step], expected, f"step {step} of a new request under the cancelled one's key")


@check("isolation", on=PIPELINES)
def each_expert_and_branch_skips(subject: Subject, model: str) -> None:
    """Both experts of a pipeline skip, in their own steps: the second starts as fresh as the first.

    If this fails, a transformer is taken to make all steps of the run; count its own.
    """
    ran = fresh(subject, model)
    for name in {call.transformer for call in plain(model).calls}:
        calls = [len(call.blocks) for call in ran.calls if call.transformer == name]
        full = max(len(call.blocks) for call in plain(model).calls if call.transformer == name)
        expect(calls[0] == full, f"{name}: its first call ran {calls[0]} of {full} blocks")
        expect(min(calls) < full or len(calls) < len(plain(model).calls) // 2, f"{name}: nothing was skipped")


@check("isolation", needs=["bare_transformers"])
def ranks_take_one_decision(subject: Subject) -> None:
    """Two processes that see different shards of one request skip the same blocks at the same steps, if told to agree.

    If this fails, a decision is taken by what one rank sees: add up what is compared over the groups that
    ``agree_over`` was given before comparing it. Ranks that decide differently wait for each other forever.
    """
    for first, second in zip(*_of_ranks(subject).ranks, strict=True):
        expect(first == second, f"rank 0 ran {first} blocks step by step, rank 1 {second}")


@check("isolation", needs=["bare_transformers", "rank_agreement"])
def ranks_decide_as_one_process_would(subject: Subject) -> None:
    """What two ranks with a shard each decide is what one process with the whole request decides.

    If this fails, ranks agree on something else than the measure of the whole: add up both sums of a ratio over the
    ranks (``relative_difference`` does, ``summed_over_ranks`` does for others), or do not declare ``rank_agreement``.
    """
    if subject.capabilities.decides_per_sample:
        raise NotForThisBackend("it decides per sample, and the shards are samples")
    found = _of_ranks(subject)
    for ranks, whole in zip(found.ranks[0], found.whole, strict=True):
        expect(
            ranks == whole, f"rank 0 of two ran {ranks} blocks step by step, one process with it all {whole}"
        )


def _of_ranks(subject: Subject) -> Decisions:
    if subject.cls.agree_over is CacheBackend.agree_over:
        raise NotForThisBackend("it refuses to agree with other ranks: it has no agree_over")
    return once(subject, ("ranks",), lambda: decisions(subject))
