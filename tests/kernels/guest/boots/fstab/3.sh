# limit: 400 s
# After another boot the writable line has its changes, and the one that throws them away has none.
mounted_at_boot /srv/needed
for dir in /srv/base /srv/work /srv/scratch; do wait_for_mount "$dir"; done
no_unit_failed
check() {
    [ "$(cat /srv/work/data/new)" = kept ] || fail "a change is lost"
    [ "$(tail -1 /srv/work/data/compressible)" = more ] || fail "an appended file differs"
    [ ! -e /srv/work/data/many/file-1 ] || fail "a removed file is back"
    [ -s /srv/work/data/appended ] || fail "what was written until the shutdown is lost"
}
check
[ ! -e /srv/scratch/data/new ] || fail "a change of scratch is kept"
same_as_source /srv/scratch
cmp /srv/lazy/data/large "$tree/data/large"
umount /srv/work
! mountpoint -q /srv/work || fail "it is still mounted"
mount -a
check
systemctl stop srv-base.mount
! mountpoint -q /srv/base || fail "systemd does not unmount it"
systemctl start srv-base.mount
cmp /srv/base/data/large "$tree/data/large"
inlay verify base >/dev/null
