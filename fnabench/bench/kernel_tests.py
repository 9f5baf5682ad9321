"""The kernels' tests on the device that is there, as a step of a benchmark that has little time."""

from __future__ import annotations

import os
import re
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
FAILED = re.compile(
    r"(?:FAILED|ERROR) (?P<told>.+)"  # at the end, with the reason
    r"|(?P<alone>\S+::.+?) (?:FAILED|ERROR)(?: +\[ *\d+%\])?"  # as it happens
    r"|\[gw\d+\] \[ *\d+%\] (?:FAILED|ERROR) (?P<beside>.+)"  # as it happens in one of several processes
)
"""What pytest prints of a test that fails."""


def run_tests() -> Iterator[Note]:
    """What the kernels' tests say on this device, each that fails by name, even if they are stopped."""
    num_processes = min(MOST_PROCESSES, os.cpu_count() or 1)
    side_by_side = ("-n", str(num_processes)) if find_spec("xdist") else ()
    command = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", *side_by_side, *TESTS]
    last, failed = "", dict[str, str]()
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as process:
        limit = Timer(MOST_SECONDS_OF_TESTS, partial(os.killpg, process.pid, signal.SIGKILL))
        limit.start()
        try:
            for line in process.stdout or ():
                print(line, end="", file=sys.stderr, flush=True)
                last = line.strip(" =\n") or last
                if found := FAILED.fullmatch(line.strip()):
                    failed[(found["told"] or found["alone"] or found["beside"]).partition(" - ")[0]] = line.strip()
            code = process.wait()
        finally:
            limit.cancel()
            if process.poll() is None:  # whoever runs this has stopped it
                os.killpg(process.pid, signal.SIGKILL)
    stopped = f" (stopped after {MOST_SECONDS_OF_TESTS} seconds)" if code == -signal.SIGKILL else ""
    for name, line in failed.items():
        yield Note(what=name, finding=line, is_failure=True)
    yield Note(what="the kernels' tests on this device", finding=f"{last}{stopped}", is_failure=code != 0)
