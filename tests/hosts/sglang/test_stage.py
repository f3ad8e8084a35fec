"""SGLang's own denoising stage, served by backends of this package."""

from __future__ import annotations

import pytest
import torch

from .conftest import Serving
from .models import TINY
from .real import STEPS, Server

KINDS = ("flux", "wan", "hunyuan_video")
EAGER = {
    "cache_dit": '{"residual_diff_threshold": 1.0, "max_warmup_steps": 1, "max_continuous_cached_steps": -1}',
    "dbprune": '{"residual_diff_threshold": 1.0, "max_warmup_steps": 1}',
    "tea_cache": '{"rel_l1_thresh": 1e6, "coefficients": "identity"}',
    "easy_cache": '{"threshold": 1e6, "start_percent": 0.0, "end_percent": 1.0}',
}
NEVER = {
    "cache_dit": '{"residual_diff_threshold": 0.0}',
    "dbprune": '{"residual_diff_threshold": 0.0}',
    "tea_cache": '{"rel_l1_thresh": 0.0, "coefficients": "identity"}',
    "easy_cache": '{"threshold": 0.0}',
}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("backend", NEVER)
@pytest.mark.parametrize("kind", KINDS)
def test_a_backend_that_never_skips_changes_no_bit(
    serving: Serving, kind: str, backend: str, guided: bool
) -> None:
    serving(backend, NEVER[backend])
    server = Server(kind)
    dense = server.request(guided=guided)
    assert torch.equal(server.request(guided=guided, enable_cache_dit=True), dense)
    assert set(server.ran.values()) == {STEPS * (1 + guided)}


@pytest.mark.parametrize("guided", [False, True])
@pytest.mark.parametrize("backend", EAGER)
@pytest.mark.parametrize("kind", KINDS)
def test_an_eager_backend_skips_on_every_branch_and_stays_near_the_dense_run(
    serving: Serving, kind: str, backend: str, guided: bool
) -> None:
    serving(backend, EAGER[backend])
    server = Server(kind)
    dense = server.request(guided=guided)
    cached = server.request(guided=guided, enable_cache_dit=True)
    last = [f"{path}.{depth - 1}" for path, depth in TINY[kind].blocks.items()]
    ran = {server.ran[name] for name in last}
    assert max(ran) <= 3 * (1 + guided), server.ran  # the first step, and what a rule runs at the end
    assert min(ran) >= 1 + guided
    assert not torch.equal(cached, dense)
    assert relative(cached, dense) < 0.25


@pytest.mark.parametrize("kind", KINDS)
def test_a_request_that_does_not_ask_for_it_is_dense(serving: Serving, kind: str) -> None:
    serving("cache_dit", EAGER["cache_dit"])
    server = Server(kind)
    server.request()
    assert set(server.ran.values()) == {STEPS}


def test_the_switch_of_the_server_is_sglangs_own_and_a_request_may_opt_out(serving: Serving) -> None:
    serving("cache_dit", EAGER["cache_dit"], SGLANG_CACHE_DIT_ENABLED="true")
    server = Server("flux")
    server.request()
    assert server.ran["single_transformer_blocks.2"] == 1
    server.request(enable_cache_dit=False)
    assert set(server.ran.values()) == {STEPS}


def test_a_backend_of_the_environment_variables_is_the_one_of_a_request_with_the_same_parameters(
    serving: Serving,
) -> None:
    params = {"Fn_compute_blocks": 2, "max_warmup_steps": 2, "residual_diff_threshold": 1.0}
    serving("cache_dit")
    asked = Server("flux").request(enable_cache_dit=True, cache_dit_params=params)
    names = {"FN": "2", "WARMUP": "2", "RDT": "1.0"}
    serving("cache_dit", **{f"SGLANG_CACHE_DIT_{name}": value for name, value in names.items()})
    server = Server("flux")
    assert torch.equal(server.request(enable_cache_dit=True), asked)
    # 4 blocks in one stack: the first two always run; 2 steps of warm-up, 3 cached at most in a row
    assert server.ran["transformer_blocks.1"] == STEPS
    assert server.ran["single_transformer_blocks.0"] == 2 + 1


def test_a_request_wins_over_the_file_and_the_file_over_the_variables(serving: Serving) -> None:
    serving("cache_dit", '{"max_warmup_steps": 6}', SGLANG_CACHE_DIT_WARMUP="7", SGLANG_CACHE_DIT_RDT="1.0")
    server = Server("flux")
    server.request(enable_cache_dit=True)
    assert server.ran["single_transformer_blocks.2"] == 6
    server.request(enable_cache_dit=True, cache_dit_params={"max_warmup_steps": 5})
    assert server.ran["single_transformer_blocks.2"] == 5


@pytest.mark.parametrize("preset", ["slow", "ultra"])
def test_a_mask_follows_the_number_of_steps_of_each_request(serving: Serving, preset: str) -> None:
    from dit_cache_backends.strategies.scm import policy_mask

    serving("cache_dit")
    server = Server("flux")
    params = {"scm_preset": preset, "scm_policy": "static", "max_warmup_steps": 0}
    for steps in (8, 12, 9):
        server.request(steps, enable_cache_dit=True, cache_dit_params=params)
        assert server.ran["single_transformer_blocks.2"] == sum(policy_mask(preset, steps)), steps
        assert server.ran["transformer_blocks.0"] == steps


def test_bins_of_a_request_are_its_mask(serving: Serving) -> None:
    serving("cache_dit")
    server = Server("flux")
    params = {"scm_compute_bins": [2, 1, 1], "scm_cache_bins": [2, 2], "scm_policy": "static"}
    server.request(enable_cache_dit=True, cache_dit_params=params)
    assert server.ran["single_transformer_blocks.2"] == 4


def test_options_that_only_the_backend_has_are_taken_from_a_request(serving: Serving) -> None:
    serving("dbprune")
    server = Server("flux")
    params = {"residual_diff_threshold": 1.0, "max_warmup_steps": 1, "non_prune_block_ids": [3]}
    server.request(enable_cache_dit=True, cache_dit_params=params)
    assert server.ran["single_transformer_blocks.0"] == STEPS  # number 3 of the stack of both lists
    assert server.ran["single_transformer_blocks.2"] == 1


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"residual_diff_treshold": 1.0},
            "Unknown cache_dit_params keys.*residual_diff_treshold.*residual_diff_threshold",
        ),
        ({"residual_diff_threshold": "high"}, "residual_diff_threshold: expected a number"),
        ({"secondary": {"Fn": 1}}, "'Fn'"),
        ({"secondary": 3}, "'secondary'. must be a dict"),
        ({"scm_compute_bins": [2]}, "go together"),
        ({"rel_l1_thresh": 0.1}, "cache_dit has no option 'rel_l1_thresh'"),
        ("fast", "cache_dit_params must be a dict, got str"),
    ],
)
def test_a_wrong_parameter_is_refused_by_name_and_only_that_request_fails(
    serving: Serving, params: object, message: str
) -> None:
    serving("cache_dit", EAGER["cache_dit"])
    server = Server("flux")
    before = server.request(enable_cache_dit=True)
    with pytest.raises(ValueError, match=message):
        server.request(enable_cache_dit=True, cache_dit_params=params)
    assert torch.equal(server.request(enable_cache_dit=True), before)


def test_a_variable_that_the_backend_has_no_option_for_is_refused_by_name(serving: Serving) -> None:
    with pytest.raises(ValueError, match=r"'Fn_compute_blocks' \(SGLANG_CACHE_DIT_FN\)"):
        serving("tea_cache", SGLANG_CACHE_DIT_FN="2")


@pytest.mark.parametrize("other", ["enable_teacache", "enable_spectrum"])
def test_two_caches_at_once_are_refused(serving: Serving, other: str) -> None:
    serving("cache_dit")
    server = Server("wan")
    with pytest.raises(RuntimeError, match=other):
        server.request(enable_cache_dit=True, **{other: True})
