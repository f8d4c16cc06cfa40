#!/usr/bin/env python3
"""Prints a large git repository, the same every time, as a stream for `git fast-import`.

    python3 benches/starts/repository.py | git -C REPOSITORY fast-import

20,000 files of words in 1,000 directories, 88 MB, and a history in which some of them change.
`scripts/fixtures starts` feeds it to the git of the root file system that it makes.
"""

import random
import sys

FILES, PER_DIRECTORY = 20_000, 20
COMMITS, CHANGED = 10, 500
# The date of the first commit; each later one comes a day after.
BEGAN, DAY = 1_690_000_000, 86_400
AUTHOR = "Nobody <nobody@example.org>"


def path(number):
    directory = number // PER_DIRECTORY
    return f"src/part{directory // 100:02}/module{directory:04}/file{number:05}.py"


class Words:
    """Lines that look like a program's to a compressor."""

    def __init__(self, numbers):
        self._numbers = numbers
        letters = "abcdefghijklmnopqrstuvwxyz_"
        self._known = [
            "".join(numbers.choices(letters, k=numbers.randint(2, 11))) for _ in range(6000)]

    def text(self, number):
        # Few files are large, most are of one to four kilobytes.
        count = min(int(self._numbers.lognormvariate(5.8, 1.0)) + 10, 20_000)
        words = self._numbers.choices(self._known, k=count)
        lines = (" ".join(words[at:at + 8]) for at in range(0, count, 8))
        return f"# {number}\n".encode() + "\n    ".join(lines).encode() + b"\n"


def main():
    numbers = random.Random(1)
    words = Words(numbers)
    out = sys.stdout.buffer
    for commit in range(COMMITS):
        message = f"Change number {commit}\n".encode()
        out.write(b"commit refs/heads/main\n")
        out.write(f"committer {AUTHOR} {BEGAN + commit * DAY} +0000\n".encode())
        out.write(b"data %d\n%s" % (len(message), message))
        changed = range(FILES) if commit == 0 else sorted(numbers.sample(range(FILES), CHANGED))
        for number in changed:
            text = words.text(number)
            out.write(f"M 100644 inline {path(number)}\n".encode())
            out.write(b"data %d\n%s\n" % (len(text), text))
    out.write(b"done\n")


main()
