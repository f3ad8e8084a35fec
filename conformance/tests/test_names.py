"""Names of checks are part of the interface: they stand in other people's expected_failures."""

from __future__ import annotations

import ast
from pathlib import Path

import dit_cache_conformance
from dit_cache_backends import Capabilities
from dit_cache_conformance import CHECKS

PACKAGE = Path(dit_cache_conformance.__file__).parent
BY_GROUP = {
    "exactness": """
        never_skipping_changes_no_bit
        a_still_input_is_reproduced
        what_a_model_adds_between_its_blocks_survives
        a_host_may_write_into_what_it_is_given
        the_inputs_of_a_model_are_not_written_into
        the_same_run_twice_gives_the_same_bits
        no_random_number_is_drawn
    """,
    "lifecycle": """
        a_new_generation_remembers_nothing
        a_run_after_an_exception_is_fresh
        a_run_after_a_cancelled_one_is_fresh
        disable_restores_the_model
        disable_after_a_cancelled_run_restores_the_model
        disabling_twice_is_harmless
        enabling_twice_is_refused
        enabling_again_begins_anew
        is_enabled_says_so
        refresh_is_called_as_vllm_omni_does
        refresh_need_not_be_called
        refresh_begins_anew
        no_tensor_outlives_its_run
        a_cancelled_run_is_let_go_of
        weights_that_change_between_runs_are_used
        a_copied_pipeline_is_plain
        a_refused_model_is_left_alone
    """,
    "isolation": """
        branches_do_not_mix
        three_branches_do_not_mix
        a_branch_that_stops_leaves_the_other_going
        two_models_do_not_mix
        two_pipelines_do_not_mix
        threads_do_not_mix
        interleaved_requests_do_not_mix
        an_ended_request_is_forgotten
        each_expert_and_branch_skips
        ranks_take_one_decision
        ranks_decide_as_one_process_would
    """,
    "shapes": """
        after_another_resolution
        after_another_batch_size
        after_another_number_of_steps
        after_another_dtype
        half_precision_is_kept
        what_is_kept_has_the_dtype_asked_for
        a_run_of_one_step_runs_in_full
        a_shape_that_changes_within_a_run_is_computed
        a_batch_of_equals_is_as_each_alone
        each_sample_of_a_batch_is_decided_alone
    """,
    "decisions": """
        an_eager_configuration_skips
        a_never_skipping_configuration_runs_every_block
        the_first_step_runs
        the_first_step_is_the_model_s_own
        an_input_that_leaps_is_not_followed_blindly
        numbers_that_are_none_are_not_kept
        a_nan_is_never_silent
    """,
    "configuration": """
        the_backend_says_what_it_is
        every_option_is_documented
        every_option_is_read
        an_unknown_option_is_named
        a_wrong_value_is_refused
        a_choice_outside_the_list_is_refused
        several_mistakes_are_told_at_once
        a_configuration_comes_in_every_form
        a_configuration_can_be_copied_and_pickled
        the_given_options_are_left_alone
    """,
    "summary": """
        the_hits_reported_are_those_had
        each_step_is_accounted_for
        a_run_in_which_nothing_was_skipped_says_so
        a_summary_can_be_read
    """,
    "hosts": """
        every_host_gives_the_same_tensors
        inference_mode_makes_no_difference
        a_bare_transformer_can_be_enabled
        an_installed_backend_is_found_by_its_name
        a_pipeline_keeps_what_a_host_looks_at
    """,
    "composition": """
        hooks_of_others_stay
        adapters_within_blocks_are_used
        a_copy_of_an_enabled_model_is_plain
        training_is_not_cached
        the_cache_of_diffusers_is_not_doubled
        a_model_may_write_into_what_its_blocks_gave
    """,
}
FEW = """
    what_a_model_adds_between_its_blocks_survives
    a_branch_that_stops_leaves_the_other_going
    the_cache_of_diffusers_is_not_doubled
"""


def test_the_names_of_the_checks_are_those_that_were_published() -> None:
    found: dict[str, list[str]] = {}
    for each in CHECKS.values():
        found.setdefault(each.group, []).append(each.name)
    assert {group: sorted(names) for group, names in found.items()} == {
        group: sorted(names.split()) for group, names in BY_GROUP.items()
    }


def test_every_check_says_what_it_promises_and_what_to_do_when_it_fails() -> None:
    for each in CHECKS.values():
        assert each.promise.endswith("."), each.name
        assert each.remedy.startswith("If this fails, "), each.name


def test_checks_about_a_model_are_tried_on_six_or_say_why_not() -> None:
    """Fewer where the property is of the interface alone, or only some models have what it is about."""
    few = {each.name for each in CHECKS.values() if 0 < len(each.models) < 6}
    assert few == set(FEW.split())


def test_what_a_check_needs_is_a_capability() -> None:
    assert {need for each in CHECKS.values() for need in each.needs} <= set(dir(Capabilities))


def test_only_the_public_interface_is_imported() -> None:
    allowed = {"dit_cache_backends", "dit_cache_backends.config", "dit_cache_backends.errors"}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        if "tiny" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("dit_cache_backends"):
                found.add(node.module)
    assert found <= allowed
