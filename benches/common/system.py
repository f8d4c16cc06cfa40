"""What the kernel is asked for: mounts that end with their block, and caches that are dropped."""

import contextlib
import ctypes
import os
import shutil
import subprocess
import time

_libc = ctypes.CDLL(None, use_errno=True)
_MS_RDONLY = 1
_MNT_DETACH = 2
# Options of the overlay that `inlay mount --rw` makes, so that all are compared alike.
_OVERLAY = "redirect_dir=on,metacopy=on,xino=off,index=off"


class Failed(Exception):
    """Something that the benchmark needs did not work; its text says what."""


def run(*command, **more):
    """What a command prints. If it fails, its own words are in the error."""
    ended = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)
    if ended.returncode != 0:
        raise Failed(f"{' '.join(map(str, command))}: {ended.stderr.strip() or ended.returncode}")
    return ended.stdout


# What can be dropped, in the kernel's numbers.
PAGES, NAMES, EVERYTHING = 1, 2, 3


def drop(what):
    """Drops what is clean of the kernel's caches."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as control:
        control.write(str(what))


def mounted_below(path):
    """Mount points at or below `path`, the latest first."""
    with open("/proc/self/mountinfo", errors="surrogateescape") as table:
        points = [line.split(" ")[4].replace("\\040", " ") for line in table]
    return [p for p in reversed(points) if p == path or p.startswith(path + "/")]


def unmount(path):
    """Unmounts; what is in use a moment longer goes out of sight at once."""
    for _ in range(20):
        if _libc.umount2(os.fsencode(path), 0) == 0 or path not in mounted_below(path):
            return
        time.sleep(0.05)
    _libc.umount2(os.fsencode(path), _MNT_DETACH)


@contextlib.contextmanager
def image(kind, file, point):
    """A filesystem in a file: by the kernel's own means if it has them, else with a loop device."""
    if _libc.mount(os.fsencode(file), os.fsencode(point), kind.encode(), _MS_RDONLY, None) != 0:
        run("mount", "-t", kind, "-o", "ro,loop", file, point)
    try:
        yield
    finally:
        unmount(point)


@contextlib.contextmanager
def served(command, point):
    """A FUSE server in the foreground, from when its mount is there until it has ended."""
    # The child dies with this process, whatever becomes of it.
    server = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *command],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        for _ in range(200):
            if point in mounted_below(point):
                break
            if server.poll() is not None:
                raise Failed(f"{' '.join(command)} ended with {server.returncode}")
            time.sleep(0.05)
        else:
            raise Failed(f"{' '.join(command)} mounts nothing")
        yield
    finally:
        unmount(point)
        try:
            server.wait(10)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextlib.contextmanager
def overlay(lower, point, upper):
    """A writable overlay above `lower`, its changes in the new directory `upper`."""
    for part in ("upper", "work"):
        os.makedirs(os.path.join(upper, part))
    directories = f"lowerdir={lower},upperdir={upper}/upper,workdir={upper}/work"
    try:
        run("mount", "-t", "overlay", "-o", f"{directories},{_OVERLAY}", "overlay", point)
        try:
            yield
        finally:
            unmount(point)
    finally:
        shutil.rmtree(upper)
