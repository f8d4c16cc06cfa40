"""A place to work in, of which nothing is left."""

import contextlib
import os
import shutil
import signal
import tempfile

from system import mounted_below, unmount


def be_patient():
    """Whoever wants it to end sooner waits nevertheless: nothing may be left."""
    for signal_number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(signal_number, signal.SIG_IGN)


@contextlib.contextmanager
def workplace(parent, prefix):
    """A directory of which nothing is left, nor of what is mounted below it, however this ends."""
    work = os.path.realpath(tempfile.mkdtemp(prefix=prefix, dir=parent))
    try:
        yield work
    finally:
        be_patient()
        for point in mounted_below(work):
            unmount(point)
        shutil.rmtree(work)
