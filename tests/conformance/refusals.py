"""Every call that would change a filesystem, and the error that it gives on one that is read-only."""

import errno
import os


def calls(tree):
    """Name and call, for each. `tree` has what `make_tree` makes."""
    file, directory = os.path.join(tree, "small.txt"), os.path.join(tree, "dir")
    link, new = os.path.join(tree, "link"), os.path.join(tree, "new")
    absent = os.path.join(tree, "absent")
    return {
        "open to write": lambda: os.close(os.open(file, os.O_WRONLY)),
        "open to read and write": lambda: os.close(os.open(file, os.O_RDWR)),
        "open and cut off": lambda: os.close(os.open(file, os.O_RDONLY | os.O_TRUNC)),
        "open to append": lambda: os.close(os.open(file, os.O_WRONLY | os.O_APPEND)),
        "open large to write": lambda: os.close(os.open(os.path.join(tree, "large.bin"), os.O_RDWR)),
        "create": lambda: os.close(os.open(new, os.O_CREAT | os.O_WRONLY)),
        "create what is there": lambda: os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY)),
        "create unnamed": lambda: os.close(os.open(directory, os.O_TMPFILE | os.O_RDWR)),
        "open a directory to write": lambda: os.close(os.open(directory, os.O_WRONLY)),
        "truncate": lambda: os.truncate(file, 1),
        "mkdir": lambda: os.mkdir(new),
        "mkdir what is there": lambda: os.mkdir(directory),
        "rmdir": lambda: os.rmdir(os.path.join(tree, "empty")),
        "rmdir of a full one": lambda: os.rmdir(directory),
        "unlink": lambda: os.unlink(file),
        "unlink of nothing": lambda: os.unlink(absent),
        "rename": lambda: os.rename(file, new),
        "rename onto another": lambda: os.rename(file, os.path.join(directory, "0.txt")),
        "rename of a directory": lambda: os.rename(directory, new),
        "rename of nothing": lambda: os.rename(absent, new),
        "link": lambda: os.link(file, new),
        "symlink": lambda: os.symlink("target", new),
        "mknod": lambda: os.mknod(new, 0o10644),
        "chmod": lambda: os.chmod(file, 0o600),
        "chmod of nothing": lambda: os.chmod(absent, 0o600),
        "chown": lambda: os.chown(file, 1, 1),
        "chown of a link": lambda: os.chown(link, 1, 1, follow_symlinks=False),
        "utime": lambda: os.utime(file),
        "utime of a directory": lambda: os.utime(directory, ns=(1, 1)),
        "setxattr": lambda: os.setxattr(file, "user.new", b"value"),
        "setxattr of a directory": lambda: os.setxattr(directory, "user.new", b"value"),
        "removexattr": lambda: os.removexattr(os.path.join(tree, "attributes"), "user.note"),
        "access to write": lambda: _may_write(file),
    }


def outcomes(tree):
    """What each call gives: the name of an error, or "ok"."""
    return {name: _outcome(call) for name, call in calls(tree).items()}


def _may_write(path):
    if not os.access(path, os.W_OK):
        raise OSError(errno.EROFS, "no")


def _outcome(call):
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return "ok"
