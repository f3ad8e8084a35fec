"""The real `Omni` of vLLM-Omni: every way a user has to name a cache reaches ours, in the process that runs the model.

Each case is a process of its own, since an engine is one.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
ENGINE = """
import json, sys
import torch
torch.set_num_threads(1)
from vllm_omni.entrypoints.omni import Omni
from vllm_omni.inputs.data import OmniDiffusionSamplingParams
from vllm_omni.diffusion.worker import diffusion_model_runner as module

loaded = []
load = module.DiffusionModelRunner.load_model
def watched(self, *args, **kwargs):
    load(self, *args, **kwargs)
    loaded.append(self)
module.DiffusionModelRunner.load_model = watched

omni = Omni(**json.loads(sys.argv[1]))
found = []
for steps in (12, None):
    outputs = list(omni.generate(
        {"prompt": "a red cube", "negative_prompt": "blur"},
        OmniDiffusionSamplingParams(num_inference_steps=steps, seed=1, height=64, width=64),
    ))
    (runner,) = loaded
    backend = runner.cache_backend
    summary = backend.summary() if hasattr(backend, "summary") else None
    found.append({
        "images": len(outputs[0].images),
        "size": outputs[0].images[0].size,
        "kind": type(backend).__name__,
        "name": getattr(getattr(backend, "backend", None), "name", None),
        "settings": backend.backend.settings() if summary else None,
        "totals": sorted({row.total for row in summary.rows}) if summary else None,
        "skipped": summary.blocks_skipped if summary else None,
        "held": len(backend.backend.held_tensors()) if summary else None,
    })
with open(sys.argv[2], "w") as file:
    json.dump(found, file)
omni.close()
"""


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that is taken for a diffusion model."""
    folder = tmp_path_factory.mktemp("model")
    index = {"_class_name": "TinyQwenImagePipeline", "_diffusers_version": "0.40.0"}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "transformer").mkdir()
    (folder / "transformer" / "config.json").write_text("{}")
    return folder


def engine(model: Path, environment: dict[str, str] | None = None, **arguments: Any) -> list[dict[str, Any]]:
    """What was found of two requests to an engine made with these arguments."""
    options = {
        "model": str(model),
        "model_class_name": "TinyQwenImagePipeline",
        "enforce_eager": True,
        "dtype": "float32",
        "custom_pipeline_args": {"pipeline_class": f"{__package__}.pipelines.TinyQwenImagePipeline"},
    }
    result = model / "found.json"
    result.unlink(missing_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", ENGINE, json.dumps(options | arguments), str(result)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | (environment or {}),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.exists(), done.stdout[-3000:] + done.stderr[-3000:]
    found: list[dict[str, Any]] = json.loads(result.read_text(encoding="utf-8"))
    return found


def test_omni_takes_a_backend_of_ours_with_its_options(model: Path) -> None:
    """The second request names no number of steps: vLLM-Omni then refreshes nothing."""
    first, second = engine(
        model, cache_backend="dbprune", cache_config={"residual_diff_threshold": 0.5, "max_warmup_steps": 2}
    )
    assert first["name"] == "dbprune"
    assert first["settings"] == {"residual_diff_threshold": 0.5, "max_warmup_steps": 2}
    assert (first["images"], first["size"]) == (1, [64, 64])
    assert first["totals"] == [12]
    assert second["totals"] == [50]
    assert first["skipped"] > 0
    assert second["skipped"] > 0
    assert first["held"] == second["held"] == 0


def test_the_environment_names_it_and_takes_ours_for_a_name_of_vllm_omnis_own(model: Path) -> None:
    environment = {"DIFFUSION_CACHE_BACKEND": "cache_dit", "DIT_CACHE_BACKENDS_OVERRIDE": "cache_dit"}
    first, _ = engine(model, environment)
    assert first["name"] == "cache_dit"
    # vLLM-Omni fills in a whole configuration here; nothing of it is a wish.
    assert first["settings"] == {}
