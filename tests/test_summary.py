"""The summary of a run: rows, cached steps, differences, events; as data and as a table."""

from __future__ import annotations

import json
import math
from collections import Counter
from typing import Any

import pytest

from dit_cache_backends import Row, Summary, enable_cache
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .engine.counting import executed
from .engine.runs import PIPELINES, kinds
from .engine.strategies import LAYOUTS, always, never, planned
from .engine.toys import ONE, Toy, adds, image

pytestmark = pytest.mark.usefixtures("as_in_a_run")


@pytest.mark.parametrize("name", PIPELINES)
def test_blocks_run_and_skipped_add_up_and_are_what_is_counted_from_outside(name: str) -> None:
    tiny = build(name)
    backend: Any = enable_cache(
        tiny.pipe, "cache_dit", residual_diff_threshold=0.5, max_warmup_steps=1, Bn_compute_blocks=1
    )
    with executed(*tiny.transformers.values()) as ran:
        tiny.run(6)
    summary = backend.summary()
    depths = tiny.spec.stacks
    rows = {(row.transformer, row.branch, row.step, row.stack) for row in summary.rows}
    assert len(rows) == len(summary.rows)
    assert all(row.blocks_run + row.blocks_skipped == depths[row.stack] for row in summary.rows)
    assert len(summary.rows) == 6 * len(tiny.spec.branches) * len(depths)
    assert summary.blocks_run == len(ran) == sum(row.blocks_run for row in summary.rows)
    assert summary.blocks_skipped == sum(row.blocks_skipped for row in summary.rows) > 0
    assert all(row.total == 6 for row in summary.rows)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_is_counted_right(layout: str) -> None:
    tiny = build("hunyuan_video")
    backend = planned("101", layout)
    backend.enable(tiny.pipe)
    with executed(tiny.pipe.transformer) as ran:
        tiny.run(4)
    summary = backend.summary()
    assert summary.blocks_run == len(ran)
    assert summary.blocks_run + summary.blocks_skipped == 4 * 8
    # What is named as skipped is what did not run, stack by stack.
    seen = Counter((path, number) for path, number in ran.take())
    named = Counter((row.stack, number) for row in summary.rows for number in row.skipped)
    assert set(named) | set(seen) == {
        (path, n) for path, depth in tiny.spec.stacks.items() for n in range(depth)
    }
    assert all(seen[block] + named[block] == 4 for block in seen | named)
    assert summary.cached_steps() == [1]


def test_cached_steps_and_differences_are_asked_for_by_transformer_branch_and_stack() -> None:
    tiny = build("wan22")
    backend: Any = enable_cache(
        tiny.pipe, "cache_dit", residual_diff_threshold=0.9, max_warmup_steps=1, max_continuous_cached_steps=1
    )
    tiny.run(9)
    summary = backend.summary()
    high = int((tiny.pipe.scheduler.timesteps >= 600).sum())
    names = [
        (name, branch, "blocks") for name in ("transformer", "transformer_2") for branch in ("cond", "uncond")
    ]
    assert summary.series() == names
    for name, branch, stack in names:
        steps = [row.step for row in summary.rows if (row.transformer, row.branch) == (name, branch)]
        assert steps == (list(range(high)) if name == "transformer" else list(range(high, 9)))
        found = summary.cached_steps(name, branch, stack)
        assert found == [step for step in steps if (step - steps[0]) % 2]
        differences = summary.diffs(name, branch)
        assert set(found) <= set(differences)
        assert all(0 < value < 0.9 for step, value in differences.items() if step in found)
    assert summary.cached_steps() == summary.cached_steps("transformer", "cond")
    assert summary.cached_steps("transformer_2") == summary.cached_steps("transformer_2", "cond", "blocks")
    assert summary.cached_steps("nothing of that name") == []
    assert summary.diffs(branch="nor of that") == {}


def test_a_run_in_which_nothing_was_skipped_says_so_when_it_has_ended() -> None:
    tiny = build("sd3")
    backend: Any = enable_cache(tiny.pipe, "cache_dit", max_warmup_steps=8)
    during = []

    def look(*_: Any) -> dict[str, Any]:
        during.append(kinds(backend))
        return {}

    tiny.run(4, callback_on_step_end=look)
    assert during[:3] == [{}, {}, {}]
    assert kinds(backend) == {"nothing_skipped": 1}
    assert "warm-up 4x" in backend.summary().events[0].detail
    tiny.run(12)
    assert kinds(backend) == {}
    backend.disable()
    dense = never()
    dense.enable(tiny.pipe)
    tiny.run(3)
    assert kinds(dense) == {"nothing_skipped": 1}


def test_it_is_plain_data_for_json() -> None:
    tiny = build("qwen_image")
    backend: Any = enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.9, max_warmup_steps=2)
    tiny.run(5)
    found = json.loads(json.dumps(backend.summary().to_dict(), allow_nan=False))
    summary = backend.summary()
    assert (found["blocks_run"], found["blocks_skipped"]) == (summary.blocks_run, summary.blocks_skipped)
    assert [Row(**row) for row in found["rows"]] == summary.rows
    assert found["events"] == []


def test_differences_that_are_no_numbers_are_still_valid_json() -> None:
    """JSON knows no NaN: a strict reader refuses what Python writes for it."""
    model = Toy(*[adds] * 4)
    backend: Any = enable_cache(model, "cache_dit", card=ONE, residual_diff_threshold=0.9, max_warmup_steps=1)
    for step in range(3):
        with backend.step(step, 4):
            model(image() * (float("nan") if step == 1 else 1.0))
    assert any(math.isnan(value) for row in backend.summary().rows for value in row.differences)
    text = json.dumps(backend.summary().to_dict(), allow_nan=False)
    assert json.loads(text)["events"][0]["kind"] == "non_finite_difference"


def test_its_text_is_a_table_with_a_line_for_every_series_and_event() -> None:
    tiny = build("wan22")
    backend: Any = enable_cache(
        tiny.pipe,
        "cache_dit",
        residual_diff_threshold=0.9,
        max_warmup_steps=1,
        scm_steps_mask_policy="fast",
    )
    tiny.run(8)
    summary = backend.summary()
    lines = str(summary).splitlines()
    total = summary.blocks_run + summary.blocks_skipped
    assert lines[0].startswith(f"{summary.blocks_run} of {total} blocks run")
    assert [word for word in ("transformer", "branch", "stack", "steps", "cached", "P50") if word in lines[1]]
    table = lines[2:6]
    for line, (name, branch, stack) in zip(table, summary.series(), strict=True):
        cells = line.split()
        assert cells[:3] == [name, branch, stack]
        assert int(cells[4]) == len(summary.cached_steps(name, branch, stack))
    for name, branch, stack in summary.series():
        steps = ", ".join(map(str, summary.cached_steps(name, branch, stack))) or "none"
        assert f"cached steps of {name}, branch {branch}, {stack}: {steps}" in lines
    for event in summary.events:
        assert f"{event.kind} ({event.count}x): {event.detail}" in lines
    assert len({len(line) - len(line.lstrip()) for line in lines}) == 1


def test_percentiles_are_of_the_finite_differences_that_were_compared() -> None:
    summary = Summary()
    for step, value in enumerate([0.1, 0.2, 0.3, 0.4, -1.0, float("inf")]):
        summary.rows.append(Row("t", "0", "blocks", step, 6, 4, 0, [value]))
    head, line = (text.split() for text in str(summary).splitlines()[1:3])
    numbers = dict(zip(head[-6:], map(float, line[-6:]), strict=True))
    assert numbers == {"P00": 0.1, "P25": 0.175, "P50": 0.25, "P75": 0.325, "P95": 0.385, "max": 0.4}


def test_before_any_call_it_is_empty_and_readable() -> None:
    tiny = build("sd3")
    backend = always()
    assert backend.summary().rows == []
    backend.enable(tiny.pipe)
    assert (backend.summary().blocks_run, backend.summary().cached_steps(), backend.summary().diffs()) == (
        0,
        [],
        {},
    )
    assert str(backend.summary()) == "No transformer call has been seen yet."
    assert json.dumps(backend.summary().to_dict())


def test_it_can_be_read_after_disabling_and_is_of_the_last_run_only() -> None:
    tiny = build("sd3")
    backend = planned("10")
    backend.enable(tiny.pipe)
    tiny.run(4)
    first = backend.summary()
    tiny.run(6)
    assert len(first.rows) == 4
    assert len(backend.summary().rows) == 6
    backend.disable()
    assert len(backend.summary().rows) == 6
    backend.enable(tiny.pipe)
    tiny.run(3)
    assert len(backend.summary().rows) == 3


def test_a_summary_that_was_taken_within_a_run_does_not_lose_what_it_has() -> None:
    model = build_transformer("sd3")
    backend = planned("10")
    backend.enable(model)
    with backend.step(0, 9):
        model(**transformer_inputs("sd3"))
    taken = backend.summary()
    rows = list(taken.rows)
    backend.refresh(model, 9)
    assert taken.rows == rows
    assert backend.summary().rows in ([], rows)
