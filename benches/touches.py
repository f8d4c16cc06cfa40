#!/usr/bin/env python3
"""What it costs programs that first touches are recorded, and traced: files read through a mount, once each.

    scripts/bench touches [--rounds N] [--files N]

Each round mounts the same snapshot anew four times, in changing order: traced (`inlay trace record`, beside the
profile), recorded, not recorded (`--record-profile off`), and not recorded once more, which says how much of a
difference is noise. Contents are in the host cache, pages in the kernel's page cache are not: each mount has
inodes of its own. Every file is opened, read to its end and closed. Medians over rounds, in brackets the middle
half; ratios are taken round by round.
"""

import argparse
import contextlib
import enum
import json
import os
import signal
import statistics
import subprocess
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path += [os.path.join(HERE, "common"), os.path.join(HERE, "driver")]

import tree  # noqa: E402
from system import NAMES, Failed, drop, run  # noqa: E402
from workplace import be_patient, workplace  # noqa: E402


class Traced(enum.Enum):
    """Whether a trace is recorded."""

    YES = 1
    NO = 2


TURNS = (("traced", "on", Traced.YES), ("recorded", "on", Traced.NO), ("not", "off", Traced.NO),
         ("not again", "off", Traced.NO))
# What is compared with what.
RATIOS = (("traced", "recorded"), ("recorded", "not"), ("not again", "not"))


def options():
    parser = argparse.ArgumentParser(prog="scripts/bench touches", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inlay", required=True, help="the inlay command")
    parser.add_argument("--probe", required=True, help="the program built from benches/probe.rs")
    parser.add_argument("--work", required=True, help="an existing directory on the disk to measure on")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--files", type=int, default=20_000, help="small files of the tree")
    return parser.parse_args()


@contextlib.contextmanager
def mounted(inlay, point, record):
    run(*inlay, "mount", "--prefetch", "off", "--record-profile", record, "tree", point)
    try:
        yield
    finally:
        run(*inlay, "umount", point)


@contextlib.contextmanager
def tracing(inlay, output, files):
    """Records a trace, which has to have every file in the end but those with nothing to read."""
    words = [*inlay, "trace", "record", "--output", output]
    recorder = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    try:
        said = recorder.stderr.readline()
        if "recording" not in said:
            raise Failed(said + recorder.stderr.read())
        yield
    finally:
        recorder.send_signal(signal.SIGINT)
        _, said = recorder.communicate()
    if recorder.returncode != 0:
        raise Failed(said)
    with open(output, encoding="utf-8") as file:
        trace = json.load(file)
    touched = len(trace["touches"]["rows"])
    if trace["dropped"] or touched < files * 0.95:
        raise Failed(f"a trace with {touched} of {files} files")


def visit(inlay, point, turn, probe, names, files):
    """Microseconds a file."""
    _, record, traced = turn
    with contextlib.ExitStack() as stack:
        stack.enter_context(mounted(inlay, point, record))
        if traced is Traced.YES:
            stack.enter_context(tracing(inlay, f"{names}.trace", files))
        drop(NAMES)
        operations, _, nanoseconds = map(int, run(probe, "files", point, names).split())
        return nanoseconds / operations / 1000


def middle(values, digits):
    """The median, and where the middle half begins and ends."""
    first, median, last = statistics.quantiles(values, n=4, method="inclusive")
    return f"{median:.{digits}f} ({first:.{digits}f}–{last:.{digits}f})"


def measure(inlay, work, asked):
    source, point = os.path.join(work, "tree"), os.path.join(work, "mnt")
    print("making the tree", file=sys.stderr)
    tree.make(source, asked.files)
    tree.lists(source, work, asked.files)
    os.mkdir(point)
    run(*inlay, "--quiet", "import", f"dir:{source}", "--name", "tree")
    names = os.path.join(work, "small.names")
    times = {name: [] for name, *_ in TURNS}
    # The first round brings everything into the cache.
    for number in range(asked.rounds + 1):
        print(f"round {number} of {asked.rounds}", file=sys.stderr)
        first = number % len(TURNS)
        for turn in TURNS[first:] + TURNS[:first]:
            time = visit(inlay, point, turn, asked.probe, names, asked.files)
            if number > 0:
                times[turn[0]].append(time)
    return times


def main():
    asked = options()
    # Ended by a signal, everything is cleared away as it is by an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(workplace(asked.work, "bench-touches-"))
        inlay = [os.path.realpath(asked.inlay), "--state", os.path.join(work, "state")]
        stack.callback(run, *inlay, "daemon", "stop", "--force")
        # What comes last is done first.
        stack.callback(be_patient)
        times = measure(inlay, work, asked)
    print(f"{asked.rounds} rounds, {asked.files} files, µs a file through a mount")
    for name, values in times.items():
        print(f"{name:<18} {middle(values, 1)}")
    for name, than in RATIOS:
        ratios = [one / other for one, other in zip(times[name], times[than])]
        print(f"{name + ' / ' + than:<18} {middle(ratios, 3)}")


try:
    main()
except (Failed, ValueError) as error:
    sys.exit(f"scripts/bench touches: {error}")
except KeyboardInterrupt:
    sys.exit(130)
