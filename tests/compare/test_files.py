"""`dit-cache compare` on files: who is paired with whom, videos frame by frame, bars, JSON and sheets."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from dit_cache_backends.cli import app
from dit_cache_backends.compare import video
from dit_cache_backends.compare.pairs import pairs_of
from dit_cache_backends.errors import ConfigError


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


def told(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def picture(seed: int, size: tuple[int, int] = (24, 16)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8))


def shifted(image: Image.Image, by: int) -> Image.Image:
    values = np.asarray(image).astype(int)
    return Image.fromarray(np.where(values < 128, values + by, values - by).astype(np.uint8))


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """Three pairs; what is added to the second of each is 1, 2 and 4."""
    for folder in ("a", "b/inner", "a/inner"):
        (tmp_path / folder).mkdir(parents=True)
    for seed, (name, by) in enumerate({"one": 1, "two": 2, "inner/three": 4}.items()):
        picture(seed).save(tmp_path / "a" / f"{name}.png")
        shifted(picture(seed), by).save(tmp_path / "b" / f"{name}.bmp")
    (tmp_path / "a" / "notes.txt").write_text("not a picture")
    return tmp_path / "a", tmp_path / "b"


def test_folders_are_paired_by_name_whatever_the_suffix(folders: tuple[Path, Path]) -> None:
    found = told(*folders)
    assert {pair["name"]: pair["mse"] for pair in found["pairs"]} == {
        "one": [1],
        "two": [4],
        "inner/three": [16],
    }
    mse, psnr = found["measures"]["mse"], found["measures"]["psnr"]
    assert (mse["mean"], mse["worst"], mse["worst_name"]) == (7, 16, "inner/three")
    assert psnr["worst"] == pytest.approx(10 * math.log10(255**2 / 16))
    assert psnr["p5"] == pytest.approx(np.percentile([10 * math.log10(255**2 / e) for e in (1, 4, 16)], 5))


def test_what_has_no_partner_is_named_and_refused_unless_only_the_common_are_asked_for(
    folders: tuple[Path, Path],
) -> None:
    picture(7).save(folders[0] / "lonely.png")
    picture(8).save(folders[1] / "stray.png")
    refused = run(*folders)
    assert refused.exit_code == 2
    assert f"only in {folders[0]}: lonely; only in {folders[1]}: stray" in refused.stderr
    assert "--only-common compares the 3" in refused.stderr
    assert len(told(*folders, "--only-common")["pairs"]) == 3
    picture(9).save(folders[0] / "one.jpg")
    with pytest.raises(ConfigError, match=r"one\.jpg and .*one\.png differ by their suffix only"):
        pairs_of(*folders)


def test_two_sizes_are_refused_with_both_named_and_before_anything_is_measured(tmp_path: Path) -> None:
    for name, size in (("a.png", (24, 16)), ("b.png", (16, 24))):
        picture(1, size).save(tmp_path / name)
    refused = run(tmp_path / "a.png", tmp_path / "b.png", "--sheet", tmp_path / "sheet.png")
    assert refused.exit_code == 2
    assert f"{tmp_path / 'a.png'} is 24x16 and {tmp_path / 'b.png'} is 16x24" in refused.stderr
    assert not (tmp_path / "sheet.png").exists()


@pytest.mark.parametrize(
    "arguments", [(), ("a.png",), ("a.png", "b.png", "--model", "demo"), ("a.png", "nothing.png")]
)
def test_anything_but_two_paths_or_a_model_is_refused(arguments: tuple[str, ...], tmp_path: Path) -> None:
    picture(1).save(tmp_path / "a.png")
    paths = [tmp_path / each if each.endswith(".png") else each for each in arguments]
    assert run(*paths).exit_code == 2


def test_frames_of_a_video_are_compared_one_by_one(tmp_path: Path) -> None:
    frames = [picture(seed) for seed in range(5)]
    others = [shifted(frame, by) for by, frame in enumerate(frames)]
    for name, made in (("a.png", frames), ("b.webp", others)):
        options: dict[str, Any] = {"lossless": True} if name.endswith("webp") else {}
        made[0].save(tmp_path / name, save_all=True, append_images=made[1:], **options)
    found = told(tmp_path / "a.png", tmp_path / "b.webp")
    assert [pair["frames"] for pair in found["pairs"]] == [5]
    assert found["pairs"][0]["mse"] == [0, 1, 4, 9, 16]
    assert found["measures"]["mse"]["worst_name"] == "b.webp, frame 4"
    assert found["pairs"][0]["psnr"][0] == 100
    frames[0].save(tmp_path / "short.png", save_all=True, append_images=frames[1:3])
    refused = run(tmp_path / "a.png", tmp_path / "short.png")
    assert "has 5 frames" in refused.stderr
    assert "short.png has 3" in refused.stderr


def test_an_mp4_is_decoded_frame_by_frame(tmp_path: Path) -> None:
    av = pytest.importorskip("av")
    greys = (20, 90, 160, 230)
    for name, more in (("a.mp4", 0), ("b.mp4", 8)):
        with av.open(str(tmp_path / name), "w") as container:
            stream = container.add_stream("mpeg4", rate=8)
            stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
            for grey in greys:
                frame = av.VideoFrame.from_ndarray(
                    np.full((32, 32, 3), grey + more, np.uint8), format="rgb24"
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    found = told(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert found["pairs"][0]["frames"] == 4
    assert [math.sqrt(error) for error in found["pairs"][0]["mse"]] == pytest.approx([8] * 4, abs=3)


def test_without_a_decoder_it_is_said_which_package_reads_such_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(video, "_installed", lambda module: False)
    for name in ("a.mp4", "b.mp4"):
        (tmp_path / name).write_bytes(b"")
    refused = run(tmp_path / "a.mp4", tmp_path / "b.mp4")
    assert refused.exit_code == 2
    assert "pip install av" in refused.stderr


def test_the_exit_status_tells_whether_the_bars_are_kept(folders: tuple[Path, Path]) -> None:
    psnr = 10 * math.log10(255**2 / 16)
    assert (
        run(*folders, "--fail-under", f"psnr.worst={psnr - 0.01},psnr=40", "--fail-over", "mse=7").exit_code
        == 0
    )
    failed = run(*folders, "--fail-under", f"psnr.worst={psnr + 0.01}", "--fail-over", "mse=6.9")
    assert failed.exit_code == 1
    assert "PSNR, dB (worst) is 36.0896 at inner/three, under" in failed.stderr
    assert "MSE (mean) is 7, over 6.9" in failed.stderr


@pytest.mark.parametrize(
    ("bars", "why"),
    [
        ("psnr", "expected bars such as"),
        ("psnr=many", "expected bars such as"),
        ("pnsr=30", "Did you mean 'psnr'"),
        ("psnr.wrost=30", "Did you mean 'worst'"),
        ("mse=30", "give its bar to --fail-over"),
        ("lpips=0.1", "lpips is not made"),
    ],
)
def test_a_bar_that_means_nothing_is_refused_before_anything_is_read(bars: str, why: str) -> None:
    refused = run("nothing.png", "nothing.png", "--fail-under", bars)
    assert refused.exit_code == 2
    assert why in refused.stderr


def test_the_sheet_has_the_worst_pairs_first_with_their_differences(folders: tuple[Path, Path]) -> None:
    from dit_cache_backends.compare import sheet

    path = folders[0].parent / "sheet.png"
    assert run(*folders, "--sheet", path, "--sheet-pairs", 2).exit_code == 0
    drawn = np.asarray(Image.open(path))
    scale = sheet.SCALE
    size = (24 * scale, 16 * scale)
    for row, expected in enumerate((picture(2), shifted(picture(2), 4))):
        left, top = sheet.place(row, 0, size)
        assert np.array_equal(
            drawn[top : top + size[1] : scale, left : left + size[0] : scale], np.asarray(expected)
        )
    left, top = sheet.place(2, 0, size)
    assert (drawn[top : top + size[1], left : left + size[0]] == 4 * sheet.DIFFERENCE).all()
    left, top = sheet.place(0, 1, size)
    assert np.array_equal(
        drawn[top : top + size[1] : scale, left : left + size[0] : scale], np.asarray(picture(1))
    )
    assert drawn.shape[1] == sheet.place(0, 2, size)[0] + sheet.GAP
