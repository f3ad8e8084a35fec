"""What a check is, the one list of them, and how one is run."""

from __future__ import annotations

import inspect
import re
import textwrap
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from dit_cache_conformance.state import settle

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dit_cache_conformance.subject import Subject

GROUPS = (
    "exactness",
    "lifecycle",
    "isolation",
    "shapes",
    "decisions",
    "configuration",
    "summary",
    "hosts",
    "composition",
)

CHECKS: dict[str, Check] = {}
"""Every check by its name, in the order of the groups. Names are part of the interface."""


class CheckFailed(AssertionError):
    """A promise was not kept. The text says what was found."""


class NotForThisBackend(Exception):
    """A check has nothing to say about this backend; the text says why."""


@dataclass(frozen=True)
class Check:
    """One promise, and how it is tried."""

    name: str
    group: str
    run: Callable[..., None]
    models: tuple[str, ...]
    """The tiny models that it is tried on, one after the other; empty where it is not about a model."""
    needs: tuple[str, ...]
    """Attributes of ``Capabilities`` without which it is left out."""
    refused: bool = False
    """Whether it is tried on the models that the backend refuses, instead of on the others."""

    @property
    def promise(self) -> str:
        """What is promised, in a sentence."""
        return self._paragraphs()[0]

    @property
    def remedy(self) -> str:
        """What to look for when it fails."""
        return next(text for text in self._paragraphs() if text.startswith("If this fails, "))

    def _paragraphs(self) -> list[str]:
        text = textwrap.dedent(inspect.getdoc(self.run) or "").strip()
        return [" ".join(part.split()) for part in re.split(r"\n\s*\n", text)]


def check(
    group: str, *, on: Sequence[str] = (), needs: Iterable[str] = (), refused: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Add a function to the list of checks, under its own name.

    Args:
        group: One of ``GROUPS``.
        on: The models that it is tried on, as ``check(subject, model)``; without any it is ``check(subject)``.
        needs: The capabilities that a backend must declare for it.
        refused: It is tried on those models alone that a backend declares to refuse; any other check on none of them.
    """

    def add(function: Callable[..., None]) -> Callable[..., None]:
        made = Check(function.__name__, group, function, tuple(on), tuple(needs), refused)
        if group not in GROUPS or made.name in CHECKS:
            raise ValueError(f"{made.name}: unknown group {group!r}, or a second check of that name")
        if not made.promise or not any(part.startswith("If this fails, ") for part in made._paragraphs()):
            raise ValueError(f"{made.name}: its docstring says what is promised, then 'If this fails, ...'")
        CHECKS[made.name] = made
        return function

    return add


def expect(condition: object, found: str) -> None:
    """Fail with ``found``, which says what was seen instead, unless the condition holds."""
    if not condition:
        raise CheckFailed(found)


def expect_same(found: torch.Tensor, expected: torch.Tensor, what: str) -> None:
    """Fail unless two tensors are alike bit for bit, dtype and shape included."""
    if found.dtype != expected.dtype or found.shape != expected.shape:
        raise CheckFailed(
            f"{what}: expected {tuple(expected.shape)} of {expected.dtype}, "
            f"found {tuple(found.shape)} of {found.dtype}"
        )
    if not torch.equal(found, expected):
        raise CheckFailed(f"{what}: {distance(found, expected):.2g} apart, relative to the largest number")


def distance(found: torch.Tensor, expected: torch.Tensor) -> float:
    """The largest difference of two tensors, relative to the largest number expected."""
    size = expected.double().abs().max().clamp_min(1e-30)
    return float((found.double() - expected.double()).abs().max() / size)


@dataclass(frozen=True)
class Result:
    """What came of one check."""

    check: Check
    status: str
    """"passed", "failed", "skipped", "expected" (it failed and was expected to) or "unexpected" (it passed instead)."""
    seconds: float
    message: str = ""
    """Why it failed or was left out."""
    failures: dict[str, str] = field(default_factory=dict)
    """What was found, by model."""
    refused: dict[str, str] = field(default_factory=dict)
    """The models that it was not tried on, since the backend refuses them, with the reason."""

    @property
    def ok(self) -> bool:
        """Whether nothing is to be mended."""
        return self.status not in ("failed", "unexpected")


def run_check(
    each: Check,
    subject: Subject,
    models: Sequence[str] = (),
    expected_failures: dict[str, str] | None = None,
) -> Result:
    """Try one check on each of its models; ``models`` restricts them, unless none of the check's own were left.

    Models that the backend refuses are left out, except where the check is about refusing.

    ``expected_failures`` maps a check's name, or ``name[model]``, to the reason. One that passes is a failure.
    """
    began = time.perf_counter()
    lacking = [need for need in each.needs if not getattr(subject.capabilities, need, False)]
    if lacking:
        return Result(each, "skipped", 0.0, f"needs the capability {', '.join(lacking)}")
    own = [model for model in each.models if (model in subject.refuses) is each.refused]
    refused = {} if each.refused else {m: subject.refuses[m] for m in each.models if m in subject.refuses}
    if each.models and not own:
        return Result(each, "skipped", 0.0, _why_on_none(refused), refused=refused)
    restricted = [model for model in own if model in models] or own
    failures: dict[str, str] = {}
    left_out = ""
    for model in restricted or [""]:
        found, left_out = _try(each, subject, model, left_out)
        if found is not None:
            failures[model] = found
    seconds = time.perf_counter() - began
    reasons = expected_failures or {}
    excused = {model for model in failures if f"{each.name}[{model}]" in reasons or each.name in reasons}
    wrongly = [
        key
        for key in reasons
        if (key == each.name and not failures)
        or any(key == f"{each.name}[{model}]" for model in restricted if model not in failures)
    ]
    if set(failures) - excused:
        return Result(each, "failed", seconds, _told(failures), failures, refused)
    if wrongly:
        text = f"{wrongly[0]} was expected to fail ({reasons[wrongly[0]]}) and passes; take it out"
        return Result(each, "unexpected", seconds, text, refused=refused)
    if failures:
        reason = next(reasons[key] for key in reasons if key.partition("[")[0] == each.name)
        return Result(each, "expected", seconds, reason, failures, refused)
    return Result(each, "skipped" if left_out else "passed", seconds, left_out, refused=refused)


def _why_on_none(refused: dict[str, str]) -> str:
    if not refused:
        return "it declares to refuse none of the models"
    return "it refuses " + "; ".join(f"{model}: {reason}" for model, reason in refused.items())


def _try(each: Check, subject: Subject, model: str, left_out: str) -> tuple[str | None, str]:
    """What was found wrong on one model, and why the check has nothing to say about the backend."""
    try:
        with _as_in_a_run(), subject.cleaned_up():
            each.run(subject, *([model] if model else []))
    except NotForThisBackend as why:
        return None, str(why)
    except CheckFailed as failure:
        return str(failure), left_out
    except Exception as error:  # a backend may raise anything; the check after it is tried all the same
        return f"raised {type(error).__name__}: {_first_line(error)}{_where(error)}", left_out
    return None, left_out


def _told(failures: dict[str, str]) -> str:
    """Models that failed alike are named together."""
    alike: dict[str, list[str]] = {}
    for model, message in failures.items():
        alike.setdefault(message, []).append(model)
    return "\n".join(
        f"{', '.join(models)}: {message}" if models != [""] else message for message, models in alike.items()
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [""])[0]


def _where(error: Exception) -> str:
    """The innermost place outside of torch, to look at first."""
    places: list[Any] = []
    trace = error.__traceback__
    while trace is not None:
        places.append((trace.tb_frame.f_code.co_filename, trace.tb_lineno))
        trace = trace.tb_next
    own = [place for place in places if "/torch/" not in place[0]]
    return f" ({own[-1][0].rpartition('/')[2]}:{own[-1][1]})" if own else ""


@contextmanager
def _as_in_a_run() -> Iterator[None]:
    """One thread, so that the same sum gives the same bits; no gradients; no advice of diffusers."""
    import diffusers.utils.logging

    settle()
    threads, verbosity = torch.get_num_threads(), diffusers.utils.logging.get_verbosity()
    torch.set_num_threads(1)
    diffusers.utils.logging.set_verbosity_error()
    try:
        with torch.no_grad():
            yield
    finally:
        torch.set_num_threads(threads)
        diffusers.utils.logging.set_verbosity(verbosity)
