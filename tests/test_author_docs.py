"""Every code block of docs/write-a-backend.md runs, as for a reader; the architecture page leaves nothing out."""

from __future__ import annotations

import dataclasses
import re
import runpy
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

import dit_cache_backends
from dit_cache_backends import Capabilities
from dit_cache_backends.cli import app
from dit_cache_backends.scaffold import new_plugin
from tests.test_scaffold import install, python

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/write-a-backend.md").read_text(encoding="utf-8")
PAGE = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")

BLOCK = re.compile(
    r"(?:^`(?P<file>[\w./]+)`:\n\n)?^```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
BLOCKS = [match.groupdict() for match in BLOCK.finditer(GUIDE)]
FILES = {block["file"]: block["text"] for block in BLOCKS if block["file"]}
SNIPPETS = [block["text"] for block in BLOCKS if block["language"] == "python" and not block["file"]]
COMMANDS = [
    line.removeprefix("$ ")
    for block in BLOCKS
    if block["language"] == "console"
    for line in block["text"].splitlines()
]
CLI = "import sys; from dit_cache_backends.cli import app; app()"


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, str], Path]:
    """A folder outside the repository where a reader has typed the guide's files in, and installed them."""
    folder = tmp_path_factory.mktemp("reader") / "dit-cache-my-cache"
    for name, text in {**FILES, "README.md": "# my_cache\n"}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return install(folder, folder.parent / "site"), folder


def test_the_files_of_the_guide_are_those_that_new_plugin_writes(tmp_path: Path) -> None:
    written = new_plugin("my_cache", tmp_path / "new")
    texts = {str(path.relative_to(tmp_path / "new")): path.read_text() for path in written}
    assert set(FILES) == {"pyproject.toml", "dit_cache_my_cache/__init__.py", "tests/test_my_cache.py"}
    assert {name: texts[name] for name in FILES} == FILES
    tree = next(block["text"] for block in BLOCKS if block["text"].startswith("dit-cache-my-cache/\n"))
    assert {line.split()[0] for line in tree.splitlines()[1:]} == set(texts)


def test_what_a_reader_types_in_installs_and_its_tests_and_snippets_pass(
    readers: tuple[dict[str, str], Path],
) -> None:
    environment, folder = readers
    arguments = (
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-k",
        "not TestConformance or branches_do_not_mix",
    )
    assert " passed" in python(environment, folder, *arguments)
    assert len(SNIPPETS) == 6
    for number, snippet in enumerate(SNIPPETS):
        (folder / f"snippet_{number}.py").write_text(snippet)
    everything = f"import runpy; [runpy.run_path(f'snippet_{{n}}.py') for n in range({len(SNIPPETS)})]"
    assert "my_cache" in python(environment, folder, "-c", everything) or SNIPPETS


def test_the_commands_of_the_guide_run(readers: tuple[dict[str, str], Path], tmp_path: Path) -> None:
    environment, _ = readers
    inline = re.findall(r"^`(dit-cache [^`]+)`", GUIDE, flags=re.MULTILINE)
    seen = []
    for command in [*COMMANDS, *inline]:
        program, *arguments = shlex.split(command)
        seen.append(" ".join([program, *arguments[:1]]))
        if arguments[0] == "new-plugin":
            result = CliRunner().invoke(app, [*arguments, "--path", str(tmp_path / "new")])
            assert result.exit_code == 0, result.output
        elif program == "dit-cache" and (arguments[0] != "check" or "--only" in arguments):
            assert "my_cache" in python(environment, tmp_path, "-c", CLI, *arguments)
    assert {"dit-cache new-plugin", "dit-cache backends", "dit-cache check"} <= set(seen)


def test_the_capabilities_of_the_guide_are_those_that_there_are() -> None:
    table = re.findall(r"^\| `(\w+)` \|", GUIDE, flags=re.MULTILINE)
    assert table == [each.name for each in dataclasses.fields(Capabilities)]


def test_names_of_checks_in_the_guide_are_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "conformance"))
    from dit_cache_conformance import CHECKS

    named = {"half_precision_is_kept", "branches_do_not_mix", "ranks_decide_as_one_process_would"}
    assert all(name in GUIDE and name in CHECKS for name in named)


def test_the_architecture_page_has_every_folder() -> None:
    rows = set(re.findall(r"^\| `([\w/]+)/` \|", PAGE, flags=re.MULTILINE))
    package = Path(dit_cache_backends.__file__).parent
    folders = {f"{package.name}/{path.name}" for path in package.iterdir() if path.is_dir()}
    top = {path.name for path in ROOT.iterdir() if path.is_dir() and path.name[0] not in "._"}
    made = {"build", "dist", "outputs"}
    assert rows == {name for name in folders | top if not name.endswith("__pycache__")} - made


def test_the_picture_is_the_one_that_its_script_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["step_picture.py", str(tmp_path / "step.svg")])
    runpy.run_path(str(ROOT / "docs/step_picture.py"), run_name="__main__")
    assert (tmp_path / "step.svg").read_text() == (ROOT / "docs/step.svg").read_text()
    assert (tmp_path / "step.svg").stat().st_size > 1000


@pytest.mark.parametrize("page", ["write-a-backend.md", "architecture.md"])
def test_the_links_of_a_page_lead_somewhere(page: str) -> None:
    links = re.findall(r"\]\(([^)#:]+)\)", (ROOT / "docs" / page).read_text())
    assert links
    assert all((ROOT / "docs" / link).exists() for link in links)
