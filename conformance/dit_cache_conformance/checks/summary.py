"""What a backend tells of a run is what happened in it."""

from __future__ import annotations

import json

from dit_cache_conformance.check import check, expect
from dit_cache_conformance.runs import course, plain
from dit_cache_conformance.stage import PIPELINES, STEPS, Stage
from dit_cache_conformance.subject import Subject


@check("summary", on=PIPELINES)
def the_hits_reported_are_those_had(subject: Subject, model: str) -> None:
    """The blocks that the summary counts as run and as skipped are those that the suite's counters saw.

    If this fails, hits are counted where they are decided and not where they happen, or one of two experts, branches
    or stacks is missing.
    """
    for never in (False, True):
        runs = course(subject, model, never)
        for number, seed in enumerate(runs.seeds):
            ran, summary = runs.run(number).blocks, runs.summary(number)
            told = summary.blocks_run, summary.blocks_skipped
            seen = ran, plain(model, seed=seed).blocks - ran
            expect(told == seen, f"the summary says {told} blocks were run and skipped, the counters {seen}")


@check("summary", on=PIPELINES)
def each_step_is_accounted_for(subject: Subject, model: str) -> None:
    """The summary has the steps of the last run, each once for a branch and a stack, and its skipped blocks add up.

    If this fails, rows of an earlier run are left in it, or a step is missing or counted twice.
    """
    runs = course(subject, model)
    steps = runs.summary(2).steps
    for place, found in steps.items():
        expect(found == sorted(set(found)), f"{place}: the steps {found}")
    seen = {step for found in steps.values() for step in found}
    expect(seen == set(range(STEPS)), f"the steps of the run are {sorted(seen)}, expected 0 to {STEPS - 1}")
    called = {call.transformer for call in runs.run(2).calls}
    expect({place[0] for place in steps} == called, f"transformers: {steps.keys()}")


@check("summary", on=PIPELINES)
def a_run_in_which_nothing_was_skipped_says_so(subject: Subject, model: str) -> None:
    """A run in which no block was skipped has an event that says so; a run with hits has none of that kind.

    If this fails, a cache that does nothing looks like one that works: add an event at the end of the run.
    """
    kinds = [course(subject, model, never).summary(0).events for never in (True, False)]
    expect(kinds[0] - kinds[1], f"events of a run without a hit: {set(kinds[0])}; with hits: {set(kinds[1])}")


@check("summary", on=PIPELINES)
def a_summary_can_be_read(subject: Subject, model: str) -> None:
    """A summary is text for a person and JSON for a program, before the first run, after one, and after disable.

    If this fails, the summary takes a run for granted, or holds a value that JSON has not (NaN, a tensor).
    """
    stage, backend = Stage(model), subject.eagerly()
    expect(str(backend.summary()), "the summary before enable is empty text")
    backend.enable(stage.pipe)
    expect(str(backend.summary()), "the summary before the first run is empty text")
    expect(backend.summary().blocks_run == 0, "blocks were run before the first run")
    stage.run()
    text = json.dumps(backend.summary().to_dict(), allow_nan=False)
    expect(len(str(backend.summary()).splitlines()) > 1, "the summary of a run is a single line")
    backend.disable(stage.pipe)
    after = json.dumps(backend.summary().to_dict(), allow_nan=False)
    expect(after == text, "after disable the summary of the last run is another one, or gone")
