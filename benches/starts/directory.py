"""How soon a mounted directory's files are there while the base image is being fetched.

The base image is mounted, and fetched as far as it goes or not at all; then a directory snapshot is
mounted beside it. Measured from before that mount to the first byte of one of its files, from the
middle of the tree, and to the last byte of all of them.
"""

import os
import time

import report
import trees
from bench import PLAIN, in_turn, say
from inlay import Fetching
from system import Failed

ALONE, BEHIND = MODES = ("nothing", "the base image")
# So much of the base has come when the directory is mounted: its fetching has begun, not ended.
BEGUN_BYTES = 1 << 20
BEGIN_S = 60
FETCHING = {ALONE: Fetching("off"), BEHIND: Fetching("all")}


def check(inlay, _):
    """Fails before anything is begun if this inlay can't do what is asked for."""
    inlay.need(["--prefetch", "--record-profile"], "this measurement")


def _wait_for_base(store):
    deadline = time.monotonic() + BEGIN_S
    while store.passed()[0] < BEGUN_BYTES:
        if time.monotonic() > deadline:
            raise Failed(f"fetching the base has not begun after {BEGIN_S} s")
        time.sleep(0.005)


def visit(bench, mode, link, names, base_bytes):
    bench.store.shape(link)
    with bench.host() as host:
        bench.store.ask("forget")
        host.mount("root", bench.point("root"), FETCHING[mode], "--rw", "--scratch")
        if mode == BEHIND:
            _wait_for_base(bench.store)
        point = bench.point("project")
        began = time.monotonic()
        host.mount("project", point, Fetching("all"))
        with open(os.path.join(point, names[len(names) // 2]), "rb", buffering=0) as file:
            if len(file.read(1)) != 1:
                raise Failed("the file is empty")
        first = time.monotonic() - began
        loading = bench.store.passed()[0] < base_bytes
        for name in names:
            with open(os.path.join(point, name), "rb") as file:
                file.read()
        return {"first_s": first, "all_s": time.monotonic() - began, "still_loading": loading}


def measure(bench, asked):
    """By link and mode, a visit for each round."""
    say("making the tree")
    tree = os.path.join(bench.work, "trees", "project")
    names = trees.project(tree, asked.files)
    base_bytes = bench.import_tree(asked.root, "root")["stored_bytes"]
    sizes = bench.import_tree(tree, "project", PLAIN, "--kind", "directory")
    samples = {link.name: {mode: [] for mode in MODES} for link in asked.links}
    for number in range(bench.rounds):
        for link in asked.links:
            say(f"round {number + 1} of {bench.rounds}: {link.name}")
            for mode in in_turn(MODES, number):
                samples[link.name][mode].append(visit(bench, mode, link, names, base_bytes))
    return {"directory": sizes, "base_bytes": base_bytes, "samples": samples}


def lines(asked, result):
    """The report."""
    yield (f"\nA directory snapshot of {asked.files} files ({result['directory']['stored_bytes'] / 1e6:.1f} MB "
           f"stored) is mounted while a base of {result['base_bytes'] / 1e6:.0f} MB is fetched; medians (ranges) "
           f"of {asked.rounds}\n")
    head = ["link", "behind it", "ms to the first byte", "times alone", "ms to the last", "times alone",
            "base still coming"]
    rows = []
    for link in asked.links:
        visits = result["samples"][link.name]
        for mode in MODES:
            row = [str(link), mode]
            for key in ("first_s", "all_s"):
                times = [visit[key] for visit in visits[mode]]
                alone = [visit[key] for visit in visits[ALONE]]
                row += [report.spread(times, 0.001), report.spread([a / b for a, b in zip(times, alone)])]
            coming = sum(visit["still_loading"] for visit in visits[mode])
            row.append(f"{coming} of {asked.rounds}" if mode == BEHIND else report.NOTHING)
            rows.append(row)
    yield from report.table(head, rows)
