"""`dit-cache compare --model`: dense beside cached, on the shipped model and a tiny video pipeline."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.compare.comparison import compare, scorers
from dit_cache_backends.compare.live import Cost, draw_pairs, frames_of_pairs, keep
from dit_cache_backends.compare.measures import ALWAYS
from dit_cache_backends.compare.pairs import pairs_of
from dit_cache_backends.trials import Prompt, Setting, Trial
from tests.compare.films import FRAMES, film

RUN = ["compare", "--model", "demo", "--num-inference-steps", "6", "--json"]


def test_a_live_pair_measures_what_its_kept_files_measure(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text(
        "a red circle on a blue background\na green ring on a white background\n"
    )
    config = tmp_path / "cache.yaml"
    config.write_text(
        "cache_backend: cache_dit\ncache_config: {residual_diff_threshold: 0.9, max_warmup_steps: 2}\n"
    )
    live = CliRunner().invoke(
        app,
        [
            *RUN,
            "--prompts",
            str(tmp_path / "prompts.txt"),
            "--cache-config",
            str(config),
            "--keep",
            str(tmp_path),
        ],
    )
    assert live.exit_code == 0, live.output
    files = CliRunner().invoke(app, ["compare", str(tmp_path / "dense"), str(tmp_path / "cached"), "--json"])
    found, again = json.loads(live.stdout), json.loads(files.stdout)
    for name in ALWAYS:
        assert [pair[name] for pair in found["pairs"]] == [pair[name] for pair in again["pairs"]]
    assert found["measures"]["mse"]["mean"] > 0
    # 3 of 6 steps are cached: one block of 12 runs.
    assert found["cost"]["blocks"] == 2 * 6 * 12
    assert found["cost"]["blocks_run"] == 2 * (3 * 12 + 3)


def test_a_cache_that_never_skips_gives_the_same_pictures() -> None:
    same = CliRunner().invoke(
        app, [*RUN, "--cache-backend", "cache_dit", "--cache-config", '{"residual_diff_threshold": 0}']
    )
    found = json.loads(same.stdout)
    assert found["measures"]["mse"]["worst"] == 0
    assert found["cost"]["blocks_run"] == found["cost"]["blocks"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--cache-backend", "cache_dti"], "cache_dit"),
        ([], "which cache?"),
        (["--cache-config", '{"cache_backend": "cache_dit", "compile": true}'], "compile"),
        (["--model", "somewhere/else", "--cache-backend", "cache_dit"], "--prompts FILE"),
    ],
)
def test_what_is_wrong_is_told_before_a_model_is_loaded(arguments: list[str], why: str) -> None:
    refused = CliRunner().invoke(
        app, ["compare", "--model", "demo", *arguments], env={"DIT_CACHE_BACKEND": ""}
    )
    assert refused.exit_code == 2
    assert why in refused.stderr


def test_videos_are_compared_frame_by_frame_and_kept_as_frames(tmp_path: Path) -> None:
    with Trial(film()) as trial:
        setting = Setting("cached", {"residual_diff_threshold": 0.99, "max_warmup_steps": 1})
        pairs = draw_pairs(trial, [Prompt("a red circle on a blue background", 1)], setting, steps=4)
    found = compare(frames_of_pairs(pairs), scorers(ALWAYS))
    videos = np.asarray(pairs[0].dense.images[0]), np.asarray(pairs[0].cached.images[0])
    assert found.pairs[0].frames == len(videos[0]) == FRAMES
    eight = [(each * 255).round() for each in videos]
    expected = [float(np.square(a - b).mean()) for a, b in zip(*eight, strict=True)]
    assert found.pairs[0].values["mse"] == pytest.approx(expected)
    assert Cost.of(pairs).blocks_run < Cost.of(pairs).blocks
    keep(pairs, tmp_path)
    assert len(pairs_of(tmp_path / "dense", tmp_path / "cached")) == len(videos[0])
