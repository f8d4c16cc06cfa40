#!/usr/bin/env python3
"""inlay's mounts beside the disk, kernel EROFS, squashfuse and erofsfuse, on one tree, in one run.

    scripts/bench driver [--rounds N] [--tree DIR] [--files N] [--json FILE]

Each round visits every filesystem, straight and below an overlay, in another order. A visit mounts
anew, does what `rows.py` lists, and unmounts. "First after attach" means that names and attributes
were dropped before (`drop_caches`), and the files that a server or the kernel reads them from were
not. "From disk" means that their pages were dropped, too. Contents of the inlay mount have been read
before, so they are in its host cache, on the same disk; the images are not compressed. Medians over
rounds; a range is from the least to the most. Ratios are taken round by round.
"""

import argparse
import contextlib
import json
import os
import platform
import signal
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.append(os.path.join(HERE, "..", "common"))

import report  # noqa: E402
import tree  # noqa: E402
from rows import FROM_DISK, IN_ORDER, ROWS  # noqa: E402
from subjects import VIEWS, all_of  # noqa: E402
from system import EVERYTHING, NAMES, PAGES, Failed, drop, run  # noqa: E402
from workplace import be_patient, workplace  # noqa: E402


def options():
    parser = argparse.ArgumentParser(prog="scripts/bench driver", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inlay", required=True, help="the inlay command")
    parser.add_argument("--probe", required=True, help="the program built from benches/probe.rs")
    parser.add_argument("--work", required=True, help="an existing directory on the disk to measure on")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tree", help="measure on this tree instead of a made one")
    parser.add_argument("--files", type=int, default=20_000, help="small files of the made tree")
    parser.add_argument("--json", metavar="FILE", help="write every sample there, too")
    return parser.parse_args()


def visit(subject, view, probe, lists):
    """Everything measured once."""
    samples = {}

    def measure(row, where):
        command = [probe, row.operation, where, os.path.join(lists, f"{row.names}.names"), str(row.threads)]
        operations, size, nanoseconds = map(int, run(*command).split())
        return {
            "ns_per_operation": nanoseconds / max(operations, 1),
            "ns_per_byte": nanoseconds / max(size, 1),
        }

    drop(EVERYTHING)
    with subject.attach(view) as where:
        samples[FROM_DISK.key] = [measure(FROM_DISK, where)]
    drop(NAMES)
    with subject.attach(view) as where:
        for row in IN_ORDER:
            if row.warm_up:
                measure(row, where)
            if row.cold:
                drop(PAGES)
            samples[row.key] = [measure(row, where) for _ in range(row.again)]
    return samples


def measure_all(subjects, rounds, probe, lists):
    samples = {s.name: {view: {row.key: [] for row in ROWS} for view in VIEWS} for s in subjects}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        turn = number % len(subjects)
        for subject in subjects[turn:] + subjects[:turn]:
            for view in VIEWS:
                for key, values in visit(subject, view, probe, lists).items():
                    samples[subject.name][view][key].append(values)
    return samples


def main():
    asked = options()
    # Ended by a signal, everything is cleared away as it is by an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(workplace(asked.work, "bench-driver-"))
        source = asked.tree and os.path.realpath(asked.tree)
        if not source:
            print("making the tree", file=sys.stderr)
            source = os.path.join(work, "tree")
            tree.make(source, asked.files)
        counts = tree.lists(source, work, asked.files)
        subjects = all_of(work, source, os.path.realpath(asked.inlay))
        for subject in subjects:
            stack.callback(subject.end)
        # What comes last is done first.
        stack.callback(be_patient)
        for subject in subjects:
            print(f"preparing {subject.name}", file=sys.stderr)
            subject.prepare()
        samples = measure_all(subjects, asked.rounds, os.path.realpath(asked.probe), work)
    names = [subject.name for subject in subjects]
    conditions = {
        "kernel": platform.release(), "cores": os.cpu_count(), "rounds": asked.rounds,
        "tree": asked.tree or f"{asked.files} made files", **counts,
    }
    print(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    for view in VIEWS:
        print(f"\n{view}, time an operation or speed", *report.table(samples, view, names), sep="\n")
    if asked.json:
        verdicts = {view: report.verdicts(samples, view) for view in VIEWS}
        with open(asked.json, "w") as out:
            json.dump({"conditions": conditions, "samples": samples, "inlay": verdicts}, out, indent=1)


try:
    main()
except (Failed, ValueError) as error:
    sys.exit(f"scripts/bench driver: {error}")
except KeyboardInterrupt:
    sys.exit(130)
