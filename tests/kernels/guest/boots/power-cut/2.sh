# The line of fstab is mounted by the boot after it, with what was synced.
mounted_at_boot /mnt/writable
no_unit_failed
inlay verify base >/dev/null
inlay verify durable >/dev/null
[ "$(inlay cat durable:/data/new)" = kept ] || fail "a snapshot that was in the store differs"
inlay sync >/dev/null
[ "$(inlay cat sealed:/new)" = kept ] || fail "a sealed snapshot is lost"
python3 - <<'P'
for number in range(50):
    with open(f'/mnt/writable/data/synced-{number}') as file:
        assert file.read() == f'{number}\n' * 1000, f'synced-{number}'
P
inlay umount --discard /mnt/writable >/dev/null
inlay sandbox rm --force a >/dev/null
inlay import --quiet --repair "dir:$tree" --name base --kind image >/dev/null
inlay verify base >/dev/null
[ -z "$(find "$INLAY_STATE" -name '*.damaged-*')" ] || note "set aside: $(find "$INLAY_STATE" -name '*.damaged-*' | wc -l) records"
