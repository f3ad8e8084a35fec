"""Backends are found by the entry points of what is installed: here, of distributions made on the spot."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.errors import (
    BackendLoadError,
    ConfigError,
    DitCacheError,
    DuplicateBackendError,
    UnknownBackendError,
)
from dit_cache_backends.registry import get_cache_backend, list_cache_backends

BACKEND = '''
from dataclasses import dataclass
from dit_cache_backends.backend import CacheBackend
from dit_cache_backends.config import option

class {name}(CacheBackend):
    """Skips nothing at all.

    And says so at length.
    """

    name = "{entry}"

    @dataclass(frozen=True)
    class Config:
        strength: int = option(1, help="How little it does.", minimum=0)

    def enable(self, pipeline): ...
    def refresh(self, pipeline, num_inference_steps, verbose=True): ...
    def disable(self, pipeline): ...
    def is_enabled(self): return False
    def summary(self, key=None): ...
'''

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Install a distribution, as pip would lay it out, with one module and entry points to it."""
    modules: list[str] = []

    def install(
        distribution: str, module: str, source: str, version: str = "1.0", **entry_points: str
    ) -> None:
        site = tmp_path / distribution
        info = site / f"{distribution}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
        lines = [f"{name.replace('__', '-')} = {target}" for name, target in entry_points.items()]
        (info / "entry_points.txt").write_text("\n".join(["[dit_cache_backends]", *lines]) + "\n")
        monkeypatch.syspath_prepend(site)
        modules.append(module)

    yield install
    for module in modules:
        sys.modules.pop(module, None)
    importlib.invalidate_caches()


def install_toy(
    install: Install, distribution: str = "toy_dist", entry: str = "toy", version: str = "1.0"
) -> None:
    module = f"{distribution}_module"
    install(
        distribution, module, BACKEND.format(name="Toy", entry=entry), version, **{entry: f"{module}:Toy"}
    )


@pytest.mark.parametrize("name", [None, "none", "None", "NONE", ""])
def test_no_name_and_none_give_no_backend(name: str | None) -> None:
    assert get_cache_backend(name) is None
    assert get_cache_backend(name, {}) is None


def test_options_without_a_backend_are_refused() -> None:
    with pytest.raises(ConfigError, match="no cache backend"):
        get_cache_backend(None, {"residual_diff_threshold": 0.1})


@pytest.mark.parametrize("name", ["cache_dit", "cache-dit", "CACHE_DIT", " Cache-DiT "])
def test_a_name_is_forgiven_its_case_and_hyphens(name: str) -> None:
    backend = get_cache_backend(name, {"residual_diff_threshold": 0.125})
    assert isinstance(backend, CacheBackend)
    assert backend.name == "cache_dit"
    assert backend.config.residual_diff_threshold == 0.125
    assert not backend.is_enabled()


def test_a_class_and_a_finished_backend_pass_through() -> None:
    first = get_cache_backend("cache_dit")
    second = get_cache_backend(type(first), '{"residual_diff_threshold": 0.5}')
    assert type(second) is type(first)
    assert second.config.residual_diff_threshold == 0.5
    assert get_cache_backend(second) is second
    with pytest.raises(ConfigError, match="finished 'cache_dit' backend"):
        get_cache_backend(second, {"residual_diff_threshold": 0.1})


def test_a_wrong_option_is_refused_before_anything_is_enabled() -> None:
    with pytest.raises(ConfigError, match="Did you mean 'residual_diff_threshold'"):
        get_cache_backend("cache_dit", {"residual_diff_treshold": 0.1})


def test_an_unknown_name_is_refused_with_the_names_there_are_and_the_nearest() -> None:
    with pytest.raises(
        ValueError, match=r"Unsupported cache backend: cache_dot\. Supported: .*cache_dit"
    ) as caught:
        get_cache_backend("cache_dot")
    assert isinstance(caught.value, UnknownBackendError)
    assert "Did you mean 'cache_dit'?" in str(caught.value)


@pytest.mark.parametrize("name", [7, ["cache_dit"], int])
def test_what_is_no_name_is_refused(name: object) -> None:
    with pytest.raises(UnknownBackendError, match="Unsupported cache backend"):
        get_cache_backend(name)


def test_the_built_in_backend_is_listed_with_where_it_comes_from() -> None:
    info = list_cache_backends()["cache_dit"]
    assert info.distribution == "dit-cache-backends"
    assert info.origin == "dit_cache_backends.strategies.cache_dit:CacheDiT"
    assert info.error is None
    assert info.summary
    assert isinstance(get_cache_backend("cache_dit"), info.cls)


def test_a_plugin_installed_meanwhile_is_there_at_once_and_gone_when_uninstalled(
    install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "toy" not in list_cache_backends()
    with monkeypatch.context():
        install_toy(install, version="2.3")
        info = list_cache_backends()["toy"]
        assert (info.distribution, info.version) == ("toy_dist", "2.3")
        assert info.origin == "toy_dist_module:Toy"
        assert info.summary == "Skips nothing at all."
        backend = get_cache_backend("TOY", {"strength": 3})
        assert backend.name == "toy"
        assert backend.config.strength == 3
        path = next(entry for entry in sys.path if entry.endswith("toy_dist"))
        sys.path.remove(path)
        importlib.invalidate_caches()
        assert "toy" not in list_cache_backends()
        sys.path.insert(0, path)


def test_an_entry_point_may_be_spelled_with_hyphens_and_capitals(install: Install) -> None:
    install("odd", "odd_module", BACKEND.format(name="Odd", entry="leap_frog"), Leap__Frog="odd_module:Odd")
    assert get_cache_backend("leap_frog").name == "leap_frog"


@pytest.mark.parametrize("entry", ["twin", "Twin", "t-win"])
def test_two_distributions_with_one_name_are_an_error_that_names_both(install: Install, entry: str) -> None:
    name = "t_win" if "-" in entry else "twin"
    source = BACKEND.format(name="Toy", entry=name)
    install("first_dist", "first_module", source, "1.1", **{name: "first_module:Toy"})
    install("second_dist", "second_module", source, "2.2", **{entry.replace("-", "__"): "second_module:Toy"})
    with pytest.raises(DuplicateBackendError) as caught:
        get_cache_backend(name)
    for part in (repr(name), "first_dist 1.1", "second_dist 2.2", "first_module:Toy", "second_module:Toy"):
        assert part in str(caught.value)
    backends = list_cache_backends()
    assert backends[name].cls is None
    assert backends[name].error == str(caught.value)
    assert backends["cache_dit"].error is None
    assert get_cache_backend("cache_dit") is not None


@pytest.mark.parametrize(
    ("source", "target", "reason"),
    [
        ("import a_library_nobody_has", ":Toy", "No module named 'a_library_nobody_has'"),
        ("raise RuntimeError('no device here')", ":Toy", "RuntimeError: no device here"),
        ("assert False, 'only on Mondays'", ":Toy", "AssertionError: only on Mondays"),
        ("raise SystemExit(3)", ":Toy", "SystemExit: 3"),
        ("def broken(:", ":Toy", "SyntaxError"),
        ("x = 1", ":Toy", "Toy"),
        ("class Toy: pass", ":Toy", "not a subclass of dit_cache_backends.CacheBackend"),
        ("Toy = object()", ":Toy", "not a subclass of dit_cache_backends.CacheBackend"),
        ("x = 1", "", "not a subclass of dit_cache_backends.CacheBackend"),
        (BACKEND.format(name="Toy", entry="toy").replace("class Config", "class Other"), ":Toy", "Config"),
        (BACKEND.format(name="Toy", entry="toy").replace("def refresh", "def other"), ":Toy", "refresh"),
    ],
)
def test_a_broken_plugin_hides_no_other_and_tells_its_reason(
    install: Install, source: str, target: str, reason: str
) -> None:
    install("bad_dist", "bad_module", source, bad=f"bad_module{target}")
    install_toy(install)
    backends = list_cache_backends()
    assert backends["bad"].cls is None
    assert reason in backends["bad"].error
    assert "bad_dist" in backends["bad"].error
    assert backends["toy"].error is None
    assert get_cache_backend("toy").name == "toy"
    with pytest.raises(BackendLoadError) as caught:
        get_cache_backend("bad")
    assert reason in str(caught.value)
    assert isinstance(caught.value, DitCacheError)


def test_the_exception_that_broke_a_plugin_is_chained(install: Install) -> None:
    install("bad_dist", "bad_module", "1 / 0", bad="bad_module:Toy")
    with pytest.raises(BackendLoadError) as caught:
        get_cache_backend("bad")
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_asking_for_one_backend_imports_no_other(install: Install) -> None:
    install_toy(install)
    install("other_dist", "other_module", BACKEND.format(name="Toy", entry="other"), other="other_module:Toy")
    assert get_cache_backend("toy").name == "toy"
    assert "toy_dist_module" in sys.modules
    assert "other_module" not in sys.modules
