"""The prompts of a file are those that it has, and a measurement knows the model that it was made on."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dit_cache_backends import ConfigError
from dit_cache_backends.demo import load_demo
from dit_cache_backends.trials import Prompt, Provenance, provenance, read_prompts

ITEMS: list[Any] = [
    "a circle",
    {"prompt": "a ring", "seed": 7, "negative_prompt": "a cross"},
    {"prompt": "a star"},
]
READ = [Prompt("a circle", 3), Prompt("a ring", 7, {"negative_prompt": "a cross"}), Prompt("a star", 5)]


def test_every_kind_of_file_gives_the_same_prompts(tmp_path: Path) -> None:
    files = {
        "a.json": json.dumps(ITEMS),
        "a.jsonl": "\n\n".join(map(json.dumps, ITEMS)),
        "a.yaml": "- a circle\n- {prompt: a ring, seed: 7, negative_prompt: a cross}\n- prompt: a star\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_text(content)
        assert read_prompts(tmp_path / name, seed=3) == READ
    (tmp_path / "a.txt").write_text("# shapes\na circle\n\n  a ring \n")
    assert read_prompts(tmp_path / "a.txt") == [Prompt("a circle", 0), Prompt("a ring", 1)]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.txt", "# nothing\n", "expected a list of prompts that is not empty"),
        ("a.json", "{", "cannot be read as .json"),
        ("a.json", '{"prompt": "a ring"}', "expected a list of prompts"),
        ("a.json", '["a ring", {"text": "a cross"}]', "prompt 2: expected a text"),
        ("a.yaml", "- {prompt: a ring, seed: many}", "prompt 1: seed is a whole number"),
        ("a.yaml", "- [", "cannot be read as .yaml"),
    ],
)
def test_a_file_that_is_not_as_it_should_be_is_named_with_the_place(
    tmp_path: Path, name: str, content: str, said: str
) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=said) as error:
        read_prompts(tmp_path / name)
    assert name in str(error.value)
    with pytest.raises(ConfigError, match=r"missing.*cannot be read"):
        read_prompts(tmp_path / "missing.txt")


@pytest.fixture(scope="module")
def pipeline() -> Any:
    return load_demo()


def test_a_model_that_is_loaded_again_is_the_same_one(pipeline: Any) -> None:
    found = provenance(pipeline)
    assert found == provenance(load_demo())
    assert found.model == "model"  # the folder's name, and not where it lies
    assert Provenance.from_dict(json.loads(json.dumps(found.to_dict())), "a file") == found
    assert provenance(load_demo().to(dtype=torch.bfloat16)).differences(found) == []


def test_another_scheduler_and_other_weights_are_told_apart(pipeline: Any) -> None:
    here = provenance(pipeline)
    other = copy.copy(pipeline)
    other.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, shift=3.0)
    found = provenance(other).differences(here)
    assert len(found) == 1
    assert found[0].startswith("scheduler: measured on FlowMatchEulerDiscreteScheduler")
    trained = copy.copy(pipeline)
    trained.transformer = copy.deepcopy(pipeline.transformer)
    with torch.no_grad():
        trained.transformer.proj_out.weight[0, 0] += 1
    assert [each.partition(":")[0] for each in provenance(trained).differences(here)] == ["weights"]


def test_provenance_that_lacks_something_is_refused(pipeline: Any) -> None:
    data = provenance(pipeline).to_dict()
    del data["scheduler"]
    with pytest.raises(ConfigError, match=r"plan.yaml: scheduler of its provenance cannot be read"):
        Provenance.from_dict(data, "plan.yaml")
