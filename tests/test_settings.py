"""What a run is given: from a request, arguments, a file and the environment, each over the next."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from dit_cache_backends import ConfigError, UnknownBackendError, enable_cache, get_cache_backend
from dit_cache_backends.cli import app
from dit_cache_backends.config import load_config, make_config, named_backend
from dit_cache_backends.configuration.settings import NOT_SAID, Settings, find_settings
from dit_cache_backends.errors import ConfigWarning
from dit_cache_backends.options import rules_of
from dit_cache_backends.registry import list_cache_backends
from dit_cache_backends.strategies.cache_dit import CacheDiT
from dit_cache_conformance.tiny import build_transformer

# As SGLang's documentation has it for `--cache-dit-config`, with the rest of what cache-dit's load_configs reads.
CACHE_DIT_YAML = """\
cache_config:
  max_warmup_steps: 8
  warmup_interval: 2
  max_cached_steps: -1
  max_continuous_cached_steps: 2
  Fn_compute_blocks: 1
  Bn_compute_blocks: null
  residual_diff_threshold: 0.12
  enable_taylorseer: true
  taylorseer_order: 1
  num_inference_steps: 28
  steps_computation_mask: fast
parallelism_config:
  ulysses: auto
  attention_backend: native
  extra_parallel_modules: [text_encoder, vae]
quantize_config:
  quant_type: float8_per_row
  exclude_layers: null
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = Path("cache.yaml")
    path.write_text(CACHE_DIT_YAML)
    return path


def find(*arguments: object, env: dict[str, str] | None = None, **sections: object) -> Settings:
    return find_settings(*arguments, environment=env or {}, **sections)


def problems(*arguments: object, env: dict[str, str] | None = None, **sections: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        find(*arguments, env=env, **sections)
    return caught.value.problems


# What users have


def test_a_file_of_cache_dit_is_read_whole_with_the_line_of_each_value(file: Path) -> None:
    settings = find("cache_dit", file)
    assert settings.options == {
        "max_warmup_steps": 8,
        "warmup_interval": 2,
        "max_cached_steps": -1,
        "max_continuous_cached_steps": 2,
        "Fn_compute_blocks": 1,
        "residual_diff_threshold": 0.12,
        "enable_taylorseer": True,
        "taylorseer_order": 1,
        "num_inference_steps": 28,
        "steps_computation_mask": "fast",
    }
    assert settings.parallelism == {"ulysses_size": "auto", "extra_parallel_modules": ["text_encoder", "vae"]}
    assert settings.quantization == {"quant_type": "float8_per_row"}
    assert settings.attention_backend == "native"
    assert settings.compile is None
    lines = CACHE_DIT_YAML.splitlines()
    for key, origin in settings.origins.items():
        found = re.fullmatch(r"file cache\.yaml line (\d+)", origin)
        if found:
            name = key.rpartition(".")[2]
            assert lines[int(found[1]) - 1].strip().startswith((f"{name}:", name.removesuffix("_size") + ":"))
    assert settings.origins["residual_diff_threshold"] == "file cache.yaml line 8"
    assert settings.origins["cache_backend"] == "argument"


def test_the_named_mask_and_the_calibrator_of_such_a_file_are_in_effect(file: Path) -> None:
    backend = find("cache_dit", file).make_backend()
    assert isinstance(backend, CacheDiT)
    assert backend.config.policy == "fast"
    assert backend.config.calibrator_of(main=True) == "taylorseer"


def test_lines_of_a_json_file_are_told_too(tmp_path: Path) -> None:
    path = tmp_path / "cache.json"
    path.write_text('{\n\t"cache_backend": "tea_cache",\n  "cache_config": {\n    "rel_l1_thresh": 0.3}}')
    assert find(NOT_SAID, path).origins["rel_l1_thresh"] == f"file {path}"  # a tab is no YAML: the file alone
    path.write_text(path.read_text().replace("\t", "  "))
    assert find(NOT_SAID, path).origins["rel_l1_thresh"] == f"file {path} line 4"


def test_the_type_that_cache_dit_gives_chooses_the_backend() -> None:
    assert find(NOT_SAID, {"cache_config": {"cache_type": "DBPrune"}}).backend == "dbprune"
    assert find(NOT_SAID, {"cache_type": "DBCache", "Fn_compute_blocks": 2}).backend == "cache_dit"
    assert named_backend({"cache_type": "DBPrune"}) == "dbprune"
    assert "Did you mean 'DBPrune'" in problems(NOT_SAID, {"cache_type": "DBPrun"})[0]
    assert "dbprune" in problems("cache_dit", {"cache_type": "DBPrune"})[0]
    with pytest.raises(ConfigError, match="dbprune"):
        get_cache_backend("cache_dit", {"cache_type": "DBPrune"})


def test_the_misspelt_key_of_cache_dits_documentation_is_understood_with_a_warning() -> None:
    with pytest.warns(ConfigWarning, match="'enable_sperate_cfg' is taken for 'enable_separate_cfg'"):
        settings = find("cache_dit", {"enable_sperate_cfg": True})
    assert settings.options == {"enable_separate_cfg": True}
    assert len(settings.warnings) == 1
    with pytest.warns(ConfigWarning):
        assert load_config({"cache_config": {"enable_sperate_cfg": False}}) == {"enable_separate_cfg": False}
    assert (
        "same option" in problems("cache_dit", {"enable_sperate_cfg": True, "enable_separate_cfg": True})[0]
    )


@pytest.mark.parametrize("beside", [True, False])
def test_a_calibrator_in_a_mapping_of_its_own_is_read(beside: bool) -> None:
    calibrator = {"calibrator_type": "dmd", "dmd_history": 8, "calibrator_cache_type": "hidden_states"}
    inner: dict[str, Any] = {"Fn_compute_blocks": 2} | ({} if beside else {"calibrator_config": calibrator})
    source = {"cache_config": inner} | ({"calibrator_config": calibrator} if beside else {})
    assert find("cache_dit", source).options == {
        "Fn_compute_blocks": 2,
        "calibrator": "dmd",
        "dmd_history": 8,
        "taylorseer_cache_type": "hidden_states",
    }


@pytest.mark.parametrize(
    ("calibrator", "expected"),
    [
        ({"calibrator_type": "taylorseer", "enable_encoder_calibrator": False}, ("taylorseer", "none")),
        ({"calibrator_type": "taylorseer", "enable_calibrator": False}, ("none", "none")),
        (
            {"calibrator_type": "taylorseer", "enable_calibrator": False, "enable_encoder_calibrator": True},
            ("none", "taylorseer"),
        ),
        ({"calibrator_type": "foca"}, ("foca", "foca")),
        ({}, ("none", "none")),
    ],
)
def test_its_switches_for_the_denoised_and_the_other_streams_are_kept_apart(
    calibrator: dict[str, Any], expected: tuple[str, str]
) -> None:
    made = find("cache_dit", {"calibrator_config": calibrator}).make_backend()
    assert made is not None
    assert (made.config.calibrator_of(main=True), made.config.calibrator_of(main=False)) == expected


@pytest.mark.parametrize(
    ("calibrator", "word"),
    [
        ({"calibrator_type": "taylorser"}, "Did you mean 'taylorseer'"),
        ({"dmd_rank": 1}, "calibrator_type"),
        ({"calibrator_type": "dmd", "dmd_rnk": 1}, "Did you mean 'dmd_rank'"),
        ({"calibrator_type": "dmd", "enable_calibrator": 1}, "true or false"),
        ({"calibrator_type": "dmd", "dmd_rank": -1}, "at least 0"),
        (
            {"calibrator_type": "dmd", "enable_calibrator": False, "enable_encoder_calibrator": True},
            "not possible",
        ),
    ],
)
def test_a_wrong_calibrator_mapping_is_refused(calibrator: dict[str, Any], word: str) -> None:
    assert any(word in problem for problem in problems("cache_dit", {"calibrator_config": calibrator}))


def test_null_in_a_file_of_cache_dit_means_the_default_also_beside_a_preset() -> None:
    backend = get_cache_backend("cache_dit", {"preset": "fast", "residual_diff_threshold": None})
    assert isinstance(backend, CacheDiT)
    chosen = backend.for_steps(None).config.residual_diff_threshold
    assert chosen == CacheDiT.preset("fast", None)["residual_diff_threshold"]
    assert "null" in problems("cache_dit", {"hermite_order": None})[0]  # cache-dit has no such key


def test_keys_of_vllm_omni_for_another_strategy_are_named_with_it() -> None:
    (problem,) = problems("cache_dit", {"rel_l1_thresh": 0.2})
    assert "rel_l1_thresh is an option of vLLM-Omni's tea_cache" in problem
    assert "mag_cache" in problems("tea_cache", {"mag_threshold": 0.2})[0]
    assert find("mag_cache", '{"mag_threshold": 0.2}').options == {"threshold": 0.2}


# The environment

SGLANG = {
    "SGLANG_CACHE_DIT_ENABLED": "true",
    "SGLANG_CACHE_DIT_FN": "2",
    "SGLANG_CACHE_DIT_RDT": "0.3",
    "SGLANG_CACHE_DIT_SCM_COMPUTE_BINS": "4,1,1",
    "SGLANG_CACHE_DIT_SCM_CACHE_BINS": "2,3",
    "SGLANG_CACHE_DIT_SCM_POLICY": "static",
    "SGLANG_CACHE_DIT_SECONDARY_FN": "3",
}


def test_sglangs_variables_choose_and_set_the_backend() -> None:
    settings = find(env=SGLANG)
    assert settings.backend == "cache_dit"
    assert settings.options == {
        "Fn_compute_blocks": 2,
        "residual_diff_threshold": 0.3,
        "scm_compute_bins": [4, 1, 1],
        "scm_cache_bins": [2, 3],
        "steps_computation_policy": "static",
        "secondary": {"Fn_compute_blocks": 3},
    }
    assert settings.origins["cache_backend"] == "environment SGLANG_CACHE_DIT_ENABLED"
    assert settings.origins["residual_diff_threshold"] == "environment SGLANG_CACHE_DIT_RDT"
    assert settings.origins["secondary.Fn_compute_blocks"] == "environment SGLANG_CACHE_DIT_SECONDARY_FN"


def test_a_preset_of_sglang_is_in_effect() -> None:
    backend = find("cache_dit", env={"SGLANG_CACHE_DIT_SCM_PRESET": "ultra"}).make_backend()
    assert backend is not None
    assert backend.config.policy == "ultra"


def test_sglangs_variables_without_the_switch_wait_for_a_backend() -> None:
    settings = find(env={"SGLANG_CACHE_DIT_RDT": "0.3"})
    assert settings.backend is None
    assert [value.origin for value in settings.unused] == ["environment SGLANG_CACHE_DIT_RDT"]
    assert find("cache-dit", env={"SGLANG_CACHE_DIT_RDT": "0.3"}).options == {"residual_diff_threshold": 0.3}
    other = find("dbprune", env={"SGLANG_CACHE_DIT_RDT": "0.3"})
    assert other.options == {}
    assert [value.name for value in other.unused] == ["residual_diff_threshold"]


@pytest.mark.parametrize(
    "variable", ["DIFFUSION_CACHE_BACKEND", "DIFFUSION_CACHE_ADAPTER", "DIT_CACHE_BACKEND"]
)
def test_each_variable_that_names_a_backend_does(variable: str) -> None:
    settings = find(env={variable: "Tea-Cache"})
    assert settings.backend == "tea_cache"
    assert settings.origins["cache_backend"] == f"environment {variable}"


def test_our_variable_comes_before_those_of_the_hosts_which_must_agree() -> None:
    hosts = {"DIFFUSION_CACHE_BACKEND": "tea_cache", "DIFFUSION_CACHE_ADAPTER": "dbprune"}
    assert find(env=hosts).backend == "tea_cache"
    both = {**hosts, "SGLANG_CACHE_DIT_ENABLED": "1"}
    assert "DIFFUSION_CACHE_BACKEND says tea_cache" in problems(env=both)[0]
    assert find(env={**both, "DIT_CACHE_BACKEND": "dbprune"}).backend == "dbprune"


@pytest.mark.parametrize(
    ("option", "text", "value"),
    [
        ("residual_diff_threshold", "0.1", 0.1),
        ("residual_diff_threshold", "1", 1.0),
        ("Fn_compute_blocks", "2", 2),
        ("enable_taylorseer", "true", True),
        ("enable_taylorseer", "0", False),
        ("steps_computation_mask", "1101", "1101"),
        ("steps_computation_mask", "1,1,0,1", [1, 1, 0, 1]),
        ("scm_compute_bins", "4", [4]),
        ("scm_compute_bins", "[4, 1]", [4, 1]),
        ("num_inference_steps", "null", None),
        ("calibrator", "none", "none"),
        ("secondary", '{"Fn_compute_blocks": 2}', {"Fn_compute_blocks": 2}),
    ],
)
def test_a_variable_sets_an_option_as_its_type_is(option: str, text: str, value: object) -> None:
    env = {"DIT_CACHE_BACKEND": "cache_dit", f"DIT_CACHE_{option.upper()}": text}
    if option == "scm_compute_bins":
        env["DIT_CACHE_SCM_CACHE_BINS"] = "1"
    settings = find(env=env)
    assert settings.options[option] == value
    assert type(settings.options[option]) is type(value)
    origins = {name: origin for name, origin in settings.origins.items() if name.startswith(option)}
    assert set(origins.values()) == {f"environment DIT_CACHE_{option.upper()}"}


def test_every_option_of_every_backend_has_a_variable_of_its_own() -> None:
    for info in list_cache_backends().values():
        assert info.cls is not None
        names = [name.upper() for name in rules_of(info.cls.Config)]
        assert len(names) == len(set(names))
        assert not {"BACKEND", "CONFIG", "COMPILE", "API_KEY", "BACKENDS_OVERRIDE"} & set(names)


def test_a_variable_that_nobody_knows_is_refused_with_the_nearest() -> None:
    assert "Did you mean 'DIT_CACHE_BACKEND'" in problems(env={"DIT_CACHE_BAKEND": "tea_cache"})[0]
    env = {"DIT_CACHE_BACKEND": "cache_dit", "DIT_CACHE_RESIDUAL_DIFF_TRESHOLD": "1"}
    assert "'DIT_CACHE_RESIDUAL_DIFF_THRESHOLD'" in problems(env=env)[0]
    assert "'SGLANG_CACHE_DIT_RDT'" in problems(env={"SGLANG_CACHE_DIT_RTD": "1"})[0]
    env = {"DIT_CACHE_BACKEND": "cache_dit", "DIT_CACHE_REL_L1_THRESH": "1"}
    assert "tea_cache" in problems(env=env)[0]
    assert find(None, env={"DIT_CACHE_REL_L1_THRESH": "1"}).backend is None  # known, and no cache is wished


def test_a_variable_that_a_plugin_reads_itself_is_none_of_these() -> None:
    assert find("cache_dit", env={"DIT_CACHE_MAG_RATIOS": "/somewhere"}).options == {}
    assert find(env={"DIT_CACHE_BACKENDS_OVERRIDE": "cache_dit", "DIT_CACHE_RDT_": " "}).backend is None


def test_options_without_any_backend_are_refused_with_those_that_have_them() -> None:
    for given in ({"cache_config": {"rel_l1_thresh": 0.1}}, None):
        env = {} if given else {"DIT_CACHE_REL_L1_THRESH": "0.1"}
        (problem,) = problems(NOT_SAID, given, env=env)
        assert "no cache backend" in problem
        assert "tea_cache" in problem


# Precedence


def test_each_source_comes_over_the_next(file: Path) -> None:
    env = {
        "DIT_CACHE_BACKEND": "cache_dit",
        "DIT_CACHE_RESIDUAL_DIFF_THRESHOLD": "0.5",
        "DIT_CACHE_DMD_RANK": "3",
        "SGLANG_CACHE_DIT_RDT": "0.6",
        "SGLANG_CACHE_DIT_DMD_RANK": "4",
        "SGLANG_CACHE_DIT_DMD_HISTORY": "9",
        "DIT_CACHE_CONFIG": str(file),
        "DIT_CACHE_ATTENTION_BACKEND": "sage",
        "DIT_CACHE_PARALLELISM_CONFIG": '{"tp": 2}',
        "DIT_CACHE_COMPILE": "true",
    }
    settings = find(
        env=env, parallelism_config={"ring_size": 2}, quantize_config={"quant_type": "int8_per_row"}
    )
    request = settings.for_request(cache_config={"warmup_interval": 1, "secondary": {"Fn_compute_blocks": 4}})
    for name, value, origin in [
        ("warmup_interval", 1, "request"),
        ("residual_diff_threshold", 0.12, "file cache.yaml line 8"),
        ("dmd_rank", 3, "environment DIT_CACHE_DMD_RANK"),
        ("dmd_history", 9, "environment SGLANG_CACHE_DIT_DMD_HISTORY"),
        ("cache_backend", "cache_dit", "environment DIT_CACHE_BACKEND"),
        ("secondary.Fn_compute_blocks", 4, "request"),
        ("ulysses_size", "auto", "file cache.yaml line 14"),
        ("tp_size", 2, "environment DIT_CACHE_PARALLELISM_CONFIG"),
        ("ring_size", 2, "argument"),
        ("quant_type", "int8_per_row", "argument"),
        ("attention_backend", "native", "file cache.yaml line 15"),
        ("compile", True, "environment DIT_CACHE_COMPILE"),
        ("enable_dmd", False, "default"),
    ]:
        (row,) = [row for row in request.values() if row.name == name]
        assert (row.value, row.origin) == (value, origin), name
    assert find("cache_dit", {}, env=env).options["residual_diff_threshold"] == 0.5


def test_a_special_setting_of_a_higher_source_replaces_those_of_its_group() -> None:
    settings = find("cache_dit", {"scm_steps_mask_policy": "fast", "enable_dmd": True})
    request = settings.for_request(cache_config={"steps_computation_mask": "1101", "calibrator": "foca"})
    assert request.options == {"steps_computation_mask": "1101", "calibrator": "foca"}


def test_what_a_request_says_of_the_first_transformer_it_says_of_the_second_as_in_sglang() -> None:
    settings = find(env=SGLANG).for_request(cache_config={"Fn_compute_blocks": 5})
    assert settings.options["Fn_compute_blocks"] == 5
    assert "secondary" not in settings.options
    second = settings.for_request(cache_config={"overrides": {"transformer_2": {"Fn_compute_blocks": 6}}})
    assert second.options["secondary"] == {"Fn_compute_blocks": 6}
    assert second.origins["secondary.Fn_compute_blocks"] == "request"


def test_a_request_can_turn_the_cache_off_or_take_another_backend() -> None:
    settings = find("cache_dit", {"Fn_compute_blocks": 2, "attention_backend": "native"})
    for off in (None, "none", " None "):
        without = settings.for_request(off)
        assert without.make_backend() is None
        assert without.options == {}
        assert without.attention_backend == "native"
        assert [value.name for value in without.unused] == ["Fn_compute_blocks"]
    other = settings.for_request("tea_cache", {"rel_l1_thresh": 0.3})
    assert (other.backend, other.options) == ("tea_cache", {"rel_l1_thresh": 0.3})
    assert other.origins["cache_backend"] == "request"
    named = settings.for_request(cache_config={"cache_backend": "tea_cache"})
    assert (named.backend, named.options) == ("tea_cache", {})
    assert settings.for_request() == settings.for_request("Cache-DiT") == settings


def test_a_wrong_request_is_refused_whole_and_changes_nothing() -> None:
    settings = find("cache_dit", {"Fn_compute_blocks": 2})
    with pytest.raises(ConfigError) as caught:
        settings.for_request(
            cache_config={"Fn_compute_block": 1, "max_warmup_steps": -1, "enable_dmd": "yes"}
        )
    assert len(caught.value.problems) == 3
    assert caught.value.problems[0].startswith("request: unknown option 'Fn_compute_block'")
    with pytest.raises(ConfigError, match="parallelism_config"):
        settings.for_request(cache_config={"parallelism_config": {"tp_size": 2}})
    with pytest.raises(ConfigError, match="tea_cache"):
        settings.for_request("tea_cache", {"cache_backend": "cache_dit"})
    with pytest.raises(ConfigError, match="no cache backend"):
        find().for_request(cache_config={"Fn_compute_blocks": 1})
    with pytest.raises(UnknownBackendError, match="cache_dot"):
        settings.for_request("cache_dot")
    assert settings == find("cache_dit", {"Fn_compute_blocks": 2})


def test_what_is_for_another_backend_is_kept_apart_and_shown() -> None:
    env = {"DIT_CACHE_BACKEND": "tea_cache", "DIT_CACHE_REL_L1_THRESH": "0.3"}
    settings = find("cache_dit", env=env)
    assert settings.options == {}
    assert [value.name for value in settings.unused] == ["DIT_CACHE_REL_L1_THRESH"]
    env = {"DIT_CACHE_CONFIG": '{"cache_backend": "tea_cache", "rel_l1_thresh": 0.3, "compile": true}'}
    settings = find("cache_dit", env=env)
    assert (settings.options, settings.compile) == ({}, {})
    assert [value.origin for value in settings.unused] == ["environment DIT_CACHE_CONFIG"]
    assert "dbprune" in problems(env={**env, "DIT_CACHE_BACKEND": "dbprune"})[0]


def test_an_argument_and_a_file_for_different_backends_contradict_each_other_but_none_is_off() -> None:
    source = {"cache_backend": "tea_cache", "rel_l1_thresh": 0.3}
    assert "tea_cache" in problems("cache_dit", source)[0]
    off = find("none", source)
    assert (off.backend, [value.name for value in off.unused]) == (None, ["rel_l1_thresh"])
    env = {"DIT_CACHE_BACKEND": "none", "DIT_CACHE_REL_L1_THRESH": "0.3"}
    assert find(env=env).make_backend() is None


def test_a_finished_backend_whose_class_has_a_required_option_is_taken_as_it_is() -> None:
    finished = get_cache_backend("step_plan", {"mask": "110100"})
    assert find(finished).make_backend() is finished


def test_a_class_and_a_finished_backend_are_taken_as_they_are() -> None:
    env = {"DIT_CACHE_BACKEND": "cache_dit", "DIT_CACHE_FN_COMPUTE_BLOCKS": "2"}
    by_class = find(CacheDiT, env=env)
    assert (by_class.backend, by_class.options) == (CacheDiT, {"Fn_compute_blocks": 2})
    finished = CacheDiT({"Fn_compute_blocks": 3})
    settings = find(finished, env=env)
    assert settings.make_backend() is finished
    (row,) = [row for row in settings.values() if row.name == "Fn_compute_blocks"]
    assert (row.value, row.origin) == (3, "argument")
    assert [value.name for value in settings.unused] == ["DIT_CACHE_FN_COMPUTE_BLOCKS"]
    assert "finished" in problems(finished, {"Fn_compute_blocks": 1})[0]
    with pytest.raises(ConfigError, match="finished"):
        settings.for_request(cache_config={"Fn_compute_blocks": 1})
    assert settings.for_request(None).backend is None


# Refusals


def test_everything_that_is_wrong_anywhere_is_told_at_once(file: Path) -> None:
    file.write_text(
        "cache_backend: cache_dit\n"
        "cache_config:\n  residual_diff_treshold: 1\n  Fn_compute_blocks: 0\n"
        "  overrides: {transformer_2: 5}\n"
        "parallelism_config: {ulyses: 2, tp: 0}\n"
        "quantise_config: {}\n"
    )
    env = {
        "SGLANG_CACHE_DIT_FM": "1",
        "DIT_CACHE_MAX_WARMUP_STEPS": "many",
        "DIT_CACHE_OVERRIDES": "{",
        "DIT_CACHE_QUANTIZE_CONFIG": "int8",
    }
    found = problems(NOT_SAID, file, env=env, attention_backend=7, compile={"mod": "x"})
    for words in [
        ("SGLANG_CACHE_DIT_FM", "'SGLANG_CACHE_DIT_FN'"),
        ("environment DIT_CACHE_MAX_WARMUP_STEPS", "whole number"),
        ("environment DIT_CACHE_OVERRIDES", "JSON"),
        ("environment DIT_CACHE_QUANTIZE_CONFIG", "JSON"),
        ("file cache.yaml line 3", "'residual_diff_threshold'"),
        ("file cache.yaml line 4", "at least 1"),
        ("file cache.yaml line 5", "overrides", "mapping"),
        ("file cache.yaml line 6", "'ulysses'"),
        ("file cache.yaml line 6", "tp", "at least 1"),
        ("cache.yaml", "quantise_config", "'quantize_config'"),
        ("attention_backend", "7"),
        ("compile", "'mode'"),
    ]:
        assert any(all(word in problem for word in words) for problem in found), words
    assert len(found) == 12


def test_every_wrong_override_is_told() -> None:
    overrides = {
        "transformer": {"Fn_compute_block": 1},
        "transformer_2": {"cache_backend": "tea_cash"},
        "blocks": {"enable_dmd": True, "enable_foca": True},
    }
    found = problems("cache_dit", {"overrides": overrides})
    assert len(found) == 3
    for words in overrides:
        assert any(
            problem.startswith((f"overrides: {words}", "overrides: transformer_2")) for problem in found
        )


@pytest.mark.parametrize(
    ("section", "value", "word"),
    [
        ("parallelism_config", {"ulysses_size": "auto", "tp_size": "auto"}, "only one"),
        ("parallelism_config", {"ulysses_size": "most"}, "auto"),
        ("parallelism_config", {"use_ray": True}, "torchrun"),
        ("parallelism_config", {"ulysses": 2, "ulysses_size": 2}, "same option"),
        ("parallelism_config", 2, "mapping"),
        ("quantize_config", {"exclude_layers": "mod"}, "list"),
        ("quantize_config", {"quant_typ": "int8"}, "quant_type"),
        ("compile", "max-autotune", "true, false"),
        ("attention_backend", " ", "name"),
    ],
)
def test_a_section_is_checked_like_the_options(section: str, value: object, word: str) -> None:
    for found in (
        problems("cache_dit", {"cache_config": {}, section: value}),
        problems(None, **{section: value}),
    ):
        assert word in found[0]
        assert section in found[0]


def test_one_attention_backend_in_two_places_has_to_be_the_same() -> None:
    source = {
        "attention_backend": "native",
        "parallelism_config": {"attention_backend": "sage", "tp_size": 2},
    }
    assert "give it once" in problems(None, source)[0]
    source["attention_backend"] = "sage"
    assert find(None, source).attention_backend == "sage"


def test_compile_is_a_switch_or_arguments() -> None:
    assert find(None, {"compile": True}).compile == {}
    assert find(None, {"compile": {"mode": "max-autotune"}}).compile == {"mode": "max-autotune"}
    assert find(None, {"compile": {"mode": "default"}}, compile=False).compile is None
    both = find(None, {"compile": {"mode": "default"}}, compile={"dynamic": True})
    assert both.compile == {"mode": "default", "dynamic": True}


def test_sections_that_nobody_would_see_are_refused_where_only_a_cache_is_made(file: Path) -> None:
    with pytest.raises(
        ConfigError, match="parallelism_config and quantize_config are not for the cache alone"
    ):
        get_cache_backend("cache_dit", file)
    assert (
        make_config(CacheDiT.Config, {"compile": None, "Fn_compute_blocks": 2}, "cache_dit").Fn_compute_blocks
        == 2
    )


def test_enable_cache_takes_a_file_and_the_backend_that_it_names(tmp_path: Path) -> None:
    path = tmp_path / "cache.yaml"
    path.write_text("cache_config:\n  cache_type: DBPrune\n  residual_diff_threshold: 0.5\n")
    model = build_transformer("flux")
    with enable_cache(model, cache_config=path) as backend:
        assert (backend.name, backend.config.residual_diff_threshold) == ("dbprune", 0.5)
    with enable_cache(model, Fn_compute_blocks=1) as backend:
        assert backend.name == "cache_dit"


# The command


def run(*arguments: object, exit_code: int = 0, **environment: str) -> Result:
    result = CliRunner().invoke(app, [str(each) for each in arguments], env=environment)
    assert result.exit_code == exit_code, result.output
    return result


def test_the_command_shows_every_value_and_its_origin(file: Path) -> None:
    environment = {"DIT_CACHE_BACKEND": "cache_dit", "DIT_CACHE_DMD_RANK": "2", "DIT_CACHE_COMPILE": "yes"}
    text = run("config", "show", "--cache-config", file, **environment).stdout
    rows = [re.split(r"  +", line) for line in text.splitlines()]
    assert rows[0] == ["NAME", "VALUE", "FROM"]
    shown = {row[0]: row[1:] for row in rows[1:]}
    assert shown["cache_backend"] == ["cache_dit", "environment DIT_CACHE_BACKEND"]
    assert shown["residual_diff_threshold"] == ["0.12", "file cache.yaml line 8"]
    assert shown["dmd_rank"] == ["2", "environment DIT_CACHE_DMD_RANK"]
    assert shown["hermite_order"] == ["2", "default"]
    assert shown["parallelism_config.ulysses_size"] == ["auto", "file cache.yaml line 14"]
    assert shown["attention_backend"] == ["native", "file cache.yaml line 15"]
    assert shown["compile"] == ["true", "environment DIT_CACHE_COMPILE"]
    assert set(rules_of(CacheDiT.Config)) <= set(shown)


def test_the_command_shows_what_a_preset_stands_for_and_what_is_not_used() -> None:
    text = run(
        "config", "show", "--cache-backend", "cache_dit", "--cache-config", '{"preset": "fast"}',
        DIT_CACHE_CONFIG="other.yaml",
    ).stdout  # fmt: skip
    of_preset = [line for line in text.splitlines() if line.endswith("preset fast")]
    assert len(of_preset) == len(CacheDiT.preset("fast", None))
    assert re.search(r"not used here:\ncache_config +other.yaml +environment DIT_CACHE_CONFIG", text)


def test_the_command_gives_the_same_as_json() -> None:
    arguments = [
        "config",
        "show",
        "--json",
        "--cache-config",
        '{"cache_type": "DBPrune", "enable_sperate_cfg": null}',
    ]
    result = run(*arguments)
    report = json.loads(result.stdout)
    assert {"section": "", "name": "cache_backend", "value": "dbprune", "origin": "argument"} in report[
        "values"
    ]
    assert len(report["warnings"]) == 1
    assert "enable_sperate_cfg" in result.stderr


def test_the_command_shows_a_mistake_as_generate_does() -> None:
    for command in (["config", "show"], ["generate", "a cat"]):
        result = run(*command, "--cache-backend", "cache_dit", exit_code=2, DIT_CACHE_FN="1")
        assert result.stderr.startswith("dit-cache: ")
        assert "DIT_CACHE_FN" in result.stderr
    text = run("config", "show").stdout
    assert re.search(r"cache_backend +null +default", text)
