# A snapshot, mounted read-only, is what was imported; and nothing of it is left when it is unmounted.
mkdir -p mnt
inlay mount base mnt >/dev/null
mountpoint -q mnt || fail "nothing is mounted"
same_as_source mnt
! touch mnt/new 2>/dev/null || fail "a read-only mount can be written to"
python3 - <<'P'
import mmap
with open('mnt/data/large', 'rb') as file, open('/work/tree/data/large', 'rb') as source:
    with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as seen:
        assert seen[:] == source.read(), 'mapped bytes differ'
P
[ "$(mnt/bin/busybox echo runs)" = runs ] || fail "a program does not run from it"
inlay mounts | grep -q "$PWD/mnt" || fail "inlay mounts does not list it"
inlay umount mnt >/dev/null
! mountpoint -q mnt || fail "it is still mounted"
inlay daemon stop >/dev/null
[ -z "$(inlay_mounts)" ] || fail "mounts are left: $(inlay_mounts)"
