"""Files that somebody has damaged or forged: each is refused with a message, or read for what it still is.

    python benchmarks/hostile.py                                  # 5,000 files, about an hour
    python benchmarks/hostile.py --count 300 --kind onnx
    python benchmarks/hostile.py --first 1234 --count 1 --show    # one of them again

A case is a number: it draws a file of a small run (tensors, manifest, recipe, setting, ONNX file, rows), damages
it as chance has it (bytes, truncation, forged sizes and names, values of other types) and reads it in the way that
users do. fxprune reads no CSV: its table of epochs is only written. Digests are forged along, so that they keep
nothing away. What may come of a case: an `FxpruneError` with a message, a verification that names what does not
hold, or success, where the damage is none (another float). Anything else is a failure: another exception, a crash,
more than `SECONDS`, more than `MEMORY` on top of what the process held before, a look at a file outside the
folder, a process started, or the canary's code run.

Cases run in processes with a limit on their address space; one that dies is named, and the next case goes on in
another process.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import resource
import select
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import record
import torch
from hostile_damage import DAMAGES
from hostile_files import Target

SECONDS = 30
MEMORY = 2 * 2**30
KINDS = tuple(DAMAGES)


def work(first: int, count: int, kinds: list[str]) -> None:
    """Try cases one after the other; a line of JSON for each, and one before it."""
    logging.disable()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "inside").mkdir()
        os.chdir(Path(folder) / "inside")
        target = Target(Path(folder) / "inside")
        for kind in KINDS:  # imports, and the folder's own spirit: what is whole is accepted
            choose, read = target.readers[kind]
            read(choose(random.Random(0)))
        target.restore()
        looked: list[str] = []
        sys.addaudithook(_watch(Path(folder), looked))
        held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, resource.RLIM_INFINITY))
        for number in range(first, first + count):
            print(json.dumps({"begin": number}), file=answers)
            looked.clear()
            start = time.monotonic()
            found = target.try_case(number, kinds)
            if looked and found["outcome"] != "failed":
                found |= {"outcome": "failed", "said": f"looked at {looked[0]}"}
            print(json.dumps({**found, "seconds": round(time.monotonic() - start, 2)}), file=answers)
    os._exit(0)  # threads of damaged sessions are not waited for


def _watch(folder: Path, looked: list[str]) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes files opened beside the folder's `inside`, and processes that are started."""

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in ("os.system", "subprocess.Popen", "os.exec", "os.posix_spawn"):
            looked.append(f"{event} {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], (str, bytes)):
            path = os.path.realpath(os.fsdecode(arguments[0]).partition("\0")[0])
            if path == "/etc/passwd" or (path.startswith(str(folder)) and not path.startswith(f"{folder}/inside")):
                looked.append(path)

    return hook


def attempts(first: int, count: int, kinds: list[str]) -> Iterator[dict[str, Any]]:
    """What came of each case; a process that dies or hangs is a failure, and another goes on."""
    number, end = first, first + count
    while number < end:
        command = [sys.executable, __file__, "--work", "--first", str(number), "--count", str(end - number)]
        command += [part for kind in kinds for part in ("--kind", kind)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            assert process.stdout is not None
            for answer in _lines(process):
                if "begin" in answer:
                    number = answer["begin"]
                elif "failed" in answer:
                    yield {
                        "case": number,
                        "kind": "?",
                        "damage": "?",
                        "outcome": "failed",
                        "said": answer["failed"],
                    }
                    number += 1
                else:
                    yield answer
                    number = answer["case"] + 1


def _lines(process: subprocess.Popen[bytes]) -> Iterator[dict[str, Any]]:
    stream, patience = process.stdout, 300.0  # until the first: imports, training
    assert stream is not None
    rest, ended = b"", False
    while True:
        ready, _, _ = select.select([stream], [], [], patience)
        part = os.read(stream.fileno(), 65536) if ready else b""
        if not part:
            break
        *lines, rest = (rest + part).split(b"\n")
        for line in lines:
            yield json.loads(line)
            ended = b'"begin"' not in line
        patience = SECONDS
    process.kill()
    code = process.wait()
    if not ready:
        yield {"failed": f"more than {patience:g} seconds"}
    elif code or not ended:
        yield {"failed": f"the process died: {signal.Signals(-code).name if code < 0 else code}"}


def main() -> None:
    """Parse the command line, try, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--count", type=int, default=5000)
    parser.add_argument("--kind", action="append", choices=KINDS, help="only these; all by default")
    parser.add_argument("--show", action="store_true", help="print each case")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    if options.work:
        work(options.first, options.count, kinds)
        return
    found = []
    for each in attempts(options.first, options.count, kinds):
        found.append(each)
        if options.show or each["outcome"] == "failed":
            print(each, flush=True)
    rows = summary(found)
    print(json.dumps(rows, indent=1))
    record.write(options.json, rows, "onnx", "onnxruntime", "safetensors")


def summary(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By kind: how many were refused, accepted, failed; and every failure."""
    rows = []
    for kind in sorted({each["kind"] for each in found}):
        mine = [each for each in found if each["kind"] == kind]
        counts = Counter(each["outcome"] for each in mine)
        found_wrong = sum(each["said"].startswith("found") for each in mine)
        row = {"kind": kind, "cases": len(mine), "refused": counts["refused"] + found_wrong}
        row |= {"accepted": counts["accepted"] - found_wrong, "failed": counts["failed"]}
        rows.append(row | {"slowest_seconds": max(each.get("seconds", 0.0) for each in mine)})
    return [*rows, *({"failure": each} for each in found if each["outcome"] == "failed")]


if __name__ == "__main__":
    main()
