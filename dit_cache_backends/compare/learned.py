"""Measures that a network makes: LPIPS, FID, CLIP score and ImageReward, where their packages and weights are there.

Each is a small adapter around the package that is kept up best; what it needs is imported when it is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from dit_cache_backends.compare.pixels import Pixels, eight_bit
from dit_cache_backends.errors import ConfigError

CLIP_MODEL = "openai/clip-vit-large-patch14"
"""What most publications score with; cache-dit's table has laion's ViT-g-14."""

IMAGE_REWARD = "ImageReward-v1.0"


class LPIPS:
    """Learned perceptual distance (Zhang et al., 2018) with AlexNet, by torchmetrics; 0 for equal pictures."""

    def __init__(self, device: str = "cpu") -> None:
        with _needs("lpips", "torchmetrics", "torchvision"), _weights("lpips", "torchvision's AlexNet"):
            from torchmetrics.image.lpip import LearnedPerceptualImagePatchSimilarity

            self._model = LearnedPerceptualImagePatchSimilarity(net_type="alex", normalize=True).to(device)
        self._device = device

    def __call__(self, reference: Pixels, other: Pixels) -> float:
        with torch.no_grad():
            return float(self._model(*(_batch(each, self._device) / 255.0 for each in (reference, other))))


class FID:
    """Frechet inception distance (Heusel et al., 2017) of two sets of pictures, by torchmetrics and torch-fidelity.

    It is biased for few pictures; publications take thousands.
    """

    def __init__(self, device: str = "cpu") -> None:
        with _needs("fid", "torchmetrics", "torch-fidelity"), _weights("fid", "torch-fidelity's Inception"):
            from torchmetrics.image.fid import FrechetInceptionDistance

            self._model = FrechetInceptionDistance(feature=2048).to(device)
        self._device, self._count = device, 0

    def add(self, reference: Pixels, other: Pixels) -> None:
        """Take a pair into the two sets."""
        self._model.update(_batch(reference, self._device), real=True)
        self._model.update(_batch(other, self._device), real=False)
        self._count += 1

    def result(self) -> float:
        """The distance of all that was taken.

        Raises:
            ConfigError: if that was a single pair.
        """
        if self._count < 2:
            raise ConfigError("fid is a distance of two sets of pictures, and needs at least 2 pairs; got 1")
        return float(self._model.compute())


class CLIPScore:
    """100 times the cosine between a picture and its prompt in CLIP's space, at least 0 (Hessel et al., 2021).

    A prompt longer than CLIP's window is cut off. Their factor 2.5 is left out, as it is by torchmetrics and in
    cache-dit's tables.
    """

    def __init__(self, model: str = CLIP_MODEL, device: str = "cpu") -> None:
        with _needs("clip", "transformers"), _weights("clip", model):
            from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel

            self._model = CLIPModel.from_pretrained(model).eval().to(device)
            self._tokens = AutoTokenizer.from_pretrained(model)
            self._pictures = AutoImageProcessor.from_pretrained(model)
        self._window = int(self._model.config.text_config.max_position_embeddings)
        self._device = device

    def __call__(self, picture: Pixels, prompt: str) -> float:
        text = self._tokens(
            [prompt], return_tensors="pt", truncation=True, max_length=self._window, padding=True
        )
        with torch.no_grad():
            found = self._model(
                input_ids=text["input_ids"].to(self._device),
                attention_mask=text["attention_mask"].to(self._device),
                pixel_values=self._pictures(eight_bit(picture), return_tensors="pt")["pixel_values"].to(
                    self._device
                ),
            )
        cosine = torch.nn.functional.cosine_similarity(found.image_embeds, found.text_embeds)
        return 100 * max(0.0, float(cosine))


class ImageReward:
    """How much people would like a picture for its prompt (Xu et al., 2023), by the package image-reward.

    It hardly sees blur: caches that lose detail keep their score. Read it beside LPIPS or PSNR, never alone.
    """

    def __init__(self, device: str = "cpu") -> None:
        with _needs("image_reward", "image-reward"), _weights("image_reward", IMAGE_REWARD):
            self._model: Any = importlib.import_module("ImageReward").load(IMAGE_REWARD, device=device)

    def __call__(self, picture: Pixels, prompt: str) -> float:
        from PIL import Image as Images

        with torch.no_grad():
            return float(self._model.score(prompt, Images.fromarray(eight_bit(picture))))


def _batch(pixels: Pixels, device: str) -> torch.Tensor:
    return torch.from_numpy(eight_bit(pixels).copy()).permute(2, 0, 1)[None].to(device)


@contextmanager
def _needs(measure: str, *packages: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:  # torchmetrics has classes that raise it when they are made
        raise ConfigError(
            f"{measure} needs {' and '.join(packages)}, and not all of it can be imported ({error}). "
            f"pip install {' '.join(packages)}, or leave {measure} out of --measures."
        ) from error


@contextmanager
def _weights(measure: str, weights: str) -> Iterator[None]:
    try:
        yield
    except ImportError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(
            f"{measure} needs the weights of {weights}, which could not be loaded: {error} Fetch them where there is a "
            f"network, or leave {measure} out of --measures."
        ) from error
