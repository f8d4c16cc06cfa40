"""reader.py SOURCE COPY...: reads files of the copies and compares them with those of the source,
until a file `enough` is there; tells in the file `count` how many. Any error ends it with code 1."""

import os
import sys

source, copies = sys.argv[1], sys.argv[2:]
names = ['many/' + name for name in sorted(os.listdir(source + '/many'))] + ['large', 'compressible', 'link', 'empty']
want = {name: open(f'{source}/{name}', 'rb').read() for name in names}
count = 0
while not os.path.exists('enough'):
    for name, data in want.items():
        for copy in copies:
            with open(f'{copy}/{name}', 'rb') as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                if file.read() != data:
                    sys.exit(f'{copy}/{name} differs')
            if os.path.exists(f'{copy}/many/absent-{count}'):
                sys.exit('a file is there that nobody made')
            count += 1
        if count % 20 < len(copies):
            with open('count.new', 'w') as file:
                file.write(str(count))
            os.rename('count.new', 'count')
