#!/usr/bin/env bash
# --shm-size makes room for shared memory.
#
# Reported: meta-pytorch/torchx#429, pytorch/pytorch#5247. Oracle: docker.
. "$(dirname "$0")/lib/lib.sh"
program='
from multiprocessing import shared_memory as s
m=s.SharedMemory(create=True,size=200<<20); m.buf[:]=b"x"*(200<<20); m.unlink(); print("ok")'
option=$("$INLAY" sandbox create --help | grep -oiE -- '--(shm[a-z-]*|tmpfs[a-z-]*)' | head -1)
[ -n "$option" ] || { sandbox a; ex a python3 -c "$program" >/dev/null 2>&1; say "200 MB of shared memory: exit $?, /dev/shm has $(ex a df -h /dev/shm | awk 'END{print $2}')"; fail "there is no way to make /dev/shm larger than 64 MB: no option, and a sandbox may not mount (docker: --shm-size)"; }
sandbox a "$option" 512M
out=$(ex a python3 -c "$program" 2>&1); [ "$out" = ok ] && pass "$option"
fail "$option 512M: $out"
