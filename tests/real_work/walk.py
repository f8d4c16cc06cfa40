"""Prints all there is to know of everything below a directory, one object a line, in order."""

import errno
import hashlib
import os
import stat
import sys

top = sys.argv[1].encode()
first = {}


def attributes(path):
    try:
        names = sorted(os.listxattr(path, follow_symlinks=False))
    except OSError as error:
        # A snapshot without any says that it has no such thing.
        if error.errno == errno.EOPNOTSUPP:
            return {}
        raise
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in names}


def show(path):
    at = os.lstat(path)
    kind = stat.S_IFMT(at.st_mode)
    # Directories have sizes of their file system; only links within the tree are the tree's.
    holds = ""
    if kind == stat.S_IFREG:
        with open(path, "rb") as file:
            holds = f"{at.st_size} {hashlib.sha256(file.read()).hexdigest()}"
    elif kind == stat.S_IFLNK:
        holds = repr(os.readlink(path))
    same = first.setdefault(at.st_ino, path) if kind != stat.S_IFDIR else path
    print(repr(os.path.relpath(path, top)), oct(at.st_mode), at.st_uid, at.st_gid, at.st_mtime_ns, holds,
          repr(os.path.relpath(same, top)), attributes(path))
    if kind == stat.S_IFDIR:
        for name in sorted(os.listdir(path)):
            show(os.path.join(path, name))


show(top)
