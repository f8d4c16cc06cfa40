# A directory is mounted where a process of another mount namespace sees it.
mkdir -p own
unshare --mount --propagation private sleep 100 &
other=$!
sleep 1
inlay mount --pid "$other" --rw project /mnt/into >/dev/null
[ ! -e /mnt/into/numbers ] || fail "it is mounted on the host"
nsenter -t "$other" -m cmp /mnt/into/numbers "$PWD/project/numbers"
nsenter -t "$other" -m touch /mnt/into/new
inlay umount --pid "$other" /mnt/into >/dev/null
nsenter -t "$other" -m test ! -e /mnt/into/numbers || fail "it is still there"
kill "$other"
