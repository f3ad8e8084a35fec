"""A forecast that was fitted to the mask: what its weights say is what a skipped step adds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from dit_cache_step_plan import StepPlan, read_plan_file, read_weights
from torch import Tensor

from dit_cache_backends import ConfigError
from dit_cache_conformance.tiny import build_transformer, transformer_inputs

MASK = "11010011"
WEIGHTS = {"2": [-0.4, 1.4], "4": [0.3, -1.1, 1.8], "5": [1.5]}
STEPS = len(MASK)


@pytest.fixture(autouse=True)
def _as_in_a_run() -> Iterator[None]:
    with torch.no_grad():
        yield


def outputs(config: dict[str, Any], name: str = "flux", refreshed_at: int | None = None) -> list[Tensor]:
    """Of a run of a bare transformer."""
    model = build_transformer(name)
    backend = StepPlan(config)
    backend.enable(model)
    found = []
    for index in range(STEPS):
        with backend.step(index, STEPS, "cond"):
            found.append(model(**transformer_inputs(name, step=index, total=STEPS))[0])
    backend.disable()
    return found


@pytest.mark.parametrize("name", ["flux", "wan", "qwen_image"])
def test_weights_of_a_line_give_what_newton_gives(name: str) -> None:
    """The line through the last two computed steps, written as weights."""
    line = {"2": [-1.0, 2.0], "4": [-0.5, 1.5], "5": [-1.0, 2.0]}
    fitted = outputs({"mask": MASK, "weights": line}, name)
    newton = outputs({"mask": MASK, "calibrator": "newton", "newton_order": 1, "newton_start": 0}, name)
    for one, other in zip(fitted, newton, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_each_skipped_step_takes_its_own_weights() -> None:
    plain = outputs({"mask": MASK, "weights": WEIGHTS})
    changed = outputs({"mask": MASK, "weights": {**WEIGHTS, "4": [0.3, -1.1, 1.7]}})
    assert [torch.equal(one, other) for one, other in zip(plain, changed, strict=True)] == [
        step != 4 for step in range(STEPS)
    ]


def test_weights_that_add_nothing_but_the_last_value_are_plain_reuse() -> None:
    fitted = outputs({"mask": MASK, "weights": {"2": [1.0], "4": [0.0, 1.0], "5": [1.0]}})
    assert all(map(torch.equal, fitted, outputs({"mask": MASK})))


def test_a_run_of_another_length_takes_the_line_instead() -> None:
    mask = "110100110101"
    line = {"calibrator": "newton", "newton_order": 1, "newton_start": 0}
    given = {step: [0.1, 5.0] for step, digit in enumerate(mask) if digit == "0"}
    fitted = outputs({"mask": mask, "fit": "resample", "weights": given})
    newton = outputs({"mask": mask, "fit": "resample", **line})
    for one, other in zip(fitted, newton, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * float(other.abs().max()))


def test_other_streams_are_reused_where_the_encoder_is_to_have_no_calibrator() -> None:
    """With a block that runs behind the span, what the text stream is given is seen in what comes out."""
    given = {"mask": MASK, "weights": WEIGHTS, "Bn_compute_blocks": 1}
    fitted, reused = (outputs({**given, "enable_encoder_calibrator": each}) for each in (None, False))
    differing = [step for step in range(STEPS) if not torch.equal(fitted[step], reused[step])]
    assert set(differing) == {2, 4, 5}


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"2": [1.0], "4": [1.0]}, "the mask skips step 5, for which there are none"),
        ({**WEIGHTS, "3": [1.0]}, "'3' is no step, counted from 0, that the mask skips"),
        ({**WEIGHTS, "first": [1.0]}, "'first' is no step"),
        ({**WEIGHTS, "9": [1.0]}, "'9' is no step"),
        (
            {**WEIGHTS, "2": [0.1, 0.2, 0.7]},
            "step 2 has 2 computed steps before it, so that a list of 1 to 2",
        ),
        ({**WEIGHTS, "2": []}, "step 2 has 2 computed steps"),
        ({**WEIGHTS, "2": [float("nan")]}, "finite numbers is expected"),
        ({**WEIGHTS, "2": ["a"]}, "finite numbers is expected"),
        ({**WEIGHTS, "2": 1.0}, "finite numbers is expected"),
    ],
)
def test_weights_that_do_not_fit_the_mask_are_refused(weights: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StepPlan({"mask": MASK, "weights": weights})


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"calibrator": "newton"}, "weights are a predictor of their own; leave out calibrator"),
        ({"enable_taylorseer": True}, "leave out enable_taylorseer"),
        ({"branches": {"uncond": "11111111"}}, "branches have other masks"),
    ],
)
def test_what_contradicts_weights_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StepPlan({"mask": MASK, "weights": WEIGHTS, **other})


def test_weights_of_a_file_are_read_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    plan = {"compute": 5, "mask": MASK, "predictor": {"weights": {4: [2.0, -1.0], 2: [1.0], 5: [1.0]}}}
    path.write_text(yaml.safe_dump({"format": "dit-cache-plan 1", "compute": 5, "plans": [plan]}))
    found = read_plan_file(path)
    assert found.weights == {2: (1.0,), 4: (2.0, -1.0), 5: (1.0,)}
    assert found.options == {"Fn_compute_blocks": 0, "Bn_compute_blocks": 0}
    options = {"plan": str(path), "provenance": "ignore"}
    by_hand = {"mask": MASK, "weights": {str(step): list(each) for step, each in found.weights.items()}}
    assert all(map(torch.equal, outputs(options), outputs(by_hand)))
    with pytest.raises(ConfigError, match="weights: the plan brings its own predictor"):
        StepPlan({**options, "weights": WEIGHTS})
    plan["predictor"] = {"weights": {2: [1.0]}}
    path.write_text(yaml.safe_dump({"format": "dit-cache-plan 1", "compute": 5, "plans": [plan]}))
    with pytest.raises(ConfigError, match=r"plan\.yaml, 5 computed steps: weights: the mask skips step 4, 5"):
        read_plan_file(path)


def test_weights_belong_to_the_mask_and_not_to_those_of_branches(tmp_path: Path) -> None:
    path = tmp_path / "plan.yaml"
    plan = {
        "compute": 5,
        "mask": MASK,
        "branches": {"uncond": "10101010"},
        "predictor": {"weights": WEIGHTS},
    }
    path.write_text(yaml.safe_dump({"format": "dit-cache-plan 1", "compute": 5, "plans": [plan]}))
    with pytest.raises(ConfigError, match="branches have other masks"):
        StepPlan({"plan": str(path), "provenance": "ignore"})


def test_a_mapping_is_expected() -> None:
    with pytest.raises(
        ConfigError, match=r"weights: expected a mapping from skipped steps to lists of numbers"
    ):
        read_weights([1.0], (1, 0, 1))
