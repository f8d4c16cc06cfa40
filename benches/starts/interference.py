"""How long readers wait while prefetching uses the link, beside the same reads on an idle link.

One daemon serves two snapshots of one store: `load`, which it fetches as fast as it can or not at all,
and `singles`, which it fetches nothing of unasked. Each read is of 4 KiB at a random place of a file of
`singles` that nobody has read. Reading ends when the load has been fetched.
"""

import os
import random
import time
from statistics import median

import report
import trees
from bench import PLAIN, in_turn, say
from inlay import Fetching
from system import Failed

IDLE, BUSY = MODES = ("idle", "prefetching")
READ = 4096
# The load counts as under way between these shares of its bytes.
BEGUN, DONE = 0.01, 0.95
BEGIN_S = 60


def check(inlay, _):
    """Fails before anything is begun if this inlay can't do what is asked for."""
    inlay.need(["--prefetch", "--record-profile"], "this measurement")


class Interference:
    def __init__(self, bench, asked):
        self.bench = bench
        say("making the trees")
        tree = os.path.join(bench.work, "trees")
        trees.load(os.path.join(tree, "load"), asked.load_mib)
        self.names = trees.singles(os.path.join(tree, "singles"), asked.reads)
        # Not the sizes of the files: what is deduplicated or compressed is not fetched.
        self.load_bytes = bench.import_tree(os.path.join(tree, "load"), "load", PLAIN)["stored_bytes"]
        bench.import_tree(os.path.join(tree, "singles"), "singles", PLAIN)

    def visit(self, mode, link, seed):
        """Milliseconds of each read, and what share of the link was used meanwhile."""
        bench = self.bench
        bench.store.shape(link)
        singles, load = bench.point("singles"), bench.point("load")
        with bench.host() as host:
            host.mount("singles", singles, Fetching("off"))
            if mode == BUSY:
                bench.store.ask("forget")
                host.mount("load", load, Fetching("all"))
                self._wait_for_load()
            before, began = bench.store.passed()[0], time.monotonic()
            latencies_ms = self._reads(singles, random.Random(seed), mode)
            used = (bench.store.passed()[0] - before) / (time.monotonic() - began)
        return {"latencies_ms": latencies_ms, "bytes_per_s": used}

    def _wait_for_load(self):
        deadline = time.monotonic() + BEGIN_S
        while self.bench.store.passed()[0] < BEGUN * self.load_bytes:
            if time.monotonic() > deadline:
                raise Failed(f"prefetching has not begun after {BEGIN_S} s")
            time.sleep(0.01)

    def _reads(self, where, numbers, mode):
        latencies_ms = []
        for name in self.names:
            offset = numbers.randrange(trees.SINGLE_FILE // READ) * READ
            file = os.open(os.path.join(where, name), os.O_RDONLY)
            try:
                # The kernel reads ahead of nobody: one read is one question.
                os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
                began = time.monotonic()
                data = os.pread(file, READ, offset)
                ended = time.monotonic()
            finally:
                os.close(file)
            if len(data) != READ:
                raise Failed(f"a read of {name} at {offset} gave {len(data)} bytes")
            # Asked in both modes, so that both pause alike between reads.
            fetched = self.bench.store.passed()[0]
            if mode == BUSY and fetched > DONE * self.load_bytes:
                break
            latencies_ms.append((ended - began) * 1000)
        return latencies_ms


def measure(bench, asked):
    """By link and mode, a visit for each round."""
    interference = Interference(bench, asked)
    samples = {link.name: {mode: [] for mode in MODES} for link in asked.links}
    for number in range(bench.rounds):
        for link in asked.links:
            say(f"round {number + 1} of {bench.rounds}: {link.name}")
            for mode in in_turn(MODES, number):
                samples[link.name][mode].append(interference.visit(mode, link, number))
    return {"load_bytes": interference.load_bytes, "samples": samples}


def lines(asked, result):
    """The report. Of the idle link only those reads count that were made on the busy one, too."""
    yield (f"\n4 KiB reads of files that nobody has read, while {result['load_bytes'] / 1e6:.0f} MB are "
           f"prefetched of another snapshot; all of {asked.rounds} rounds together\n")
    head = ["link", "beside", "reads", "p50, ms", "p99, ms", "p50, times idle", "p99, times idle", "MB/s of the link"]
    rows = []
    for link in asked.links:
        visits = result["samples"][link.name]
        counts = [len(visit["latencies_ms"]) for visit in visits[BUSY]]
        together = {
            mode: [ms for visit, n in zip(visits[mode], counts) for ms in visit["latencies_ms"][:n]]
            for mode in MODES
        }
        for mode in MODES:
            rows.append(_row(link, mode, together, visits[mode]))
    yield from report.table(head, rows)


def _row(link, mode, together, visits):
    values, idle = together[mode], together[IDLE]
    speed = median(visit["bytes_per_s"] for visit in visits) / 1e6
    if not values:
        return [str(link), mode, "0", *[report.NOTHING] * 4, report.short(speed)]
    cells = [report.percentile(values, 50), report.percentile(values, 99)]
    times = [ours / report.percentile(idle, share) for ours, share in zip(cells, (50, 99))]
    return [str(link), mode, str(len(values)), *map(report.short, cells + times), report.short(speed)]
