"""Finding which steps to compute: a static plan for each number of them, which the plugin ``step_plan`` runs."""

from dit_cache_backends.planning.candidates import PREDICTORS, Candidate, Quality
from dit_cache_backends.planning.minimax import minimax_path
from dit_cache_backends.planning.plan_search import PlanSearch
from dit_cache_backends.planning.planner import Planner
from dit_cache_backends.planning.plans import Plan, Plans
from dit_cache_backends.planning.rehearsal import Rehearsal

__all__ = [
    "PREDICTORS",
    "Candidate",
    "Plan",
    "Planner",
    "Plans",
    "Quality",
    "Rehearsal",
    "PlanSearch",
    "minimax_path",
]
