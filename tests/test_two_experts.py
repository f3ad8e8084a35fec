"""A pipeline with two experts (Wan 2.2): each counts its own steps, a mask of the whole run is shared out."""

from __future__ import annotations

from dit_cache_backends import enable_cache
from dit_cache_conformance.tiny import build

STEPS = 28


def test_an_explicit_mask_as_long_as_the_run_means_the_steps_of_the_run() -> None:
    tiny = build("wan22")
    mask = [1 if step % 3 == 0 else 0 for step in range(STEPS)]
    with enable_cache(
        tiny.pipe, "cache_dit", steps_computation_mask=mask, steps_computation_policy="static"
    ) as backend:
        tiny.run(num_inference_steps=STEPS)
        summary = backend.summary()
    second = [row.step for row in summary.rows if row.transformer == "transformer_2"]
    assert 0 < second[0] < STEPS
    cached = summary.cached_steps("transformer", "cond") + summary.cached_steps("transformer_2", "cond")
    # The second expert has nothing to skip with at its first step.
    assert cached == [step for step in range(STEPS) if not mask[step] and step != second[0]]
    assert not [event for event in summary.events if event.kind == "mask_length"]


def test_a_policy_mask_is_made_for_the_steps_of_each_expert() -> None:
    tiny = build("wan22")
    with enable_cache(
        tiny.pipe, "cache_dit", scm_steps_mask_policy="medium", scm_steps_policy="static"
    ) as backend:
        tiny.run(num_inference_steps=STEPS)
        summary = backend.summary()
    for name in ("transformer", "transformer_2"):
        steps = [row.step for row in summary.rows if row.transformer == name and row.branch == "cond"]
        cached = summary.cached_steps(name, "cond")
        assert cached
        # A preset always computes its first and its last step.
        assert steps[0] not in cached
        assert steps[-1] not in cached
