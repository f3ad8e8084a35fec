"""What the storage costs is measured: the table has a row for each strategy and dtype."""

from __future__ import annotations

import pytest

from benchmarks.storage import rows, table


def test_a_narrower_dtype_holds_its_share_and_the_picture_stays_close() -> None:
    pytest.importorskip("transformers")
    found = rows(
        prompts=1, steps=10, strategies=["DBCache, TaylorSeer 1"], dtypes=["bfloat16", "float8_e4m3fn"]
    )
    plain, half, eighth = found
    assert [row["cache_dtype"] for row in found] == ["-", "bfloat16", "float8_e4m3fn"]
    assert plain["blocks_run"] < 1
    assert half["held"] * 2 == plain["held"]
    assert plain["held"] / 4 < eighth["held"] < plain["held"] / 3.9
    assert half["worst"] > eighth["worst"] > 40
    assert len(table(found).splitlines()) == 5
