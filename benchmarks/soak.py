"""Thousands of random networks: does everything hold of every one of them?

    python benchmarks/soak.py benchmarks/results/soak.jsonl             # 10,000; goes on where it stopped
    python benchmarks/soak.py one.jsonl --shard 1/4                     # every fourth, for one of four processes
    python benchmarks/soak.py benchmarks/results/soak.jsonl --failed    # what failed last, once more
    python benchmarks/soak.py --table benchmarks/results/soak.jsonl     # what the files say, together
    python benchmarks/soak.py benchmarks/results/soak.jsonl --files 5   # files of every fifth network only
    python benchmarks/soak.py --one 123                                 # one network, with its traceback

Network number n is drawn from seed n (`random_networks.describe`), and all properties of `properties.PROPERTIES`
are tried on it, files in every encoding included (three quarters of the time), one after the other in this
process. A row is written for each network: the properties that do not hold of it with what was raised, and its
description then, which can be pasted into a test.
"""

from __future__ import annotations

import argparse
import logging
import random
import signal
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import record
import torch
from properties import PROPERTIES, QUICK, Property, Subject
from random_networks import Network, describe
from record import Row

EXAMPLES = 10_000
SECONDS = 300  # for one property of one network


def measure(seed: int, *, files: bool) -> Row:
    """The row of one network."""
    start = time.monotonic()
    network = describe(random.Random(seed))
    kinds = sorted({step.kind for step in network.steps})
    row: Row = {"seed": seed, "steps": len(network.steps), "kinds": kinds, "files": files}
    failures = dict(_failures(network, seed, PROPERTIES if files else QUICK))
    if failures:
        row |= {"failures": failures, "network": repr(network)}
    return row | {"seconds": round(time.monotonic() - start, 1)}


def _failures(network: Network, seed: int, properties: Sequence[Property]) -> Iterator[tuple[str, str]]:
    subject = Subject(network, seed)
    for holds in properties:
        try:
            with _limited(SECONDS):
                holds(subject)
        except Exception as error:  # whatever it is, the row says so
            yield holds.__name__, f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


@contextmanager
def _limited(seconds: int) -> Iterator[None]:
    def late(_signal: int, _frame: FrameType | None) -> None:
        raise TimeoutError(f"longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(file: Path, examples: int, shard: int, shards: int, *, files: int, failed: bool) -> None:
    """Add the rows that the file lacks, or those that `failed`; its first line holds versions and `examples`."""
    if not file.exists():
        packages = ("onnx", "onnxruntime")
        record.append_line(file, {**record.circumstances(*packages), "examples": examples})
    done = {row["seed"]: "failures" in row for row in record.read_lines(file)[1:]}
    for seed in range(shard - 1, examples, shards):
        if done.get(seed) is (True if failed else None):
            record.append_line(file, row := measure(seed, files=seed % files == 0))
            if "failures" in row:
                print(f"{seed}: {row['failures']}", flush=True)


def table(files: list[Path]) -> str:
    """Markdown: of how many networks each property was tried, and of how many it holds."""
    heads, by_seed = [], dict[int, Row]()
    for file in files:
        head, *own = record.read_lines(file)
        heads.append(head)
        by_seed |= {row["seed"]: row for row in own}  # the last one counts
    rows = list(by_seed.values())
    steps = sum(row["steps"] for row in rows)
    kinds = Counter(kind for row in rows for kind in row["kinds"])
    rarest = min(kinds, key=lambda kind: kinds[kind])
    lines = [
        f"{len(rows):,} of {heads[0]['examples']:,} networks tried, of {steps / len(rows):.1f} steps on average "
        f"and {len(kinds)} kinds of steps; the rarest, {rarest}, is in {kinds[rarest]} of them. "
        f"{sum(row['seconds'] for row in rows) / 3600:.1f} hours on one core.",
        "",
        "| property | networks | of which it does not hold |",
        "|---|---|---|",
    ]
    for holds in PROPERTIES:
        tried = sum(row["files"] or holds in QUICK for row in rows)
        failed = [row["seed"] for row in rows if holds.__name__ in row.get("failures", {})]
        named = f"{len(failed)}" + (f": seeds {', '.join(map(str, failed[:10]))}" if failed else "")
        lines.append(f"| {holds.__name__.replace('_', ' ')} | {tried:,} | {named} |")
    return "\n".join(lines)


def _shard(text: str) -> tuple[int, int]:
    shard, _, shards = text.partition("/")
    if not 1 <= int(shard) <= int(shards):
        raise ValueError(text)
    return int(shard), int(shards)


def main() -> None:
    """Parse the command line; measure, or print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "records", nargs="*", type=Path, help="JSON lines: versions and machine, then a row a network"
    )
    parser.add_argument("--examples", type=int, default=EXAMPLES, help="how many networks")
    parser.add_argument("--shard", type=_shard, default=(1, 1), help="which part of them, as 1/4")
    parser.add_argument("--files", type=int, default=1, metavar="N", help="write files of every Nth network only")
    parser.add_argument("--failed", action="store_true", help="try those again that failed last")
    parser.add_argument("--table", action="store_true", help="print what the files hold")
    parser.add_argument("--one", metavar="SEED", type=int, help="try this network, and write nothing")
    options = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    if options.one is not None:
        network = describe(random.Random(options.one))
        print(network)
        for holds in PROPERTIES:
            holds(Subject(network, options.one))
    elif options.table:
        print(table(options.records))
    else:
        (file,) = options.records
        run(file, options.examples, *options.shard, files=options.files, failed=options.failed)


if __name__ == "__main__":
    main()
