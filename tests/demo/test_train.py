"""The recipe as a whole, on a scale of seconds."""

from pathlib import Path

import pytest

from dit_cache_backends.demo import autoencoder, card, flow, load_demo, polish, train


@pytest.mark.slow
def test_the_whole_recipe_runs_from_nothing_and_goes_on_where_it_stopped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(autoencoder, "PHASES", ((2, 1e-3, 1e-3, 1.0), (2, 1e-3, 1e-4, 5.0)))
    monkeypatch.setattr(autoencoder, "DECODER_PHASES", ((2, 1e-3, 1.0), (1, 1e-3, 0.4)))
    for name in ("SCENES", "AUTOENCODER_SCENES", "DECODER_SCENES"):
        monkeypatch.setattr(train, name, 64)
    monkeypatch.setattr(polish, "PHASES", ((2, 1e-3),))
    monkeypatch.setattr(polish, "SCENES", 64)
    monkeypatch.setattr(flow, "BATCH", 4)
    monkeypatch.setattr(card, "PROMPTS", 3)
    monkeypatch.setattr(card, "STEPS", 2)
    made = {}
    for model in ("first", "second"):
        train.main(
            ["--out", str(tmp_path), "--export", str(tmp_path / model), "--steps", "2", "--device", "cpu"]
        )
        assert "| total |" in capsys.readouterr().out
        assert "2 steps" in (tmp_path / model / "README.md").read_text(encoding="utf-8")
        assert load_demo(tmp_path / model).transformer.config.num_single_layers == 8
        files = [f for f in (tmp_path / model).rglob("*") if f.is_file()]
        assert sum(file.stat().st_size for file in files) <= 16_000_000
        made[model] = {f.relative_to(tmp_path / model): f.read_bytes() for f in files}
    assert made["first"] == made["second"]
