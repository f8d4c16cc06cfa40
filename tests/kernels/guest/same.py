"""same.py SOURCE COPY: fails, and says where, unless both trees look and read the same. Directories have
other sizes and counts of links on other file systems."""

import hashlib
import os
import stat
import sys


def look(top):
    seen = {}
    inodes = {}
    for directory, directories, files in os.walk(top):
        for name in ['.'] * (directory == top) + sorted(directories + files):
            path = os.path.join(directory, name)
            status = os.lstat(path)
            entry = {
                'mode': oct(status.st_mode),
                'owner': (status.st_uid, status.st_gid),
                'changed': status.st_mtime_ns,
                'attributes': {key: os.getxattr(path, key, follow_symlinks=False)
                               for key in sorted(os.listxattr(path, follow_symlinks=False))},
            }
            if not stat.S_ISDIR(status.st_mode):
                entry['links'] = status.st_nlink
                entry['size'] = status.st_size
                entry['same file as'] = inodes.setdefault(status.st_ino, os.path.relpath(path, top))
            if stat.S_ISLNK(status.st_mode):
                entry['target'] = os.readlink(path)
            if stat.S_ISREG(status.st_mode):
                with open(path, 'rb') as file:
                    entry['contents'] = hashlib.file_digest(file, 'sha256').hexdigest()
            if stat.S_ISCHR(status.st_mode) or stat.S_ISBLK(status.st_mode):
                entry['device'] = status.st_rdev
            seen[os.path.relpath(path, top)] = entry
    return seen


source, copy = look(sys.argv[1]), look(sys.argv[2])
differences = [f'{path}: only in one of them' for path in source.keys() ^ copy.keys()]
for path in source.keys() & copy.keys():
    for key in source[path].keys() | copy[path].keys():
        one, other = source[path].get(key), copy[path].get(key)
        if one != other:
            differences.append(f'{path}: {key} is {other}, not {one}')
for difference in sorted(differences)[:10]:
    print(difference)
sys.exit(bool(differences))
