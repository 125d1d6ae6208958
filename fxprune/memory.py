"""How much memory there is, what is said when it runs out, and an allocator that holds on to what is freed."""

from __future__ import annotations

import contextlib
import ctypes
import math
import os
import platform
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from fxprune.errors import ScoreError

# Parameters of glibc's mallopt, from malloc.h, with their defaults.
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_TRIM_DEFAULT, _MMAP_DEFAULT, _NEVER = 128 * 1024, 65536, -1

SHARE = 0.6  # of the free memory, for what may be kept: other processes need some, and so do peaks


def free(device: torch.device) -> int:
    """Bytes that may be allocated on `device`; 0 where the system does not say.

    On the CPU that is the least of what the system has, what the limit on the process's addresses (``ulimit -v``)
    leaves, and what its control groups leave, a container's limit among them.
    """
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    available = next((line for line in lines if line.startswith("MemAvailable:")), "x 0")
    return max(0, min(int(available.split()[1]) * 1024, _left_of_addresses(), *_left_in_groups()))


def _left_of_addresses() -> int:
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft - _pages(0)


def _left_in_groups(
    groups: Path = Path("/sys/fs/cgroup"), memberships: Path = Path("/proc/self/cgroup")
) -> Iterator[int]:
    """What each control group of this process that has a limit leaves, in either version of Linux's interface.

    Cached files count as left: the kernel drops them first.
    """
    lines = memberships.read_text().splitlines() if memberships.exists() else []
    for _, controllers, path in (line.split(":", 2) for line in lines):
        if not controllers:
            top, limit, usage, cached = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            top, limit, usage = groups / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cached = "total_inactive_file"
        else:
            continue
        own = top / path.lstrip("/")  # seen from inside a container it may be missing, but not what is above it
        for group in (own, *own.parents):
            if not group.is_relative_to(top):
                break
            with contextlib.suppress(OSError, ValueError):  # no such group, no limit ("max")
                left = int((group / limit).read_text()) - int((group / usage).read_text())
                stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
                yield left + int(stat.get(cached, 0))


def _pages(place: int) -> int:
    """Bytes of this process: all of its addresses (0), or what is resident (1)."""
    return int(Path("/proc/self/statm").read_text().split()[place]) * os.sysconf("SC_PAGE_SIZE")


def used(device: torch.device) -> int:
    """Bytes that this process holds on `device`; 0 where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.memory_allocated(device)
    try:
        return _pages(1)
    except OSError:
        return 0


def check_memory(size: object) -> None:
    """Refuse what is no size of a memory.

    Raises:
        ScoreError: it is neither None nor a number of at least 0.
    """
    if size is not None and not (isinstance(size, (int, float)) and 0 <= size < math.inf):
        raise ScoreError(f"memory: expected a number of at least 0, or None, got {size!r}")


@contextlib.contextmanager
def capped() -> Iterator[None]:
    """Let allocations inside the block fail that the free memory does not hold.

    Linux grants them otherwise, and kills a process once it uses them: a file with a forged size is to end in an
    error. Does nothing where the system does not say what is free.
    """
    import resource

    available = free(torch.device("cpu"))
    if not available:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limits = [limit for limit in (soft, hard, _pages(0) + available) if limit != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(limits), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def exhausted(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory; torch has no class for it on the CPU."""
    said = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or any(part in str(error) for part in said)


@contextlib.contextmanager
def scoring_within() -> Iterator[None]:
    """Where memory runs out inside the block, say so.

    Raises:
        ScoreError: there is not enough memory; says how to need less.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not exhausted(error):
            raise
        reason = str(error).strip().partition("\n")[0]
        raise ScoreError(
            f"scoring: memory ran out ({reason}); give smaller batches, and memory=0 (--memory 0), which asks for "
            "the least that there is a way to score in"
        ) from error


def release() -> None:
    """Give what is freed back to the system now, where the C library can."""
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def kept_by_the_allocator() -> Iterator[None]:
    """Keep freed memory in the process inside the block, and give it back to the system at its end.

    By default glibc returns every large block at once, and the kernel clears its pages anew for the next
    tensor of the same size. Inside the block all tensors lie in the heap, which does not shrink.
    ``benchmarks/scoring.py``, run with and without the variable below, shows what that saves. Does nothing
    where the C library is another one, or where ``FXPRUNE_MALLOC=system`` asks for that.
    """
    if platform.libc_ver()[0] != "glibc" or os.environ.get("FXPRUNE_MALLOC") == "system":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, _NEVER)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _MMAP_DEFAULT)
        libc.mallopt(_M_TRIM_THRESHOLD, _TRIM_DEFAULT)
        libc.malloc_trim(0)
