"""What is measured, in the order in which one visit to a mount does it, and what inlay is to reach."""

from dataclasses import dataclass
from typing import Optional


@dataclass(frozen=True)
class Goal:
    """`inlay` against `of`: at least so many times its speed, or at most so many times its time."""

    of: str
    bound: float
    of_what: str  # "speed" or "time"

    def ratio(self, inlay, reference):
        return reference / inlay if self.of_what == "speed" else inlay / reference

    def met(self, ratio):
        return ratio >= self.bound if self.of_what == "speed" else ratio <= self.bound

    def __str__(self):
        sign = ">=" if self.of_what == "speed" else "<="
        return f"{sign} {self.bound:g} {'x' if self.of_what == 'speed' else 'x time of'} {self.of}"


@dataclass(frozen=True)
class Row:
    key: str
    title: str
    operation: str
    names: str  # which list
    unit: str  # "us" an operation, or "MB/s"
    cold: bool = False  # pages are dropped before
    again: int = 1  # how often it is measured in a visit
    warm_up: bool = False  # done once before, unmeasured
    threads: int = 1
    goal: Optional[Goal] = None


def _speed(bound):
    return Goal("ext4", bound, "speed")


# Measured on a mount of its own, before which everything was dropped.
FROM_DISK = Row("walk_disk", "walk and stat all, first after attach, from disk", "walk", "all", "us")
# The others, on a second mount, before which names and attributes were dropped.
IN_ORDER = (
    Row("walk_first", "walk and stat all, first after attach", "walk", "all", "us",
        goal=Goal("erofs", 1.5, "time")),
    Row("walk_again", "walk and stat all, again", "walk", "all", "us", again=3, goal=_speed(0.9)),
    Row("stat", "stat of known names", "stat", "small", "us", again=3, warm_up=True, goal=_speed(0.9)),
    Row("absent_first", "absent names, first", "absent", "small", "us"),
    Row("absent_again", "absent names, again", "absent", "small", "us", again=3, goal=_speed(0.9)),
    Row("files_cold", "open, read, close small files, not in memory", "files", "small", "us", cold=True),
    Row("files_warm", "open, read, close small files, in memory", "files", "small", "us", again=3,
        goal=Goal("ext4", 3.0, "time")),
    Row("sequential", "large file, 128 KiB reads, in memory", "sequential", "largest", "MB/s", again=3,
        warm_up=True, goal=_speed(0.95)),
    Row("random", "large file, random 4 KiB reads, in memory", "random", "largest", "us", again=3,
        goal=_speed(0.95)),
    Row("map", "large file, mapped, every page, in memory", "map", "largest", "us", again=3,
        goal=_speed(0.95)),
    Row("map_random", "large file, mapped, random pages, in memory", "map-random", "largest", "us", again=3,
        goal=_speed(0.95)),
    Row("readers", "four readers, a large file each, in memory", "sequential", "large", "MB/s", again=3,
        warm_up=True, threads=4, goal=_speed(0.95)),
    Row("sequential_cold", "large file, 128 KiB reads, from disk", "sequential", "largest", "MB/s", cold=True,
        goal=_speed(0.95)),
    Row("random_cold", "large file, random 4 KiB reads, from disk", "random", "largest", "us", cold=True,
        goal=_speed(0.95)),
    Row("map_cold", "large file, mapped, every page, from disk", "map", "largest", "us", cold=True,
        goal=_speed(0.95)),
)

ROWS = (FROM_DISK, *IN_ORDER)
RIVALS = ("squashfuse", "erofsfuse")
