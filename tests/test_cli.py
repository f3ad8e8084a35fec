"""The command `dit-cache`, run as a user runs it."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dit_cache_backends.cli import app
from dit_cache_backends.config import describe
from dit_cache_backends.registry import list_cache_backends


def run(*arguments: object, exit_code: int = 0, **environment: str) -> Result:
    # Wide, so that no line of a help text is broken where a test looks.
    result = CliRunner().invoke(app, [str(each) for each in arguments], env={"COLUMNS": "200", **environment})
    assert result.exit_code == exit_code, result.output
    assert "Traceback" not in result.output
    return result


def test_without_a_command_the_commands_are_listed() -> None:
    text = run("--help").output
    for command in ("demo", "generate", "backends", "models"):
        assert command in text


def test_generate_explains_every_option_and_its_environment_variable() -> None:
    text = run("generate", "--help").output
    for word in (
        "--cache-backend",
        "--cache-config",
        "--seed",
        "--summary",
        "--output",
        "DIT_CACHE_CONFIG",
        "28",
    ):
        assert word in text


# backends


def test_backends_lists_each_with_its_distribution_version_and_origin() -> None:
    text = run("backends").output
    for info in list_cache_backends().values():
        for part in (info.name, info.distribution, info.version, info.origin, info.summary):
            assert part in text


def test_backends_shows_the_options_of_one_with_type_default_range_and_meaning() -> None:
    text = " ".join(run("backends", "Cache-DiT").output.split())
    for option in describe(list_cache_backends()["cache_dit"].cls.Config):
        assert f"{option.name}: {option.type}, default {option.default}" in text
        assert option.valid in text
        assert " ".join(option.help.split()) in text


def test_backends_shows_a_broken_plugin_with_its_reason_beside_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = tmp_path / "sad_plugin-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: sad-plugin\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[dit_cache_backends]\nsad = a_module_nobody_has:Sad\n")
    monkeypatch.syspath_prepend(tmp_path)
    text = run("backends").output
    assert "cache_dit" in text
    assert "sad is broken: " in text
    assert "No module named 'a_module_nobody_has'" in text
    assert "No module named 'a_module_nobody_has'" in run("backends", "sad", exit_code=2).stderr


def test_an_unknown_backend_is_one_line_on_standard_error() -> None:
    result = run("backends", "cache_dot", exit_code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("dit-cache: Unsupported cache backend: cache_dot. Supported: cache_dit")
    assert len(result.stderr.splitlines()) == 1


# models


def test_models_lists_the_known_classes_with_their_block_lists() -> None:
    lines = run("models").output.splitlines()
    flux, *_ = [line for line in lines if line.startswith("FluxTransformer2DModel ")]
    assert "transformer_blocks + single_transformer_blocks" in flux


def test_models_shows_one_card() -> None:
    text = run("models", "fluxtransformer2dmodel").output
    assert "single_transformer_blocks: takes hidden_states, encoder_hidden_states" in text


def test_an_unknown_class_is_refused_with_the_nearest() -> None:
    assert "'FluxTransformer2DModel'" in run("models", "FluxTransformerModel", exit_code=2).stderr


# generate


def draw(painter: Path, output: Path, *arguments: object, **environment: str) -> Result:
    small = (
        "--height",
        64,
        "--width",
        64,
        "--num-inference-steps",
        4,
        "--device",
        "cpu",
        "--guidance-scale",
        1,
    )
    prompts = [] if "--" in arguments else ["a red circle"]
    return run(
        "generate", *prompts, "--model", painter, "--output", output, *small, *arguments, **environment
    )


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path))


def test_generate_writes_the_picture_and_says_where_and_how_long(painter: Path, tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "picture.png"
    text = draw(painter, path).output
    assert pixels(path).shape == (64, 64, 3)
    assert f"{path}: " in text
    assert "transformer" in text


def test_the_same_seed_gives_the_same_picture_and_another_seed_another(painter: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, seed in zip(paths, (1, 1, 2), strict=True):
        draw(painter, path, "--seed", seed)
    first, again, other = map(pixels, paths)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize("how", ["json", "file", "at", "yaml naming the backend", "environment"])
def test_the_configuration_is_taken_from_json_a_file_or_the_environment(
    painter: Path, tmp_path: Path, how: str
) -> None:
    config = '{"residual_diff_threshold": 10, "max_warmup_steps": 1}'
    file = tmp_path / "options.json"
    file.write_text(config)
    named = tmp_path / "options.yaml"
    named.write_text(f"cache_backend: cache_dit\ncache_config: {config}\n")
    arguments, environment = {
        "json": (["--cache-backend", "cache_dit", "--cache-config", config], {}),
        "file": (["--cache-backend", "cache-dit", "--cache-config", file], {}),
        "at": (["--cache-backend", "cache_dit", "--cache-config", f"@{file}"], {}),
        "yaml naming the backend": (["--cache-config", named], {}),
        "environment": ([], {"DIT_CACHE_BACKEND": "cache_dit", "DIT_CACHE_CONFIG": config}),
    }[how]
    text = draw(painter, tmp_path / "out.png", "--summary", *arguments, **environment).output
    run, total = map(int, re.search(r"(\d+) of (\d+) blocks run", text).groups())
    assert total == 4 * 12
    assert run < total


def test_a_summary_of_a_dense_run_says_that_there_is_none(painter: Path, tmp_path: Path) -> None:
    assert "No cache was enabled" in draw(painter, tmp_path / "out.png", "--summary").output


def test_several_prompts_make_numbered_pictures(painter: Path, tmp_path: Path) -> None:
    text = draw(painter, tmp_path / "out.png", "a blue square").output
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "out_1.png"]
    assert "a blue square" in text


def test_a_folder_is_filled_with_numbers(painter: Path, tmp_path: Path) -> None:
    draw(painter, tmp_path, "a blue square")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cache-backend", "cache_dot"], "Unsupported cache backend: cache_dot"),
        (["--cache-backend", "cache_dit", "--cache-config", '{"x": 1}'], "unknown option 'x'"),
        (["--cache-backend", "cache_dit", "--cache-config", "nowhere.yaml"], "nowhere.yaml"),
        (["--cache-backend", "cache_dit", "--cache-config", "fast"], "JSON"),
        (["--cache-config", '{"max_warmup_steps": 1}'], "no cache backend"),
        (["--model", "no such model"], "no such model"),
        (["--model", "no such model", "--cache-backend", "none", "--device", "cpu"], "no such model"),
        (["--dtype", "float33"], "float33"),
    ],
)
def test_a_mistake_is_explained_on_standard_error_without_a_traceback(
    arguments: list[str], words: str
) -> None:
    result = run("generate", "a red circle", *arguments, exit_code=2)
    assert result.stderr.startswith("dit-cache: ")
    assert words in result.stderr
    assert result.stdout == ""
