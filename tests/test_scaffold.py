"""`dit-cache new-plugin` writes a package that installs, is found by its name, and passes its own tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.errors import DitCacheError
from dit_cache_backends.scaffold import TEMPLATE, new_plugin

ROOT = Path(__file__).parents[1]


def install(package: Path, site: Path) -> dict[str, str]:
    """Install a package into a folder of its own, without the network; returns the environment that has it."""
    command = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    command += ["--no-deps", "--no-build-isolation", "--target", str(site), str(package)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(site), str(ROOT / "conformance")])}


def python(environment: dict[str, str], folder: Path, *arguments: str) -> str:
    """What a fresh Python says, in that environment and folder."""
    done = subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_new_plugin_is_installed_found_and_passes_its_own_tests(tmp_path: Path) -> None:
    folder = tmp_path / "slow-dance"
    result = CliRunner().invoke(app, ["new-plugin", "Slow-Dance", "--path", str(folder)])
    assert result.exit_code == 0, result.output
    assert "dit_cache_slow_dance" in result.output
    environment = install(folder, tmp_path / "site")
    listed = python(environment, folder, "-c", "from dit_cache_backends.cli import app; app()", "backends")
    (line,) = [line for line in listed.splitlines() if line.startswith("slow_dance")]
    assert line.split()[1:4] == ["dit-cache-slow-dance", "0.1.0", "dit_cache_slow_dance:SlowDance"]
    assert "BROKEN" not in line
    # Its own tests have the whole suite in them; here it is tried on the smallest models alone.
    python(environment, folder, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "not TestConformance")
    check = "from dit_cache_conformance import check_backend; r = check_backend('slow_dance', models=('wan', 'wan22'));"
    python(environment, folder, "-c", f"{check} print(r); assert r.ok")


def test_no_name_of_the_template_is_left_over(tmp_path: Path) -> None:
    written = new_plugin("slow_dance", tmp_path / "new")
    assert len(written) == len(
        [path for path in TEMPLATE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    )
    for path in written:
        text = path.read_text().lower() + str(path.relative_to(tmp_path))
        assert not [word for word in ("my_cache", "my-cache", "mycache", "mygate") if word in text], path


def test_the_template_is_the_plugin_that_its_own_name_gives(tmp_path: Path) -> None:
    for path in new_plugin("my_cache", tmp_path / "same"):
        assert (
            path.read_text() == (ROOT / "plugins/template" / path.relative_to(tmp_path / "same")).read_text()
        )


@pytest.mark.parametrize("name", ["1cache", "my cache", "mine!", "", "class", "cache__x"])
def test_a_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DitCacheError, match="lower case with underscores"):
        new_plugin(name, tmp_path / "new")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("name", "owner"), [("cache_dit", "dit-cache-backends"), ("gate", "class Gate")])
def test_a_name_that_is_taken_is_refused(tmp_path: Path, name: str, owner: str) -> None:
    with pytest.raises(DitCacheError, match=owner):
        new_plugin(name, tmp_path / "new")


def test_a_folder_with_something_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    result = CliRunner().invoke(app, ["new-plugin", "slow_dance", "--path", str(tmp_path)])
    assert result.exit_code == 2
    assert "not an empty folder" in result.output
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
