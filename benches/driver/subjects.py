"""The filesystems that are compared: each shows the same tree, straight or below an overlay."""

import contextlib
import os
import shutil

from system import Failed, image, overlay, run, served, unmount

VIEWS = ("straight", "overlay")


class Subject:
    """One filesystem. `prepare` is done once, `attach` for every visit."""

    def __init__(self, name, work, tree):
        self.name, self.tree = name, tree
        self.dir = os.path.join(work, name)
        self.point = os.path.join(self.dir, "mnt")
        self.above = os.path.join(self.dir, "above")
        os.makedirs(self.point)
        os.makedirs(self.above)

    def prepare(self):
        """Makes what `lower` needs."""

    def lower(self):
        """A context in which `self.point` shows the tree."""
        raise NotImplementedError

    @contextlib.contextmanager
    def attach(self, view):
        """The directory to measure in."""
        with self.lower():
            if view == "straight":
                yield self.point
            else:
                with overlay(self.point, self.above, os.path.join(self.dir, "changes")):
                    yield self.above

    def end(self):
        """Leaves no process. Also called if `prepare` was not, or failed."""


class Disk(Subject):
    """The directory itself, on the disk that everything else is on, too."""

    def __init__(self, name, work, tree):
        super().__init__(name, work, tree)
        self.point = tree

    def lower(self):
        return contextlib.nullcontext()


class Image(Subject):
    """A filesystem in a file, not compressed: the quickest that it can be."""

    def __init__(self, name, work, tree, kind):
        super().__init__(name, work, tree)
        self.kind = kind
        self.file = os.path.join(work, f"image.{kind}")

    def prepare(self):
        if os.path.exists(self.file):
            return
        if self.kind == "erofs":
            run("mkfs.erofs", "--quiet", self.file, self.tree)
        else:
            run("mksquashfs", self.tree, self.file, "-no-progress", "-quiet", "-noI", "-noD", "-noF", "-noX")


class KernelImage(Image):
    def lower(self):
        return image(self.kind, self.file, self.point)


class ServedImage(Image):
    def __init__(self, name, work, tree, kind, server):
        super().__init__(name, work, tree, kind)
        self.server = server

    def lower(self):
        return served([self.server, "-f", self.file, self.point], self.point)


class Inlay(Subject):
    """The command as users have it, its host cache warm: all contents are on this disk."""

    def __init__(self, name, work, tree, command):
        super().__init__(name, work, tree)
        self.command = [command, "--state", os.path.join(self.dir, "state")]

    def prepare(self):
        run(*self.command, "--quiet", "import", f"dir:{self.tree}", "--name", "tree")
        # Twice: what is read once is on the disk, and what then is whole may be put together.
        for _ in range(2):
            with self.attach("straight") as where:
                for directory, _, names in os.walk(where):
                    for name in names:
                        path = os.path.join(directory, name)
                        if os.path.isfile(path) and not os.path.islink(path):
                            with open(path, "rb", buffering=0) as file:
                                while file.read(1 << 20):
                                    pass

    @contextlib.contextmanager
    def attach(self, view):
        options = [] if view == "straight" else ["--rw", "--scratch"]
        run(*self.command, "mount", *options, "tree", self.point)
        try:
            yield self.point
        finally:
            run(*self.command, "umount", self.point)

    def end(self):
        # The daemon that the first mount started, with its keeper.
        if os.path.exists(os.path.join(self.dir, "state")):
            run(*self.command, "daemon", "stop", "--force")


def all_of(work, tree, inlay):
    """Every subject. What is not installed is an error and not left out: scripts/setup bench."""
    for program in ("mkfs.erofs", "mksquashfs", "squashfuse_ll", "erofsfuse", "setpriv"):
        if not shutil.which(program):
            raise Failed(f"{program} is missing: scripts/setup bench installs it")
    return [
        Disk("ext4", work, tree),
        KernelImage("erofs", work, tree, "erofs"),
        ServedImage("squashfuse", work, tree, "squashfs", "squashfuse_ll"),
        ServedImage("erofsfuse", work, tree, "erofs", "erofsfuse"),
        Inlay("inlay", work, tree, inlay),
    ]
