"""The steps that the plan says are computed and no others, whatever the model; and nothing is read on the way."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from dit_cache_step_plan import StepPlan, resampled
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dit_cache_backends import ConfigError, Decision, Gate, Place, Probe, SpanBackend, Step, enable_cache
from dit_cache_conformance.counting import counted
from dit_cache_conformance.tiny import build, build_transformer, transformer_inputs

STEPS = 8
MASK = "11001010"
MODELS = ("flux", "flux_controlled", "qwen_image", "sd3", "wan", "cogvideox", "dit", "chroma")


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with torch.no_grad():
        yield


def run(
    name: str,
    backend: SpanBackend | None,
    steps: int = STEPS,
    told: int | None = STEPS,
    still: bool = False,
    within: AbstractContextManager[object] | None = None,
) -> tuple[list[Tensor], list[int]]:
    """A run of a bare transformer: what comes out, and how many blocks ran at each step, counted from outside."""
    model = build_transformer(name)
    if backend is not None:
        backend.enable(model)
    outputs = []
    with counted({name: model}) as counter, within or nullcontext():
        for index in range(steps):
            arguments = transformer_inputs(name, step=0 if still else index, total=steps)
            if backend is None:
                outputs.append(model(**arguments)[0])
            else:
                with backend.step(index, told, "cond"):
                    outputs.append(model(**arguments)[0])
    if backend is not None:
        backend.disable()
    return outputs, [len(call.blocks) for call in counter.calls]


def zeros(mask: str) -> list[int]:
    return [step for step, digit in enumerate(mask) if digit == "0"]


@pytest.mark.parametrize("name", MODELS)
def test_the_steps_of_the_plan_run_in_full_and_no_others_run_at_all(name: str) -> None:
    _, full = run(name, None)
    _, ran = run(name, StepPlan({"mask": MASK}))
    assert ran == [count if digit == "1" else 0 for count, digit in zip(full, MASK, strict=True)]


@pytest.mark.parametrize("name", MODELS)
def test_a_plan_that_computes_every_step_changes_no_bit(name: str) -> None:
    dense, _ = run(name, None)
    planned, _ = run(name, StepPlan({"mask": "1" * STEPS}))
    assert all(torch.equal(one, other) for one, other in zip(planned, dense, strict=True))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("calibrator", ["none", "taylorseer"])
def test_a_still_input_is_reproduced(name: str, calibrator: str) -> None:
    dense, _ = run(name, None, still=True)
    planned, ran = run(name, StepPlan({"mask": MASK, "calibrator": calibrator}), still=True)
    assert ran.count(0) == MASK.count("0")
    for one, other in zip(planned, dense, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-5 * float(other.abs().max()))


def test_a_skipped_step_adds_what_the_last_computed_one_added() -> None:
    tokens: list[dict[str, Tensor]] = []
    model = build_transformer("dit")

    def entered(*_: Any) -> None:
        tokens.append({})

    model.register_forward_pre_hook(entered)
    model.transformer_blocks[0].norm1.register_forward_pre_hook(
        lambda _, args: tokens[-1].__setitem__("in", args[0])
    )
    for step in range(STEPS):
        model(**transformer_inputs("dit", step=step, total=STEPS))
    entries = [each["in"] for each in tokens]
    seen: list[Tensor] = []
    with enable_cache(model, StepPlan, mask="1" + "0" * (STEPS - 1)) as backend:
        model.proj_out_1.register_forward_pre_hook(lambda *_: None)
        model.norm_out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        for step in range(STEPS):
            with backend.step(step, STEPS, "cond"):
                model(**transformer_inputs("dit", step=step, total=STEPS))
    added = seen[0].double().numpy() - entries[0].double().numpy()
    for step in range(1, STEPS):
        found, expected = seen[step].double().numpy(), entries[step].double().numpy() + added
        assert abs(found - expected).max() < 1e-5 * abs(expected).max()


@pytest.mark.parametrize(("front", "back"), [(1, 0), (2, 3)])
def test_blocks_at_both_ends_can_be_kept_running(front: int, back: int) -> None:
    _, full = run("flux", None)
    backend = StepPlan({"mask": MASK, "Fn_compute_blocks": front, "Bn_compute_blocks": back})
    _, ran = run("flux", backend)
    assert ran == [full[0] if digit == "1" else front + back for digit in MASK]


def write(path: Path, content: object) -> Path:
    import yaml

    path.write_text(json.dumps(content) if path.suffix == ".json" else yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
@pytest.mark.parametrize("content", [MASK, [1, 1, 0, 0, 1, 0, 1, 0], {"mask": MASK, "source": "by hand"}])
def test_a_file_is_the_same_as_its_mask_inline(tmp_path: Path, suffix: str, content: object) -> None:
    path = write(tmp_path / f"plan{suffix}", content)
    _, ran = run("wan", StepPlan({"mask": str(path)}))
    assert ran == run("wan", StepPlan({"mask": MASK}))[1]


@pytest.mark.parametrize("inline", [True, False])
def test_each_branch_can_have_a_mask_of_its_own(tmp_path: Path, inline: bool) -> None:
    other = "10101111"
    options: dict[str, Any] = {"mask": MASK, "branches": {"uncond": other}}
    if not inline:
        options = {"mask": str(write(tmp_path / "plan.json", options))}
    tiny = build("qwen_image")
    with enable_cache(tiny.pipe, StepPlan, **options) as backend:
        tiny.run(num_inference_steps=STEPS)
        assert backend.summary().cached_steps(branch="cond") == zeros(MASK)
        assert backend.summary().cached_steps(branch="uncond") == zeros(other)


def test_a_mask_of_the_whole_run_is_shared_out_to_two_experts_and_one_in_overrides_is_for_its_own() -> None:
    tiny = build("wan22")
    with enable_cache(tiny.pipe, StepPlan, mask=MASK) as backend:
        tiny.run(num_inference_steps=STEPS)
        rows = [row for row in backend.summary().rows if row.branch == "cond"]
        second = next(row.step for row in rows if row.transformer == "transformer_2")
        # The second expert has nothing to skip with at its first step; where the plan says so, the summary tells.
        skipped = [row.step for row in rows if row.blocks_skipped]
        assert skipped == [step for step in zeros(MASK) if step != second]
        events = [event for event in backend.summary().events if event.kind == "plan_not_kept"]
        assert bool(events) == (second in zeros(MASK))
    own = "1" + "0" * (STEPS - second - 1)
    with enable_cache(tiny.pipe, StepPlan, mask=MASK, overrides={"transformer_2": {"mask": own}}) as backend:
        tiny.run(num_inference_steps=STEPS)
        assert backend.summary().cached_steps("transformer_2", "cond") == list(range(second + 1, STEPS))


def test_a_mask_of_another_length_is_refused_unless_it_may_be_resampled() -> None:
    with pytest.raises(ConfigError, match=r"mask has 8 steps, but transformer makes 12 steps.*resample"):
        run("wan", StepPlan({"mask": MASK}), steps=12, told=12)
    _, ran = run("wan", StepPlan({"mask": MASK, "fit": "resample"}), steps=12, told=12)
    assert [int(count > 0) for count in ran] == list(resampled([1, 1, 0, 0, 1, 0, 1, 0], 12))


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 13, 50])
def test_resampling_keeps_both_ends_and_the_share_of_computed_steps(steps: int) -> None:
    mask = [1, 1, 0, 0, 1, 0, 1, 0, 0, 1]
    found = resampled(mask, steps)
    assert len(found) == steps
    assert found[0] == 1
    assert steps == 1 or found[-1] == mask[-1]
    assert abs(sum(found) / steps - 0.5) <= 0.5 * (1 if steps < 3 else 0.25)
    assert resampled(mask, len(mask)) == tuple(mask)


def test_a_run_longer_than_its_mask_is_an_error_where_the_number_of_steps_is_not_known() -> None:
    with pytest.raises(ConfigError, match=r"mask has 8 steps, but this is step 9.*refresh"):
        run("wan", StepPlan({"mask": MASK}), steps=9, told=None)
    backend = StepPlan({"mask": MASK, "fit": "resample"})
    _, ran = run("wan", backend, steps=10, told=None)
    assert [step for step, count in enumerate(ran) if not count] == zeros(MASK)
    assert "steps_unknown" in [event.kind for event in backend.summary().events]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "mask has to be given"),
        ({"mask": "1121"}, "list or a text of 0 and 1"),
        ({"mask": []}, "list or a text of 0 and 1"),
        ({"mask": "0111"}, "first step has nothing"),
        ({"mask": "111", "branches": {"uncond": "12"}}, "branches: uncond"),
        ({"mask": "nowhere.json"}, "cannot be read"),
        ({"mask": "111", "fit": "resampel"}, "resample"),
        ({"mask": "111", "compute": 8}, "compute chooses among the plans of a file"),
        ({"mask": "111", "plan": "plan.yaml"}, "mask and plan say the same"),
        ({"plan": "nowhere.yaml"}, "cannot be read"),
        (
            {"plan": "nowhere.yaml", "calibrator": "taylorseer"},
            "calibrator: the plan brings its own predictor",
        ),
        ({"plan": "nowhere.yaml", "Fn_compute_blocks": 1}, "Fn_compute_blocks: the plan brings its own"),
    ],
)
def test_what_is_no_plan_is_refused_when_the_backend_is_made(options: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        StepPlan(options)


@pytest.mark.parametrize("text", ["{", '{"masks": "11"}', '{"mask": "11", "steps": 2}', "3"])
def test_a_file_that_is_no_plan_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"plan\.json"):
        StepPlan({"mask": str(path)})


def plan_file(path: Path, **changes: Any) -> Path:
    """A file as `dit-cache plan` writes it, with two plans."""
    content = {
        "format": "dit-cache-plan 1",
        "compute": 4,
        "Fn_compute_blocks": 1,
        "plans": [
            {"compute": 4, "mask": MASK, "predictor": {"calibrator": "taylorseer", "taylorseer_order": 2}},
            {"compute": 6, "mask": "11011011", "branches": {"uncond": "10101010"}, "predictor": {}},
        ],
        **changes,
    }
    return write(path, content)


def test_a_plan_from_a_file_brings_its_mask_its_predictor_and_its_blocks(tmp_path: Path) -> None:
    path = plan_file(tmp_path / "plan.yaml")
    found, ran = run("flux", StepPlan({"plan": str(path), "provenance": "ignore"}))
    same = {"mask": MASK, "Fn_compute_blocks": 1, "calibrator": "taylorseer", "taylorseer_order": 2}
    expected, known = run("flux", StepPlan(same))
    assert ran == known
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_another_plan_of_the_file_can_be_asked_for(tmp_path: Path) -> None:
    path = plan_file(tmp_path / "plan.yaml")
    tiny = build("qwen_image")
    options = {"plan": str(path), "compute": 6, "provenance": "ignore"}
    with enable_cache(tiny.pipe, StepPlan, **options) as backend:
        tiny.run(num_inference_steps=STEPS)
        assert backend.summary().cached_steps(branch="cond") == zeros("11011011")
        assert backend.summary().cached_steps(branch="uncond") == zeros("10101010")


def test_a_plan_that_does_not_say_where_it_was_found_is_not_run_unasked(tmp_path: Path) -> None:
    path = plan_file(tmp_path / "plan.yaml")
    with pytest.raises(ConfigError, match=r"does not say on which model it was found.*provenance: ignore"):
        enable_cache(build_transformer("flux"), StepPlan, plan=str(path))


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"format": "another"}, "no file of `dit-cache plan`"),
        ({"compute": 5}, "no plan of 5 computed steps; there are plans of 4, 6"),
        ({"plans": []}, "there are plans of none"),
        ({"plans": [{"compute": 4, "mask": "0110", "predictor": {}}]}, "first step has nothing"),
        ({"plans": [{"compute": 4, "mask": "1010"}]}, "expected mappings"),
        ({"plans": [{"compute": 4, "mask": "1010", "predictor": {"order": 2}}]}, "order is no option"),
    ],
)
def test_a_file_with_something_else_in_it_is_refused(
    tmp_path: Path, changes: dict[str, Any], text: str
) -> None:
    path = plan_file(tmp_path / "plan.yaml", **changes)
    with pytest.raises(ConfigError, match=text):
        StepPlan({"plan": str(path)})


def test_a_file_of_the_planner_given_as_a_mask_is_told_how_to_give_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give it as plan"):
        StepPlan({"mask": str(plan_file(tmp_path / "plan.yaml"))})


READS = {
    "item",
    "tolist",
    "numpy",
    "cpu",
    "__bool__",
    "__float__",
    "__int__",
    "__index__",
    "nonzero",
    "equal",
}


class Watch(TorchFunctionMode):
    """Notes the functions by which the numbers in a tensor become known to Python: each waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READS:
            self.reads.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", MODELS)
def test_no_tensor_is_read_from_the_first_step_to_the_last(name: str) -> None:
    watch = Watch()
    run(name, StepPlan({"mask": MASK, "calibrator": "taylorseer"}), within=watch)
    assert watch.reads == []


def test_a_gate_that_looks_at_a_tensor_would_have_been_noticed() -> None:
    class Looks(StepPlan):
        def gate(self, place: Place) -> Gate:
            class LooksGate(Gate):
                def should_run(self, step: Step, probe: Probe) -> Decision:
                    return Decision(float(probe.change.sum()) > 1e9)

            return LooksGate()

    watch = Watch()
    run("flux", Looks({"mask": MASK}), within=watch)
    assert len(watch.reads) == STEPS
