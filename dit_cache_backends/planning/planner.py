"""The search: segment errors, minimax path, starts, hill climbing, and what comes of it on other prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dit_cache_backends.errors import ConfigError
from dit_cache_backends.planning.candidates import Candidate, Mask, Quality
from dit_cache_backends.planning.forecast import fitted_weights, foreseen
from dit_cache_backends.planning.foresight import foreseen_starts
from dit_cache_backends.planning.gram import Gram
from dit_cache_backends.planning.minimax import minimax_path
from dit_cache_backends.planning.plan_search import PlanSearch
from dit_cache_backends.planning.plans import Plan, Plans
from dit_cache_backends.planning.pursuit import pursue
from dit_cache_backends.planning.rehearsal import Rehearsal
from dit_cache_backends.planning.segments import SHARE, Segments, Table
from dit_cache_backends.planning.starts import starting_masks
from dit_cache_backends.planning.work import Work
from dit_cache_backends.trials import prompts_fingerprint, provenance

if TYPE_CHECKING:
    from dit_cache_backends.trials import Prompt, Trial

__all__ = ["Planner"]

SEGMENTS_ON = 2
"""Prompts on which segments are measured: there are many of them, and they only say where to begin."""
LOOK = 4
"""Prompts on which a candidate has to hold up before the others are drawn."""
Advance = Callable[[str, float], None]


class Planner:
    """Finds the steps to compute for one model.

    Args:
        trial: the model, and the arguments of its calls.
        prompts: the plan is found on these.
        held_out: prompts of other scenes and seeds, on which it is compared with fewer dense steps.
        steps: denoising steps, as the pipeline is told.
        search: how to search.
        batch: prompts in one call of the pipeline.
        work: the file that keeps what was evaluated, so that a search can be stopped and resumed.
        replay: whether to record the dense run, see ``Rehearsal``.

    Raises:
        ConfigError: if nothing can be searched with these, or the work file is of another search.
    """

    def __init__(
        self,
        trial: Trial,
        prompts: Sequence[Prompt],
        held_out: Sequence[Prompt] = (),
        steps: int | None = None,
        search: PlanSearch | None = None,
        batch: int = 1,
        work: Path | None = None,
        replay: bool = True,
    ) -> None:
        self.search = search or PlanSearch()
        self.steps = steps or trial.steps
        if not prompts:
            raise ConfigError("a plan needs prompts to be found on")
        if self.steps < 3:
            raise ConfigError(f"a plan needs a run of at least 3 steps, got {self.steps}")
        shared = {(each.text, each.seed) for each in prompts} & {(each.text, each.seed) for each in held_out}
        if shared:
            raise ConfigError(
                f"{len(shared)} of the held-out prompts are among those that the plan is found on, such as "
                f"{min(shared)[0]!r}; keep them apart"
            )
        self.trial = trial
        self._provenance = provenance(trial.pipeline)
        pictures = self.search.objective == "pictures"
        layout = (self.steps, batch, self.search.front, self.search.back, replay, pictures)
        self.rehearsal = Rehearsal(trial, prompts, *layout)
        self.rehearsal.check()
        self._look, self._segmented = (
            self.rehearsal if len(prompts) <= count else Rehearsal(trial, prompts[:count], *layout)
            for count in (LOOK, SEGMENTS_ON)
        )
        self.held_out = Rehearsal(trial, held_out, *layout) if held_out else None
        self._about: dict[str, Any] = {
            "call": {"num_inference_steps": self.steps, **{k: _plain(v) for k, v in trial.call.items()}},
            "prompts": {
                "count": len(prompts),
                "fingerprint": prompts_fingerprint(prompts),
                "seeds": [each.seed for each in prompts],
                "held_out": len(held_out),
                "held_out_fingerprint": prompts_fingerprint(held_out) if held_out else None,
                "held_out_seeds": [each.seed for each in held_out],
            },
        }
        compared = {k: v for k, v in self._provenance.to_dict().items() if k not in ("model", "versions")}
        self._work = Work(
            work,
            {
                **compared,
                **self._about,
                "Fn_compute_blocks": self.search.front,
                "Bn_compute_blocks": self.search.back,
                "batch": batch,
                **({"objective": "pictures"} if pictures else {}),
            },
        )
        self._found_on: dict[Candidate, Quality] = {}
        self._ranks: dict[Candidate, float] = {}
        self._known_gram: Gram | None = None

    def plan(self, compute: Sequence[int], advance: Advance = lambda what, part: None) -> Plans:
        """The best plan that was found for each number of computed steps.

        Args:
            compute: how many of the run's steps compute; with a scheduler of second order, of its evaluations.
            advance: told what is done, and which part of the whole has been.

        Raises:
            ConfigError: if a number does not fit the run, or no plan can have it.
        """
        search = self.search
        self._work.begin()
        self._found_on.clear()
        self._ranks.clear()
        advance("recording the dense run", 0.0)
        shape = self.rehearsal.shape()
        forced = {
            *range(min(search.first, shape.steps)),
            *range(max(shape.steps - search.last, 0), shape.steps),
            *shape.begins,
        }
        self._refuse(compute, shape.steps, forced)
        tables = Segments(self._segmented, self._work, search).tables(shape.steps, forced, advance)
        begun = self._work.seconds
        left = None if search.seconds is None else max(search.seconds - begun, 0.0)
        done: list[Plan] = []
        for number, computed in enumerate(compute):
            until = None if left is None else begun + left * (number + 1) / len(compute)
            begin = SHARE + (1 - SHARE) * number / len(compute)
            share = (1 - SHARE) / len(compute)

            def part_done(what: str, part: float, begin: float = begin, share: float = share) -> None:
                advance(what, begin + share * part)

            done.append(self._plan(computed, shape.steps, forced, tables, until, part_done))
        about = {
            **self._about,
            "search": {
                "objective": search.objective,
                "predictors": list(search.predictors),
                "max_skip": search.max_skip,
                "first": search.first,
                "last": search.last,
                "begins": list(shape.begins),
                "segments": [*tables],
                "drawn": self._work.drawn,
                "seconds": round(self._work.seconds, 1),
                "seed": search.seed,
            },
        }
        return Plans(done, shape.steps, search.front, search.back, self._provenance, about)

    def quality(self, candidate: Candidate, rehearsal: Rehearsal | None = None) -> Quality:
        """How near runs of a candidate come to the dense ones.

        Args:
            candidate: a fitted one has the weights that were fitted on the prompts that plans are found on.
            rehearsal: ``self.held_out`` for the held-out prompts; the others unless given.
        """
        rehearsal = rehearsal or self.rehearsal
        which = "held out" if rehearsal is self.held_out else "found on"
        return self._measured(which, candidate, rehearsal)

    def _measured(self, which: str, candidate: Candidate, rehearsal: Rehearsal) -> Quality:
        """Weights are fitted only where the work file does not know the numbers."""
        return Quality.of(
            self._work.numbers(
                f"{which} {candidate.predictor} {candidate.digits}",
                lambda: rehearsal.errors(candidate, fitted_weights(self._gram, candidate)),
            )
        )

    def _plan(
        self,
        computed: int,
        steps: int,
        forced: set[int],
        tables: dict[str, Table],
        until: float | None,
        advance: Advance,
    ) -> Plan:
        search, work = self.search, self._work
        begun_seconds, begun = work.seconds, work.drawn
        most = None if search.evaluations is None else search.evaluations * len(self.rehearsal.prompts)
        what = f"{computed} computed steps"

        def goes_on() -> bool:
            if until is not None and work.seconds >= until:
                return False
            return most is None or work.drawn - begun < most

        def evaluate(candidate: Candidate) -> Quality:
            if candidate not in self._found_on:
                self._found_on[candidate] = self.quality(candidate)
                parts = [0.0]
                if until is not None and until > begun_seconds:
                    parts.append((work.seconds - begun_seconds) / (until - begun_seconds))
                if most is not None:
                    parts.append((work.drawn - begun) / most)
                advance(what, min(max(parts), 1.0))
            return self._found_on[candidate]

        best, start = pursue(
            self._starts(computed, steps, forced, tables),
            search.predictors,
            self._first_look,
            evaluate,
            goes_on,
            forced,
            search.max_skip,
            search.seed,
            self._foreseen,
        )
        fewer_steps, fewer_found = self._fewer(self.rehearsal, computed)
        held_out = fewer_held_out = None
        if self.held_out is not None:
            advance(f"{what}, on held-out prompts", 1.0)
            held_out = self.quality(best, self.held_out)
            _, fewer_held_out = self._fewer(self.held_out, computed)
        return Plan(
            best,
            start,
            self.rehearsal.blocks_run(best.mask),
            evaluate(best),
            fewer_steps,
            fewer_found,
            held_out,
            fewer_held_out,
            fitted_weights(self._gram, best),
        )

    def _starts(
        self, computed: int, steps: int, forced: set[int], tables: dict[str, Table]
    ) -> dict[str, Mask]:
        """Masks to begin with by where they come from."""
        search = self.search
        starts = {
            f"minimax path, {predictor}": minimax_path(table, steps, computed, forced)
            for predictor, table in tables.items()
        }
        starts |= starting_masks(steps, computed, forced, self.rehearsal.change(), search.max_skip)
        starts |= foreseen_starts(starts, search.predictors, self._foreseen, forced, search.max_skip)
        if not starts:
            raise ConfigError(
                f"no plan computes {computed} of {steps} steps with at most {search.max_skip} skipped in a row and "
                f"{len(forced)} that have to compute. Compute more, or allow more in a row (max_skip)."
            )
        return starts

    @property
    def _gram(self) -> Gram:
        """What fitted forecasts are made of; draws the dense runs where they have not been."""
        if self._known_gram is None:
            self._known_gram = self.rehearsal.gram()
        return self._known_gram

    def _foreseen(self, candidate: Candidate) -> float:
        """What is foreseen of a candidate, without drawing it."""
        if candidate not in self._ranks:
            self._ranks[candidate] = foreseen(self._gram, candidate).rank
        return self._ranks[candidate]

    def _first_look(self, candidate: Candidate) -> Quality:
        """Of a few prompts alone, where there are more."""
        if self._look is self.rehearsal:
            return self.quality(candidate)
        return self._measured("first", candidate, self._look)

    def _fewer(self, rehearsal: Rehearsal, computed: int) -> tuple[int, Quality]:
        which = "held out" if rehearsal is self.held_out else "found on"

        def measure() -> Sequence[float]:
            steps, errors = rehearsal.fewer_steps(computed)
            return (float(steps), *errors)

        steps, *errors = self._work.numbers(f"{which} fewer {computed}", measure)
        return int(steps), Quality.of(errors)

    def _refuse(self, compute: Sequence[int], steps: int, forced: set[int]) -> None:
        for computed in compute:
            if not len(forced) <= computed < steps or computed < 2:
                raise ConfigError(
                    f"compute={computed} does not fit: of the {steps} steps {len(forced)} have to compute (the first "
                    f"{self.search.first}, the last {self.search.last}, and where a transformer begins). Expected "
                    f"{max(len(forced), 2)} to {steps - 1}."
                )
        if not compute:
            raise ConfigError("say for how many computed steps a plan is wanted (compute)")


def _plain(value: Any) -> Any:
    """For a file: what JSON and YAML know as it is, anything else as text."""
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)[:80]
