#!/usr/bin/env python3
"""The figures of the README: import, store size, memory, and the time to a first output.

    scripts/bench [DIR]      DIR: a root file system with python3 (default: the fixture)

Everything that is compared is measured in one run, in turn, RUNS times; medians are printed. Data are
in the page cache throughout: what is compared is work, not this machine's disk.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time

RUNS = int(os.environ.get("RUNS", "5"))


def run(*command, **more):
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, **more).stdout


def timed(*command, **more):
    start = time.monotonic()
    run(*command, **more)
    return time.monotonic() - start


def peak_mib(*command, **more):
    """Peak resident memory of one command. In a process of its own: the kernel keeps one maximum."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        run(*command, **more)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
        os.write(writer, str(peak).encode())
        os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    return float(os.read(reader, 100))


def size_of(path):
    return sum(
        os.lstat(os.path.join(where, name)).st_size for where, _, names in os.walk(path) for name in names
    )


def content_of(path):
    """Bytes of regular files, hard links once."""
    seen, total = set(), 0
    for where, _, names in os.walk(path):
        for name in names:
            stat = os.lstat(os.path.join(where, name))
            if stat.st_mode >> 12 == 8 and (stat.st_dev, stat.st_ino) not in seen:
                seen.add((stat.st_dev, stat.st_ino))
                total += stat.st_size
    return total


def importing(inlay, packing, tree, scratch):
    content = content_of(tree)
    imports, limits = [], []
    for _ in range(RUNS):
        limits.append(float(run(packing, "limit", tree)))
        state = os.path.join(scratch, "state")
        shutil.rmtree(state, ignore_errors=True)
        seconds = timed(inlay, "--state", state, "-q", "import", f"dir:{tree}", "--name", "base")
        imports.append(content / 1e6 / seconds)
    shutil.rmtree(state)
    peak = peak_mib(inlay, "--state", state, "-q", "import", f"dir:{tree}", "--name", "base")
    ratio = statistics.median(i / l for i, l in zip(imports, limits))
    print(f"import of {content / 1e6:.0f} MB: {statistics.median(imports):.0f} MB/s; BLAKE3 and zstd -3 alone, "
          f"all cores: {statistics.median(limits):.0f} MB/s; ratio {ratio:.2f}")
    print(f"peak memory of the import: {peak:.0f} MiB")
    stored = size_of(os.path.join(state, "store"))
    archive = int(run("sh", "-c", f"tar -C '{tree}' -cf - . | zstd -3 -c | wc -c"))
    print(f"store: {stored / 1e6:.1f} MB; tar | zstd -3: {archive / 1e6:.1f} MB; ratio {stored / archive:.3f}")
    return state


def first_output(inlay, tree, state, scratch):
    archive = os.path.join(scratch, "root.tar.zst")
    run("sh", "-c", f"tar -C '{tree}' -cf - . | zstd -q -3 -o '{archive}'")
    mountpoint = os.path.join(scratch, "mnt")
    os.makedirs(mountpoint)
    command = ("python3", "-c", "print('hello')")
    lazy, full, native, fetched = [], [], [], []
    for number in range(RUNS):
        shutil.rmtree(os.path.join(state, "cache"), ignore_errors=True)
        shutil.rmtree(os.path.join(state, "indexes"), ignore_errors=True)
        start = time.monotonic()
        run(inlay, "--state", state, "mount", "base", mountpoint)
        try:
            run("chroot", mountpoint, *command)
            lazy.append(time.monotonic() - start)
        finally:
            run(inlay, "--state", state, "umount", mountpoint)
            run(inlay, "--state", state, "daemon", "stop")
        fetched.append(size_of(os.path.join(state, "cache", "groups")))
        # One beside the other: ext4 is slow to make files for minutes after many were deleted.
        unpacked = os.path.join(scratch, f"unpacked-{number}")
        start = time.monotonic()
        os.makedirs(unpacked)
        run("sh", "-c", f"zstd -dc '{archive}' | tar -C '{unpacked}' -xf -")
        run("chroot", unpacked, *command)
        full.append(time.monotonic() - start)
        native.append(timed("chroot", unpacked, *command))
    print(f"first output of python3, nothing cached: {statistics.median(lazy):.2f} s (mount, fetch, run); "
          f"unpacking everything first: {statistics.median(full):.2f} s; "
          f"running alone: {statistics.median(native):.3f} s")
    print(f"decoded bytes fetched for it: {statistics.median(fetched) / 1e6:.1f} MB")


def main():
    inlay, packing, tree = sys.argv[1:4]
    with tempfile.TemporaryDirectory() as scratch:
        state = importing(inlay, packing, tree, scratch)
        first_output(inlay, tree, state, scratch)


main()
