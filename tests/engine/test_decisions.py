"""One decision for a batch, what is not a number, and a host's own gate that sees what it should."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import (
    ConfigError,
    Decision,
    Gate,
    Place,
    Probe,
    Span,
    SpanBackend,
    Step,
    enable_cache,
    relative_difference,
)
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

from .counting import executed
from .runs import kinds, output, run_told
from .strategies import PlanConfig, always
from .toys import ONE, Toy, adds, image


def moved(*by: float) -> Tensor:
    """A batch in which each sample has moved by its own amount."""
    return image(len(by)) + torch.tensor(by).view(-1, 1, 1) * image(len(by), seed=5)


def batch_run(decision: str | None, *by: float, threshold: float = 0.2) -> tuple[list[int], dict[int, float]]:
    model = Toy(*[adds] * 4)
    options: dict[str, Any] = {} if decision is None else {"batch_decision": decision}
    backend: Any = enable_cache(
        model, "cache_dit", card=ONE, residual_diff_threshold=threshold, max_warmup_steps=1, **options
    )
    ran = []
    for step, amount in enumerate([0.0, 1.0]):
        with backend.step(step, 9), executed(model) as blocks:
            model(moved(*[amount * each for each in by]))
        ran.append(len(blocks))
    backend.disable()
    return ran, backend.summary().diffs()


def test_a_batch_is_decided_by_its_mean_or_by_its_most_moved_sample() -> None:
    still, far = (0.0, 0.0, 0.0), 0.6
    for decision in (None, "mean", "all"):
        assert batch_run(decision, *still, 0.0)[0] == [4, 1]
    mean, by_mean = batch_run("mean", *still, far)
    every, by_all = batch_run("all", *still, far)
    assert mean == batch_run(None, *still, far)[0] == [4, 1]
    assert every == [4, 4]
    assert by_mean[1] < 0.2 < by_all[1]
    # The most moved sample decides as it would by itself.
    assert by_all[1] == pytest.approx(alone(4, 3, far), rel=1e-5)


def alone(batch: int, sample: int, by: float) -> float:
    model = Toy(adds)
    before, after = image(batch)[sample : sample + 1], moved(*[by] * batch)[sample : sample + 1]
    return float(relative_difference(model.blocks[0](before) - before, model.blocks[0](after) - after))


def test_where_every_sample_agrees_both_rules_agree() -> None:
    for by, expected in ((0.01, [4, 1]), (3.0, [4, 4])):
        assert batch_run("mean", by, by)[0] == batch_run("all", by, by)[0] == expected


def test_a_sample_that_first_adds_nothing_runs_the_batch_under_all() -> None:
    """Its reference is all zero, so its difference is 0/0."""
    assert relative_difference(torch.zeros(1, 2), torch.zeros(1, 2)).isnan()
    per_sample = relative_difference(
        torch.tensor([[1.0, 1.0], [0.0, 0.0]]), torch.ones(2, 2), per_sample=True
    )
    assert per_sample.tolist() == [0.0, float("inf")]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("decision", ["mean", "all"])
def test_a_difference_that_is_no_number_runs_the_blocks_and_is_counted(decision: str, bad: float) -> None:
    model = Toy(*[adds] * 4)
    backend: Any = enable_cache(
        model,
        "cache_dit",
        card=ONE,
        residual_diff_threshold=0.9,
        max_warmup_steps=1,
        batch_decision=decision,
    )
    ran = []
    for step in range(6):
        picture = image() + 0.01 * step
        if step == 2:
            picture[1, 2, 3] = bad
        with backend.step(step, 9), executed(model) as blocks:
            out = model(picture)[0]
        ran.append(len(blocks))
        assert bool(out.isfinite().all()) == (step != 2)
    # What was stored of the bad step is no use either: the step after it runs, and then all is well.
    assert ran == [4, 1, 4, 4, 1, 1]
    assert kinds(backend) == {"non_finite_difference": 2}
    assert [row.step for row in backend.summary().rows if row.reason == "non-finite difference"] == [2, 3]


def test_a_bad_number_in_a_pipeline_is_counted_and_the_next_run_is_sound() -> None:
    tiny = build("flux")
    backend: Any = enable_cache(tiny.pipe, "cache_dit", residual_diff_threshold=0.9, max_warmup_steps=1)
    expected = tiny.run(5)

    def spoil(pipe: Any, step: int, time: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        return {"latents": kwargs["latents"] * float("nan")} if step == 1 else {}

    tiny.run(5, callback_on_step_end=spoil)
    assert kinds(backend)["non_finite_difference"] == 3
    assert backend.summary().cached_steps() == [1]
    assert torch.equal(tiny.run(5), expected)
    assert kinds(backend) == {}


class Curious(SpanBackend):
    """Notes what it is shown, and skips every second time."""

    name = "curious"
    Config = PlanConfig
    seen: list[tuple[Any, ...]]

    def layout(self, depth: int) -> Sequence[Span]:
        return [Span(1, 3), Span(4, 5)]

    def gate(self, place: Place) -> Gate:
        backend = self

        class Watching(Gate):
            def should_run(self, step: Step, probe: Probe) -> Decision:
                assert probe.exit is None
                return Decision(step.index % 2 == 0, "turn", 0.5)

            def observe(self, step: Step, probe: Probe, decision: Decision) -> None:
                change = probe.change.abs().sum().item()
                backend.seen.append(
                    (
                        step.index,
                        step.total,
                        step.branch,
                        place.span,
                        decision.run,
                        probe.exit is not None,
                        change > 0,
                    )
                )

        return Watching()


def test_a_gate_is_told_once_a_step_and_span_and_sees_the_exit_where_the_span_ran() -> None:
    model = build_transformer("sd3")
    backend = Curious()
    backend.seen = []
    backend.enable(model)
    run_told(backend, model, [transformer_inputs("sd3")] * 3, "cond")
    assert backend.seen == [
        (step, 3, "cond", span, step % 2 == 0, step % 2 == 0, True)
        for step in range(3)
        for span in (Span(1, 3), Span(4, 5))
    ]
    assert [row.differences for row in backend.summary().rows] == [[0.5, 0.5]] * 3


@pytest.mark.parametrize(
    "spans", [[Span(0, 8)], [Span(2, 2)], [Span(3, 1)], [Span(0, 3), Span(2, 5)], [Span(-1, 2)]]
)
def test_spans_that_overlap_are_empty_or_leave_the_stack_are_refused(spans: list[Span]) -> None:
    class Wrong(Curious):
        def layout(self, depth: int) -> Sequence[Span]:
            return spans

    model = build_transformer("sd3")
    cls = type(model)
    with pytest.raises(ConfigError, match=r"transformer_blocks.*of 7 blocks"):
        Wrong().enable(model)
    assert type(model) is cls


def test_spans_in_any_order_and_none_at_all_are_fine() -> None:
    class Unordered(Curious):
        def layout(self, depth: int) -> Sequence[Span]:
            return [Span(4, 6), Span(1, 2)]

    class Nothing(Curious):
        def layout(self, depth: int) -> Sequence[Span]:
            return []

    model = build_transformer("sd3")
    arguments = transformer_inputs("sd3")
    plain = output(model, arguments)
    for cls, skipped in ((Unordered, 3), (Nothing, 0)):
        backend = cls()
        backend.seen = []
        backend.enable(model)
        run_told(backend, model, [arguments] * 2)
        with backend.step(0, 9):
            assert torch.equal(output(model, arguments), plain)
        backend.disable()
        assert [row.blocks_skipped for row in backend.summary().rows] == [0]
        del skipped


def test_a_shared_difference_is_that_of_the_first_branch() -> None:
    tiny = build("qwen_image")
    options: dict[str, Any] = {"residual_diff_threshold": 0.9, "max_warmup_steps": 1}
    found = {}
    for separate in (True, False):
        with enable_cache(tiny.pipe, "cache_dit", cfg_diff_compute_separate=separate, **options) as backend:
            tiny.run(5)
            summary = backend.summary()
            found[separate] = [summary.diffs(branch=branch) for branch in ("cond", "uncond")]
    assert found[False][0] == found[False][1]
    assert found[True][0] != found[True][1]
    assert all(found[False])


def test_a_still_model_is_always_skipped_by_always() -> None:
    backend = always()
    model = Toy(*[adds] * 4)
    backend.enable(model, card=ONE)
    for step in range(3):
        with backend.step(step, 9):
            model(image())
    assert backend.summary().cached_steps() == [1, 2]
