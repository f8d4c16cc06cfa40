#!/usr/bin/env bash
# Holes stay holes in files with extended attributes or preallocated blocks.
#
# Reported: borgbackup/borg#4886, RsyncProject/rsync#916, juicedata/juicefs#2637. Oracle: SEEK_HOLE at the source.
. "$(dirname "$0")/lib/lib.sh"
cat > "$work/make.py" <<'END'
import os,ctypes,sys
c=ctypes.CDLL(None); os.chdir(sys.argv[1])
def data(p):
    f=os.open(p,os.O_RDONLY); n=os.fstat(f).st_size; r=[]; o=0
    while o<n:
        try: a=os.lseek(f,o,os.SEEK_DATA)
        except OSError: break
        o=min(os.lseek(f,a,os.SEEK_HOLE),n); r.append((a,o))
    return r
if len(sys.argv)>2:
    f=os.open('attribute',os.O_CREAT|os.O_RDWR); os.pwrite(f,b'x'*4096,0); os.pwrite(f,b'y'*4096,8192); os.setxattr('attribute','user.note',b'z'*1000)
    f=os.open('preallocated',os.O_CREAT|os.O_RDWR); os.pwrite(f,b'x'*4096,0); os.pwrite(f,b'y'*4096,1<<20); c.fallocate(f,1,ctypes.c_long(2<<20),ctypes.c_long(4<<20))
    f=os.open('plain',os.O_CREAT|os.O_RDWR); os.pwrite(f,b'x'*4096,0); os.pwrite(f,b'y'*4096,1<<20); os.sync()
for n in ('plain','attribute','preallocated'): print(n,data(n))
END
sandbox a; live a empty /project; put a "$work/make.py" /m.py
was=$(ex a python3 /m.py /project make); id=$(snap a /project); live a "$id" /check --read-only
is=$(ex a python3 /m.py /check)
printf '%s\n' "$was" | sed 's/^/  source:   /'; printf '%s\n' "$is" | sed 's/^/  snapshot: /'
[ "$was" = "$is" ] && pass "holes stay holes"
fail "holes of files with extended attributes or preallocated blocks become zeros (SEMANTICS, holes_stay_holes: 'byte by byte')"
