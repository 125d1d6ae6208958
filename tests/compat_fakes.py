"""Stages for the tests of the runner, in a module of their own: processes import them by name."""

from __future__ import annotations

import os
import signal
import sys
import time

from fxprune.compat.child import Journal, Task


def behave(task: Task, journal: Journal) -> None:
    """Do what the model's name says."""
    with journal.stage("capture"):
        journal.note(parameters=7, threads=task.threads)
        match task.model.partition(":")[2]:
            case mark if mark.startswith("/") and not os.path.exists(mark):  # noqa: PTH110
                os.mkdir(mark)  # noqa: PTH102
                os.kill(os.getppid(), signal.SIGKILL)
                time.sleep(600)
            case "raise":
                try:
                    raise ValueError("the cause")
                except ValueError as cause:
                    raise RuntimeError("it\n  broke") from cause
            case "interrupt":
                raise KeyboardInterrupt
            case "exit":
                sys.exit("a library gave up")
            case "abort":
                os.write(2, b"terminate called\nlast words\n")
                os.abort()
            case "vanish":
                os._exit(3)
            case "hang":
                time.sleep(600)
            case "hog":
                held = [bytearray(b"x") * 2**27 for _ in range(16)]  # 2 GiB
                time.sleep(600)
                held.clear()
            case "chatter":
                print("what libraries print does not reach the terminal")
    if task.stage == "prune":
        with journal.stage("prune"):
            journal.note(weights=3)
            raise RuntimeError("no scores")
