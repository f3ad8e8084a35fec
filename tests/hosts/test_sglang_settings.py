"""SGLang's names for cache settings, and the entry point where there is no SGLang."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass, replace
from importlib.metadata import entry_points

import pytest

from dit_cache_backends import ConfigError, DitCacheError, UnknownBackendError
from dit_cache_backends.configuration.sglang import (
    ENABLED,
    PREFIX,
    REQUEST_KEYS,
    from_environment,
    from_request,
    merged,
    refuse_foreign,
)
from dit_cache_backends.hosts.sglang import register
from dit_cache_backends.hosts.sglang.host_wishes import host_wishes
from dit_cache_backends.hosts.sglang.settings import BACKEND, CONFIG, find_settings
from dit_cache_backends.strategies.cache_dit_options import CacheDiTConfig
from dit_cache_backends.strategies.dbprune_options import DBPruneConfig

# Every variable of SGLang 0.5.23 (sglang/multimodal_gen/envs.py) with a value that is not its default.
VARIABLES = {
    "FN": ("2", "Fn_compute_blocks", 2),
    "BN": ("1", "Bn_compute_blocks", 1),
    "WARMUP": ("3", "max_warmup_steps", 3),
    "RDT": ("0.12", "residual_diff_threshold", 0.12),
    "MC": ("-1", "max_continuous_cached_steps", -1),
    "TAYLORSEER": ("true", "enable_taylorseer", True),
    "TS_ORDER": ("2", "taylorseer_order", 2),
    "DMD": ("0", "enable_dmd", False),
    "DMD_HISTORY": ("8", "dmd_history", 8),
    "DMD_RANK": ("3", "dmd_rank", 3),
    "DMD_RIDGE": ("1e-6", "dmd_ridge", 1e-6),
    "DMD_SVD_PRECISION": ("high", "dmd_svd_precision", "high"),
}


def variables(**values: str) -> dict[str, str]:
    return {PREFIX + name: value for name, value in values.items()}


@pytest.mark.parametrize("name", VARIABLES)
def test_each_variable_is_an_option_with_a_source_also_for_the_second_transformer(name: str) -> None:
    text, option, value = VARIABLES[name]
    found = from_environment(variables(**{name: text, f"SECONDARY_{name}": text}))
    assert found.options == {option: value, "secondary": {option: value}}
    assert found.sources == {option: PREFIX + name, f"secondary.{option}": f"{PREFIX}SECONDARY_{name}"}
    CacheDiTConfig(**found.options)


def test_what_is_not_set_or_set_to_nothing_is_no_option() -> None:
    assert from_environment({"PATH": "/bin", **variables(FN="", SCM_PRESET=" ")}).options == {}
    assert from_environment({}).enabled is None
    assert from_environment({ENABLED: "Yes"}).enabled is True
    assert from_environment({ENABLED: "off"}).enabled is False


def test_bins_come_before_a_preset() -> None:
    found = from_environment(variables(SCM_PRESET="fast", SCM_COMPUTE_BINS="4, 1", SCM_CACHE_BINS="2,3"))
    assert found.options == {"scm_compute_bins": [4, 1], "scm_cache_bins": [2, 3]}
    found = from_environment(variables(SCM_PRESET="fast", SCM_POLICY="static"))
    assert found.options == {"scm_steps_mask_policy": "fast", "steps_computation_policy": "static"}
    bins = {"scm_preset": "fast", "scm_compute_bins": [4], "scm_cache_bins": [2]}
    assert from_request(bins) == {"scm_compute_bins": [4], "scm_cache_bins": [2]}


def test_every_wrong_variable_is_named_with_what_was_expected() -> None:
    wrong = variables(
        FNN="2", RDT="high", TAYLORSEER="maybe", FN="1.5", SCM_CACHE_BINS="2,x", SECONDARY_SCM_PRESET="fast"
    )
    with pytest.raises(ConfigError) as caught:
        from_environment(wrong)
    problems = "\n".join(caught.value.problems)
    assert "no variable SGLANG_CACHE_DIT_FNN. Did you mean 'SGLANG_CACHE_DIT_FN'" in problems
    assert "SGLANG_CACHE_DIT_RDT: expected a number, got 'high'" in problems
    assert "SGLANG_CACHE_DIT_TAYLORSEER: expected true or false, got 'maybe'" in problems
    assert "SGLANG_CACHE_DIT_FN: expected a whole number, got '1.5'" in problems
    assert "SGLANG_CACHE_DIT_SCM_CACHE_BINS: expected whole numbers" in problems
    assert "no variable SGLANG_CACHE_DIT_SECONDARY_SCM_PRESET" in problems
    assert "SCM_CACHE_BINS is set without SGLANG_CACHE_DIT_SCM_COMPUTE_BINS" in problems
    assert len(caught.value.problems) == 7


def test_the_parameters_of_a_request_have_our_names_and_are_copies() -> None:
    given = {
        "Fn_compute_blocks": 2,
        "scm_preset": "fast",
        "scm_policy": "static",
        "secondary": {"dmd_rank": 2},
    }
    found = from_request(given)
    assert found == {
        "Fn_compute_blocks": 2,
        "scm_steps_mask_policy": "fast",
        "steps_computation_policy": "static",
        "secondary": {"dmd_rank": 2},
    }
    assert found["secondary"] is not given["secondary"]
    assert from_request(None) == from_request({"secondary": None}) == {}
    CacheDiTConfig(**from_request({key: None for key in REQUEST_KEYS if key == "secondary"}))


@pytest.mark.parametrize("wrong", [3, "fast", {"secondary": 1}, {"secondary": {"scm_policy": "static"}}])
def test_parameters_of_another_form_are_refused(wrong: object) -> None:
    with pytest.raises(ConfigError, match="cache_dit_params"):
        from_request(wrong)


def test_a_request_comes_before_the_variables_of_the_second_transformer() -> None:
    """SGLang's order: secondary of the request, request, SECONDARY variable, variable."""
    environment = from_environment(variables(FN="2", SECONDARY_FN="3", RDT="0.1", SECONDARY_RDT="0.2"))
    request = from_request({"Fn_compute_blocks": 4, "secondary": {"max_warmup_steps": 1}})
    assert merged(CacheDiTConfig, environment.options, request) == {
        "Fn_compute_blocks": 4,
        "residual_diff_threshold": 0.1,
        "secondary": {"residual_diff_threshold": 0.2, "max_warmup_steps": 1},
    }


def test_another_calibrator_or_mask_takes_the_place_of_the_earlier_one() -> None:
    environment = from_environment(variables(TAYLORSEER="1", SCM_PRESET="slow", SECONDARY_TAYLORSEER="1"))
    found = merged(
        CacheDiTConfig, environment.options, from_request({"enable_dmd": True, "scm_preset": "none"})
    )
    assert found == {"enable_dmd": True, "scm_steps_mask_policy": "none"}
    assert merged(CacheDiTConfig, {"enable_dmd": True}, {"calibrator": "foca"}) == {"calibrator": "foca"}


def test_overrides_of_the_second_transformer_are_its_settings_too() -> None:
    found = merged(
        CacheDiTConfig,
        {"overrides": {"transformer_2": {"Fn_compute_blocks": 3}, "blocks": {"Bn_compute_blocks": 1}}},
        {"secondary": {"max_warmup_steps": 1}},
    )
    assert found == {
        "secondary": {"Fn_compute_blocks": 3, "max_warmup_steps": 1},
        "overrides": {"blocks": {"Bn_compute_blocks": 1}},
    }
    with pytest.raises(ConfigError, match="the same"):
        merged(CacheDiTConfig, {"secondary": {}, "overrides": {"transformer_2": {}}})


def test_an_option_that_a_backend_lacks_is_named_with_where_it_was_given() -> None:
    sources = {"secondary.Fn_compute_blocks": "SGLANG_CACHE_DIT_SECONDARY_FN"}
    with pytest.raises(ConfigError, match=r"'Fn_compute_blocks' \(SGLANG_CACHE_DIT_SECONDARY_FN\)"):
        refuse_foreign(["secondary.Fn_compute_blocks"], ["secondary", "rel_l1_thresh"], "tea_cache", sources)
    with pytest.raises(ConfigError, match="plain has no option 'secondary'"):
        refuse_foreign(["secondary.threshold"], ["threshold"], "plain", {})
    refuse_foreign(["secondary.threshold", "threshold"], ["threshold", "secondary"], "plain", {})


def test_a_server_has_the_file_over_the_variables_and_a_request_over_both() -> None:
    environ = {BACKEND: "DBPrune", CONFIG: '{"max_warmup_steps": 2}', **variables(WARMUP="6", FN="2")}
    settings = find_settings(environ)
    assert settings is not None
    assert settings.make().config == DBPruneConfig(Fn_compute_blocks=2, max_warmup_steps=2)
    asked = settings.make({"max_warmup_steps": 1, "non_prune_block_ids": [3]}).config
    assert asked == DBPruneConfig(Fn_compute_blocks=2, max_warmup_steps=1, non_prune_block_ids=[3])


def test_sglangs_defaults_are_nobodys_wish() -> None:
    settings = find_settings({BACKEND: "dbprune"})
    assert settings is not None
    assert settings.make().config == DBPruneConfig()  # its threshold, not the 0.24 of SGLang


@pytest.mark.parametrize("name", ["", "none", " None "])
def test_without_a_backend_there_are_no_settings(name: str) -> None:
    assert find_settings({BACKEND: name, CONFIG: "{"}) is None


@pytest.mark.parametrize(
    ("environ", "error"),
    [
        ({BACKEND: "dbprun"}, UnknownBackendError),
        ({BACKEND: "dbprune", CONFIG: '{"Fn": 1}'}, ConfigError),
        ({BACKEND: "dbprune", CONFIG: '{"cache_backend": "cache_dit"}'}, ConfigError),
        ({BACKEND: "dbprune", **variables(FN="x")}, ConfigError),
        ({BACKEND: "tea_cache", **variables(FN="1")}, ConfigError),
    ],
)
def test_wrong_settings_are_found_when_the_server_starts(
    environ: dict[str, str], error: type[DitCacheError]
) -> None:
    with pytest.raises(error):
        find_settings(environ)


@dataclass
class Built:
    """The fields of SGLang's CacheDitConfig that matter here, with its defaults."""

    enabled: bool = True
    Fn_compute_blocks: int = 1
    residual_diff_threshold: float = 0.24
    max_warmup_steps: int = 4
    num_inference_steps: int | None = None
    steps_computation_mask: list[int] | None = None
    steps_computation_policy: str = "dynamic"


def test_what_the_settings_of_the_user_explain_is_no_wish_of_the_stage() -> None:
    environment = from_environment(variables(FN="2", SCM_PRESET="fast", SECONDARY_RDT="0.1"))
    first = Built(Fn_compute_blocks=2, max_warmup_steps=7, steps_computation_mask=[1, 0])
    params = {"max_warmup_steps": 7}
    assert host_wishes(first, environment, params) == {}
    second = replace(first, residual_diff_threshold=0.1)
    assert host_wishes(first, environment, params, second) == {}


def test_what_they_do_not_explain_is() -> None:
    environment = from_environment(variables(RDT="0.2", SCM_PRESET="fast", SECONDARY_RDT="0.1"))
    high = Built(residual_diff_threshold=0.04, max_warmup_steps=4)
    assert host_wishes(high, environment, None) == {
        "residual_diff_threshold": 0.04,
        "scm_steps_mask_policy": "none",
    }
    # one configuration for both transformers, whatever SECONDARY_ says
    plain = Built(residual_diff_threshold=0.2, steps_computation_mask=[1])
    assert host_wishes(plain, environment, None, plain) == {"secondary": {"residual_diff_threshold": 0.2}}
    assert host_wishes(high, environment, None, Built(residual_diff_threshold=0.1)) == {
        "residual_diff_threshold": 0.04,
        "scm_steps_mask_policy": "none",
        "secondary": {"residual_diff_threshold": 0.1},
    }


@pytest.mark.parametrize("environ", [{}, {BACKEND: ""}, {BACKEND: "none"}])
def test_the_entry_point_does_nothing_without_the_variable(environ: dict[str, str]) -> None:
    """Else it would ask for SGLang, which is not installed here."""
    assert "sglang" not in sys.modules
    register(environ)


def test_the_entry_point_is_in_sglangs_group_and_importing_it_is_cheap() -> None:
    (point,) = entry_points(group="sglang.multimodal_gen.plugins", name="dit_cache_backends")
    code = (
        f"import sys, importlib.metadata as m; m.EntryPoint({point.name!r}, {point.value!r}, 'g').load()();"
        "print(sorted({'torch', 'sglang', 'diffusers', 'yaml'} & set(sys.modules) - {'torch'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={})
    assert done.stdout.strip() == "[]"
