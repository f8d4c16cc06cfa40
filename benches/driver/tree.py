"""The tree that everything is measured on: many small files and a few large ones, always the same."""

import os
import random

SMALL_MAX = 64 << 10
LARGE_MIN = 32 << 20
# Files for `readers`, one each.
LARGE = (128 << 20,) * 4


def make(path, files):
    """`files` small files, 50 in a directory, and the large ones; mixed as programs and libraries are."""
    numbers = random.Random(1)
    # Contents that compress about as well as programs do, and of which no two files have the same.
    words = [numbers.randbytes(numbers.randint(3, 12)) for _ in range(4000)]
    for number in range(files):
        where = os.path.join(path, f"lib{number // 2500:02}", f"module{number // 50:04}")
        if number % 50 == 0:
            os.makedirs(where)
        length = min(int(numbers.lognormvariate(8, 1.2)) + 200, SMALL_MAX)
        text = b"".join(numbers.choices(words, k=length // 7))
        with open(os.path.join(where, f"part{number:05}.py"), "wb") as out:
            out.write(b"%d\n" % number + text)
    os.makedirs(os.path.join(path, "data"))
    for number, length in enumerate(LARGE):
        with open(os.path.join(path, "data", f"large{number}.bin"), "wb") as out:
            for _ in range(length >> 20):
                out.write(b"".join(numbers.choices(words, k=160_000))[: 1 << 20].ljust(1 << 20, b"\0"))


def lists(path, out, small_max):
    """Writes lists of names for the probe into `out`: all, small files, large files, the largest one."""
    small, large = [], []
    for where, _, names in os.walk(path):
        for name in names:
            full = os.path.join(where, name)
            if os.path.islink(full) or not os.path.isfile(full):
                continue
            length = os.path.getsize(full)
            if 0 < length <= SMALL_MAX:
                small.append(os.path.relpath(full, path))
            elif length >= LARGE_MIN:
                large.append((length, os.path.relpath(full, path)))
    if not small or not large:
        raise ValueError(f"{path} needs files of up to 64 KiB and files of 32 MiB or more")
    large = [name for _, name in sorted(large, reverse=True)]
    small = sorted(small)[:small_max]
    for key, names in (("all", ["."]), ("small", small), ("large", large), ("largest", large[:1])):
        with open(os.path.join(out, f"{key}.names"), "wb") as file:
            file.write(b"".join(os.fsencode(name) + b"\0" for name in names))
    return {"small files": len(small), "large files": len(large)}
