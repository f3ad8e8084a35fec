"""What is special about single video and audio classes; what all share is tested in `test_every_card`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dit_cache_backends import BlockList, Card, CardError, enable_cache, stack
from dit_cache_backends.models import card_for
from dit_cache_conformance.tiny import build_transformer, transformer_inputs

from ..engine.runs import STILL, kinds, output, relative
from ..engine.strategies import LAYOUTS, always, planned
from .moments import FOLLOWED, enabled, moment, off

pytestmark = pytest.mark.usefixtures("as_in_a_run")

AUDIO = "audio_hidden_states"


# LTX-2 and Kandinsky 6: video and sound, both denoised


def both(model: nn.Module, arguments: dict[str, Any]) -> tuple[Tensor, Tensor]:
    video, audio = model(**arguments)
    return video, audio


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["ltx2", "kandinsky6"])
def test_picture_and_sound_are_both_reproduced_and_both_followed(name: str, layout: str) -> None:
    model = build_transformer(name)
    still, moved = both(model, moment(name)), both(model, moment(name, 10))
    with enabled(always(layout), model) as backend:
        for step in range(2):
            with backend.step(step, 9):
                found = both(model, moment(name))
            assert max(map(relative, found, still)) <= (STILL if step else 0)
        with backend.step(2, 9):
            found = both(model, moment(name, 10))
    assert max(map(off, found, still, moved)) < FOLLOWED


def test_a_card_of_ltx2_that_takes_the_sound_for_no_stream_leaves_it_behind() -> None:
    model = build_transformer("ltx2")
    still, moved = both(model, moment("ltx2")), both(model, moment("ltx2", 10))
    wrong = Card(
        "LTX2VideoTransformer3DModel",
        (stack(BlockList("transformer_blocks", ("hidden_states",), ("hidden_states", "=sound"))),),
    )
    with enabled(always("whole"), model, wrong) as backend:
        for step in range(2):
            with backend.step(step, 9):
                found = both(model, moment("ltx2", 10 * step))
    assert off(found[0], still[0], moved[0]) < FOLLOWED
    assert torch.equal(found[1], still[1])


def test_the_isolated_and_the_perturbed_call_of_ltx2_are_branches_of_their_own() -> None:
    """Its pipeline calls it up to four times in a step, for guidance over time and over the two streams."""
    model = build_transformer("ltx2")
    calls = [
        moment("ltx2"),
        moment("ltx2", isolate_modalities=True),
        moment("ltx2", seed=3),
    ]
    plain = [both(model, arguments) for arguments in calls]
    assert relative(plain[1][1], plain[0][1]) > 1e-3
    with enabled(always("whole"), model) as backend:
        for step in range(3):
            for arguments, expected in zip(calls, plain, strict=True):
                with backend.step(step, 9):
                    assert max(map(relative, both(model, arguments), expected)) <= STILL
        assert {row.branch for row in backend.summary().rows} == {"0", "1", "2"}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_silent_kandinsky6_has_no_sound_in_any_layout(layout: str) -> None:
    model = build_transformer("kandinsky6_silent")
    with enabled(always(layout), model) as backend:
        for step in range(3):
            with backend.step(step, 9):
                assert len(model(**moment("kandinsky6_silent"))) == 1


# Cosmos 3: what is understood stands still, what is made moves


def differences(model: nn.Module, card: Card | None = None) -> list[float]:
    """What `cache_dit` measures while the latents move and the text, naturally, does not."""
    with enable_cache(
        model, "cache_dit", card=card, Fn_compute_blocks=1, max_warmup_steps=1, residual_diff_threshold=1e-9
    ) as backend:
        for step in range(4):
            with backend.step(step, 4):
                output(model, transformer_inputs("cosmos3", step=step, total=8))
        return [value for row in backend.summary().rows for value in row.differences]


def test_cosmos3_is_decided_by_the_stream_that_is_made() -> None:
    model = build_transformer("cosmos3")
    found = differences(model)
    assert len(found) == 3
    assert min(found) > 1e-3


def test_by_the_stream_that_is_understood_cosmos3_would_never_move() -> None:
    model = build_transformer("cosmos3")
    card = card_for(model)
    turned = replace(card.stacks[0].lists[0], takes=("und_seq", "gen_seq"))
    assert max(differences(model, replace(card, stacks=(stack(turned),)))) == 0


@pytest.mark.parametrize("name", ["cosmos3", "t5_film"])
def test_steps_are_counted_from_a_time_of_another_name(name: str) -> None:
    model = build_transformer(name)
    with enabled(planned("10"), model) as backend:
        for step in range(4):
            for _ in range(2):
                output(model, transformer_inputs(name, step=step, total=4))
        rows = [(row.step, row.branch) for row in backend.summary().rows]
    assert rows == [(step, branch) for step in range(4) for branch in ("0", "1")]


# MotifVideo: the last single blocks may be a decoder


def test_the_decoder_of_motif_is_a_stack_of_its_own_and_begins_where_the_model_says() -> None:
    for name, depths in (
        ("motif", {"transformer_blocks": 8}),
        ("motif_decoder", {"transformer_blocks": 7, "single_transformer_blocks": 3}),
    ):
        model = build_transformer(name)
        with enabled(always("whole"), model) as backend:
            for step in range(2):
                with backend.step(step, 9):
                    output(model, moment(name))
            found = {row.stack: row.blocks_skipped for row in backend.summary().rows if row.step}
        assert found == depths


@pytest.mark.parametrize("stacks", [(0,), (1,), (0, 1)], ids=["encoder", "decoder", "both"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_encoder_and_decoder_of_motif_are_skipped_alone_and_together(
    layout: str, stacks: tuple[int, ...]
) -> None:
    name = "motif_decoder"
    model = build_transformer(name)
    card = card_for(model)
    assert card.arrange is not None
    arranged = card.arrange(model)
    some = replace(card, arrange=None, stacks=tuple(arranged[number] for number in stacks))
    still, moved = output(model, moment(name)), output(model, moment(name, 10))
    with enabled(always(layout), model, some) as backend:
        for step in range(2):
            with backend.step(step, 9):
                assert relative(output(model, moment(name)), still) <= (STILL if step else 0)
        with backend.step(2, 9):
            assert off(output(model, moment(name, 10)), still, moved) < FOLLOWED


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_motif_with_a_decoder_is_refused_by_the_card_of_one_without(layout: str) -> None:
    model = build_transformer("motif_decoder")
    plain = output(model, moment("motif_decoder"))
    with (
        pytest.raises(CardError, match="came in at"),
        enabled(always(layout), model, replace(card_for(model), arrange=None)) as backend,
        backend.step(0, 9),
    ):
        output(model, moment("motif_decoder"))
    assert torch.equal(output(model, moment("motif_decoder")), plain)


# WanAnimate: the face is added between the blocks, to what they give


def test_a_face_that_is_added_outside_the_span_is_seen_in_a_skipped_step_and_one_within_is_not() -> None:
    """The adapters stand behind blocks 0, 2 and 4."""
    name = "wan_animate"
    model = build_transformer(name)
    other = moment(name)
    other["face_pixel_values"] = -other["face_pixel_values"]
    plain = output(model, moment(name))
    assert relative(output(model, other), plain) > 1e-3
    seen = {}
    for layout in LAYOUTS:
        with enabled(always(layout), model) as backend:
            with backend.step(0, 9):
                output(model, moment(name))
            with backend.step(1, 9):
                seen[layout] = relative(output(model, other), plain) > 1e-3
    assert seen == {layout: layout != "whole" for layout in LAYOUTS}


def test_the_adapters_of_wan_animate_run_in_every_step() -> None:
    model: Any = build_transformer("wan_animate")
    ran = []
    for number, adapter in enumerate(model.face_adapter):
        adapter.register_forward_hook(lambda *_, number=number: ran.append(number))
    with enabled(always("whole"), model) as backend:
        for step in range(3):
            with backend.step(step, 9):
                output(model, moment("wan_animate"))
    assert ran == [0, 1, 2] * 3


# Models that change what they work on


def test_a_history_that_grows_is_a_new_shape_and_runs() -> None:
    model = build_transformer("helios")
    full = moment("helios")
    short = {key: value for key, value in full.items() if "long" not in key}
    plain = [output(model, arguments) for arguments in (short, full)]
    assert relative(*plain) > 1e-3
    with enabled(always("whole"), model) as backend:
        for step, number in enumerate([0, 0, 1, 1]):
            with backend.step(step, 9):
                assert relative(output(model, (short, full)[number]), plain[number]) <= STILL
        assert kinds(backend)["shape_changed"] == 1


def test_the_control_samples_of_sana_video_are_those_of_the_step_outside_the_span() -> None:
    """Sample k is added behind block k + 1: those within the span count as they were when it ran."""
    name = "sana_video"
    model = build_transformer(name)
    other = moment(name)
    samples = other["controlnet_block_samples"]
    other["controlnet_block_samples"] = (3 * samples[0], samples[1], samples[2])
    plain = output(model, moment(name))
    assert relative(output(model, other), plain) > 1e-3
    for layout, seen in (("whole", False), ("ends in the middle", False), ("one block each", True)):
        with enabled(always(layout), model) as backend:
            with backend.step(0, 9):
                output(model, moment(name))
            with backend.step(1, 9):
                found = relative(output(model, other), plain)
        assert (found > 1e-3) == seen, layout
