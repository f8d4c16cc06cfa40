#!/usr/bin/env python3
"""Starts of real programs from a remote image through a shaped link, and what prefetching does to others.

    scripts/bench starts
    scripts/bench starts --links region --scenarios python,git --methods native,off --rounds 3
    scripts/bench starts --what interference --links region,wan
    scripts/bench starts --what link-use --json link-use.json
    scripts/bench starts --what directory

The store is a real S3 server on this machine; a proxy before it delays answers and limits their speed
as the link does: zone (2 ms, 10 Gbit/s), region (20 ms, 2 Gbit/s), wan (50 ms, 200 Mbit/s), none.

starts: three programs of the image that `scripts/fixtures starts` makes, each from before the mount to the
line that says that it is ready. Each visit has a state directory of its own with nothing in it, its daemon
running.

    native   the image's directory below an overlay, read once before: nothing is fetched
    off      inlay mount --prefetch off
    cold     inlay mount, without a profile in the store
    profile  inlay mount, with the profile of an earlier start in the store

The ideal start takes two latencies, the time that the link needs for what the start touches (compressed
groups, each once; the index is not counted), and the native time. Each round has every method, in another
order; ratios are taken round by round.

interference: how long readers of one snapshot wait while another is prefetched. link-use: how much of the
link prefetching uses when nobody reads. directory: how soon a mounted directory's files are there while
the base image is fetched. Their modules say more.
"""

import argparse
import contextlib
import os
import platform
import signal
import sys

HERE = os.path.dirname(os.path.realpath(__file__))
sys.path.append(os.path.join(HERE, "..", "common"))

import cold  # noqa: E402
import directory  # noqa: E402
import interference  # noqa: E402
import link_use  # noqa: E402
from bench import Bench, write_json  # noqa: E402
from inlay import Inlay  # noqa: E402
from links import LINKS  # noqa: E402
from scenarios import SCENARIOS  # noqa: E402
from store import ShapedStore  # noqa: E402
from system import Failed  # noqa: E402
from workplace import be_patient, workplace  # noqa: E402

MEASUREMENTS = {
    "starts": cold, "interference": interference, "link-use": link_use, "directory": directory,
}


def some_of(known):
    """A type of arguments: several names, as what they stand for."""
    def parse(text):
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"no {', '.join(unknown)} among {', '.join(known)}")
        return [known[name] for name in names]
    return parse


def count(text):
    if (number := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return number


def options():
    parser = argparse.ArgumentParser(prog="scripts/bench starts", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inlay", required=True, help="the inlay command")
    parser.add_argument("--shaped-store", required=True, help="the test kit's program")
    parser.add_argument("--work", required=True, help="an existing directory on a disk")
    parser.add_argument("--root", required=True, help="a root file system made by scripts/fixtures starts")
    parser.add_argument("--what", choices=MEASUREMENTS, default="starts")
    parser.add_argument("--rounds", type=count, default=5)
    parser.add_argument("--links", type=some_of(LINKS), default="zone,region,wan", metavar="LINK,…",
                        help=f"of {', '.join(LINKS)} [default: %(default)s]")
    parser.add_argument("--scenarios", type=some_of(SCENARIOS), default=",".join(SCENARIOS), metavar="START,…",
                        help="of %(default)s [default: all]")
    parser.add_argument("--methods", type=some_of({m: m for m in cold.METHODS}), metavar="METHOD,…",
                        default=",".join(cold.METHODS), help="of %(default)s [default: all]")
    parser.add_argument("--reads", type=count, default=200, help="interference: reads in a round")
    parser.add_argument("--load-mib", type=count, default=1024,
                        help="interference, link-use: what is prefetched, in MiB [default: %(default)s]")
    parser.add_argument("--files", type=count, default=2000, help="directory: files of the directory snapshot")
    parser.add_argument("--json", metavar="FILE", help="write every sample there, too")
    asked = parser.parse_args()
    asked.root = os.path.realpath(asked.root)
    return asked


def main():
    asked = options()
    measurement = MEASUREMENTS[asked.what]
    # Ended by a signal, everything is cleared away as it is by an exception.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    with contextlib.ExitStack() as stack:
        work = stack.enter_context(workplace(asked.work, "bench-starts-"))
        inlay = Inlay(os.path.realpath(asked.inlay), work)
        measurement.check(inlay, asked)
        store = ShapedStore(os.path.realpath(asked.shaped_store))
        stack.callback(store.end)
        stack.callback(inlay.end)
        # What comes last is done first.
        stack.callback(be_patient)
        result = measurement.measure(Bench(inlay, store, work, asked.rounds), asked)
    conditions = {
        "kernel": platform.release(), "cores": os.cpu_count(), "rounds": asked.rounds,
    }
    print(", ".join(f"{key}: {value}" for key, value in conditions.items()))
    for line in measurement.lines(asked, result):
        print(line)
    if asked.json:
        write_json(asked.json, {"what": asked.what, "conditions": conditions, **result})


try:
    main()
except (Failed, ValueError) as error:
    sys.exit(f"scripts/bench starts: {error}")
except KeyboardInterrupt:
    sys.exit(130)
