"""What the two options are refused for, before any work, and that every backend has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from typer.testing import CliRunner

from dit_cache_backends import (
    ConfigError,
    Reuse,
    SpanBackend,
    StorageOptions,
    enable_cache,
    get_cache_backend,
)
from dit_cache_backends.cli import app
from dit_cache_backends.engine.storage import PLAIN
from dit_cache_conformance.tiny import build_transformer

from ..engine.runs import inputs, output
from ..engine.strategies import PlanConfig, Planned
from .runs import CLASSES, OURS, eager


@pytest.mark.parametrize("name", OURS)
def test_every_backend_has_the_two_options(name: str) -> None:
    shown = CliRunner().invoke(app, ["backends", name]).output
    assert "cache_device" in shown
    assert "cache_dtype" in shown
    assert issubclass(CLASSES[name].Config, StorageOptions)


@pytest.mark.parametrize("options", [{"cache_device": "gpu"}, {"cache_dtype": "bf16"}])
def test_a_name_that_does_not_exist_is_refused_with_the_nearest_one(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"Did you mean '(cuda|bfloat16)'"):
        get_cache_backend("cache_dit", options)


def test_both_mistakes_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as refused:
        get_cache_backend("dbprune", {"cache_device": "gpu", "cache_dtype": "half", "Fn_compute_blocks": -1})
    assert len(refused.value.problems) == 3


@pytest.mark.parametrize("where", ["cuda:97", "npu"])
@pytest.mark.parametrize("part", [False, True])
def test_a_device_that_is_not_there_is_refused_and_the_model_left_alone(where: str, part: bool) -> None:
    model = build_transformer("flux")
    plain, before = output(model, inputs("flux", 1)[0]), type(model)
    options: dict[str, Any] = {"cache_device": where}
    if part:
        options = {"overrides": {"transformer": options}}
    with pytest.raises(ConfigError, match=f"cache_device: this process has no {where}; it has cpu"):
        enable_cache(model, "cache_dit", **options)
    assert type(model) is before
    assert output(model, inputs("flux", 1)[0]).equal(plain)


@dataclass(frozen=True)
class StrangersConfig(PlanConfig, StorageOptions):
    """A stranger's options."""


class Strangers(Planned):
    Config = StrangersConfig


def test_a_strangers_config_that_inherits_the_options_has_them() -> None:
    backend: SpanBackend = Strangers({"plan": "1", "cache_dtype": "bfloat16"})
    model = build_transformer("flux")
    backend.enable(model)
    with backend.step(0, 5):
        output(model, inputs("flux", 5)[0])
    assert [str(tensor.dtype) for tensor in backend.held_tensors()] == ["torch.bfloat16"] * 2
    with pytest.raises(ConfigError, match="cache_dtype"):
        Strangers({"cache_dtype": "int4"})


def test_a_config_without_the_options_keeps_everything_as_it_is() -> None:
    assert Planned({}).storage() is PLAIN
    assert CLASSES["cache_dit"](eager("cache_dit")).storage() is PLAIN


def test_without_the_options_no_predictor_is_wrapped() -> None:
    """What is not asked for costs nothing: the slots hold the strategy's own predictors."""
    for options in ({}, {"cache_dtype": "float16"}):
        backend: Any = CLASSES["cache_dit"]({**eager("cache_dit"), **options})
        model = build_transformer("flux")
        backend.enable(model)
        with backend.step(0, 5):
            output(model, inputs("flux", 5)[0])
        (session,) = backend._enabled[0].sessions.live()
        kinds = {type(each) for slot in session.slots.values() for each in slot.predictors}
        assert (kinds == {Reuse}) is not bool(options)


def test_the_schema_knows_devices_and_dtypes() -> None:
    from jsonschema import Draft202012Validator

    from dit_cache_backends.configuration.schema import backend_schema

    validator = Draft202012Validator(backend_schema("cache_dit", CLASSES))
    for good in ({"cache_device": "cuda:1"}, {"cache_device": None}, {"cache_dtype": "float8_e4m3fn"}):
        assert validator.is_valid(good), good
    for bad in ({"cache_device": "gpu"}, {"cache_device": 1}, {"cache_dtype": "fp8"}):
        assert not validator.is_valid(bad), bad
