"""The starts: real programs of the fixture that a developer's sandbox runs first.

They need no /proc and no /sys; git needs the image's own /dev/null.
"""

import os
import re
import select
import shutil
import signal
import subprocess
import time
from dataclasses import dataclass

from system import Failed

# However slow the link is.
LIMIT_S = 300
# All that a program is told of the world: no home, no terminal, nothing of this machine.
ENVIRONMENT = {"PATH": "/usr/bin:/bin"}


@dataclass(frozen=True)
class Scenario:
    name: str
    command: str  # for the root's shell
    ready: str  # a pattern for all that it says until it is ready


SCENARIOS = {
    scenario.name: scenario
    for scenario in (
        Scenario(
            "python",
            """python3 -c 'import numpy, pandas; print(pandas.DataFrame({"a":[1,2]}).sum().a)'""",
            r"3\n"),
        Scenario(
            "node",
            "cd /srv/page && webpack --mode development --output-path /tmp/page",
            r"(.*\n)*webpack \S+ compiled successfully in \d+ ms\n"),
        Scenario(
            "git",
            "git -C /srv/large status --short | head -1; echo ready",
            r"ready\n"),
    )
}


def run_until_ready(root, scenario):
    """Runs it inside `root`; when it said that it was ready, by the monotonic clock."""
    process = subprocess.Popen(
        [shutil.which("chroot"), root, "/bin/sh", "-c", scenario.command], env=ENVIRONMENT, start_new_session=True,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + LIMIT_S
    output = b""
    try:
        while True:
            if not select.select([process.stdout], [], [], max(0, deadline - time.monotonic()))[0]:
                raise Failed(f"{scenario.name} is not ready after {LIMIT_S} s")
            piece = os.read(process.stdout.fileno(), 1 << 16)
            now = time.monotonic()
            output += piece
            if re.fullmatch(scenario.ready, output.decode(errors="replace")):
                return now
            if not piece:
                raise Failed(f"{scenario.name} ends without being ready; it said: "
                             f"{output.decode(errors='replace').strip()[-2000:]}")
    finally:
        _end(process)


def _end(process):
    """Lets it end by itself, so that its root can be unmounted."""
    process.stdout.close()
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
