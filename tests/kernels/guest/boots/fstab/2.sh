# limit: 400 s
# All lines are mounted by the boot; what is written stays or goes as they say.
mounted_at_boot /srv/needed
for dir in /srv/base /srv/work /srv/scratch; do wait_for_mount "$dir"; done
no_unit_failed
systemctl is-active --quiet inlay || fail "the daemon is not the unit's"
same_as_source /srv/needed
cmp /srv/base/data/large "$tree/data/large"
! touch /srv/base/new 2>/dev/null || fail "a read-only mount can be written to"
! grep ' /srv/lazy ' /proc/self/mountinfo | grep -v ' - autofs ' || fail "it is mounted before it is used"
cmp /srv/lazy/data/large "$tree/data/large"
grep ' /srv/lazy ' /proc/self/mountinfo | grep -qv ' - autofs ' || fail "it is not mounted when it is used"
printf 'kept\n' >/srv/work/data/new
printf 'more\n' >>/srv/work/data/compressible
rm /srv/work/data/many/file-1
printf 'gone\n' >/srv/scratch/data/new
before=$(sort /proc/self/mountinfo)
mount -a
mount -a
[ "$(sort /proc/self/mountinfo)" = "$before" ] || fail "mount -a changes mounts"
systemctl restart inlay
cmp /srv/needed/data/large "$tree/data/large"
[ "$(cat /srv/work/data/new)" = kept ] || fail "a change is lost with the daemon"
# In use at the shutdown, by a service that systemd ends first.
systemd-run --quiet --unit=reader --property=RequiresMountsFor='/srv/needed /srv/work /srv/lazy' \
    bash -c 'exec 8>>/srv/work/data/appended; while cat /srv/{needed,work,lazy}/data/many/* >/dev/null; do echo x >&8; done'
sleep 2
systemctl is-active --quiet reader || fail "a program had an error"
