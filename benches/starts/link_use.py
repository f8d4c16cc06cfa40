"""How much of the link is used when everything is fetched and nobody reads.

Bytes a second between the moments when 10 % and 90 % of what came in the end had come.
"""

import os
import time

import report
import trees
from bench import in_turn, say
from inlay import Fetching
from system import Failed

EVERY_S = 0.01
# Nothing came for so long: that was all.
QUIET_S = 3
LIMIT_S = 600
FROM, TO = 0.1, 0.9


def check(inlay, _):
    """Fails before anything is begun if this inlay can't do what is asked for."""
    inlay.need(["--prefetch", "--record-profile"], "this measurement")


def _when(points, amount):
    """When so many bytes had come, between two looks in proportion."""
    (t0, b0) = points[0]
    for t1, b1 in points[1:]:
        if b1 >= amount:
            return t0 + (t1 - t0) * (amount - b0) / (b1 - b0)
        t0, b0 = t1, b1
    raise ValueError(f"{amount} bytes have never come")


def visit(bench, image, link):
    """Bytes that came in all, and bytes a second in the middle."""
    bench.store.shape(link)
    with bench.host() as host:
        bench.store.ask("forget")
        began = time.monotonic()
        host.mount(image, bench.point(image), Fetching("all"))
        points = [(began, 0)]
        while True:
            now, fetched = time.monotonic(), bench.store.passed()[0]
            if fetched > points[-1][1]:
                points.append((now, fetched))
            if now - points[-1][0] > QUIET_S:
                break
            if now - began > LIMIT_S:
                raise Failed(f"{image} is not there after {LIMIT_S} s")
            time.sleep(EVERY_S)
    total = points[-1][1]
    if total == 0:
        raise Failed(f"nothing of {image} was fetched")
    seconds = _when(points, TO * total) - _when(points, FROM * total)
    return {"bytes": total, "seconds": points[-1][0] - began, "bytes_per_s": (TO - FROM) * total / seconds}


def measure(bench, asked):
    """By link and image, a visit for each round."""
    say("making the tree")
    load = os.path.join(bench.work, "trees", "load")
    trees.load(load, asked.load_mib)
    images = {"load": bench.import_tree(load, "load"), "root": bench.import_tree(asked.root, "root")}
    samples = {link.name: {image: [] for image in images} for link in asked.links}
    for number in range(bench.rounds):
        for link in asked.links:
            say(f"round {number + 1} of {bench.rounds}: {link.name}")
            for image in in_turn(list(images), number):
                samples[link.name][image].append(visit(bench, image, link))
    return {"images": images, "samples": samples}


def lines(asked, result):
    """The report."""
    yield (f"\nEverything is fetched, nobody reads; medians (ranges) of {asked.rounds}. `load` does not "
           "compress, `root` is the image.\n")
    head = ["link", "image", "MB stored", "MB fetched", "seconds", "MB/s", "% of the link"]
    rows = []
    for link in asked.links:
        for image, visits in result["samples"][link.name].items():
            speeds = [visit["bytes_per_s"] for visit in visits]
            shaped = link.bandwidth != float("inf")
            rows.append([
                str(link), image,
                report.short(result["images"][image]["stored_bytes"] / 1e6),
                report.spread([visit["bytes"] for visit in visits], 1e6),
                report.spread([visit["seconds"] for visit in visits]),
                report.spread(speeds, 1e6),
                report.spread(speeds, link.bandwidth / 100) if shaped else report.NOTHING,
            ])
    yield from report.table(head, rows)
