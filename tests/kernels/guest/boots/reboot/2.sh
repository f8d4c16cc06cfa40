[ -z "$(inlay_mounts | grep '^/mnt')" ] || fail "something is mounted: $(inlay_mounts)"
inlay mount base /mnt/read-only >/dev/null
python3 /work/guest/same.py "$tree" /mnt/read-only
inlay mount --rw base /mnt/writable >/dev/null
[ "$(cat /mnt/writable/data/new)" = kept ] || fail "a change is lost"
[ ! -e /mnt/writable/data/many/file-1 ] || fail "a removed file is back"
inlay sandbox ls
inlay snapshot a --name a-after >/dev/null
[ "$(inlay cat a-after:/data/new)" = kept ] || fail "a change in the sandbox is lost"
inlay sandbox rm --force a >/dev/null
inlay umount /mnt/read-only >/dev/null
inlay umount --discard /mnt/writable >/dev/null
inlay verify a-after >/dev/null
