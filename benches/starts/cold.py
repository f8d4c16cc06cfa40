"""Cold starts: from before the mount to the moment when a program says that it is ready."""

import os
import time
from statistics import median

import report
from bench import PLAIN, PROFILED, in_turn, say
from inlay import Fetching
from links import LINKS
from scenarios import run_until_ready
from system import Failed, overlay

IMAGE = "root"
NATIVE, OFF, COLD, PROFILE = METHODS = ("native", "off", "cold", "profile")
WRITABLE = ("--rw", "--scratch")


def check(inlay, asked):
    """Fails before anything is begun if this inlay can't do what is asked for."""
    if COLD in asked.methods:
        inlay.need(["--prefetch", "--record-profile"], "the method cold")
    if PROFILE in asked.methods:
        inlay.need(["--prefetch", "--record-profile", "--label"], "the method profile")
        inlay.need_profiles("the method profile")


class Starts:
    """The methods on one image. `prepare` once, `visit` for every sample."""

    def __init__(self, bench, root, scenarios, methods):
        self.bench, self.root = bench, root
        self.scenarios, self.methods = scenarios, methods
        self.sizes, self.needed = {}, {}

    def prepare(self):
        if {OFF, COLD} & set(self.methods):
            self.sizes = self.bench.import_tree(self.root, IMAGE, PLAIN)
        if PROFILE in self.methods:
            self.sizes = self.bench.import_tree(self.root, IMAGE, PROFILED)
            for scenario in self.scenarios:
                say(f"recording the profile of {scenario.name}")
                self.needed[scenario.name] = self._record(scenario)

    def _record(self, scenario):
        """One start that is not measured. Bytes that it needs, as the store has them and decoded."""
        self.bench.store.shape(LINKS["none"])
        with self.bench.host(PROFILED) as host:
            self._start(host, scenario, Fetching("off", scenario.name, "on"))
        profile = self.bench.inlay.ask(
            self.bench.store.environment_direct(PROFILED),
            "profile", "show", IMAGE, "--label", scenario.name)
        if not profile["groups"]:
            raise Failed(f"the profile of {scenario.name} is empty")
        return {
            "groups": len(profile["groups"]),
            "stored_bytes": profile["stored_bytes"], "raw_bytes": profile["raw_bytes"],
        }

    def _start(self, host, scenario, fetching):
        point = self.bench.point(IMAGE)
        self.bench.store.ask("forget")
        began = time.monotonic()
        host.mount(IMAGE, point, fetching, *WRITABLE)
        try:
            seconds = run_until_ready(point, scenario) - began
            bytes_down, requests = self.bench.store.passed()
        finally:
            host.umount(point)
        return {"seconds": seconds, "bytes_down": bytes_down, "requests": requests}

    def visit(self, method, scenario, link):
        """One sample."""
        if method == NATIVE:
            return self._native(scenario)
        fetching = {
            OFF: Fetching("off"), COLD: Fetching("all"), PROFILE: Fetching("all", scenario.name),
        }[method]
        self.bench.store.shape(link)
        with self.bench.host(PROFILED if method == PROFILE else PLAIN) as host:
            return self._start(host, scenario, fetching)

    def _native(self, scenario):
        """The directory itself below an overlay, read once before: as quick as this machine can."""
        point = self.bench.point("native")
        os.makedirs(point, exist_ok=True)

        def start():
            began = time.monotonic()
            with overlay(self.root, point, os.path.join(self.bench.work, "changes")):
                return run_until_ready(point, scenario) - began

        start()
        return {"seconds": start()}


def measure(bench, asked):
    """Samples by link, scenario and method, one for each round."""
    starts = Starts(bench, asked.root, asked.scenarios, asked.methods)
    starts.prepare()
    samples = {
        link.name: {s.name: {m: [] for m in asked.methods} for s in asked.scenarios}
        for link in asked.links
    }
    for number in range(bench.rounds):
        for link in asked.links:
            for scenario in in_turn(asked.scenarios, number):
                say(f"round {number + 1} of {bench.rounds}: {scenario.name} over {link.name}")
                for method in in_turn(asked.methods, number):
                    sample = starts.visit(method, scenario, link)
                    samples[link.name][scenario.name][method].append(sample)
    return {
        "image": starts.sizes, "needed": starts.needed, "samples": samples,
        "prefetching": bench.inlay.has("--prefetch"),
    }


def ratios(link, needed, visits, method):
    """Round by round, because what else the machine does in a round meets both; empty if not known."""
    if needed is None or NATIVE not in visits:
        return []
    return [
        sample["seconds"] / link.ideal(needed["stored_bytes"], native["seconds"])
        for sample, native in zip(visits[method], visits[NATIVE])
    ]


def lines(asked, result):
    """The report."""
    head = ["start", "method", "seconds", "times the ideal", "MB until ready", "MB needed", "requests"]
    for link in asked.links:
        rows = []
        for scenario in asked.scenarios:
            needed = result["needed"].get(scenario.name)
            visits = result["samples"][link.name][scenario.name]
            if needed and NATIVE in visits:
                native = median(sample["seconds"] for sample in visits[NATIVE])
                ideal = link.ideal(needed["stored_bytes"], native)
                rows.append([scenario.name, "ideal", report.short(ideal), "1",
                             report.short(needed["stored_bytes"] / 1e6),
                             report.short(needed["stored_bytes"] / 1e6), "2"])
            for method in asked.methods:
                rows.append(_row(link, scenario.name, method, needed, visits))
        yield f"\nCold starts over the link {link}, medians (ranges) of {asked.rounds}\n"
        yield from report.table(head, rows)
    if OFF in asked.methods and not result["prefetching"]:
        yield "\nThis inlay knows no prefetching: off is how it mounts."
    if PROFILE not in asked.methods:
        yield "\nWithout the method profile, it is not known what a start needs, nor its ideal."


def _row(link, scenario, method, needed, visits):
    samples = visits[method]
    if method == NATIVE:
        return [scenario, method, report.spread([s["seconds"] for s in samples]), *[report.NOTHING] * 4]
    return [
        scenario, method,
        report.spread([sample["seconds"] for sample in samples]),
        report.spread(ratios(link, needed, visits, method)),
        report.spread([sample["bytes_down"] for sample in samples], 1e6),
        report.short(needed["stored_bytes"] / 1e6) if needed else report.NOTHING,
        f"{median(sample['requests'] for sample in samples):.0f}",
    ]
