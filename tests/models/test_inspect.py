"""A card worked out from one forward: that of the known classes, and one that works for those nobody knows."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner, Result

from dit_cache_backends import (
    AlreadyEnabledError,
    BlockList,
    Card,
    CardError,
    Stack,
    enable_cache,
    inspect_transformer,
    stack,
)
from dit_cache_backends.cli import app
from dit_cache_backends.models import card_for
from dit_cache_backends.models.card import HELD
from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build_transformer, transformer_inputs

from ..engine.runs import STILL, output, relative
from ..engine.strategies import LAYOUTS, always
from .strangers import (
    STRANGERS,
    Anew,
    Collects,
    One,
    Skips,
    Stranger,
    Turns,
    Within,
    Writes,
    arguments,
    stranger,
)

pytestmark = pytest.mark.usefixtures("as_in_a_run")

ONE_STACK = {
    "HunyuanVideoTransformer3DModel": "cached as two stacks, as cache-dit does; they go on into each other",
    "HunyuanVideoFramepackTransformer3DModel": "the same",
}
ALONE = {
    "Flux3Transformer2DModel": "its blocks of the image alone are large enough to be cached, unlike refiners"
}
EITHER = {"Cosmos3OmniTransformer": "both streams are parts of one tensor, before and after"}
GUESSES = {"consisid", "cosmos3", "kandinsky6_silent"}
"""Which of two streams that both lead to the output is the denoised one; what stands in for no sound."""


def evaluated(code: str) -> Card:
    found: Card = eval(code, {"Card": Card, "stack": stack, "BlockList": BlockList})
    return found


def lists(stacks: Iterable[Stack], *, any_order: bool = False) -> list[tuple[BlockList, ...]]:
    """The lists of stacks; what is held has a name in a card, and none here."""
    return [tuple(_nameless(each, any_order) for each in stack.lists) for stack in stacks]


def _nameless(blocks: BlockList, any_order: bool) -> BlockList:
    if any_order:
        blocks = replace(blocks, takes=tuple(sorted(blocks.takes)))
    if isinstance(blocks.gives, str):
        return blocks
    return replace(blocks, gives=tuple(HELD if name.startswith(HELD) else name for name in blocks.gives))


@pytest.mark.parametrize("name", TINY_TRANSFORMERS)
def test_what_is_found_in_a_known_model_is_what_its_card_says(name: str) -> None:
    model = build_transformer(name)
    card = card_for(model)
    found = inspect_transformer(model, **transformer_inputs(name))
    expected = card.stacks
    if card.arrange is not None and getattr(model, "num_decoder_layers", 0):
        expected = card.arrange(model)
    either = card.transformer in EITHER
    ours, theirs = lists(expected, any_order=either), lists(found.stacks, any_order=either)
    if card.transformer in ONE_STACK:
        assert theirs == [tuple(each for lists in ours for each in lists)]
    elif card.transformer in ALONE:
        called = {each.blocks.path for each in found.lists}
        side = [(each,) for each in found.side if "txt" not in each.path]
        assert [each for each in ours if each[0].path in called] == side + theirs
    else:
        assert theirs == ours
    for one, other in zip(expected, found.stacks, strict=False):
        assert (one.alternate is None) == (other.alternate is None)
        assert one.long_skips == other.long_skips
    assert bool(found.guesses) == (name in GUESSES)
    assert found.writes_in_place == card.writes_in_place
    assert (found.transformer, found.library) == (card.transformer, card.library)
    again = evaluated(found.code())
    assert again == found.card or any(each.alternate for each in found.stacks)
    assert lists(again.stacks) == lists(found.stacks)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("cls", STRANGERS)
def test_the_printed_card_of_a_model_that_nobody_knows_works(cls: type[nn.Module], layout: str) -> None:
    model = stranger(cls)
    plain, moved = output(model, arguments()), output(model, arguments(moved=0.1))
    namespace: dict[str, Any] = {}
    exec(str(inspect_transformer(model, **arguments())), namespace)
    card = namespace["card"]
    backend = always(layout)
    backend.enable(model, card=card)
    for step in range(3):
        with backend.step(step, 9):
            assert relative(output(model, arguments()), plain) <= STILL
    with backend.step(3, 9):
        followed = output(model, arguments(moved=0.1))
    assert (followed - moved).norm() < 0.9 * (plain - moved).norm()
    assert backend.summary().cached_steps() == [1, 2, 3]
    assert backend.summary().blocks_skipped > 0
    backend.disable()
    assert torch.equal(output(model, arguments()), plain)


def test_the_stacks_of_a_stranger_are_found_with_the_main_stream_first_and_the_rest_is_told() -> None:
    found = inspect_transformer(stranger(Stranger), **arguments())
    assert found.stacks == (
        stack(BlockList("first", takes=("picture", "prompt"), gives=("prompt", "picture"))),
        stack(BlockList("second", takes=("tokens",), gives="tokens")),
    )
    assert [each.path for each in found.side] == ["refiner"]
    assert not found.guesses
    text = str(found)
    assert "# spare: a list of 2 that was not called" in text
    assert "# left out: BlockList('refiner', takes=('tokens',), gives='tokens')" in text


def test_the_odd_ones_are_seen() -> None:
    (first, second) = inspect_transformer(stranger(Anew), **arguments()).stacks
    assert [each.lists[0].part for each in (first, second)] == [(0, 3), (3, None)]
    assert inspect_transformer(stranger(Skips), **arguments()).stacks[0].long_skips
    assert inspect_transformer(stranger(Writes), **arguments()).card.writes_in_place
    (turns,) = inspect_transformer(stranger(Turns), **arguments()).stacks
    assert [each.path for each in turns.lists] == ["rows", "columns"]
    assert turns.alternate is not None
    control, _ = inspect_transformer(stranger(Collects), **arguments()).stacks
    assert control.lists[0].gives == ("=output0", "tokens")
    towers = inspect_transformer(stranger(Within), **arguments())
    assert [each.name for each in towers.stacks] == ["towers.0.blocks", "towers.1.blocks"]


def test_lists_in_turns_whose_layouts_are_none_of_the_usual_ones_are_told_and_give_no_card() -> None:
    class Shifted(Turns):
        def forward(self, latents: Any, text: Any, time: Any) -> Any:
            image = latents * 1.0
            for row, column in zip(self.rows, self.columns, strict=True):
                image = column(row(image, time).roll(1, 1) + text[:, :1], time).roll(1, 1)
            return (image,)

    found = inspect_transformer(stranger(Shifted), **arguments())
    assert found.stacks == ()
    assert "No card can be made" in str(found)
    with pytest.raises(CardError, match=r"rows and columns are called in turns.*`alternate`"):
        found.card  # noqa: B018


class Parallel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(One() for _ in range(3))

    def forward(self, latents: Any) -> Any:
        return (sum(expert(latents) for expert in self.experts),)


def test_blocks_that_do_not_follow_each_other_are_no_stack() -> None:
    found = inspect_transformer(stranger(Parallel), latents=torch.ones(1, 4, 8))
    assert found.stacks == ()
    assert "no block gets what the one before it gave" in str(found)


def test_a_model_without_lists_is_refused() -> None:
    with pytest.raises(CardError, match="has no list of blocks"):
        inspect_transformer(nn.Linear(2, 2), input=torch.ones(1, 2))


def test_a_model_on_which_a_cache_is_enabled_is_refused() -> None:
    model = stranger(Writes)
    card = inspect_transformer(model, **arguments()).card
    with enable_cache(model, "cache_dit", card=card), pytest.raises(AlreadyEnabledError, match="this Writes"):
        inspect_transformer(model, **arguments())


def test_the_model_is_as_before_also_when_it_fails() -> None:
    model = stranger(Stranger)
    plain = output(model, arguments())
    inspect_transformer(model, **arguments())
    with pytest.raises(TypeError):
        inspect_transformer(model, **arguments(), wrong=1)
    with pytest.raises(RuntimeError):
        inspect_transformer(model, **(arguments() | {"text": torch.ones(1, 3, 5)}))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert torch.equal(output(model, arguments()), plain)


@pytest.mark.parametrize("name", ["flux", "wan", "qwen_image", "sd3", "chroma", "lumina2", "hunyuan_video"])
def test_inputs_are_guessed_where_names_and_configuration_tell_them(name: str) -> None:
    model = build_transformer(name)
    assert inspect_transformer(model).stacks == inspect_transformer(model, **transformer_inputs(name)).stacks


def test_inputs_that_cannot_be_guessed_are_asked_for() -> None:
    with pytest.raises(CardError, match=r"cannot be guessed.*takes latents, text, time.*--inputs FILE"):
        inspect_transformer(stranger(Stranger))


def run(*given: object, exit_code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["models", "inspect", *map(str, given)], env={"COLUMNS": "200"})
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result


def printed(text: str) -> Card:
    namespace: dict[str, Any] = {}
    exec(text, namespace)
    card: Card = namespace["card"]
    return card


def test_the_command_prints_the_card_of_a_folder_that_has_no_weights(tmp_path: Path) -> None:
    model: Any = build_transformer("flux")
    model.save_config(tmp_path)
    result = run(tmp_path)
    assert printed(result.stdout).stacks == card_for(model).stacks
    assert "FluxTransformer2DModel, as it is, called with hidden_states [1, 16, 16]" in result.stdout
    assert "# Tried: cache_dit skipped 11 blocks" in result.stdout


def test_the_command_prints_the_card_of_a_pipelines_transformer(painter: Path) -> None:
    text = run(painter).stdout
    assert text.startswith("# transformer: FluxTransformer2DModel")
    assert [each.path for each in printed(text).stacks[0].lists] == [
        "transformer_blocks",
        "single_transformer_blocks",
    ]


def test_the_command_makes_a_large_class_of_diffusers_small() -> None:
    text = run("SD3Transformer2DModel").stdout
    assert "with few blocks and heads" in text
    assert printed(text).stacks == card_for(build_transformer("sd3")).stacks


def test_the_command_takes_any_class_with_its_configuration_and_its_inputs(tmp_path: Path) -> None:
    inputs = tmp_path / "inputs.json"
    shapes = {"latents": [1, 8, 8], "text": [1, 8, 8], "time": {"value": 0.5}}
    inputs.write_text(json.dumps(shapes))
    text = run(f"{Stranger.__module__}.Stranger", "--inputs", inputs).stdout
    assert printed(text).library == "tests"
    assert "# Tried: cache_dit skipped 5 blocks" in text
    torch.save(arguments(), tmp_path / "inputs.pt")
    other = run(
        f"{Stranger.__module__}.Stranger", "--inputs", tmp_path / "inputs.pt", "--config", "{}"
    ).stdout
    assert printed(other) == printed(text)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["FluxTransformerModel"], "Did you mean 'FluxTransformer2DModel'"),
        (["no.such.Class"], "No module named 'no'"),
        (["tests.models.strangers.DIM"], "no class of torch modules"),
        (["FluxTransformer2DModel", "--config", "{"], "JSON"),
        (
            ["FluxTransformer2DModel", "--config", '{"num_layers": "x"}'],
            "no FluxTransformer2DModel can be made",
        ),
        (["tests.models.strangers.Stranger"], "--inputs FILE"),
    ],
)
def test_a_mistake_is_a_line_on_standard_error(given: list[str], words: str) -> None:
    result = run(*given, exit_code=2)
    assert result.stderr.startswith("dit-cache: ")
    assert words in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"latents": "x"}, "'x' is no input"),
        ({"latents": {"shape": [1]}}, "no input"),
        ({"wrong": [1]}, "wrong"),
    ],
)
def test_a_wrong_file_of_inputs_is_refused(tmp_path: Path, content: dict[str, Any], words: str) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps(content))
    assert words in run("tests.models.strangers.Stranger", "--inputs", file, exit_code=2).stderr


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    assert "no model of diffusers" in run(tmp_path, exit_code=2).stderr
    (tmp_path / "config.json").write_text("[]")
    assert "no JSON object" in run(tmp_path, exit_code=2).stderr
