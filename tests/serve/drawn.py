"""Pictures from answers, and the same ones drawn without a server."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
from PIL import Image

from dit_cache_backends.hosts.omni import Omni, OmniDiffusionSamplingParams


def pixels(b64_json: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(b64_json))))


def alone(
    pipeline: Any,
    prompt: str,
    backend: str | None = None,
    config: dict[str, Any] | None = None,
    **params: Any,
) -> tuple[np.ndarray, Any]:
    """The picture of one prompt and its summary, from `Omni` on a pipeline that serves nobody else meanwhile."""
    with Omni(pipeline, backend, config) as omni:
        sampling = OmniDiffusionSamplingParams(output_type="pil", **params)
        output = omni.generate(prompt, sampling, use_tqdm=False)[0]
    return np.asarray(output.images[0]), output.cache_summary
