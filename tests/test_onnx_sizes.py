"""Sizes that a file is held against."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np
import pytest
import zstandard

from fxprune.onnx.sizes import entropy_bound, gzip_bytes, zstd_bytes


@pytest.mark.parametrize(
    ("counts", "bits", "rest", "wanted"),
    [
        ([(8, 8)], 32, 0, 32),  # dense: no bits for positions
        ([(8, 0)], 32, 5, 5),
        ([(0, 0)], 32, 0, 0),
        ([], 16, 7, 7),
        ([(16, 8)], 32, 0, 2 + 32),  # half of them: a bit each, as a bitmask
        ([(16, 8)], 16, 0, 2 + 16),
        ([(16, 8), (8, 8)], 32, 100, 2 + 32 + 32 + 100),
    ],
)
def test_entropy_bound(counts: list[tuple[int, int]], bits: int, rest: int, wanted: float) -> None:
    assert entropy_bound(counts, value_bits=bits, rest=rest) == pytest.approx(wanted)


def test_entropy_bound_at_eighty_percent() -> None:
    # H(0.2) = 0.7219
    assert entropy_bound([(1000, 200)]) / 4000 == pytest.approx(0.7219 / 32 + 0.2, abs=1e-5)


def test_weights_apart_are_bounded_lower_than_together() -> None:
    assert entropy_bound([(100, 90), (100, 10)]) < entropy_bound([(200, 100)])


@pytest.mark.parametrize("size", [0, 1, 3_000_001])
def test_compressed_sizes_are_those_of_whole_streams(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(0).integers(0, 4, size, dtype=np.uint8).tobytes()
    (tmp_path / "file").write_bytes(data)
    assert gzip_bytes(tmp_path / "file") == pytest.approx(len(gzip.compress(data, 6)), abs=64)
    assert zstd_bytes(tmp_path / "file") == pytest.approx(len(zstandard.compress(data, 3)), rel=1e-2, abs=64)
