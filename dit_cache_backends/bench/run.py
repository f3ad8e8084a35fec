"""The sections of a measurement in order, and where their results go."""

from __future__ import annotations

import json as json_module
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from dit_cache_backends.bench import gpu, target_table
from dit_cache_backends.bench.asked import Asked
from dit_cache_backends.bench.document import Part, markdown, show
from dit_cache_backends.bench.peers import installed
from dit_cache_backends.errors import ConfigError, near

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1
"""Of the JSON: grows when a name in it changes its meaning."""
SECTIONS = ("steps", "waits", "held", "scale", "requests", "storage", "pictures", "compiled", "imports")


class Section(Protocol):
    """A module that measures one thing."""

    def run(self, asked: Asked) -> dict[str, Any]:
        """Measure: plain data, fit for JSON."""

    def report(self, found: dict[str, Any]) -> list[Part]:
        """What was found, to be read."""


def section(name: str) -> Section:
    """The module of a section.

    Raises:
        ConfigError: there is none of that name.
    """
    if name not in SECTIONS:
        raise ConfigError(
            f"there is no section {name!r}.{near(name, SECTIONS)} There are {', '.join(SECTIONS)}."
        )
    return cast(Section, import_module(f"dit_cache_backends.bench.{name}"))


def main(
    asked: Asked, sections: Sequence[str] = (), output: Path | None = None, json: Path | None = None
) -> dict[str, Any]:
    """Measure, print the tables, and write the report and the data.

    Args:
        asked: how much, and beside whom.
        sections: those of ``SECTIONS`` to do; all unless given.
        output: the Markdown file; its plots go beside it.
        json: the file for the data; beside ``output`` unless given.

    Returns:
        What was written as JSON.

    Raises:
        ConfigError: there is no section of that name.
    """
    import torch

    names = [name for name in SECTIONS if name in sections] if sections else list(SECTIONS)
    modules = {name: section(name) for name in [*sections, *names]}
    console = _console()
    json = json or (output and output.with_suffix(".json"))
    found: dict[str, Any] = {}
    data: dict[str, Any] = {
        "schema": SCHEMA,
        "machine": _machine(asked),
        "seconds": {},
        "targets": [],
        "sections": found,
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with console.status("") as status:
            for name in names:
                began = time.perf_counter()
                status.update(name)
                say = lambda text, name=name: status.update(f"{name}: {text}")  # noqa: E731
                found[name] = modules[name].run(replace(asked, say=say))
                data["seconds"][name] = time.perf_counter() - began
                data["targets"] = target_table.rows(found, asked.quick)
                if json is not None:  # now already: what a later section does costs none before it
                    _write(json, json_module.dumps(data, indent=1) + "\n")
    finally:
        torch.set_num_threads(threads)
    tell(data, output, console)
    return data


def tell(data: Mapping[str, Any], output: Path | None, console: Console) -> None:
    """Print the tables of what was measured, and write the report."""
    if output is not None:
        each = parts(data)
        table = [each.pop()] if data["targets"] else []
        rest = gpu.report(output.with_name(gpu.FILE))
        _write(output, f"{_head(data)}\n\n{markdown([*table, *_limits(output), *each, *rest], output)}")
    show(parts(data), console)
    if output is not None:
        console.print(f"Written: {output}")


def again(json: Path, output: Path) -> dict[str, Any]:
    """Write the report of what ``main`` has written as JSON; nothing is measured.

    Raises:
        ConfigError: the file is not of this version's ``main``.
    """
    try:
        data: dict[str, Any] = json_module.loads(json.read_text(encoding="utf-8"))
        schema = data["schema"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{json} is not what `dit-cache bench` writes: {error!r}") from error
    if schema != SCHEMA:
        raise ConfigError(f"{json} has schema {schema}, this version reads {SCHEMA}; measure anew")
    tell(data, output, _console())
    return data


def _console() -> Console:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=150)


def parts(data: Mapping[str, Any]) -> list[Part]:
    """The report of what ``main`` returned."""
    found = data["sections"]
    each = [part for name in found for part in section(name).report(found[name])]
    # The last on a terminal is the first in the file: what is looked for first.
    table = data["targets"]
    return [*each, target_table.report(table, data["machine"]["versions"])] if table else each


def _limits(output: Path) -> list[Part]:
    """What was tried where a target is not reached; written by hand, beside the report."""
    path = output.with_name(f"{output.stem}_limits.md")
    if not path.exists():
        return []
    return [Part("What was tried, and what the limit is", (path.read_text(encoding="utf-8"),))]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _machine(asked: Asked) -> dict[str, Any]:
    import torch

    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "python": platform.python_version(),
        "threads": 1,
        "quick": asked.quick,
        "versions": {
            "torch": str(torch.__version__),
            **{name: installed(name) for name in ("diffusers", "dit-cache-backends", "cache-dit")},
        },
    }


def _head(data: Mapping[str, Any]) -> str:
    machine = data["machine"]
    versions = machine["versions"]
    minutes = sum(data["seconds"].values()) / 60
    absent = "cache-dit is not installed here, so it is missing: `pip install cache-dit==1.5.3`."
    small = "**A quick run on small models: it shows that everything works, not how fast it is.**"
    lines = [
        "# Benchmarks",
        "",
        "Made by `make bench` (`dit-cache bench --output docs/benchmarks.md`), not edited by hand, in "
        f"{minutes:.0f} min.",
        f"One thread of a CPU ({machine['machine']}, {machine['system']}), Python {machine['python']}, torch",
        f"{versions['torch']}, diffusers {versions['diffusers']}. Every library runs in the same process, on the same",
        "model and in the same rounds.",
    ]
    lines += [] if versions["cache-dit"] else [absent]
    lines += [small] if machine["quick"] else []
    return "\n".join(lines)
