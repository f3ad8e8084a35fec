"""What is planned on a pipeline is what `step_plan` runs there, and nowhere else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from dit_cache_backends import ConfigError, enable_cache
from dit_cache_backends.planning import (
    PREDICTORS,
    Candidate,
    Plan,
    Planner,
    Plans,
    PlanSearch,
    Quality,
    Rehearsal,
)
from dit_cache_backends.planning.work import Work
from dit_cache_backends.trials import Trial
from dit_cache_conformance.tiny import build
from tests.planning.rehearsals import prompts_of, tiny_trial

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS = 8
SEARCH = PlanSearch(predictors=("taylorseer 1", "reuse"), max_skip=3, seconds=None, evaluations=6, segments=1)


def planned(trial: Trial, name: str, compute: tuple[int, ...] = (4,), **given: Any) -> Plans:
    search = given.pop("search", SEARCH)
    planner = Planner(trial, prompts_of(name, 2), prompts_of(name, 2, 50), STEPS, search, **given)
    return planner.plan(compute)


def drawn(trial: Trial, name: str, seed: int) -> Tensor:
    call = {**prompts_of(name, 1)[0].call, "generator": torch.Generator().manual_seed(seed)}
    latents: Tensor = trial.pipeline(**call, num_inference_steps=STEPS, return_dict=False)[0]
    return latents


@pytest.fixture(scope="module")
def flux_plans(tmp_path_factory: pytest.TempPathFactory) -> tuple[Plans, Path]:
    """Plans of the tiny FLUX of 4 and 6 computed steps, and their file."""
    path = tmp_path_factory.mktemp("plans") / "plan.yaml"
    with torch.no_grad(), tiny_trial("flux") as trial:
        plans = planned(trial, "flux", (4, 6))
    plans.write(path)
    return plans, path


@pytest.mark.parametrize("name", ["flux", "wan22", "qwen_image"])
def test_a_file_runs_as_the_planner_measured(name: str, tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    with tiny_trial(name) as trial:
        plans = planned(trial, name)
        plans.write(path)
        candidate = plans[4].candidate
        assert candidate.computed == 4
        error = Rehearsal(trial, prompts_of(name, 1), STEPS, replay=False).errors(candidate)
        dense = drawn(trial, name, 0)
        with enable_cache(trial.pipeline, "step_plan", plan=str(path)) as backend:
            latents = drawn(trial, name, 0)
            summary = backend.summary()
        ran = {row.step: row.blocks_skipped == 0 for row in summary.rows}
        assert [int(ran[step]) for step in range(STEPS)] == list(candidate.mask)
        apart = float((latents - dense).float().norm() / dense.float().norm())
        assert apart == pytest.approx(error[0], rel=1e-5)


def test_the_predictor_of_the_file_fills_the_gaps(flux_plans: tuple[Plans, Path], tmp_path: Path) -> None:
    content = yaml.safe_load(flux_plans[1].read_text())
    results = []
    for predictor in ("reuse", "taylorseer 2"):
        content["plans"][0] |= {"mask": "11111010", "predictor": dict(PREDICTORS[predictor])}
        path = tmp_path / "other.yaml"
        path.write_text(yaml.safe_dump(content))
        with tiny_trial("flux") as trial:
            with enable_cache(trial.pipeline, "step_plan", plan=str(path)):
                by_file = drawn(trial, "flux", 3)
            with enable_cache(trial.pipeline, "step_plan", mask="11111010", **PREDICTORS[predictor]):
                assert torch.equal(by_file, drawn(trial, "flux", 3))
        results.append(by_file)
    assert not torch.equal(*results)


def test_the_file_says_where_it_is_from_and_what_it_is_worth(flux_plans: tuple[Plans, Path]) -> None:
    content = yaml.safe_load(flux_plans[1].read_text())
    assert content["compute"] == 4
    assert [each["compute"] for each in content["plans"]] == [4, 6]
    assert content["plans"][0]["blocks_run"] < content["plans"][1]["blocks_run"] < 1
    for each in content["plans"]:
        assert isinstance(each["beats_fewer_steps"], bool)
        assert set(each["fewer_steps"]["held_out"]) == {"mean_db", "worst_db"}
    assert content["provenance"]["transformers"]["transformer"].startswith("FluxTransformer2DModel")
    assert content["prompts"]["seeds"] == [0, 1]
    assert content["prompts"]["held_out_seeds"] == [50, 51]


def test_which_of_the_plans_runs_can_be_chosen(flux_plans: tuple[Plans, Path]) -> None:
    plans, path = flux_plans
    for compute in (4, 6):
        pipe = build("flux").pipe
        with enable_cache(pipe, "step_plan", plan=str(path), compute=compute) as backend:
            pipe(**prompts_of("flux", 1)[0].call, num_inference_steps=STEPS)
            cached = backend.summary().cached_steps()
        assert cached == [step for step, digit in enumerate(plans[compute].candidate.mask) if not digit]
    with pytest.raises(ConfigError, match=r"no plan of 5 computed steps; there are plans of 4, 6"):
        enable_cache(build("flux").pipe, "step_plan", plan=str(path), compute=5)


def test_a_plan_is_refused_for_another_model_scheduler_or_number_of_steps(
    flux_plans: tuple[Plans, Path],
) -> None:
    from diffusers import FlowMatchHeunDiscreteScheduler

    path = str(flux_plans[1])
    with pytest.raises(ConfigError, match=r"found on another model\. pipeline.*provenance: ignore"):
        enable_cache(build("qwen_image").pipe, "step_plan", plan=path)
    other = build("flux").pipe
    with torch.no_grad():
        next(other.transformer.parameters()).add_(1.0)
    with pytest.raises(ConfigError, match="weights"):
        enable_cache(other, "step_plan", plan=path)
    with pytest.raises(ConfigError, match="weights"):
        enable_cache(other.transformer, "step_plan", plan=path)
    enable_cache(build("flux").pipe.transformer, "step_plan", plan=path).disable()
    other = build("flux").pipe
    other.scheduler = FlowMatchHeunDiscreteScheduler()
    with pytest.raises(ConfigError, match="scheduler: measured on FlowMatchEuler"):
        enable_cache(other, "step_plan", plan=path)
    enable_cache(other, "step_plan", plan=path, provenance="ignore").disable()
    same = build("flux").pipe
    enable_cache(same, "step_plan", plan=path)
    with pytest.raises(ConfigError, match=r"8 steps, but transformer makes 10 steps.*resample"):
        same(**prompts_of("flux", 1)[0].call, num_inference_steps=10)


def test_an_expert_begins_with_a_computed_step_whatever_the_search_does() -> None:
    with tiny_trial("wan22") as trial:
        for seed in range(2):
            search = replace(SEARCH, seed=seed, evaluations=4, segments=0)
            plans = planned(trial, "wan22", (4,), search=search)
            begins = plans.about["search"]["begins"]
            assert len(begins) == 2
            assert all(plans[4].candidate.mask[step] for step in (*begins, STEPS - 1))


def test_the_first_and_the_last_steps_can_be_kept() -> None:
    with tiny_trial("flux") as trial:
        plans = planned(trial, "flux", (5,), search=replace(SEARCH, first=3, last=2, evaluations=3))
        mask = plans[5].candidate.mask
        assert mask == (1, 1, 1, 0, 0, 0, 1, 1)
        with pytest.raises(ConfigError, match="5 have to compute"):
            planned(trial, "flux", (4,), search=replace(SEARCH, first=3, last=2))


def test_a_search_that_was_stopped_ends_as_one_that_was_not(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    told: list[float] = []

    def stop_later(what: str, part: float) -> None:
        told.append(part)
        if len(told) == 12:
            raise Stopped

    def planner(trial: Trial, work: Path) -> Planner:
        prompts = prompts_of("flux", 5), prompts_of("flux", 2, 50)
        return Planner(trial, *prompts, STEPS, replace(SEARCH, evaluations=8), work=work)

    with tiny_trial("flux") as trial:
        whole = planner(trial, tmp_path / "whole.jsonl").plan((4,))
        with pytest.raises(Stopped):
            planner(trial, tmp_path / "parts.jsonl").plan((4,), stop_later)
        lines = (tmp_path / "parts.jsonl").read_text().count("\n")
        with (tmp_path / "parts.jsonl").open("a") as file:
            file.write('["found on reuse 1000')  # the process was killed while it wrote
        assert lines > 5
        resumed = planner(trial, tmp_path / "parts.jsonl")
        assert resumed.plan((4,)).plans == resumed.plan((4,)).plans == whole.plans
    parts = (tmp_path / "parts.jsonl").read_text().splitlines()
    wholly = (tmp_path / "whole.jsonl").read_text().splitlines()
    assert [line.rsplit(",", 1)[0] for line in parts] == [line.rsplit(",", 1)[0] for line in wholly]


def test_a_work_file_of_another_search_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "work.jsonl"
    Work(path, {"steps": 8}).numbers("a", lambda: (1.0,))
    assert Work(path, {"steps": 8}).numbers("a", lambda: (2.0,)) == (1.0,)
    with pytest.raises(ConfigError, match=r"of another search: steps differ .*8.*9"):
        Work(path, {"steps": 9})
    path.write_text("nothing of the kind\n")
    with pytest.raises(ConfigError, match="cannot be read"):
        Work(path, {"steps": 8})
    path.write_text('{"format": "another"}\n')
    with pytest.raises(ConfigError, match="no work file"):
        Work(path, {"steps": 8})


def test_the_same_prompts_cannot_be_held_out() -> None:
    with tiny_trial("flux") as trial, pytest.raises(ConfigError, match="1 of the held-out prompts"):
        Planner(trial, prompts_of("flux", 2), prompts_of("flux", 2, 1), STEPS)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"predictors": ("taylorsee 1",)}, "no predictor 'taylorsee 1'.*'taylorseer 1'"),
        ({"predictors": ()}, "needs a predictor"),
        ({"max_skip": 0}, "max_skip is at least 1"),
        ({"seconds": None}, "needs an end"),
    ],
)
def test_a_search_that_cannot_be_is_refused(given: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        PlanSearch(**given)


def test_a_plan_that_is_not_better_than_fewer_steps_says_so() -> None:
    # The model gives nothing, so that every run ends where it began: nothing can be better than fewer steps.
    with tiny_trial("flux") as trial:
        with torch.no_grad():
            trial.pipeline.transformer.proj_out.weight.zero_()
            trial.pipeline.transformer.proj_out.bias.zero_()
        plan = planned(trial, "flux")[4]
    assert not plan.beats_fewer_steps
    assert plan.to_dict()["beats_fewer_steps"] is False
    assert "NOT better than the dense run of 4 steps" in plan.verdict


@pytest.mark.parametrize(
    ("held_out", "beats", "text"),
    [
        (Quality(30.0, 20.0), True, "better than the dense run"),
        (Quality(30.0, 10.0), False, "by the mean alone"),
        (Quality(20.0, 20.0), False, "by the worst alone"),
        (Quality(20.0, 10.0), False, "NOT better"),
        (None, False, "not compared"),
    ],
)
def test_a_plan_is_better_where_mean_and_worst_are(held_out: Quality | None, beats: bool, text: str) -> None:
    rival = None if held_out is None else Quality(25.0, 15.0)
    plan = Plan(Candidate((1, 0, 1), "reuse"), "even", 0.7, Quality(9, 9), 2, Quality(1, 1), held_out, rival)
    assert plan.beats_fewer_steps is beats
    assert text in plan.verdict
