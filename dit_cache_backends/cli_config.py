"""``dit-cache config``: what a run would be given and by whom, and what a configuration may hold."""

from __future__ import annotations

import json
import warnings
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dit_cache_backends.terminal import print_columns, readable_errors

if TYPE_CHECKING:
    from dit_cache_backends.configuration.settings import Settings, Value

__all__ = ["CacheBackendOption", "CacheConfigOption", "config", "told_settings"]

config = typer.Typer(help="What a run is given, from where, and what a configuration may hold.")

CacheBackendOption = Annotated[
    str | None,
    typer.Option(
        help="The name of an installed backend (`dit-cache backends`), or none. Unless given, the file decides, then "
        "DIT_CACHE_BACKEND or DIFFUSION_CACHE_BACKEND; without any every block runs."
    ),
]
CacheConfigOption = Annotated[
    str | None,
    typer.Option(
        metavar="JSON|@FILE|PATH",
        help="Its options: JSON, or a JSON or YAML file, which may name the backend, too. Unless given, "
        "DIT_CACHE_CONFIG; single options: DIT_CACHE_OPTION.",
    ),
]


def told_settings(cache_backend: str | None, cache_config: str | None) -> Settings:
    """The settings that a command's options, a file and the environment give. Warnings go to standard error, in a line.

    Raises:
        ConfigError: as :func:`~dit_cache_backends.configuration.settings.find_settings`.
    """
    from dit_cache_backends.configuration.settings import NOT_SAID, find_settings
    from dit_cache_backends.errors import ConfigWarning

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConfigWarning)
        settings = find_settings(NOT_SAID if cache_backend is None else cache_backend, cache_config)
    for warning in settings.warnings:
        typer.echo(f"dit-cache: {warning}", err=True)
    return settings


@config.callback()
def commands() -> None:
    """What a run is given, from where, and what a configuration may hold."""


@config.command()
def show(
    cache_backend: CacheBackendOption = None,
    cache_config: CacheConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="The same as JSON.")] = False,
) -> None:
    """Print each value that `dit-cache generate` with these options would use, and where it comes from."""
    with readable_errors():
        settings = told_settings(cache_backend, cache_config)
        if as_json:
            report = {"values": settings.values(), "unused": settings.unused, "warnings": settings.warnings}
            typer.echo(json.dumps(report, default=_plain, indent=2))
            return
        print_columns([("NAME", "VALUE", "FROM"), *map(_row, settings.values())])
        if settings.unused:
            typer.echo("\nSaid, but not used here:")
            print_columns([_row(value) for value in settings.unused])


@config.command()
def schema(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Of a backend; without one, for a whole file.")
    ] = None,
) -> None:
    """Print the JSON schema of a backend's options, or of a whole configuration file, for editors."""
    with readable_errors():
        from dit_cache_backends.configuration.schema import backend_schema, file_schema
        from dit_cache_backends.registry import backend_class, list_cache_backends

        classes = {each: info.cls for each, info in list_cache_backends().items() if info.cls is not None}
        if name is None:
            made = file_schema(classes)
        else:
            backend_class(name)  # says so if there is none, or why it is broken
            made = backend_schema(name.strip().lower().replace("-", "_"), classes)
        typer.echo(json.dumps(made, indent=2))


def _row(value: Value) -> tuple[str, str, str]:
    name = value.name if value.section in ("", "cache") else f"{value.section}.{value.name}"
    text = value.value if isinstance(value.value, str) else json.dumps(value.value, default=_plain)
    return name, text, value.origin


def _plain(value: Any) -> Any:
    """What JSON has no word for: rows as mappings, modules and functions as their text."""
    from dit_cache_backends.configuration.settings import Value

    if isinstance(value, Value):
        return {
            "section": value.section,
            "name": value.name,
            "value": value.value,
            "origin": value.origin,
        }
    return repr(value)
