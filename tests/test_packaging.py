"""What is installed, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import distribution, entry_points
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


def python(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout.strip()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """Built by the backend itself, which needs no network."""
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def pins(python_version: str) -> dict[str, str]:
    """The version of each package that constraints.txt gives to a Python on Linux."""
    environment = {
        "python_version": python_version,
        "python_full_version": f"{python_version}.0",
        "sys_platform": "linux",
        "platform_machine": "x86_64",
        "platform_python_implementation": "CPython",
    }
    found: dict[str, str] = {}
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        if not line or line.startswith("#"):
            continue
        pin = Requirement(line)
        if pin.marker is None or pin.marker.evaluate(environment):
            (specifier,) = pin.specifier
            name = canonicalize_name(pin.name)
            assert specifier.operator == "=="
            assert name not in found
            found[name] = specifier.version
    return found


def test_torch_is_the_only_heavy_import_of_the_package() -> None:
    imported = python("import dit_cache_backends, sys; print(*sys.modules)").split()
    assert "torch" in imported
    light = {
        "diffusers",
        "transformers",
        "tokenizers",
        "stevedore",
        "yaml",
        "typer",
        "rich",
        "PIL",
        "skimage",
    }
    assert light.isdisjoint(imported)


def test_making_a_backend_imports_neither_diffusers_nor_transformers() -> None:
    code = (
        "import sys; from dit_cache_backends import get_cache_backend; get_cache_backend('cache_dit');"
        "print({'diffusers', 'transformers'} & set(sys.modules))"
    )
    assert python(code) == "set()"


def test_the_built_in_backend_enters_by_an_entry_point() -> None:
    (point,) = entry_points(group="dit_cache_backends", name="cache_dit")
    assert point.dist.name == "dit-cache-backends"
    assert point.load().name == "cache_dit"


def test_the_command_is_installed() -> None:
    (command,) = [
        point for point in distribution("dit-cache-backends").entry_points if point.name == "dit-cache"
    ]
    assert command.group == "console_scripts"
    assert callable(command.load())


def test_the_wheel_holds_every_file_of_the_package_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    package = ROOT / "dit_cache_backends"
    expected = {
        str(path.relative_to(ROOT))
        for path in package.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    held = {name for name in wheel.namelist() if ".dist-info/" not in name}
    assert held == expected
    assert "dit_cache_backends/py.typed" in held


def test_the_wheel_declares_entry_points_licence_and_extras(wheel: zipfile.ZipFile) -> None:
    names = {name.rpartition(".dist-info/")[2]: name for name in wheel.namelist() if ".dist-info/" in name}
    declared = wheel.read(names["entry_points.txt"]).decode()
    assert "cache_dit = dit_cache_backends.strategies.cache_dit:CacheDiT" in declared
    assert "dit-cache = dit_cache_backends.cli:app" in declared
    assert "licenses/LICENSE" in names
    metadata = wheel.read(names["METADATA"]).decode()
    for extra in ("demo", "serve", "bench", "dev"):
        assert f"Provides-Extra: {extra}" in metadata


@pytest.mark.parametrize("python_version", PYTHONS)
def test_everything_the_project_asks_for_has_one_fitting_pin_for_each_python(python_version: str) -> None:
    pinned = pins(python_version)
    groups = [project()["dependencies"], *project()["optional-dependencies"].values()]
    wanted = [each for group in groups for each in group]
    for requirement in map(Requirement, wanted):
        version = pinned[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_torch_is_pinned_to_one_version_for_every_python() -> None:
    assert len({pins(python_version)["torch"] for python_version in PYTHONS}) == 1


def test_the_installed_versions_are_the_pinned_ones() -> None:
    pinned = pins(f"{sys.version_info.major}.{sys.version_info.minor}")
    for requirement in map(Requirement, project()["dependencies"]):
        installed = distribution(requirement.name).version.partition("+")[0]
        assert installed == pinned[canonicalize_name(requirement.name)], requirement
