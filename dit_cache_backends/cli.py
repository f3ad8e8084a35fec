"""The command ``dit-cache``. Torch, diffusers and the model are imported by the command that needs them."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dit_cache_backends.cli_bench import bench
from dit_cache_backends.cli_calibrate import calibrate
from dit_cache_backends.cli_call import (
    DeviceOption,
    DtypeOption,
    GuidanceOption,
    HeightOption,
    NegativePromptOption,
    TrueCfgOption,
    WidthOption,
)
from dit_cache_backends.cli_compare import compare
from dit_cache_backends.cli_config import CacheBackendOption, CacheConfigOption, config, told_settings
from dit_cache_backends.cli_models import models
from dit_cache_backends.cli_plan import plan
from dit_cache_backends.cli_serve import serve
from dit_cache_backends.cli_tune import tune
from dit_cache_backends.errors import ConfigError, DitCacheError
from dit_cache_backends.terminal import print_columns, quiet, readable_errors

if TYPE_CHECKING:
    from dit_cache_backends.hosts.requests import OmniRequestOutput
    from dit_cache_backends.registry import BackendInfo

__all__ = ["app"]

app = typer.Typer(
    help="Cache backends for diffusion transformers.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(models, name="models")
app.add_typer(config, name="config")
app.command()(serve)
app.command()(calibrate)
app.command()(plan)
app.command()(compare)
app.command()(tune)
app.command()(bench)


@app.command()
def demo(
    prompts: Annotated[
        list[str] | None, typer.Argument(metavar="PROMPT", help="What to draw; the demo's own unless given.")
    ] = None,
    num_inference_steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    seed: Annotated[int, typer.Option(help="Of the first prompt's noise.")] = 0,
    output: Annotated[Path, typer.Option(help="The PNG sheet to write.")] = Path("dit-cache-demo.png"),
    full: Annotated[
        bool, typer.Option("--full", help="Every mask policy, on 32 prompts: minutes instead of seconds.")
    ] = False,
    strategies: Annotated[
        bool,
        typer.Option(
            "--strategies", help="Every strategy, predictor and preset, on 16 prompts, with a plot."
        ),
    ] = False,
    report: Annotated[Path | None, typer.Option(help="Write the table to this Markdown file, too.")] = None,
) -> None:
    """Draw with the shipped model, dense and cached, and compare time and picture."""
    with readable_errors():
        quiet()
        if full and strategies:
            raise typer.BadParameter("give one of --full and --strategies")
        from dit_cache_backends.demo.run import main

        comparison: Literal["short", "full", "strategies"] = (
            "full" if full else "strategies" if strategies else "short"
        )
        main(prompts or (), num_inference_steps, seed, output, comparison, report)


@app.command()
def generate(
    prompts: Annotated[
        list[str], typer.Argument(metavar="PROMPT", help="What to draw; several make several.")
    ],
    model: Annotated[
        str, typer.Option(help="'demo' (the shipped one), a folder, or a name on the model hub.")
    ] = "demo",
    cache_backend: CacheBackendOption = None,
    cache_config: CacheConfigOption = None,
    num_inference_steps: Annotated[int, typer.Option(min=1, help="Denoising steps.")] = 28,
    seed: Annotated[int, typer.Option(help="Of the first noise.")] = 0,
    output: Annotated[Path, typer.Option(help="The PNG to write; several are numbered.")] = Path(
        "dit-cache.png"
    ),
    summary: Annotated[bool, typer.Option("--summary", help="Print what the cache did.")] = False,
    height: HeightOption = None,
    width: WidthOption = None,
    guidance_scale: GuidanceOption = None,
    true_cfg_scale: TrueCfgOption = None,
    negative_prompt: NegativePromptOption = None,
    dtype: DtypeOption = None,
    device: DeviceOption = None,
) -> None:
    """Draw pictures, with a cache backend or without."""
    with readable_errors():
        from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams

        # A mistake here is told before diffusers is even imported.
        settings = told_settings(cache_backend, cache_config)
        quiet()
        params = OmniDiffusionSamplingParams(
            height=height,
            width=width,
            num_inference_steps=num_inference_steps,
            guidance_scale=guidance_scale,
            true_cfg_scale=true_cfg_scale,
            negative_prompt=negative_prompt,
            seed=seed,
            output_type="pil",
        )
        with Omni(model, settings=settings, dtype=dtype, device=device) as omni:
            results = omni.generate(prompts, params, py_generator=True, use_tqdm=sys.stderr.isatty())
            paths = iter(_paths(output))
            for result in results:
                _report(result, paths, summary, several=len(prompts) > 1)


@app.command()
def backends(
    name: Annotated[str | None, typer.Argument(help="Show the options of this one.")] = None,
) -> None:
    """List the installed cache backends, or the options of one."""
    with readable_errors():
        from dit_cache_backends.registry import find_backend, list_cache_backends

        if name is not None:
            _show_backend(find_backend(name))
            return
        installed = list_cache_backends()
        rows = [("NAME", "FROM", "VERSION", "ORIGIN", "")]
        rows += [
            (
                info.name,
                info.distribution,
                info.version,
                info.origin,
                "BROKEN" if info.error else info.summary,
            )
            for info in installed.values()
        ]
        print_columns(rows)
        for info in installed.values():
            if info.error:
                typer.echo(f"\n{info.name} is broken: {info.error}")


@app.command("new-plugin")
def new_plugin(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Of the backend, such as my_cache.")],
    path: Annotated[
        Path | None, typer.Option(help="The folder to write; dit-cache-NAME unless said.")
    ] = None,
) -> None:
    """Write a package with a working cache backend in it, to be changed into your own."""
    with readable_errors():
        from dit_cache_backends.scaffold import new_plugin as write

        folder = path or Path(f"dit-cache-{name.strip().lower().replace('_', '-')}")
        for written in write(name, folder):
            typer.echo(written)
        typer.echo(f"\nNext: pip install -e '{folder}[test]' && pytest {folder}")


@app.command()
def check(
    name: Annotated[str, typer.Argument(help="The installed backend (`dit-cache backends`).")],
    cache_config: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE|PATH", help="Options that every run of it has.")
    ] = None,
    eager: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE|PATH", help="Options under which it skips; its own unless given."),
    ] = None,
    never: Annotated[
        str | None,
        typer.Option(metavar="JSON|@FILE|PATH", help="Options under which it never does; likewise."),
    ] = None,
    only: Annotated[
        list[str] | None, typer.Option(metavar="GROUP|CHECK", help="Only these; can be given several times.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="The report as JSON.")] = False,
) -> None:
    """Try every promise of a backend on tiny models; the exit status is 1 where one is broken."""
    with readable_errors():
        from dit_cache_backends.config import load_config

        try:
            from dit_cache_conformance.cli import run
        except ModuleNotFoundError as error:
            if error.name not in ("dit_cache_conformance", "rich", "pytest"):
                raise
            raise DitCacheError(
                f"`dit-cache check` needs {error.name}, which is not installed: pip install dit-cache-conformance"
            ) from error
        config, skipping, dense = (
            None if given is None else load_config(given) for given in (cache_config, eager, never)
        )
        quiet()
        if not run(name, config, skipping, dense, only or (), json):
            raise typer.Exit(1)


def _report(result: OmniRequestOutput, paths: Iterator[Path], summary: bool, *, several: bool) -> None:
    for picture in result.images:
        path = next(paths)
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(picture, path)
        seconds = ", ".join(f"{part} {spent:.2f} s" for part, spent in result.timings.items())
        typer.echo(f"{path}: {seconds}" + (f"  {result.prompt}" if several else ""))
    if summary:
        typer.echo(str(result.cache_summary) if result.cache_summary is not None else "No cache was enabled.")


def _save(picture: Any, path: Path) -> None:
    frames = picture if isinstance(picture, list) else [picture]
    if not frames or not hasattr(frames[0], "save"):
        raise ConfigError(
            f"the pipeline gave no pictures but {type(picture).__name__}; this command saves pictures only"
        )
    if len(frames) == 1:
        frames[0].save(path)
    else:
        frames[0].save(path, save_all=True, append_images=frames[1:])


def _paths(output: Path) -> Iterator[Path]:
    """The path itself, then numbered ones; a folder is filled with numbers."""
    if output.is_dir():
        output = output / "0.png"
    elif not output.suffix:
        output = output.with_suffix(".png")
    yield output
    number = 1
    stem = "" if output.stem == "0" else f"{output.stem}_"
    while True:
        yield output.with_name(f"{stem}{number}{output.suffix}")
        number += 1


def _show_backend(info: BackendInfo) -> None:
    from dit_cache_backends.config import describe

    if info.cls is None:
        raise DitCacheError(f"{info.name} is broken: {info.error}")
    typer.echo(f"{info.name} ({info.distribution} {info.version}, {info.origin})\n{info.summary}\n")
    options = describe(info.cls.Config)
    if not options:
        typer.echo("It has no options.")
    for option in options:
        default = "required" if option.required else f"default {option.default}"
        facts = ", ".join(filter(None, [option.type, default, option.valid]))
        aliases = f" (also {', '.join(option.aliases)})" if option.aliases else ""
        typer.echo(f"{option.name}: {facts}{aliases}")
        typer.echo(textwrap.indent(textwrap.fill(option.help, 96), "    "))


if __name__ == "__main__":
    app()
