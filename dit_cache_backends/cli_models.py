"""``dit-cache models``: the known classes, the card of one, and a card for one that nobody knows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from dit_cache_backends.errors import CardError, ConfigError, DitCacheError, UnknownTransformerError, near
from dit_cache_backends.terminal import print_columns, quiet, readable_errors

if TYPE_CHECKING:
    from torch import nn

    from dit_cache_backends.models.inspect import Inspection
    from dit_cache_backends.models.load import Source


class CardOrCommand(typer.core.TyperGroup):
    """``dit-cache models CLASS`` is short for ``dit-cache models show CLASS``."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Put the command in where the name of a class stands."""
        if args and args[0] not in self.commands:
            args = ["show", *args]
        return super().resolve_command(ctx, args)


models = typer.Typer(cls=CardOrCommand, help="The transformer classes that are known.")


@models.callback(invoke_without_command=True)
def listing(
    context: typer.Context,
    report: Annotated[
        Path | None, typer.Option(help="Write the table to this Markdown file instead.")
    ] = None,
    readme: Annotated[
        Path | None, typer.Option(help="Write the short version between the marks in this file instead.")
    ] = None,
) -> None:
    """List the transformer classes that are known; `models CLASS` shows the card of one, `models inspect` makes one."""
    if context.invoked_subcommand is not None:
        return
    with readable_errors():
        from dit_cache_backends.models import card_problems, table

        if report is not None:
            report.write_text(table.report(), encoding="utf-8")
        if readme is not None:
            try:
                readme.write_text(table.with_block(readme.read_text(encoding="utf-8")), encoding="utf-8")
            except (OSError, ValueError) as error:
                raise ConfigError(f"{readme}: {error}") from None
        if report is None and readme is None:
            print_columns(table.columns())
        for problem in card_problems():
            typer.echo(f"\n{problem}")


@models.command()
def show(name: Annotated[str, typer.Argument(metavar="CLASS")]) -> None:
    """Show the card of one class."""
    with readable_errors():
        from dit_cache_backends.models import list_cards

        cards = list_cards()
        found = [card for card in cards if card.transformer.lower() == name.lower()]
        if not found:
            raise UnknownTransformerError(
                f"there is no card for {name}.{near(name, [card.transformer for card in cards])}"
                " `dit-cache models` lists all of them, `dit-cache models inspect` makes one."
            )
        for card in found:
            _show_card(card)


@models.command("inspect")
def inspect_model(
    target: Annotated[
        str,
        typer.Argument(
            metavar="PATH|CLASS",
            help="A folder with a model or a pipeline of diffusers (weights are not needed), a class of diffusers, or "
            "the dotted path of any class of torch modules.",
        ),
    ],
    config: Annotated[
        str | None, typer.Option(metavar="JSON|@FILE|PATH", help="What the class is made with.")
    ] = None,
    inputs: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help='What its forward is called with: tensors (.pt), or JSON or YAML such as {"hidden_states": '
            '[1, 16, 64], "height": {"value": 8}}. Guessed unless given.',
        ),
    ] = None,
) -> None:
    """Run one tiny forward of a model, see where its tensors go, and print a card to paste."""
    with readable_errors():
        quiet()
        from dit_cache_backends.models.load import find_models

        for source in find_models(target, config):
            _inspect(source, inputs)


def _inspect(source: Source, file: Path | None) -> None:
    import torch

    from dit_cache_backends.models.guess import guess_inputs
    from dit_cache_backends.models.inspect import inspect_transformer
    from dit_cache_backends.models.load import build_small, read_inputs

    failure: DitCacheError | None = None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for model, words in build_small(source):
            try:
                arguments = guess_inputs(model) if file is None else read_inputs(file, model)
                found = inspect_transformer(model, **arguments)
            except ConfigError:
                raise
            except Exception as error:
                # What does not run with fewer heads may run as it is.
                failure = error if isinstance(error, DitCacheError) else CardError(_failed(source, error))
                continue
            name = f"{source.name}: " if source.name else ""
            typer.echo(f"# {name}{found.transformer}, {words}, called with {_listed(arguments)}")
            typer.echo(f"# {_tried(model, found, arguments)}")
            typer.echo(str(found))
            return
    raise failure or CardError(f"no {source.cls.__name__} could be made.")


def _failed(source: Source, error: Exception) -> str:
    return f"{source.cls.__name__} did not run with these inputs: {type(error).__name__}: {error}"


def _listed(arguments: dict[str, Any]) -> str:
    return ", ".join(
        f"{name} {list(value.shape) if hasattr(value, 'shape') else value if _short(value) else '...'}"
        for name, value in arguments.items()
    )


def _short(value: object) -> bool:
    return len(str(value)) < 40


def _tried(model: nn.Module, found: Inspection, arguments: dict[str, Any]) -> str:
    """What came of it when a step was skipped with the new card."""
    import torch

    from dit_cache_backends.api import enable_cache
    from dit_cache_backends.models.trace import tensors_in

    if not found.stacks:
        return "Not tried: there is no card."
    if next(model.parameters(), torch.empty(0)).is_meta:
        return "Not tried: on the meta device there are no numbers."
    try:
        backend: Any = enable_cache(
            model, "cache_dit", card=found.card, max_warmup_steps=1, residual_diff_threshold=1e9
        )
        with backend, torch.no_grad():
            outputs = []
            for step in range(2):
                with backend.step(step, total=3):
                    outputs.append([tensor.float() for tensor in tensors_in(model(**arguments))])
            skipped = backend.summary().blocks_skipped
        pairs = list(zip(*outputs, strict=True))
        error = max(float((one - other).abs().max() / one.abs().max()) for one, other in pairs)
    except Exception as reason:
        return f"DOES NOT WORK: with this card {type(reason).__name__}: {reason}"
    if skipped == 0:
        return "DOES NOT WORK: with this card nothing was skipped."
    words = "Tried" if error < 1e-4 else "DOES NOT WORK: tried"
    return f"{words}: cache_dit skipped {skipped} blocks, and a still input came out {error:.0e} off."


def _show_card(card: Any) -> None:
    typer.echo(f"{card.transformer} ({card.library or 'of any library'})")
    for stack in card.stacks:
        for each in stack.lists:
            gives = each.gives if isinstance(each.gives, str) else ", ".join(each.gives)
            typer.echo(f"  {each.path}: takes {', '.join(each.takes)}; gives {gives}")
    for argument, values in card.must_run:
        typer.echo(f"  runs in full where {argument} is {' or '.join(map(repr, values))}")
    if card.writes_in_place:
        typer.echo("  its blocks write into their inputs, which are copied before they are compared")
