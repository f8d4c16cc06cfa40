"""What every measurement works with: the command, the store, a place, and rounds in turn."""

import json
import os
import sys
from dataclasses import dataclass

from inlay import Inlay
from store import ShapedStore
from system import NAMES, drop

# Two stores in the bucket. Profiles are kept in a store, and one of these never gets any.
PLAIN, PROFILED = "plain", "profiled"


@dataclass(frozen=True)
class Bench:
    inlay: Inlay
    store: ShapedStore
    work: str
    rounds: int

    def point(self, name):
        return os.path.join(self.work, "mnt", name)

    def import_tree(self, tree, name, prefix=PLAIN, *options):
        """Puts a snapshot into the store. The bytes of its contents, compressed, and of its index."""
        say(f"importing {name}")
        environment = self.store.environment_direct(prefix)
        record = self.inlay.ask(environment, "import", f"dir:{tree}", "--name", name, *options)
        return {"stored_bytes": record["stored_bytes_new"], "index_bytes": record["index_packed_bytes"]}

    def host(self, prefix=PLAIN):
        """A host that has nothing.

        Names and attributes are dropped. Pages stay: a new state has none, but the store's files do,
        and the store stands for another machine, of which the link tells all that there is to tell.
        """
        drop(NAMES)
        return self.inlay.host(self.store.environment(prefix))


def say(text):
    print(text, file=sys.stderr, flush=True)


def in_turn(things, number):
    """All of them, beginning with another in each round."""
    turn = number % len(things)
    return things[turn:] + things[:turn]


def write_json(path, result):
    with open(path, "w") as out:
        json.dump(result, out, indent=1)
