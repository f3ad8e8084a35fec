"""The real selector of vLLM-Omni, opened: which name gives whose backend, and what is said of one that nobody has."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import vllm_omni.plugins
from vllm_omni.config.stage_config import load_deploy_config
from vllm_omni.diffusion.cache import selector
from vllm_omni.diffusion.cache.base import CacheBackend
from vllm_omni.diffusion.cache.cachedit import CacheDiTBackend
from vllm_omni.diffusion.cache.teacache import TeaCacheBackend
from vllm_omni.diffusion.data import DiffusionCacheConfig, OmniDiffusionConfig
from vllm_omni.diffusion.worker import diffusion_model_runner

from dit_cache_backends import ConfigError, list_cache_backends
from dit_cache_backends.hosts.vllm_omni import plugin
from dit_cache_backends.hosts.vllm_omni.hosted import HostedBackend
from dit_cache_backends.hosts.vllm_omni.plugin import register
from dit_cache_backends.hosts.vllm_omni.selector import OVERRIDE, OWN, PREFIX


@pytest.fixture(autouse=True)
def opened() -> None:
    register()


def ask(name: Any, options: dict[str, Any] | None = None) -> Any:
    return selector.get_cache_backend(name, DiffusionCacheConfig.from_dict(options or {}))


def test_the_entry_point_opens_the_selector_and_the_name_that_the_runner_holds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = selector.get_cache_backend._dit_cache_backends_original
    for module in (selector, diffusion_model_runner):
        monkeypatch.setattr(module, "get_cache_backend", closed)
    with pytest.raises(ValueError, match="Unsupported cache backend"):
        ask("dbprune")
    monkeypatch.setattr(vllm_omni.plugins, "omni_plugins_loaded", False)
    vllm_omni.plugins.load_omni_general_plugins()
    for module in (selector, diffusion_model_runner):
        made = module.get_cache_backend("dbprune", DiffusionCacheConfig())
        assert isinstance(made, CacheBackend)
        assert made.backend.name == "dbprune"


def test_opening_it_again_changes_nothing() -> None:
    closed = selector.get_cache_backend._dit_cache_backends_original
    methods = dict(vars(diffusion_model_runner.DiffusionModelRunner))
    ask("dbprune")
    for _ in range(3):
        register()
    assert selector.get_cache_backend._dit_cache_backends_original is closed
    assert closed.__module__ == "vllm_omni.diffusion.cache.selector"
    assert not hasattr(closed, "_dit_cache_backends_original")
    ask("dbprune")
    opened = vars(diffusion_model_runner.DiffusionModelRunner)
    assert {name for name in methods if methods[name] is not opened[name]} <= {
        "_execute_request_list",
        "_execute_stepwise",
    }
    assert opened["_execute_stepwise"]._dit_cache_backends_original.__module__.startswith("vllm_omni.")


@pytest.mark.parametrize("name", sorted(set(list_cache_backends()) - set(OWN)))
def test_every_backend_that_vllm_omni_does_not_have_is_reached_by_its_name(name: str) -> None:
    made = ask(name)
    assert isinstance(made, HostedBackend)
    assert made.backend.name == name
    assert ask(name.upper().replace("_", "-")).backend.name == name


def test_a_plugin_of_another_distribution_is_among_them() -> None:
    assert list_cache_backends()["easy_cache"].distribution == "dit-cache-easy-cache"
    assert ask("easy_cache", {"threshold": 0.3}).backend.config.threshold == 0.3


def test_the_names_of_vllm_omni_stay_its_own() -> None:
    assert type(ask("cache_dit")) is CacheDiTBackend
    assert type(ask("tea_cache")) is TeaCacheBackend
    for name in OWN:
        assert not isinstance(ask(name), HostedBackend)


def test_the_prefix_or_the_environment_takes_ours_instead(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ask(f"{PREFIX}cache_dit").backend.name == "cache_dit"
    assert ask("DCB:Cache-DiT").backend.name == "cache_dit"
    monkeypatch.setenv(OVERRIDE, "cache_dit, dcb:tea_cache")
    assert ask("cache_dit").backend.name == "cache_dit"
    assert ask("tea_cache").backend.name == "tea_cache"
    assert not isinstance(ask("mag_cache"), HostedBackend)


@pytest.mark.parametrize("nothing", [None, "none"])
def test_no_cache_stays_no_cache(nothing: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(OVERRIDE, "cache_dit,,none")
    assert selector.get_cache_backend(None, None) is None
    assert ask("none") is None


@pytest.mark.parametrize("name", ["dbprun", "dcb:cachedit", "cache-dit", "CACHE_DIT"])
def test_a_name_that_nobody_has_is_refused_with_all_that_there_are(name: str) -> None:
    with pytest.raises(ValueError, match="Unsupported cache backend") as caught:
        ask(name)
    for known in ("cache_dit", "sea_cache", "dcb:cache_dit", "dcb:tea_cache", "dbprune", "easy_cache"):
        assert known in str(caught.value)
    assert "Did you mean" in str(caught.value)


def test_options_come_through_the_configuration_of_vllm_omni() -> None:
    made = ask(
        "dcb:cache_dit",
        {
            "residual_diff_threshold": 0.1,
            "preset": "fast",
            "overrides": {"transformer_2": {"Fn_compute_blocks": 4}},
        },
    )
    assert made.backend.config.residual_diff_threshold == 0.1
    assert made.backend.settings() == {"preset": "fast", "residual_diff_threshold": 0.1}
    assert made.backend.part("transformer_2").config.Fn_compute_blocks == 4


def test_an_unknown_key_is_refused_by_name_with_the_nearest() -> None:
    with pytest.raises(
        ConfigError, match=r"unknown option 'residual_dif_threshold'.*residual_diff_threshold"
    ):
        ask("dbprune", {"residual_dif_threshold": 0.1})
    with pytest.raises(ConfigError, match="'rel_l1_thresh'"):
        ask("dbprune", {"rel_l1_thresh": 0.1})


def test_what_vllm_omni_fills_in_by_itself_is_not_taken_for_a_wish() -> None:
    """Its defaults would be unknown to most backends, and would stand in a preset's way."""
    every = {
        each.name: getattr(DiffusionCacheConfig(), each.name)
        for each in dataclasses.fields(DiffusionCacheConfig)
    }
    every.pop("_extra_params")
    made = ask("easy_cache", every)
    assert made.backend.settings() == {}
    assert ask("dcb:cache_dit", {"preset": "fast"} | every).backend.settings() == {"preset": "fast"}


def test_a_mapping_and_nothing_are_configurations_too() -> None:
    assert (
        selector.get_cache_backend("dbprune", {"Bn_compute_blocks": 2}).backend.config.Bn_compute_blocks == 2
    )
    assert selector.get_cache_backend("dbprune", None).backend.settings() == {}


@pytest.fixture
def another_release(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr(plugin, "version", lambda name: "0.31.0")
    return iter(["0.31.0"])


def test_another_release_is_warned_of_and_served(
    another_release: Iterator[str], caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("vllm_omni.dit_cache_backends")
    logger.addHandler(caplog.handler)
    try:
        register()
    finally:
        logger.removeHandler(caplog.handler)
    assert "0.31.0" in caplog.text
    assert ask("dbprune").backend.name == "dbprune"


def test_what_fails_while_opening_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger("vllm_omni.dit_cache_backends")
    logger.addHandler(caplog.handler)
    monkeypatch.delattr(selector, "get_cache_backend")
    try:
        register()
    finally:
        logger.removeHandler(caplog.handler)
    assert "cannot be given" in caplog.text


def test_a_stage_of_a_deployment_file_names_it(tmp_path: Path) -> None:
    """What vLLM-Omni reads from the YAML goes into a stage's configuration under the same two names."""
    file = tmp_path / "deploy.yaml"
    file.write_text(
        "pipeline: dreamzero\nstages:\n  - stage_id: 0\n    devices: '0'\n    cache_backend: dcb:cache_dit\n"
        "    cache_config:\n      residual_diff_threshold: 0.1\n      preset: fast\n"
    )
    (stage,) = load_deploy_config(file).stages
    config = OmniDiffusionConfig(cache_backend=stage.cache_backend, cache_config=stage.cache_config)
    made = selector.get_cache_backend(config.cache_backend, config.cache_config)
    assert made.backend.settings() == {"preset": "fast", "residual_diff_threshold": 0.1}
