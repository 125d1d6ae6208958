"""How small a sparse file could be: the entropy bound, and what general compressors make of it."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_CHUNK = 1 << 20  # bytes read at a time


def entropy_bound(counts: Iterable[tuple[int, int]], *, value_bits: int = 32, rest: int = 0) -> float:
    """Bytes below which no code of masks and values goes on average, in Shannon's sense.

    Each weight of N elements and n non-zeros takes N H(n / N) bits for the positions, where
    H(p) = -p log2 p - (1 - p) log2(1 - p), and `value_bits` for each non-zero. It is a bound for masks
    that are random but for their densities: masks with structure could be told in fewer bits, as could
    values that are not spread over all bit patterns.

    Args:
        counts: number of elements and of non-zeros of each weight. The bound over weights apart is lower,
            so stricter, than that over all of them together.
        value_bits: bits of a stored value, 32 or 16.
        rest: bytes of everything else in the file: other tensors, nodes, names.
    """
    bits = (numel * _entropy(nonzero / numel) + value_bits * nonzero for numel, nonzero in counts if numel)
    return math.fsum(bits) / 8 + rest


def _entropy(p: float) -> float:
    return -sum(q * math.log2(q) for q in (p, 1 - p) if q > 0)


def file_bytes(file: str | os.PathLike[str]) -> int:
    """Size of an ONNX file in bytes, the file with its tensors included where there is one."""
    import onnx

    from fxprune.onnx.external import data_files

    path = Path(file)
    beside = data_files(onnx.load(path, load_external_data=False))
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in beside)


def gzip_bytes(file: str | os.PathLike[str], level: int = 6) -> int:
    """Size of a file under gzip, in bytes; 6 is the level of the command without options."""
    compressor = zlib.compressobj(level, wbits=31)  # 31: with gzip's header and checksum
    return sum(len(compressor.compress(chunk)) for chunk in _chunks(file)) + len(compressor.flush())


def zstd_bytes(file: str | os.PathLike[str], level: int = 3) -> int:
    """Size of a file under zstd, in bytes; 3 is the level of the command without options, 22 the highest."""
    import zstandard

    compressor = zstandard.ZstdCompressor(level=level).compressobj(size=Path(file).stat().st_size)
    return sum(len(compressor.compress(chunk)) for chunk in _chunks(file)) + len(compressor.flush())


def _chunks(file: str | os.PathLike[str]) -> Iterator[bytes]:
    with Path(file).open("rb") as opened:
        while chunk := opened.read(_CHUNK):
            yield chunk
