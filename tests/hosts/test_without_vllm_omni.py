"""What of the adapter to vLLM-Omni holds where vLLM-Omni is not installed; the rest is `make test-vllm-omni`."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from torch import nn

from dit_cache_backends import (
    BlockList,
    Card,
    ConfigError,
    SpanBackend,
    get_cache_backend,
    register_card,
    stack,
)
from dit_cache_backends import models as known
from dit_cache_backends.hosts.vllm_omni.groups import groups_of_request, refuse_pipeline_stages
from dit_cache_backends.hosts.vllm_omni.selector import OVERRIDE, ours
from dit_cache_backends.hosts.vllm_omni.settings import options_of
from dit_cache_backends.pipelines import transformers_of
from dit_cache_backends.strategies.tea_cache_models import choose

pytestmark = pytest.mark.skipif(find_spec("vllm_omni") is not None, reason="vLLM-Omni is here")

if sys.version_info >= (3, 11):
    import tomllib
ROOT = Path(__file__).parents[2]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


def test_the_entry_point_is_silent_without_vllm_omni() -> None:
    done = run("from dit_cache_backends.hosts.vllm_omni.plugin import register; register(); register()")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_broken_vllm_omni_is_warned_of_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "vllm_omni").mkdir()
    (tmp_path / "vllm_omni" / "__init__.py").write_text("raise OSError('no driver')")
    done = run(
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from dit_cache_backends.hosts.vllm_omni.plugin import register; register(); print('goes on')"
    )
    assert (done.returncode, done.stdout) == (0, "goes on\n")
    assert "written for vLLM-Omni 0.30, and this is of an unknown version" in done.stderr
    assert "OSError: no driver" in done.stderr


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib")
def test_the_entry_point_is_declared_and_can_be_called_without_arguments() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    points = project["entry-points"]["vllm_omni.general_plugins"]
    assert points == {"dit_cache_backends": "dit_cache_backends.hosts.vllm_omni.plugin:register"}


@dataclass
class LikeTheirs:
    """A few of the fields of vLLM-Omni 0.30's `DiffusionCacheConfig`, with its names, defaults and kinds."""

    rel_l1_thresh: float | None = None
    mag_threshold: float = 0.24
    Fn_compute_blocks: int = 1
    residual_diff_threshold: float = 0.24
    scm_steps_policy: str = "dynamic"
    velocity_sim_thresholds: list[float] = field(default_factory=lambda: [0.95, 0.93])
    _extra_params: dict[str, Any] = field(default_factory=dict, repr=False)


def test_only_what_is_not_a_default_is_taken_and_the_keys_that_vllm_omni_does_not_know() -> None:
    assert options_of(LikeTheirs()) == {}
    assert options_of(LikeTheirs(Fn_compute_blocks=1, velocity_sim_thresholds=[0.95, 0.93])) == {}
    said = LikeTheirs(residual_diff_threshold=0.1, _extra_params={"preset": "fast"})
    assert options_of(said) == {"residual_diff_threshold": 0.1, "preset": "fast"}


def test_what_a_backend_does_not_know_is_refused_by_it() -> None:
    with pytest.raises(ConfigError, match="'mag_threshold'"):
        get_cache_backend("dbprune", options_of(LikeTheirs(mag_threshold=0.3)))
    with pytest.raises(ConfigError, match=r"'residual_threshold'.*Did you mean"):
        get_cache_backend("dbprune", options_of(LikeTheirs(_extra_params={"residual_threshold": 0.3})))


@pytest.mark.parametrize("given", [None, {"a": 1}, '{"a": 1}'])
def test_any_other_configuration_is_handed_on_as_it_is(given: Any) -> None:
    assert options_of(given) is given


def test_a_configuration_of_our_own_kind_is_handed_on_as_it_is() -> None:
    made = get_cache_backend("dbprune", {"Bn_compute_blocks": 2})
    assert made is not None
    assert dataclasses.is_dataclass(made.config)
    assert options_of(made.config) is made.config


@pytest.mark.parametrize(
    ("name", "environment", "expected"),
    [
        ("cache_dit", "", None),
        ("dcb:cache_dit", "", "cache_dit"),
        (" DCB:Cache-DiT ", "", "cache_dit"),
        ("cache_dit", "tea_cache", None),
        ("cache_dit", "tea_cache, Cache-DiT", "cache_dit"),
        ("cache_dit", "dcb:cache_dit", "cache_dit"),
        ("none", "none,", None),
        ("", ",", None),
        (None, "cache_dit", None),
    ],
)
def test_ours_is_taken_by_the_prefix_or_by_the_environment(
    name: str | None, environment: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OVERRIDE, environment)
    assert ours(name) == expected


def test_without_groups_there_is_nobody_to_agree_with() -> None:
    assert groups_of_request() == []
    refuse_pipeline_stages("cache_dit")


class Around(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.language_model = nn.Module()
        self.inner.blocks = nn.ModuleList([nn.Identity(), nn.Identity()])


class Dotted(nn.Module):
    _dit_modules = ("around.inner.language_model",)

    def __init__(self) -> None:
        super().__init__()
        self.around = Around()


def test_a_dotted_name_finds_the_innermost_module_around_it_that_has_a_card(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(known, "_cards", {})
    pipeline = Dotted()
    assert list(transformers_of(pipeline)) == ["transformer"]  # itself: nothing in it is known
    register_card(Card("Around", (stack(BlockList("inner.blocks", ("x",), "x")),), library=None))
    assert transformers_of(pipeline) == {"around": pipeline.around}


class Bare(nn.Module):
    """As vLLM-Omni's FLUX.1: no configuration, but blocks that can be counted."""

    def __init__(self, double: int, single: int, guidance: bool = True) -> None:
        super().__init__()
        self.transformer_blocks = nn.ModuleList(nn.Identity() for _ in range(double))
        self.single_transformer_blocks = nn.ModuleList(nn.Identity() for _ in range(single))
        self.in_channels, self.guidance_embeds = 64, guidance


def test_a_model_without_a_configuration_is_known_by_its_blocks() -> None:
    name = "FluxTransformer2DModel"
    assert choose(name, Bare(19, 38), "FluxPipeline", 1, "vllm_omni").name == "flux_dev"
    assert choose(name, Bare(19, 38), "FluxKontextPipeline", 1, "vllm_omni").name == "flux_kontext"
    assert choose(name, Bare(19, 38, guidance=False), "FluxPipeline", 1, "vllm_omni").donor == "FLUX.1-dev"
    with pytest.raises(ConfigError, match="num_layers 4"):
        choose(name, Bare(4, 38), "FluxPipeline", 1, "vllm_omni")
    with pytest.raises(ConfigError, match="no published set"):
        choose(name, nn.Module(), "FluxPipeline", 1, "vllm_omni")


def named_in_the_page() -> list[tuple[str, dict[str, Any]]]:
    """Each backend that docs/vllm-omni.md names with options, from its Python, shell and YAML."""
    page = (ROOT / "docs/vllm-omni.md").read_text(encoding="utf-8")
    found = re.findall(r'cache_backend="(\S+)", cache_config=(\{.*?\})\)', page)
    found += re.findall(r"--cache-backend (\S+) .*?--cache-config '(\{.*?\})'", page, re.DOTALL)
    (stages,) = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    (stage,) = yaml.safe_load(stages)["stages"]
    plain = [(name, json.loads(options)) for name, options in found]
    return [*plain, (stage["cache_backend"], stage["cache_config"])]


def test_what_the_page_shows_is_accepted() -> None:
    named = named_in_the_page()
    assert len(named) == 3
    for name, options in named:
        made = get_cache_backend(ours(name) or name, options_of(LikeTheirs(_extra_params=options)))
        assert isinstance(made, SpanBackend)
        assert made.settings() == options
