# flatten.py DIR: removes DIR however deep it is, by moving directories up before they are removed.
import os
import sys

top = sys.argv[1].rstrip("/")
heap = top + ".heap"
if os.path.isdir(top):
    os.makedirs(heap, exist_ok=True)
    os.rename(top, f"{heap}/0")
    number = 1
    while names := os.listdir(heap):
        for name in names:
            for entry in os.scandir(f"{heap}/{name}"):
                if entry.is_dir(follow_symlinks=False):
                    os.rename(entry.path, f"{heap}/{number}")
                    number += 1
                else:
                    os.unlink(entry.path)
            os.rmdir(f"{heap}/{name}")
    os.rmdir(heap)
