"""The kernels' tests on the device that is there, as a step of a benchmark that has little time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from threading import Timer

from fnabench.bench.report import Note

ROOT = Path(__file__).resolve().parents[2]
TESTS = ("tests/test_kernels.py", "tests/test_fused.py")
MOST_SECONDS_OF_TESTS = 300
MOST_PROCESSES = 8
"""That test side by side: most of the time goes into compiling."""


def run_tests() -> Iterator[Note]:
    """What the kernels' tests say on this device, each that fails by name."""
    num_processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    side_by_side = ("-n", str(num_processes)) if find_spec("xdist") else ()
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *side_by_side, *TESTS],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    limit = Timer(MOST_SECONDS_OF_TESTS, partial(os.killpg, process.pid, signal.SIGKILL))
    limit.start()
    last = ""
    try:
        for line in process.stdout or ():
            print(line, end="", file=sys.stderr, flush=True)
            last = line.strip() or last
            if line.startswith(("FAILED", "ERROR")):
                name = line.strip().partition(" ")[2].partition(" - ")[0]
                yield Note(what=name, finding=line.strip(), is_failure=True)
        code = process.wait()
    finally:
        limit.cancel()
        if process.poll() is None:  # whoever runs this has stopped it
            os.killpg(process.pid, signal.SIGKILL)
    stopped = f" (stopped after {MOST_SECONDS_OF_TESTS} seconds)" if code == -signal.SIGKILL else ""
    yield Note(what="the kernels' tests on this device", finding=f"{last}{stopped}", is_failure=code != 0)
