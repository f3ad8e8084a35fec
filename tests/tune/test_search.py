"""What is searched, and how a dial comes to rest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dit_cache_backends.compare.spread import spread
from dit_cache_backends.errors import ConfigError
from dit_cache_backends.registry import backend_class, installed_names
from dit_cache_backends.search import Computed, Ladder, Search, Threshold, searches_of
from dit_cache_backends.tune.aim import Aim, Result, Times, result_of, rival_steps
from dit_cache_backends.tune.candidates import Candidate, crossed, families, neighbours
from dit_cache_backends.tune.deadline import Deadline, OutOfTime, seconds_of
from dit_cache_backends.tune.halving import Halving
from dit_cache_backends.tune.outcome import Checked, Measured, dearer, fewer
from dit_cache_backends.tune.scores import Score
from tests.tune.conftest import PROMPTS


@pytest.mark.parametrize("name", installed_names())
def test_every_setting_that_a_backend_says_may_be_tried_is_a_configuration_of_it(name: str) -> None:
    cls = backend_class(name)
    ways = searches_of(cls)
    assert ways, f"{name} takes no part"
    for way in ways:
        first = Candidate(name, way, way.first())
        for candidate in (first, *neighbours(first)):
            made = [cls(candidate.setting(at, 28).config).config for at in (0.0, 0.37, 1.0)]
            assert made[0] != made[2]


def test_a_threshold_is_turned_in_equal_ratios_and_through_zero_in_equal_differences() -> None:
    ratios = [Threshold("t", 0.01, 1.0).options(at, 28)["t"] for at in (0, 0.5, 1)]
    assert ratios == pytest.approx([0.01, 0.1, 1.0])
    assert [Threshold("t", 0.0, 0.8).options(at, 28)["t"] for at in (0, 0.5, 1)] == pytest.approx(
        [0, 0.4, 0.8]
    )


def test_the_stops_of_a_dial_are_all_its_settings_from_careful_to_bold() -> None:
    dial = Computed(lambda computed, steps: {"computed": computed}, least=3)
    stops = dial.stops(10)
    found = [dial.options(n / (stops - 1), 10)["computed"] for n in range(stops)]
    assert found == [9, 8, 7, 6, 5, 4, 3]
    assert dial.options(dial.guess(0.5, 10), 10)["computed"] == 5
    ladder = Ladder([{"preset": name} for name in "abc"])
    assert [ladder.options(n / 2, 28)["preset"] for n in range(ladder.stops(28) or 0)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("threshold", "expected a tuple"),
        ((Search("a", Ladder([{}])), Search("a", Ladder([{}]))), "a name of its own, got a, a"),
        ((Search("a", Ladder([{}]), {"b": {}}),), "nothing to choose for b"),
    ],
)
def test_a_backend_that_says_it_wrongly_is_told(said: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        searches_of(type("Odd", (), {"name": "odd", "searches": said}))


def test_what_a_family_chose_well_is_tried_together() -> None:
    way = Search("w", Ladder([{}]), {"a": {"1": {}, "2": {}}, "b": {"x": {}, "y": {}, "z": {}}})
    first = Candidate("c", way, way.first())
    assert [each.chosen for each in neighbours(first)] == [
        {"a": "2", "b": "x"},
        {"a": "1", "b": "y"},
        {"a": "1", "b": "z"},
    ]
    _, two, three = neighbours(first)
    assert crossed(first, [neighbours(first)[0], three, two]).chosen == {"a": "2", "b": "z"}  # type: ignore[union-attr]
    assert crossed(first, [two]) is None


def test_only_what_is_asked_for_is_searched_and_slips_are_named() -> None:
    found, _ = families(["fb-cache"], {"fb_cache": {"max_warmup_steps": 2}})
    assert {each.backend for each in found} == {"fb_cache"}
    assert found[0].setting(0.5, 28).config["max_warmup_steps"] == 2  # type: ignore[index]
    with pytest.raises(ConfigError, match="Did you mean 'fb_cache'"):
        families(["fb_cahce"])
    with pytest.raises(ConfigError, match="Did you mean 'mag_cache'"):
        families([], {"mag_cash": {}})


class Curve(Halving):
    """Measures by a curve instead of drawing: what a dial at a position would come to."""

    def __init__(self, aim: Aim, blocks: Callable[[float], float], psnr: Callable[[float], float]) -> None:
        class Told:
            steps = 28

        super().__init__(Told(), PROMPTS, aim)  # type: ignore[arg-type]
        self.positions: list[float] = []
        self._curves = blocks, psnr

    def measure(self, candidate: Any, position: float, count: int, deadline: Any, aim: Any = None) -> Any:
        from dit_cache_backends.tune.halving import Tried

        deadline.check()
        self.positions.append(position)
        run = round(1000 * self._curves[0](position))
        score = Score(self._curves[1](position), 1.0, 1.0, 1.0, 28, run, 1000)
        result = result_of([score], ["a"], aim or self.aim, Times(), "c")
        return Tried(candidate, position, candidate.setting(position, 28), result)


SMOOTH = Candidate("c", Search("w", Threshold("t", 0.01, 1.0)))


@pytest.mark.parametrize("wanted", [1.3, 2.0, 3.0, 4.5])
def test_a_dial_comes_to_rest_where_the_speed_up_is_just_reached(wanted: float) -> None:
    curve = Curve(Aim(speedup=wanted, by="blocks"), lambda at: 1 - 0.8 * at**2, lambda at: 60 - 30 * at)
    found = curve.settle(SMOOTH, 1, Deadline(None))
    assert wanted <= found.result.speedup < 1.15 * wanted
    assert len(curve.positions) <= 8
    # The next one of the family begins there.
    before = len(curve.positions)
    again = curve.settle(SMOOTH, 1, Deadline(None))
    assert again.result.speedup >= wanted
    assert curve.positions[before] == found.position


def test_a_dial_comes_to_rest_where_the_quality_is_just_kept() -> None:
    curve = Curve(Aim(psnr=44, by="blocks"), lambda at: 1 - 0.8 * at, lambda at: 60 - 30 * at)
    found = curve.settle(SMOOTH, 1, Deadline(None))
    assert 44 <= found.result.quality < 46


def test_what_never_reaches_the_aim_ends_at_the_end_that_comes_nearest() -> None:
    fast = Curve(Aim(speedup=9, by="blocks"), lambda at: 1 - 0.8 * at, lambda at: 60 - 30 * at)
    assert fast.settle(SMOOTH, 1, Deadline(None)).position == 1
    good = Curve(Aim(psnr=90, by="blocks"), lambda at: 1 - 0.8 * at, lambda at: 60 - 30 * at)
    assert good.settle(SMOOTH, 1, Deadline(None)).position == 0


@pytest.mark.parametrize("wanted", [1.1, 1.9, 2.4, 8.0])
def test_the_stop_of_a_ladder_is_the_most_careful_one_that_reaches_it(wanted: float) -> None:
    ladder = Candidate("c", Search("w", Computed(lambda computed, steps: {"computed": computed})))
    curve = Curve(
        Aim(speedup=wanted, by="blocks"), lambda at: (27 - round(24 * at)) / 28, lambda at: 60 - 30 * at
    )
    found = curve.settle(ladder, 1, Deadline(None))
    assert found.setting.config == {"computed": int(28 / wanted)}


def test_without_time_nothing_is_tried() -> None:
    curve = Curve(Aim(speedup=2.0), lambda at: 1.0, lambda at: 50.0)
    with pytest.raises(OutOfTime):
        curve.settle(SMOOTH, 1, Deadline(0))
    assert curve.run([SMOOTH], Deadline(0), list) == []


def test_what_reaches_the_aim_comes_before_what_does_not_however_good() -> None:
    aim = Aim(speedup=2.0, by="blocks")

    def result(psnr: float, run: int) -> Result:
        return result_of([Score(psnr, 1.0, 1.0, 1.0, 28, run, 1000)], ["a"], aim, Times(), "c")

    reached, better, short, far = result(20, 450), result(30, 400), result(90, 510), result(99, 900)
    assert sorted([far, reached, short, better], key=aim.rank, reverse=True) == [better, reached, short, far]


def test_times_are_reckoned_from_blocks_and_what_skipping_costs() -> None:
    times = Times()
    for noise in (1.0, 1.7):
        times.add("", Score(100, 1, 12 * noise, 10 * noise, 20, 200, 200))
        times.add(
            "slow", Score(50, 1, 9 * noise, 7 * noise, 20, 120, 200)
        )  # 0.6 of the blocks, a quarter for the rest
    assert times.speedup("slow", 0.6) == pytest.approx(12 / 9)
    assert times.speedup("slow", 0.2) == pytest.approx(12 / (2 + 10 * (0.2 + 0.25 * 0.8)))
    assert times.speedup("unknown", 0.5) == pytest.approx(12 / 7)
    # Twice as fast: 6 seconds, of which 4 are in the transformer: 8 of 20 steps.
    assert times.steps_for(2.0, 20) == 8


def test_the_dense_run_of_equal_cost_never_costs_less() -> None:
    assert [rival_steps(part, 28) for part in (0.0, 10 / 28, 0.36, 0.99, 1.0)] == [1, 10, 11, 27, 27]


def test_a_rival_that_turns_out_faster_is_given_more_steps() -> None:
    def measured(speedup: float) -> Measured:
        nothing = spread("psnr", [50.0], ["a"])
        return Measured("it", nothing, nothing, 1.0, speedup, speedup, 1.0, speedup, 1, 2, 0)

    def steps(found: float, rival: float) -> int | None:
        more = dearer(Checked("c", 1, measured(found), measured(rival)), fewer(14), 28)
        return None if more is None else more.steps

    assert steps(2.0, 2.5) == 18  # 17.5, and never cheaper
    assert steps(1.0, 2.5) == 27
    assert steps(2.0, 2.0) is None
    assert steps(2.0, 1.7) is None


@pytest.mark.parametrize(
    ("given", "why"),
    [
        ({}, "one of --speedup and --psnr"),
        ({"speedup": 2.0, "psnr": 30.0}, "one of --speedup and --psnr"),
        ({"speedup": 1.0}, "more than 1"),
        ({"psnr": 101.0}, "at most 100"),
        ({"speedup": 2.0, "by": "luck"}, "--by is one of time, blocks"),
    ],
)
def test_an_aim_that_means_nothing_is_refused(given: Any, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        Aim(**given)


def test_a_time_budget_is_read_in_seconds_minutes_and_hours() -> None:
    assert [seconds_of(text) for text in ("90", "90s", "10m", "1.5h", "none")] == [90, 90, 600, 5400, None]
    for wrong in ("soon", "0", "-3m"):
        with pytest.raises(ConfigError, match="--time-budget"):
            seconds_of(wrong)
