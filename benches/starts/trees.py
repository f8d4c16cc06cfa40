"""Trees that are made for a measurement, always the same: what loads the link, what is read beside it."""

import os
import random

MIB = 1 << 20
LOAD_FILE = 64 * MIB
SINGLE_FILE = MIB


def load(path, mebibytes):
    """Large files that don't compress: so the link is what takes the time, and not the processor."""
    _files(path, random.Random(1), LOAD_FILE, -(-mebibytes * MIB // LOAD_FILE))


def singles(path, count):
    """Files of 1 MiB, each with groups of its own: a read of one brings nothing of the next. Their names
    in the order in which they are to be read, which is not the one in which they are stored."""
    numbers = random.Random(2)
    names = _files(path, numbers, SINGLE_FILE, count)
    numbers.shuffle(names)
    return names


def project(path, count):
    """Small files, 50 in a directory, that compress about as well as programs do. Their names in order."""
    numbers = random.Random(3)
    words = [numbers.randbytes(numbers.randint(3, 12)).hex() for _ in range(4000)]
    names = []
    for number in range(count):
        where = f"module{number // 50:03}"
        os.makedirs(os.path.join(path, where), exist_ok=True)
        names.append(os.path.join(where, f"part{number:05}.py"))
        text = " ".join(numbers.choices(words, k=int(numbers.lognormvariate(5.5, 1)) + 20))
        with open(os.path.join(path, names[-1]), "w") as out:
            out.write(f"{number}\n{text}\n")
    return names


def _files(path, numbers, length, count):
    os.makedirs(path)
    names = [f"part{number:04}.bin" for number in range(count)]
    for name in names:
        with open(os.path.join(path, name), "wb") as out:
            for _ in range(length // MIB):
                out.write(numbers.randbytes(MIB))
    return names
