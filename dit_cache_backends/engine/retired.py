"""A forward of a transformer all of whose gates have said that they will never skip again."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dit_cache_backends.engine.clock import Step
from dit_cache_backends.engine.plan import Site
from dit_cache_backends.engine.sessions import Session
from dit_cache_backends.summary import Row


class RetiredCall:
    """Runs every block and counts it: what is never skipped need be neither read, nor asked for, nor kept."""

    __slots__ = ("_name", "_reasons", "_rows", "_session", "_step")

    def __init__(self, name: str, session: Session, step: Step, reasons: Mapping[int, str]) -> None:
        self._name = name
        self._session = session
        self._step = step
        self._reasons = reasons
        """Why nothing is skipped, by the number of the stack."""
        self._rows: dict[int, Row] = {}

    def block(
        self, site: Site, module: nn.Module, run: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Stand in for the call of one block; ``run`` is its class's own ``__call__``."""
        number = site.plan.number
        row = self._rows.get(number)
        if row is None:
            step = self._step
            row = Row(self._name, site.plan.name, step.branch, step.run_index, step.run_total)
            row.reason = self._reasons[number]
            self._rows[number] = row
        row.blocks_run += 1
        return run(module, *args, **kwargs)

    def finish(self) -> bool:
        """Close the books of this forward."""
        self._session.summary.rows.extend(self._rows.values())
        return True
