"""How soon a snapshot that is mounted into a running sandbox can be read there.

Measured from before the request to the daemon until a file of the snapshot, in the middle of its tree,
was read through the sandbox's own root. Of a snapshot that the host knows: with 10 files and with many,
in turn, so that the size alone makes the difference. Of one that only the store has: through a shaped
link, each snapshot once, and compared with two of the link's round trips.

    python3 benches/live --inlay PROGRAM --store PROGRAM --work DIR [--rounds N] [--files N] [--links …]
"""

import argparse
import contextlib
import http.client
import json
import os
import socket
import statistics
import subprocess
import sys
import time

sys.path[:0] = [os.path.join(os.path.dirname(__file__), "..", part) for part in ("common", "starts")]

from links import LINKS  # noqa: E402
from store import ShapedStore  # noqa: E402
from system import Failed, run  # noqa: E402
from workplace import workplace  # noqa: E402

SMALL = 10
FETCHED = 20
# What the goal allows besides two round trips.
BESIDES_MS = 5.0


class Daemon(http.client.HTTPConnection):
    """A connection to a daemon's socket."""

    def __init__(self, state):
        super().__init__("inlay", timeout=60)
        self._path = os.path.join(state, "run", "daemon.sock")

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(60)
        self.sock.connect(self._path)

    def ask(self, method, path, body):
        self.request(method, path, json.dumps(body), {"content-type": "application/json"})
        answer = self.getresponse()
        text = answer.read()
        if answer.status != 200:
            raise Failed(f"{method} {path}: {answer.status} {text.decode()}")
        return json.loads(text)


class Host:
    """A state directory, a daemon, and one sandbox."""

    def __init__(self, inlay, state, environment):
        self._inlay, self.state = inlay, state
        self.environment = {**os.environ, "INLAY_STATE": state, "INLAY_IDLE_EXIT": "10m", **environment}

    def run(self, *words):
        return run(self._inlay, "--quiet", "--json", *words, env=self.environment)

    def sandbox(self, base):
        self.run("sandbox", "create", base, "--name", "live")
        shown = json.loads(self.run("sandbox", "inspect", "live"))
        self.root = f"/proc/{shown['pid']}/root"
        self.store = {"url": self.environment.get("INLAY_STORE"), "plain_http": False}
        self.daemon = Daemon(self.state)

    def mount(self, snapshot, name):
        """Seconds from the request to the bytes."""
        body = {"snapshot": snapshot, "store": self.store, "cache": "kept", "path": "/project",
                "load": {"prefetch": "off", "record": "off"}, "deadline_ms": 60000}
        path = os.path.join(self.root, "project", name)
        began = time.monotonic()
        self.daemon.ask("POST", "/v1/sandboxes/live/mounts", body)
        answered = time.monotonic() - began
        with open(path, "rb", buffering=0) as file:
            if not file.read(1):
                raise Failed(f"{name} is empty")
        return answered, time.monotonic() - began

    def umount(self):
        self.daemon.ask("DELETE", "/v1/sandboxes/live/mounts",
                        {"path": "/project", "how": "if-free", "changes": "discard"})

    def end(self):
        for words in (["sandbox", "rm", "--force", "live"], ["daemon", "stop", "--force"]):
            subprocess.run([self._inlay, "--quiet", *words], env=self.environment,
                           stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


@contextlib.contextmanager
def host(inlay, state, environment):
    made = Host(inlay, state, environment)
    try:
        yield made
    finally:
        made.end()


def tree(path, files, tag):
    """Files of some 100 bytes, 100 in a directory. Returns the name of one in the middle."""
    for number in range(files):
        directory = os.path.join(path, f"d{number // 100:05}")
        if number % 100 == 0:
            os.makedirs(directory)
        with open(os.path.join(directory, f"f{number:07}"), "w") as file:
            file.write(f"{tag} {number} " * 6)
    middle = files // 2
    return f"d{middle // 100:05}/f{middle:07}"


def base(path):
    os.makedirs(os.path.join(path, "etc"))
    with open(os.path.join(path, "etc", "hostname"), "w") as file:
        file.write("base\n")


def imported(here, path, kind):
    record = json.loads(here.run("import", f"dir:{path}", "--kind", kind))
    return record["id"]


def summary(seconds):
    ordered = sorted(1e3 * second for second in seconds)
    at = lambda share: ordered[min(len(ordered) - 1, int(share * len(ordered)))]  # noqa: E731
    return {"p50_ms": statistics.median(ordered), "p99_ms": at(0.99), "max_ms": ordered[-1], "n": len(ordered)}


def known(asked, work):
    """Of snapshots that the host knows, by their numbers of files."""
    with host(asked.inlay, os.path.join(work, "state"), {}) as here:
        base(os.path.join(work, "base"))
        root = imported(here, os.path.join(work, "base"), "image")
        trees = {}
        for files in (SMALL, asked.files):
            path = os.path.join(work, f"tree-{files}")
            name = tree(path, files, "known")
            trees[files] = (imported(here, path, "directory"), name)
        here.sandbox(root)
        taken = {files: ([], []) for files in trees}
        for number in range(asked.rounds + 1):
            for files, (snapshot, name) in trees.items():
                answered, read = here.mount(snapshot, name)
                here.umount()
                if number:
                    taken[files][0].append(answered)
                    taken[files][1].append(read)
        return {files: {"answer": summary(answers), "readable": summary(reads)}
                for files, (answers, reads) in taken.items()}


def fetched(asked, work, link):
    """Of snapshots that only the store has."""
    store = ShapedStore(asked.store)
    try:
        direct = store.environment_direct("live")
        with host(asked.inlay, os.path.join(work, f"writer-{link.name}"), direct) as writer:
            path = os.path.join(work, f"base-{link.name}")
            base(path)
            root = imported(writer, path, "image")
            trees = []
            for number in range(FETCHED):
                path = os.path.join(work, f"{link.name}-{number}")
                # Compressed tightly or not: its middle is not in the index.
                name = tree(path, 1000, os.urandom(200).hex())
                trees.append((imported(writer, path, "directory"), name))
        store.shape(link)
        with host(asked.inlay, os.path.join(work, f"reader-{link.name}"), store.environment("live")) as reader:
            reader.sandbox(root)
            taken = []
            for snapshot, name in trees:
                taken.append(reader.mount(snapshot, name)[1])
                reader.umount()
            trip_ms = 1e3 * link.latency_s
            return {"readable": summary(taken), "two_round_trips_ms": 2 * trip_ms,
                    "goal_ms": 2 * trip_ms + BESIDES_MS}
    finally:
        store.end()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inlay", required=True)
    parser.add_argument("--store", required=True)
    parser.add_argument("--work", required=True)
    parser.add_argument("--rounds", type=int, default=200, help="mounts of each known snapshot (200)")
    parser.add_argument("--files", type=int, default=152_314, help="files of the large snapshot (152,314)")
    parser.add_argument("--links", nargs="*", default=["zone", "region", "wan"])
    asked = parser.parse_args()
    with workplace(asked.work, "live-") as work:
        for files, taken in known(asked, work).items():
            for what, numbers in taken.items():
                print(f"known, {files} files, {what}: p50 {numbers['p50_ms']:.2f} ms, "
                      f"p99 {numbers['p99_ms']:.2f} ms, max {numbers['max_ms']:.2f} ms, n {numbers['n']}", flush=True)
        for name in asked.links:
            link = LINKS[name]
            taken = fetched(asked, work, link)
            numbers = taken["readable"]
            print(f"only in the store, {name}: p50 {numbers['p50_ms']:.1f} ms, p99 {numbers['p99_ms']:.1f} ms, "
                  f"two round trips + 5 ms are {taken['goal_ms']:.0f} ms, n {numbers['n']}", flush=True)


if __name__ == "__main__":
    try:
        main()
    except Failed as error:
        sys.exit(f"live: {error}")
