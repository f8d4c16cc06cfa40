# A mount in use is not unmounted, except lazily; the file stays readable.
mkdir -p mnt
inlay mount base mnt >/dev/null
exec 7<mnt/data/large
! inlay umount mnt 2>/dev/null || fail "a mount in use was unmounted"
inlay umount --lazy mnt >/dev/null
! mountpoint -q mnt || fail "it is still in sight"
cmp /dev/fd/7 "$tree/data/large"
exec 7<&-
