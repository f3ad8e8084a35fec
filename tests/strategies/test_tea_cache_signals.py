"""The signal that each card names is what the model itself makes inside, and reading it changes nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from dit_cache_backends import Gate, enable_cache
from dit_cache_backends.engine.gates import Place
from dit_cache_backends.models import find_card
from dit_cache_backends.models.signals import BlockArguments, TimeSignal, z_image
from dit_cache_backends.strategies.tea_cache_coefficients import PUBLISHED
from dit_cache_backends.strategies.tea_cache_models import USES
from dit_cache_conformance.tiny import TINY_TRANSFORMERS, build_transformer
from dit_cache_conformance.tiny.weights import noise, seeded

from ..engine.runs import TRANSFORMERS, inputs, run_told, same
from ..engine.strategies import Planned, PlannedGate
from .tea_cache_reference import RULES, differences, mixing, signals_of, watched

pytestmark = pytest.mark.usefixtures("as_in_a_run")

STEPS = 9


def names_of(name: str) -> list[str]:
    card = find_card(type(build_transformer(name)))
    assert card is not None
    return [signal.name for signal in card.signals]


SIGNALS = [(name, signal) for name in TRANSFORMERS for signal in names_of(name)]


class Reader(Planned):
    """Reads a signal at every step, as `tea_cache` does, and keeps it."""

    def __init__(self, signal: Any) -> None:
        super().__init__({"layout": "whole", "plan": "1"})
        self.signal = signal
        self.read: list[Tensor] = []

    def gate(self, place: Place) -> Gate:
        from dit_cache_backends.strategies.tea_cache_meters import meter_of

        reader, meter = self, meter_of(self.signal, place, [])

        class Reading(PlannedGate):
            def should_run(self, step: Any, probe: Any) -> Any:
                if not reader.read or step.run_index == len(reader.read):
                    meter.look(probe)
                    if isinstance(reader.signal, TimeSignal):
                        reader.read.append(meter._embed(meter._called(probe), probe))  # type: ignore[attr-defined]
                    else:
                        reader.read.append(probe.notes["tea_cache.signal"])
                return super().should_run(step, probe)

        return Reading("1")


@pytest.mark.parametrize(("name", "signal"), SIGNALS)
def test_a_signal_is_what_the_model_makes_itself_and_reading_it_changes_no_bit(
    name: str, signal: str
) -> None:
    model = build_transformer(name)
    run = inputs(name, 3, batch=2)
    expected = signals_of(model, run, signal)
    plain = [model(**arguments)[0] for arguments in run]
    card = find_card(type(model))
    assert card is not None
    reader = Reader(next(each for each in card.signals if each.name == signal))
    reader.enable(model)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = run_told(reader, model, run)
    if isinstance(plain[0], Tensor):
        assert same(found, plain)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    for one, other in zip(reader.read[:3], expected, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other, rtol=0, atol=0)


def test_every_published_model_that_diffusers_has_can_be_read() -> None:
    """All classes that a set is taken for have a card with a signal, and the one that the set was fitted on."""
    import diffusers

    ours = [use for use in USES if hasattr(diffusers, use.transformer)]
    assert len(ours) > 20
    for use in ours:
        card = find_card(getattr(diffusers, use.transformer))
        assert card is not None, use
        assert card.transformer == use.transformer
        names = [signal.name for signal in card.signals]
        assert PUBLISHED[use.name].signal in ("", *names), use


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_run_of_each_model_is_cached_at_the_steps_that_the_formulas_give(name: str, rule: str) -> None:
    run = inputs(name, STEPS)
    moves = differences(signals_of(build_transformer(name), run))
    coefficients = [0.7, 1.3, 0.002]
    threshold = mixing(moves, coefficients)
    expected = RULES[rule](moves, coefficients, threshold)
    assert expected
    if rule != "sglang":
        assert len(expected) < STEPS - 1
    model = build_transformer(name)
    backend: Any = enable_cache(
        model, "tea_cache", rule=rule, coefficients=coefficients, rel_l1_thresh=threshold
    )
    run_told(backend, model, run)
    summary = backend.summary()
    for transformer, branch, stack in summary.series():
        assert summary.cached_steps(transformer, branch, stack) == expected
    depth = sum(TINY_TRANSFORMERS[name].stacks.values())
    assert summary.blocks_skipped == len(expected) * depth


def test_hooks_on_the_norm_and_a_lora_in_it_are_seen() -> None:
    name = "flux"
    run = inputs(name, STEPS)
    model = build_transformer(name)
    norm: Any = model.get_submodule("transformer_blocks.0.norm1")
    norm.register_forward_hook(lambda _, args, result: (result[0] * args[0].std(), *result[1:]))
    norm.linear.weight.add_(0.3 * noise(*norm.linear.weight.shape, seed=5))
    moves = differences(signals_of(model, run))
    assert moves != pytest.approx(differences(signals_of(build_transformer(name), run)))
    threshold = mixing(moves, [1.0, 0.0])
    backend: Any = enable_cache(model, "tea_cache", coefficients="identity", rel_l1_thresh=threshold)
    run_told(backend, model, run)
    assert backend.summary().cached_steps() == RULES["vllm_omni"](moves, [1.0, 0.0], threshold)


def another(name: str, **config: Any) -> Any:
    """The tiny model of that name with another configuration."""
    model = build_transformer(name)
    # What was left at its default is named there, and would go back to it.
    old = {key: value for key, value in model.config.items() if key != "_use_default_values"}
    return seeded(lambda: type(model).from_config(old | config))


def cogvideox_with_ofs() -> tuple[Any, dict[str, Any]]:
    return another("cogvideox", ofs_embed_dim=16), {"ofs": torch.tensor([2.0])}


def hunyuan_video_from_an_image() -> tuple[Any, dict[str, Any]]:
    return another("hunyuan_video", image_condition_type="token_replace"), {}


def qwen_image_to_edit() -> tuple[Any, dict[str, Any]]:
    return another("qwen_image", zero_cond_t=True), {"img_shapes": [[(1, 2, 4), (1, 2, 4)]] * 2}


def ltx_video_with_a_given_frame() -> tuple[Any, dict[str, Any]]:
    times = torch.full((2, 32), 700.0)
    times[:, :16] = 0
    return build_transformer("ltx_video"), {"timestep": times}


VARIANTS = {
    "cogvideox": cogvideox_with_ofs,
    "hunyuan_video": hunyuan_video_from_an_image,
    "qwen_image": qwen_image_to_edit,
    "ltx_video": ltx_video_with_a_given_frame,
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_of_a_class_are_read_as_they_are_made(name: str) -> None:
    model, more = VARIANTS[name]()
    run = inputs(name, 2, batch=2, **more)
    card = find_card(type(model))
    assert card is not None
    expected = signals_of(model, run)
    assert not torch.equal(expected[0], signals_of(build_transformer(name), inputs(name, 2, batch=2))[0])
    reader = Reader(card.signals[0])
    reader.enable(model)
    run_told(reader, model, run)
    for one, other in zip(reader.read, expected, strict=True):
        torch.testing.assert_close(one.reshape(other.shape), other, rtol=0, atol=0)


def test_tokens_of_a_given_picture_have_a_modulation_of_their_own_in_z_image() -> None:
    model: Any = build_transformer("z_image")
    block = model.layers[0]
    arguments = {
        "x": noise(1, 6, 32, seed=1),
        "attn_mask": torch.ones(1, 6, dtype=torch.bool),
        "freqs_cis": torch.polar(torch.ones(1, 6, 8), torch.zeros(1, 6, 8)),
        "noise_mask": torch.tensor([[0, 0, 0, 1, 1, 1]]),
        "adaln_noisy": noise(1, block.adaLN_modulation[0].in_features, seed=2),
        "adaln_clean": noise(1, block.adaLN_modulation[0].in_features, seed=3),
    }
    with watched(model, "modulated_input") as seen:
        block(**arguments)
    given = BlockArguments(block, (arguments.pop("x"),), arguments)
    torch.testing.assert_close(z_image(block, given), seen[0], rtol=0, atol=0)


def test_a_timestep_for_each_token_counts_as_that_of_the_noisiest() -> None:
    """As with Wan 2.2 TI2V from an image, whose first frame is given and stays at timestep 0."""
    found = []
    for per_token in (False, True):
        model = build_transformer("wan")
        backend: Any = enable_cache(model, "tea_cache", coefficients="identity", rel_l1_thresh=1.1)
        run = inputs("wan", STEPS)
        for arguments in run:
            if per_token:
                arguments["timestep"] = arguments["timestep"][:, None].repeat(1, 32)
                arguments["timestep"][:, :16] = 0
        run_told(backend, model, run)
        found.append(backend.summary().diffs())
    assert found[0]
    assert found[0] == found[1]
