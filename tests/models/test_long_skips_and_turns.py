"""HunyuanDiT, whose blocks hand things to blocks far behind, and Latte, whose blocks take the tokens in two layouts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch import Size, Tensor, nn

from dit_cache_backends import Card, CardError, Span, SpanBackend, enable_cache
from dit_cache_backends.models import card_for
from dit_cache_backends.strategies.dbprune import DBPrune
from dit_cache_conformance.tiny import build_transformer, transformer_inputs

from ..engine.counting import executed
from ..engine.runs import STILL, kinds, output, relative
from ..engine.strategies import LAYOUTS, Planned, always, never

pytestmark = pytest.mark.usefixtures("as_in_a_run")

DEPTH = 8
EVERY_SPAN = [[Span(start, stop)] for start, stop in combinations(range(DEPTH + 1), 2)]
TWO_SPANS = [
    [Span(0, 3), Span(3, 8)],
    [Span(1, 3), Span(5, 7)],
    [Span(0, 5), Span(5, 8)],
    [Span(1, 2), Span(2, 5)],
]
HUNYUAN_DIT = ["hunyuan_dit", "hunyuan_dit_controlled"]
LATTE = ["latte", "latte_square"]


class Spans(Planned):
    """Skips these spans wherever it can."""

    def __init__(self, spans: Sequence[Span]) -> None:
        super().__init__({"plan": "0"})
        self.spans = spans

    def layout(self, depth: int) -> Sequence[Span]:
        return self.spans


def inputs(name: str, moved: bool = False, **more: Any) -> dict[str, Any]:
    return transformer_inputs(name, step=10 if moved else 0, total=10**9, **more)


def off(
    model: nn.Module, name: str, backend: SpanBackend, card: Card | None = None, **more: Any
) -> tuple[float, float]:
    """The error of a skipped step when nothing moved, and when something did, relative to how far the output moved."""
    plain, moved = (output(model, inputs(name, way, **more)) for way in (False, True))
    backend.enable(model, card=card)
    try:
        for step in range(2):
            with backend.step(step, 9):
                still = output(model, inputs(name, **more))
        with backend.step(2, 9):
            followed = output(model, inputs(name, True, **more))
        assert backend.summary().blocks_skipped
    finally:
        backend.disable()
    return relative(still, plain), float((followed - moved).norm() / (plain - moved).norm())


@pytest.mark.parametrize("name", HUNYUAN_DIT)
def test_long_skips_out_of_a_skipped_span_are_right_wherever_it_lies(name: str) -> None:
    model = build_transformer(name)
    for spans in EVERY_SPAN + TWO_SPANS:
        assert off(model, name, Spans(spans))[0] <= STILL, spans


@pytest.mark.parametrize("name", HUNYUAN_DIT)
def test_without_them_a_span_that_ends_in_the_middle_is_wrong_and_with_them_it_follows(name: str) -> None:
    model = build_transformer(name)
    card = card_for(model)
    blind = replace(card, stacks=(replace(card.stacks[0], long_skips=False),))
    spans = [Span(1, 5)]
    still, followed = off(model, name, Spans(spans), blind)
    assert still > 0.01
    assert off(model, name, Spans(spans))[1] < followed / 2


def test_only_what_is_looked_at_from_outside_is_kept() -> None:
    """The span, and the blocks in it whose mirror image lies outside: 0 to 3 face 7 to 4."""
    model = build_transformer("hunyuan_dit")
    for span, shown in [(Span(0, 8), 0), (Span(1, 7), 0), (Span(1, 5), 2), (Span(4, 8), 0), (Span(0, 1), 0)]:
        backend = Spans([span])
        backend.enable(model)
        with backend.step(0, 9):
            output(model, inputs("hunyuan_dit"))
        held = sum(tensor.numel() for session in backend._generations for tensor in tensors(session))
        assert held == (1 + shown) * 16 * 32, span
        backend.disable()


def tensors(sessions: Any) -> list[Tensor]:
    return [tensor for session in sessions.live() for tensor in session.tensors()]


def as_it_is(main: Tensor, shape: Size) -> Tensor:
    return main


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LATTE)
def test_a_batch_is_turned_row_by_row(name: str, layout: str) -> None:
    still, followed = off(build_transformer(name), name, always(layout), batch=3)
    assert still <= STILL
    assert followed < 0.3


@pytest.mark.parametrize("options", [{"taylorseer_cache_type": "hidden_states"}, {"taylorseer_order": 1}])
@pytest.mark.parametrize("name", LATTE)
def test_what_is_foretold_of_a_turned_span_comes_out_in_its_last_layout(
    name: str, options: dict[str, Any]
) -> None:
    model = build_transformer(name)
    plain = output(model, inputs(name))
    for back in (0, 1):
        backend: Any = enable_cache(
            model,
            "cache_dit",
            Bn_compute_blocks=back,
            enable_taylorseer=True,
            max_warmup_steps=2,
            residual_diff_threshold=0.5,
            **options,
        )
        for step in range(4):
            with backend.step(step, 9):
                assert relative(output(model, inputs(name)), plain) <= STILL
        assert backend.summary().cached_steps() == [2, 3]
        backend.disable()


@pytest.mark.parametrize("name", LATTE)
def test_what_the_first_block_adds_is_compared_in_one_layout(name: str) -> None:
    """The span begins in the other one, and the tokens that came into the stack are turned to be compared there."""
    model: Any = build_transformer(name)
    added: list[Tensor] = []
    hook = model.transformer_blocks[0].register_forward_hook(
        lambda _, args, result: added.append(result - args[0])
    )
    backend: Any = enable_cache(model, "cache_dit", max_warmup_steps=1, residual_diff_threshold=0.9)
    # The position in time is added between the first two blocks.
    model.temp_pos_embed.zero_()
    for step in range(3):
        with backend.step(step, 9):
            output(model, transformer_inputs(name, step=step))
    hook.remove()
    expected = [float((now - added[0]).abs().sum() / added[0].abs().sum()) for now in added[1:]]
    assert list(backend.summary().diffs().values()) == pytest.approx(expected, rel=1e-4)


def test_tokens_that_are_not_turned_are_refused_where_their_shape_tells_and_not_followed_where_it_does_not() -> (
    None
):
    for name in LATTE:
        model = build_transformer(name)
        card = card_for(model)
        wrong = replace(card, stacks=(replace(card.stacks[0], alternate=as_it_is),))
        if name == "latte":
            with pytest.raises(CardError, match="enters the span as"):
                off(model, name, always("whole"), wrong)
        else:
            still, followed = off(model, name, always("whole"), wrong)
            assert still <= STILL
            assert followed > 0.9


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LATTE)
def test_without_the_temporal_blocks_nothing_is_wrong(name: str, layout: str) -> None:
    model = build_transformer(name)
    shut = {"enable_temporal_attentions": False}
    plain = output(model, inputs(name, **shut))
    with executed(model) as ran:
        output(model, inputs(name, **shut))
        assert {path for path, _ in ran.take()} == {"transformer_blocks"}
        backend = never(layout)
        backend.enable(model)
        for step in range(2):
            with backend.step(step, 9):
                assert torch.equal(output(model, inputs(name, **shut)), plain)
        backend.disable()
        backend = always(layout)
        backend.enable(model)
        for step in range(4):
            ran.take()
            with backend.step(step, 9):
                assert relative(output(model, inputs(name, **shut)), plain) <= STILL
        assert len(ran.take()) == (0 if layout == "one block each" else 4)
        backend.disable()


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", LATTE)
def test_temporal_blocks_that_come_and_go_within_a_run_change_nothing_that_stands_still(
    name: str, layout: str
) -> None:
    model = build_transformer(name)
    plain = [output(model, inputs(name, enable_temporal_attentions=way)) for way in (False, True)]
    backend = always(layout)
    backend.enable(model)
    for step, way in enumerate([True, False, False, True, True, False]):
        with backend.step(step, 9):
            found = output(model, inputs(name, enable_temporal_attentions=way))
        if layout != "one block each":
            assert relative(found, plain[way]) <= STILL, step
        assert bool(found.isfinite().all())
    assert set(kinds(backend)) <= {"forward_repeated", "blocks_not_called"}


class Counting(DBPrune):
    """Counts the forecasts."""

    forecasts = 0

    def predictor(self, stream: Any) -> Any:
        predictor, backend = super().predictor(stream), self

        class Counted(type(predictor)):  # type: ignore[misc]
            def predict(self, step: Any) -> Tensor:
                backend.forecasts += 1
                return super().predict(step)

        predictor.__class__ = Counted
        return predictor


@pytest.mark.parametrize(
    ("name", "streams"), [("latte_square", 1), ("hidream", 2), ("bria_fibo", 2), ("krea2", 1)]
)
def test_nothing_is_foretold_in_vain_where_a_model_hands_on_other_tensors(name: str, streams: int) -> None:
    """Looking ahead from each block to the last would cost a forecast for each pair of blocks."""
    model = build_transformer(name)
    backend = Counting({"max_warmup_steps": 1, "residual_diff_threshold": 0.5})
    backend.enable(model)
    for step in range(5):
        backend.forecasts = 0
        with backend.step(step, 9):
            output(model, transformer_inputs(name, step=step))
        skipped = sum(row.blocks_skipped for row in backend.summary().rows if row.step == step)
        ahead = skipped if name == "krea2" else 0
        assert skipped <= backend.forecasts <= streams * (skipped + ahead), step
    assert backend.summary().blocks_skipped > 10
