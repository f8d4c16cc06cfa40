"""HELPER DIR: what systemd does for an automount unit. A program reads DIR/file, the kernel asks for
the mount, the helper makes it, and the program goes on. Prints what that has read."""

import ctypes
import fcntl
import os
import struct
import subprocess
import sys

READY, FAIL = 0x9360, 0x9361  # AUTOFS_IOC_READY, AUTOFS_IOC_FAIL
LIMIT = 60

helper, place = sys.argv[1:]
libc = ctypes.CDLL(None, use_errno=True)
asked, tell = os.pipe()
# The kernel lets this process group pass.
os.setpgid(0, 0)
options = f"fd={tell},pgrp={os.getpgrp()},minproto=5,maxproto=5,direct"
if libc.mount(b"test", place.encode(), b"autofs", 0, options.encode()):
    sys.exit(os.strerror(ctypes.get_errno()))
os.close(tell)
root = os.open(place, os.O_RDONLY)
try:
    command = ["setsid", "timeout", str(LIMIT), "cat", f"{place}/file"]
    reader = subprocess.Popen(command, stdout=subprocess.PIPE)
    token = struct.unpack_from("I", os.read(asked, 4096), 8)[0]
    answer = FAIL
    try:
        words = [helper, "inlay:base", place, "-o", "ro"]
        if subprocess.run(words, timeout=LIMIT).returncode == 0:
            answer = READY
    finally:
        fcntl.ioctl(root, answer, token)
    sys.stdout.buffer.write(reader.communicate()[0])
finally:
    os.close(root)
    subprocess.run(["umount", place])
    subprocess.run(["umount", place])
