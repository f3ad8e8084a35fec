"""The JSON schema of a configuration says what the check at run time says."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.config import check_options, make_config, option, same_option
from dit_cache_backends.configuration.dialects import CALIBRATOR_KEYS, VLLM_OMNI_KEYS
from dit_cache_backends.configuration.schema import DIALECT, backend_schema, file_schema
from dit_cache_backends.configuration.schema_values import value_schema
from dit_cache_backends.configuration.sections import SECTION_OPTIONS
from dit_cache_backends.configuration.settings import find_settings
from dit_cache_backends.errors import ConfigError, ConfigWarning
from dit_cache_backends.options import members, rules_of
from dit_cache_backends.registry import list_cache_backends

CLASSES = {name: info.cls for name, info in list_cache_backends().items()}
SCHEMAS = {name: backend_schema(name, CLASSES) for name in CLASSES}
VALIDATORS = {name: Draft202012Validator(schema) for name, schema in SCHEMAS.items()}
FILE = Draft202012Validator(file_schema(CLASSES))

# What no JSON schema can say: one value measured by another, files, and what a preset or an override meets in the rest.
BEYOND_A_SCHEMA = re.compile(
    r"steps_computation_mask has \d+ steps, but num_inference_steps"
    r"|scm_cache_bins make \d+ steps, but num_inference_steps"
    r"|coefficients_range: expected \[lowest, highest\]"
    r"|ratios: there is no set"
    r"|the file .* cannot be read"
    r"|attention_backend is .*, and within parallelism_config"
)
BETWEEN_PARTS = re.compile(
    r"each give|go together|ask for different calibrators|has no calibrator to use|contradict each other"
    r"|has no effect without|has no presets"
)

TEXTS = st.sampled_from(
    [
        "",
        "none",
        "fast",
        "1101",
        "0110",
        "12",
        "flux_dev",
        " Flux-Dev",
        "identity",
        "no such",
        "plan.json",
        "null",
    ]
)
WHOLE = st.integers(-3, 12)
# JSON does not tell 1.0 from 1; this package does, since a fraction of the steps is not a number of steps.
BROKEN = st.floats(-2, 2).filter(lambda number: not number.is_integer())
JUNK = st.one_of(
    st.none(), st.booleans(), WHOLE, BROKEN, TEXTS, st.lists(WHOLE, max_size=2), st.just({"x": 1})
)


def values(annotation: Any, choices: tuple[Any, ...] = ()) -> st.SearchStrategy[Any]:
    """Values of the option's type, inside and outside of its range."""
    if choices:
        return st.sampled_from([*choices, None, "no such"])
    kinds: dict[Any, st.SearchStrategy[Any]] = {
        bool: st.booleans(),
        int: WHOLE,
        float: WHOLE | BROKEN,
        str: TEXTS,
        NoneType: st.none(),
    }
    found = []
    for kind in members(annotation):
        if get_origin(kind) is list:
            found.append(st.lists(values(get_args(kind)[0]), max_size=4))
        elif get_origin(kind) is dict:
            found.append(st.dictionaries(st.sampled_from(["a", "0"]), values(get_args(kind)[1]), max_size=2))
        else:
            found.append(kinds.get(kind, JUNK))
    return st.one_of(*found)


@cache
def options(config: type) -> dict[str, st.SearchStrategy[Any]]:
    """A strategy for each option under each of its names."""
    return {
        name: values(annotation, rule.choices)
        for option, (annotation, rule) in rules_of(config).items()
        for name in (option, *rule.aliases)
    }


@st.composite
def configurations(draw: Callable[..., Any], name: str, *, parts: bool = True) -> dict[str, Any]:
    """Up to five options of a backend, mostly of the right type, now and then something else altogether."""
    known = dict(options(CLASSES[name].Config))
    known.update(dict.fromkeys(("enable_sperate_cfg", "Fn_compute_block", "rel_l1_thresh"), JUNK))
    known["cache_type"] = st.sampled_from(["DBCache", "dbprune", "DBPrun", None])
    known["cache_backend"] = st.sampled_from([name, name.upper().replace("_", "-"), "cache_dot", None])
    known["calibrator_config"] = st.dictionaries(
        st.sampled_from([*CALIBRATOR_KEYS[:5], "dmd_rank", "taylorseer_order", "order"]),
        st.sampled_from(["taylorseer", "dmd", "foca", "residual", True, False, 1, None]),
        max_size=3,
    )
    if parts:
        part = st.sampled_from(["transformer_2", "single_transformer_blocks"])
        known["secondary"] = one_change(name)
        known["overrides"] = st.dictionaries(part, one_change(name), max_size=1)
    else:
        for key in ("secondary", "overrides", "calibrator_config", "cache_backend", "cache_type"):
            known.pop(key, None)
    chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=5, unique=True))
    wild = draw(st.integers(0, 9)) == 0
    required = {"mask": draw(st.sampled_from(["1", [1, 0], "101"]))} if name == "step_plan" else {}
    return required | {key: draw(JUNK if wild else known[key]) for key in chosen}


@st.composite
def one_change(draw: Callable[..., Any], name: str) -> dict[str, Any]:
    """An option of the backend, or of another one that is named."""
    other = draw(st.sampled_from([name, name, *CLASSES]))
    known = options(CLASSES[other].Config)
    key = draw(st.sampled_from(sorted(known)))
    change = {key: draw(known[key])}
    return change if other == name else {"cache_backend": other, **change}


def problems(name: str, config: object) -> tuple[str, ...]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        try:
            CLASSES[name](config)
        except ConfigError as error:
            return error.problems
    return ()


def quick(examples: int) -> Callable[[Any], Any]:
    return settings(
        max_examples=examples, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
    )


def agrees(valid: bool, found: tuple[str, ...], config: object) -> None:
    if valid:
        for problem in found:
            beyond = BEYOND_A_SCHEMA.search(problem) or (
                BETWEEN_PARTS.search(problem) and re.search("overrides|secondary|preset", json.dumps(config))
            )
            assert beyond, f"the schema accepts {config}, but: {problem}"
    else:
        assert found, f"the schema refuses {config}, but it is accepted"


@pytest.mark.parametrize("name", CLASSES)
def test_a_schema_is_valid_itself_and_has_every_option_with_its_default_and_meaning(name: str) -> None:
    schema = SCHEMAS[name]
    Draft202012Validator.check_schema(schema)
    assert schema["$schema"] == DIALECT
    assert schema["additionalProperties"] is False
    defaults = {} if name == "step_plan" else vars(make_config(CLASSES[name].Config, None, name))
    for option_name, (_, rule) in rules_of(CLASSES[name].Config).items():
        shown = schema["properties"][option_name]
        assert shown["description"] == rule.help
        if option_name in defaults:
            assert shown["default"] == defaults[option_name]
        assert set(rule.aliases) <= set(schema["properties"])


@pytest.mark.parametrize("name", CLASSES)
def test_what_a_schema_accepts_is_accepted_and_what_it_refuses_is_refused(name: str) -> None:
    seen = set()

    @quick(100)
    @given(configurations(name))
    def compare(config: dict[str, Any]) -> None:
        valid, found = VALIDATORS[name].is_valid(config), problems(name, config)
        seen.add(valid)
        agrees(valid, found, config)

    compare()
    assert seen == {True, False}


@pytest.mark.parametrize("name", CLASSES)
def test_each_option_alone_is_judged_alike_at_and_beyond_its_bounds(name: str) -> None:
    base = {"mask": "1"} if name == "step_plan" else {}
    for key, (_, rule) in rules_of(CLASSES[name].Config).items():
        if name != "cache_dit" and same_option(CLASSES[name].Config, CLASSES["cache_dit"].Config, key):
            continue
        bounds = [rule.minimum, rule.maximum, rule.exclusive_minimum, rule.exclusive_maximum]
        numbers = [bound + more for bound in bounds if bound is not None for more in (-1, 0, 1)]
        for value in [*numbers, *rule.choices, None, True, "no such", -1, 0.5, [], [0.5], {}, {"a": 1}]:
            config = {**base, key: value}
            if key == "overrides" and isinstance(value, dict) and value:
                continue  # see the parts
            agrees(VALIDATORS[name].is_valid(config), problems(name, config), config)


@pytest.mark.parametrize(
    ("name", "config", "valid"),
    [
        ("cache_dit", {"steps_computation_mask": "fast", "scm_steps_mask_policy": "slow"}, False),
        ("cache_dit", {"scm_compute_bins": [4, 1]}, False),
        ("cache_dit", {"scm_compute_bins": [4, 1], "scm_cache_bins": [2]}, True),
        ("cache_dit", {"enable_taylorseer": True, "enable_dmd": True}, False),
        ("cache_dit", {"calibrator": "dmd", "enable_dmd": True}, True),
        ("cache_dit", {"enable_encoder_foca": True}, False),
        ("cache_dit", {"enable_encoder_foca": True, "enable_foca": True}, True),
        ("cache_dit", {"calibrator_config": {"calibrator_type": "dmd", "dmd_rank": 2}}, True),
        ("cache_dit", {"calibrator_config": {"dmd_rank": 2}}, False),
        ("cache_dit", {"Fn_compute_blocks": None}, True),
        ("cache_dit", {"cache_type": "DBPrune"}, False),
        ("dbprune", {"cache_type": "DBPrune", "force_reduce_calibrator_vram": None}, True),
        ("dbprune", {"max_dynamic_prune_threshold": 0.5}, False),
        ("tea_cache", {"rel_l1_thresh": 0.2, "rel_l1_thresh_scale": 2}, False),
        ("tea_cache", {"coefficients": "Wan2.1"}, False),
        ("mag_cache", {"calibrate": True}, False),
        ("mag_cache", {"mag_calibrate": True, "save_as": "mine"}, True),
        ("step_plan", {}, False),
        ("step_plan", {"mask": "011"}, False),
        ("step_plan", {"mask": [1, 0], "branches": {"uncond": "10"}}, True),
        ("fb_cache", {"preset": "fast"}, False),
        ("cache_dit", {"secondary": {"Fn_compute_blocks": 2}, "overrides": {"transformer_2": {}}}, False),
        (
            "cache_dit",
            {"overrides": {"transformer_2": {"cache_backend": "Tea-Cache", "rule": "sglang"}}},
            True,
        ),
        ("cache_dit", {"overrides": {"transformer_2": {"rule": "sglang"}}}, False),
        ("cache_dit", {"overrides": {"transformer_2": {"cache_backend": "step_plan"}}}, False),
        ("cache_dit", {"overrides": {"transformer_2": {"secondary": {}}}}, False),
    ],
)
def test_options_that_do_not_go_together_are_refused_by_both(
    name: str, config: dict[str, Any], valid: bool
) -> None:
    assert VALIDATORS[name].is_valid(config) is valid
    assert (problems(name, config) == ()) is valid


def test_keys_of_vllm_omni_for_other_strategies_are_refused_by_both() -> None:
    for owner, keys in VLLM_OMNI_KEYS.items():
        for key in keys:
            if key not in rules_of(CLASSES["cache_dit"].Config):
                assert not VALIDATORS["cache_dit"].is_valid({key: 1})
                assert owner in problems("cache_dit", {key: 1})[0]


def test_every_kind_of_annotation_has_a_schema_that_agrees() -> None:
    @dataclass(frozen=True)
    class Config:
        pair: tuple[int, float] = option((1, 2.5), help="", minimum=0)
        order: Literal[1, "two"] = option(1, help="")
        names: list[str] = option([], help="", choices=("a", "b"))
        shares: dict[str, float] | None = option(None, help="")
        numbers: tuple[int, ...] = option((), help="", maximum=5)
        anything: Any = option(None, help="")

    for key, (annotation, rule) in rules_of(Config).items():
        validator = Draft202012Validator(value_schema(annotation, rule))
        for value in [
            1,
            -1,
            "two",
            "a",
            None,
            [],
            [1, 2.5],
            [1],
            [-1, 2],
            ["a"],
            ["c"],
            {"x": 1},
            {"x": "y"},
            [6],
        ]:
            _, found = check_options(Config, {key: value})
            assert validator.is_valid(value) is not bool(found), (key, value)


# Whole files


@st.composite
def files(draw: Callable[..., Any]) -> dict[str, Any]:
    name = draw(st.sampled_from(sorted(CLASSES)))
    content: dict[str, Any] = {"cache_backend": name, "cache_config": draw(configurations(name, parts=False))}
    for section, config in SECTION_OPTIONS.items():
        if draw(st.integers(0, 2)) == 0:
            known = {**options(config), "ulyses": WHOLE}
            chosen = draw(st.lists(st.sampled_from(sorted(known)), max_size=2, unique=True))
            content[section] = {key: draw(known[key]) for key in chosen}
    if draw(st.booleans()):
        content[draw(st.sampled_from(["attention_backend", "attention_backends", "compile"]))] = draw(JUNK)
    return content


@quick(80)
@given(files())
@example({"cache_backend": "cache_dit", "parallelism_config": {"attention_backend": ""}})
def test_the_schema_of_a_file_agrees_with_the_loader(content: dict[str, Any]) -> None:
    found: tuple[str, ...] = ()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        try:
            find_settings(cache_config=content, environment={})
        except ConfigError as error:
            found = error.problems
    agrees(FILE.is_valid(content), found, content)


def test_a_flat_file_and_one_that_names_no_backend_are_known_by_their_keys() -> None:
    assert FILE.is_valid({"residual_diff_threshold": 0.1, "parallelism_config": {"ulysses_size": "auto"}})
    assert not FILE.is_valid({"residual_diff_treshold": 0.1})
    assert FILE.is_valid({"cache_config": {"residual_diff_threshold": 0.1}})
    assert not FILE.is_valid({"cache_config": {"residual_diff_threshold": "high"}})


def test_the_command_prints_the_schemas() -> None:
    for arguments, schema in ((["TEA-cache"], SCHEMAS["tea_cache"]), ([], FILE.schema)):
        result = CliRunner().invoke(app, ["config", "schema", *arguments])
        assert result.exit_code == 0
        assert json.loads(result.stdout) == schema
    result = CliRunner().invoke(app, ["config", "schema", "tea_cash"])
    assert result.exit_code == 2
    assert re.search("Did you mean .*'tea_cache'", result.stderr)
