"""Measures that networks make: the arithmetic of the CLIP score, and what is said where something is missing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from dit_cache_backends.cli import app
from dit_cache_backends.compare.learned import CLIPScore
from dit_cache_backends.demo.text import tokenizer
from dit_cache_backends.errors import ConfigError

PROMPTS = [
    "a large red circle on a white background",
    "a green ring above a blue cross on a black background",
]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP with random weights, its tokenizer and its pictures' preparation, in a folder."""
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

    tokens = tokenizer(start=True)
    tokens.model_max_length = 10**30  # as of a tokenizer that does not know its model's window
    text = {"vocab_size": len(tokens), "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2}
    text |= {"num_attention_heads": 4, "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 3}
    vision = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision |= {"image_size": 32, "patch_size": 8}
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=16))
    folder = tmp_path_factory.mktemp("clip")
    model.save_pretrained(folder)
    tokens.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return folder


def cosine(folder: Path, picture: np.ndarray, prompt: str) -> float:
    """Worked out from the model's two halves and the processor's documented steps."""
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(folder).eval()
    ids = tokenizer(start=True)(prompt).input_ids
    ids = [*ids[:7], 3] if len(ids) > 8 else ids  # the window is 8 long, and its last token an end
    mean, deviation = (
        np.array(each) for each in ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    )
    values = torch.tensor((picture / 255.0 - mean) / deviation, dtype=torch.float32).permute(2, 0, 1)[None]
    with torch.no_grad():
        text = model.text_projection(model.text_model(torch.tensor([ids])).pooler_output)[0].numpy()
        seen = model.visual_projection(model.vision_model(values).pooler_output)[0].numpy()
    return float(text @ seen / np.linalg.norm(text) / np.linalg.norm(seen))


def test_a_clip_score_is_a_hundred_cosines_of_picture_and_prompt_and_never_negative(clip: Path) -> None:
    score = CLIPScore(str(clip))
    signs = set()
    for seed, prompt in enumerate(["red", "ring", "background", *PROMPTS]):
        picture = np.random.default_rng(seed).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        picture[seed * 8 :] = 255 * (seed % 2)
        expected = cosine(clip, picture, prompt)
        signs.add(expected > 0)
        assert score(picture, prompt) == pytest.approx(100 * max(0.0, expected), abs=1e-2)
    assert signs == {True, False}


def test_clip_scores_of_files_need_their_prompts_and_give_those_of_the_reference_too(
    clip: Path, tmp_path: Path
) -> None:
    for place, folder in enumerate(("a", "b")):
        (tmp_path / folder).mkdir()
        for number in range(2):
            values = np.random.default_rng(10 * place + number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(values).save(tmp_path / folder / f"{number}.png")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    arguments = [
        "compare",
        str(tmp_path / "a"),
        str(tmp_path / "b"),
        "--measures",
        "clip",
        "--clip-model",
        str(clip),
    ]
    assert "--prompts FILE" in CliRunner().invoke(app, arguments).stderr
    told = CliRunner().invoke(app, [*arguments, "--prompts", str(tmp_path / "prompts.txt"), "--json"])
    found = json.loads(told.stdout)
    score = CLIPScore(str(clip))
    for number, pair in enumerate(found["pairs"]):
        for folder, key in (("a", "clip_reference"), ("b", "clip")):
            picture = np.asarray(Image.open(tmp_path / folder / f"{number}.png"))
            assert pair[key] == pytest.approx([score(picture, PROMPTS[number])])
    (tmp_path / "prompts.txt").write_text(PROMPTS[0])
    short = CliRunner().invoke(app, [*arguments, "--prompts", str(tmp_path / "prompts.txt")])
    assert "1 prompts for 2 pairs" in short.stderr


@pytest.mark.parametrize(
    ("measure", "package"),
    [("lpips", "torchmetrics"), ("fid", "torchmetrics"), ("image_reward", "image-reward")],
)
def test_a_missing_package_is_named_before_anything_is_drawn(
    measure: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("torchmetrics", "torchmetrics.image.lpip", "torchmetrics.image.fid", "ImageReward"):
        monkeypatch.setitem(__import__("sys").modules, module, None)
    arguments = ["compare", "--model", "demo", "--cache-backend", "cache_dit", "--measures", measure]
    refused = CliRunner().invoke(app, [*arguments, "--keep", str(tmp_path)])
    assert refused.exit_code == 2
    assert f"pip install {package}" in refused.stderr
    assert not any(tmp_path.iterdir())


def test_missing_weights_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"clip needs the weights of .*nothing_here"):
        CLIPScore(str(tmp_path / "nothing_here"))
