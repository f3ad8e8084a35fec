"""What a user can hand over as a configuration, and what is said when it does not fit."""

from __future__ import annotations

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dit_cache_backends.config import describe, load_config, make_config, named_backend, option
from dit_cache_backends.errors import ConfigError, DitCacheError, near


@dataclass(frozen=True)
class Config:
    front: int = option(1, help="Blocks at the front that always run.", minimum=0, aliases=("Fn",))
    threshold: float = option(0.24, help="Skip below it.", minimum=0)
    ratio: float = option(0.5, help="A share.", exclusive_minimum=0, exclusive_maximum=1)
    mask: list[int] | str | None = option(None, help="Which steps run.", minimum=0, maximum=1)
    policy: str | None = option(None, help="How much to skip.", choices=("slow", "medium", "fast"))
    order: Literal[1, 2] = option(1, help="Of the expansion.")
    taylor: bool = option(False, help="Predict instead of reuse.")
    bins: list[int] = option([2, 3], help="Run lengths.", minimum=1)
    pair: tuple[int, float] = option((1, 2.0), help="Two numbers.")
    extra: dict[str, float] | None = option(None, help="More.")


def make(source: object) -> Config:
    return make_config(Config, source, "toy")


def problems(source: object) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        make(source)
    return caught.value.problems


# Sources


@pytest.mark.parametrize("source", [None, {}, "{}", "", "  "])
def test_nothing_given_means_the_defaults(source: object) -> None:
    assert make(source) == Config()


def test_a_mapping_and_its_json_text_mean_the_same() -> None:
    options = {"front": 2, "threshold": 0.1, "mask": [1, 0, 1], "policy": None, "taylor": True}
    assert make(options) == make(json.dumps(options)) == make(" " + json.dumps(options, indent=2))


@pytest.mark.parametrize("suffix", [".json", ".yaml", ".yml"])
def test_a_file_is_read_by_its_path_and_behind_an_at_sign(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"settings{suffix}"
    path.write_text('{"front": 3, "policy": "fast"}')  # JSON is YAML, too
    expected = Config(front=3, policy="fast")
    assert make(str(path)) == make(path) == make(f"@{path}") == expected


def test_a_file_without_a_known_ending_is_read_behind_an_at_sign(tmp_path: Path) -> None:
    path = tmp_path / "settings"
    path.write_text("front: 3\nmask: '1110'\n")
    assert make(f"@{path}") == Config(front=3, mask="1110")
    assert "got" in problems(str(path))[0]


@pytest.mark.parametrize("wrapped", [True, False])
def test_options_may_stand_under_cache_config_or_flat(tmp_path: Path, wrapped: bool) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("cache_config:\n  threshold: 1\n" if wrapped else "threshold: 1\n")
    assert make(path) == Config(threshold=1.0)


def test_a_source_may_name_its_backend(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("cache_backend: Toy\ncache_config:\n  front: 4\n")
    assert named_backend(path) == "Toy"
    assert load_config(path) == {"front": 4}
    assert make(path) == Config(front=4)
    assert named_backend({"front": 4}) is None


def test_a_configuration_of_another_backend_is_refused() -> None:
    assert "other" in problems({"cache_backend": "other", "front": 1})[0]


def test_what_stands_beside_cache_config_is_refused_by_name() -> None:
    assert "parallelism" in problems({"cache_config": {}, "parallelism": {}})[0]


def test_a_finished_configuration_is_checked_and_copied() -> None:
    finished = Config(front=2)
    made = make(finished)
    assert made == finished
    assert made.bins is not finished.bins
    assert "front" in problems(Config(front=-2))[0]
    assert make(Config(threshold=np.float32(0.5))).threshold == 0.5  # type: ignore[arg-type]


def test_a_dataclass_of_someone_else_is_read_by_its_fields() -> None:
    @dataclass
    class HostConfig:
        threshold: float = 0.125

    assert make(HostConfig()) == Config(threshold=0.125)


@pytest.mark.parametrize(
    ("content", "word"),
    [("[1]", "mapping"), ("a: b: c", "YAML"), ("front: 1\nfront: 2", "twice"), ("1: 2", "text")],
)
def test_a_file_that_holds_no_options_is_refused_with_its_path(
    tmp_path: Path, content: str, word: str
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(content)
    (problem,) = problems(path)
    assert word in problem
    assert str(path) in problem


@pytest.mark.parametrize(
    "source", ['{"front": }', '{"front": 1, "front": 2}', "fast", 7, ["front"], "missing.yaml", "@missing"]
)
def test_what_is_no_configuration_at_all_is_refused(source: object) -> None:
    assert problems(source)


# Values


@pytest.mark.parametrize(
    ("given", "held"),
    [
        ({"threshold": 1}, 1.0),
        ({"threshold": np.float64(0.5)}, 0.5),
        ({"threshold": torch.tensor(0.5)}, 0.5),
        ({"threshold": math.inf}, math.inf),
        ({"front": np.int64(3)}, 3),
        ({"Fn": 3}, 3),
        ({"taylor": np.True_}, True),
        ({"mask": "1100"}, "1100"),
        ({"mask": (1, 0)}, [1, 0]),
        ({"mask": np.array([1, 0])}, [1, 0]),
        ({"mask": torch.tensor([1, 0])}, [1, 0]),
        ({"mask": None}, None),
        ({"order": 2}, 2),
        ({"pair": [3, 4]}, (3, 4.0)),
        ({"extra": {"a": 1}}, {"a": 1.0}),
        ({"policy": "slow"}, "slow"),
    ],
)
def test_a_fitting_value_is_held_as_plain_python_of_the_declared_type(
    given: dict[str, Any], held: object
) -> None:
    name = "front" if "Fn" in given else next(iter(given))
    value = getattr(make(given), name)
    assert value == held
    assert type(value) is type(held)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("front", -1, ["whole number", "at least 0", "-1"]),
        ("front", 1.0, ["whole number", "1.0"]),
        ("front", True, ["whole number", "true"]),
        ("front", "1", ["whole number", "'1'", "write it as a number: 1"]),
        ("front", None, ["whole number", "null"]),
        ("threshold", True, ["a number", "true"]),
        ("threshold", math.nan, ["a number", "nan"]),
        ("threshold", torch.tensor(math.nan), ["a number", "nan"]),
        ("threshold", "1e-3", ["a number", "0.001"]),
        ("threshold", -0.1, ["at least 0", "-0.1"]),
        ("ratio", 0, ["above 0 and below 1", "0"]),
        ("ratio", 1.0, ["above 0 and below 1", "1.0"]),
        ("mask", [1, 2], ["at most 1", "[1, 2]"]),
        ("mask", [True], ["whole numbers", "text", "null", "[True]"]),
        ("mask", 5, ["whole numbers", "5"]),
        ("policy", "fsat", ["'slow', 'medium', 'fast'", "'fsat'", "Did you mean 'fast'?"]),
        ("policy", 1, ["'slow', 'medium', 'fast'", "1"]),
        ("order", 3, ["1, 2", "3"]),
        ("taylor", 1, ["true or false", "1"]),
        ("taylor", "false", ["true or false", "'false'"]),
        ("bins", [], None),
        ("bins", [0], ["at least 1", "[0]"]),
        ("pair", [1], ["[1]"]),
        ("extra", {"a": "b"}, ["mapping"]),
    ],
)
def test_a_value_that_does_not_fit_is_named_with_what_would(
    name: str, value: object, words: list[str] | None
) -> None:
    if words is None:
        assert getattr(make({name: value}), name) == value
        return
    (problem,) = problems({name: value})
    assert problem.startswith(f"{name}: expected ")
    for word in words:
        assert word in problem


def test_yamls_numbers_without_a_dot_are_text_and_the_message_helps(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("threshold: 1e-3\n")
    assert "write it as a number: 0.001" in problems(path)[0]


def test_an_unknown_option_is_named_with_the_nearest_the_backend_and_all_options() -> None:
    with pytest.raises(ConfigError) as caught:
        make({"treshold": 1})
    text = str(caught.value)
    assert text.startswith("toy: unknown option 'treshold'. Did you mean 'threshold'?")
    for name in (each.name for each in dataclasses.fields(Config)):
        assert name in text


def test_every_problem_is_reported_at_once() -> None:
    found = problems({"treshold": 1, "front": -1, "ratio": 0.5, "policy": "no", "taylor": "yes"})
    assert [problem.split(":")[0] for problem in found] == [
        "unknown option 'treshold'. Did you mean 'threshold'?",
        "front",
        "policy",
        "taylor",
    ]


def test_one_option_under_two_of_its_names_is_refused() -> None:
    assert problems({"Fn": 1, "front": 2}) == ("'Fn' and 'front' are the same option; give one of them",)


def test_an_option_without_a_default_has_to_be_given() -> None:
    @dataclass(frozen=True)
    class Calibrated:
        ratios: list[float] = option(help="One for each step.")

    with pytest.raises(ConfigError, match=r"ratios has to be given \(One for each step\.\)"):
        make_config(Calibrated, None, "toy")
    assert make_config(Calibrated, {"ratios": [1, 0.5]}, "toy").ratios == [1.0, 0.5]


def test_a_check_over_several_options_is_reported_under_the_backends_name() -> None:
    @dataclass(frozen=True)
    class Ordered:
        low: int = option(0, help="")
        high: int = option(1, help="")

        def __post_init__(self) -> None:
            if self.low >= self.high:
                raise ConfigError(f"low ({self.low}) has to be below high ({self.high})")

    with pytest.raises(ConfigError, match=r"^toy: low \(3\) has to be below high \(1\)$"):
        make_config(Ordered, {"low": 3}, "toy")


def test_a_list_given_as_default_is_not_shared() -> None:
    first, second = make(None), make(None)
    assert first.bins == [2, 3]
    assert first.bins is not second.bins


def test_a_dataclass_without_any_option_declarations_is_checked_by_its_annotations() -> None:
    @dataclass
    class Plain:
        size: int = 1

    assert make_config(Plain, {"size": 2}, "toy") == Plain(2)
    with pytest.raises(ConfigError, match="size: expected a whole number, got 'big'"):
        make_config(Plain, {"size": "big"}, "toy")


def test_a_config_error_is_a_value_error_and_one_of_ours() -> None:
    with pytest.raises(ValueError, match="toy"):
        make({"x": 1})
    assert issubclass(ConfigError, DitCacheError)


@given(
    st.dictionaries(st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.floats() | st.text())
)
def test_any_json_is_either_refused_as_a_config_error_or_held(options: dict[str, Any]) -> None:
    try:
        made = make(options)
    except ConfigError:
        return
    for name, value in options.items():
        assert name in {"cache_backend", "cache_config"} or getattr(made, name) == value


# Description


def test_the_description_tells_type_default_range_and_meaning() -> None:
    by_name = {info.name: info for info in describe(Config)}
    assert list(by_name) == [each.name for each in dataclasses.fields(Config)]
    assert (by_name["mask"].type, by_name["mask"].default) == ("list[int] | str | None", "null")
    assert (by_name["threshold"].default, by_name["threshold"].valid) == ("0.24", "at least 0")
    assert by_name["policy"].valid == "one of 'slow', 'medium', 'fast'"
    assert by_name["bins"].default == "[2, 3]"
    assert by_name["front"].aliases == ("Fn",)
    assert by_name["front"].help == "Blocks at the front that always run."


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("residual_diff_treshold", " Did you mean 'residual_diff_threshold'?"),
        ("fn-compute-blocks", " Did you mean 'Fn_compute_blocks'?"),
        ("threshold", " Did you mean 'residual_diff_threshold'?"),
        ("zzz", ""),
    ],
)
def test_near_names_are_found_whatever_their_case_and_hyphens(name: str, expected: str) -> None:
    assert near(name, ["Fn_compute_blocks", "residual_diff_threshold", "warmup_interval"]) == expected
