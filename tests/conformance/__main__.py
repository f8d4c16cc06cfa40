#!/usr/bin/env python3
"""Runs other people's filesystem tests on inlay's mounts and on what they are made of without inlay.

    scripts/conformance [SUITE]...

Writable: an overlay above a snapshot, beside an overlay above the same directory on ext4. Read-only:
a snapshot, beside a read-only bind mount of that directory. `cases.txt` lists what is run and what
not. Whatever gives another outcome on inlay than beside it is printed and makes this fail.
"""

import argparse
import contextlib
import os
import shutil
import signal
import sys
import tempfile

HERE = os.path.dirname(os.path.realpath(__file__))
# How to mount and unmount is the same as in the benchmarks.
sys.path.append(os.path.join(HERE, "..", "..", "benches", "common"))

import refusals  # noqa: E402
import suites  # noqa: E402
from system import Failed, mounted_below, overlay, run, unmount  # noqa: E402

WRITABLE, READ_ONLY = "writable", "read-only"
RUNNERS = {
    "fsx": (WRITABLE, suites.fsx),
    "pjdfstest": (WRITABLE, suites.pjdfstest),
    "stress-ng": (WRITABLE, suites.stressor),
    "read-only": (READ_ONLY, None),
}


def cases():
    """What is to be run, by suite, and what not."""
    wanted, left_out = {suite: [] for suite in RUNNERS}, []
    with open(os.path.join(HERE, "cases.txt")) as lines:
        for line in lines:
            words = line.split()
            if not words or words[0] == "#" or line.startswith("#"):
                continue
            if words[2:3] == ["-"]:
                left_out.append((words[0], words[1]))
            else:
                wanted[words[0]].append(words[1])
    known = {case for suite, case in left_out if suite == "stress-ng"} | set(wanted["stress-ng"])
    if unknown := suites.stressors() - known:
        raise Failed(f"cases.txt says nothing of stress-ng's {', '.join(sorted(unknown))}")
    return wanted, left_out


def make_tree(path):
    """A directory, a small and a large file, a link, and a file with an attribute."""
    os.makedirs(os.path.join(path, "dir", "below"))
    os.mkdir(os.path.join(path, "empty"))
    for number in range(200):
        with open(os.path.join(path, "dir", f"{number}.txt"), "w") as out:
            out.write(f"{number}\n" * 50)
    with open(os.path.join(path, "small.txt"), "w") as out:
        out.write("small\n" * 2000)
    with open(os.path.join(path, "large.bin"), "wb") as out:
        out.write(os.urandom(3 << 20))
    os.symlink("small.txt", os.path.join(path, "link"))
    with open(os.path.join(path, "attributes"), "w") as out:
        out.write("with an attribute\n")
    os.setxattr(os.path.join(path, "attributes"), "user.note", b"value")
    # The tests become other users.
    for where in (path, os.path.join(path, "dir")):
        os.chmod(where, 0o777)


class Places:
    """Mounts a fresh view of the tree, with inlay or without."""

    def __init__(self, inlay, work):
        self.inlay = [inlay, "--state", os.path.join(work, "state")]
        self.tree, self.point = os.path.join(work, "tree"), os.path.join(work, "mnt")
        self.work = work
        make_tree(self.tree)
        os.mkdir(self.point)
        run(*self.inlay, "--quiet", "import", f"dir:{self.tree}", "--name", "tree")

    @contextlib.contextmanager
    def of_inlay(self, view):
        options = ["--rw", "--scratch"] if view == WRITABLE else []
        run(*self.inlay, "mount", *options, "tree", self.point)
        try:
            yield self.point
        finally:
            run(*self.inlay, "umount", self.point)

    @contextlib.contextmanager
    def without(self, view):
        if view == WRITABLE:
            with overlay(self.tree, self.point, os.path.join(self.work, "changes")):
                yield self.point
            return
        run("mount", "--bind", self.tree, self.point)
        try:
            run("mount", "-o", "remount,bind,ro", self.point)
            yield self.point
        finally:
            unmount(self.point)

    def end(self):
        run(*self.inlay, "daemon", "stop", "--force")


def outcomes(place, suite, case):
    view, runner = RUNNERS[suite]
    with place(view) as tree, tempfile.TemporaryDirectory() as scratch:
        os.chmod(scratch, 0o777)
        if runner:
            return runner(tree, case, scratch)
        if case == "refusals":
            return refusals.outcomes(tree)
        return suites.stat_stressor(tree, case, scratch)


def compare(places, suite, case):
    """Prints one line, and one for each difference. How many there were."""
    theirs = outcomes(places.without, suite, case)
    ours = outcomes(places.of_inlay, suite, case)
    counts = {}
    for outcome in ours.values():
        counts[outcome] = counts.get(outcome, 0) + 1
    said = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f"{suite} {case}: {said}", flush=True)
    different, alike = 0, []
    for name in sorted(theirs.keys() | ours.keys()):
        mine, other = ours.get(name, "not run"), theirs.get(name, "not run")
        if mine != other:
            print(f"  DIFFERENT: {name}: {mine} on inlay, {other} without it")
            # A test that passes only on inlay is no reason to fail; a refused call that does not, is.
            different += mine != "ok" or suite == "read-only"
        elif mine not in ("ok", "skipped") and suite != "read-only":
            alike.append(name if mine == "failed" else f"{name} ({mine})")
    if alike:
        print(f"  the same without inlay: {', '.join(alike)}")
    return different


def be_patient():
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def workplace(parent):
    work = os.path.realpath(tempfile.mkdtemp(prefix="conformance-", dir=parent))
    # Tests run as other users below it.
    os.chmod(work, 0o755)
    try:
        yield work
    finally:
        be_patient()
        for point in mounted_below(work):
            unmount(point)
        shutil.rmtree(work)


def main():
    parser = argparse.ArgumentParser(prog="scripts/conformance", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inlay", required=True, help="the inlay command")
    parser.add_argument("--work", required=True, help="an existing directory on ext4")
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"of {', '.join(RUNNERS)}; default: all")
    asked = parser.parse_args()
    if unknown := set(asked.suites) - set(RUNNERS):
        parser.error(f"no such suite: {', '.join(unknown)}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    wanted, left_out = cases()
    different = 0
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(workplace(asked.work))
        places = Places(os.path.realpath(asked.inlay), work)
        stack.callback(places.end)
        # What comes last is done first.
        stack.callback(be_patient)
        for suite in asked.suites or RUNNERS:
            for case in wanted[suite]:
                different += compare(places, suite, case)
    print(f"{different} worse than without inlay; not run: {len(left_out)}, see tests/conformance/cases.txt")
    return 1 if different else 0


try:
    sys.exit(main())
except Failed as error:
    sys.exit(f"scripts/conformance: {error}")
except KeyboardInterrupt:
    sys.exit(130)
