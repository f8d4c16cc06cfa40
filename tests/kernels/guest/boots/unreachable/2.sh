# limit: 400 s
# The store does not answer: what the host has is mounted at once, and nothing else keeps the boot.
systemctl is-active --quiet swallow || fail "packets are not swallowed"
answer=0
timeout 3 bash -c '</dev/tcp/10.99.0.2/8000' || answer=$?
[ "$answer" = 124 ] || fail "connecting to the store ended with $answer"
moment() { systemctl show -P "$2" "$1"; }
for name in named numbered writable part; do
    mounted_at_boot "/srv/$name"
    took=$((($(moment "srv-$name.mount" ActiveEnterTimestampMonotonic) -
        $(moment "srv-$name.mount" InactiveExitTimestampMonotonic)) / 1000))
    note "$name after $took ms"
    # Of a name the store is asked for 2 s; the rest is the daemon's start on an emulated machine.
    [ "$took" -lt $((20000 * PATIENCE)) ] || fail "/srv/$name took $took ms"
done
cmp /srv/named/large whole/large
cmp /srv/numbered/name whole/name
[ "$(cat /srv/writable/new)" = kept ] || fail "a change is lost"
[ "$(moment multi-user.target ActiveEnterTimestampMonotonic)" != 0 ] || fail "the boot is not done"
for _ in $(seq 100); do
    [ "$(systemctl show -P ActiveState srv-other.mount)" != failed ] || break
    sleep 1
done
[ "$(systemctl show -P ActiveState srv-other.mount)" = failed ] || fail "a snapshot that is not here is mounted"
took=$((($(moment srv-other.mount InactiveEnterTimestampMonotonic) -
    $(moment srv-other.mount InactiveExitTimestampMonotonic)) / 1000))
note "other fails after $took ms"
[ "$took" -lt $((75000 * PATIENCE)) ] || fail "the mount that can't be made took $took ms"
[ "$(moment multi-user.target ActiveEnterTimestampMonotonic)" -lt \
    "$(moment srv-other.mount InactiveEnterTimestampMonotonic)" ] || fail "the boot waited for a nofail line"
# A program waits for bytes that are not here when the host shuts down.
systemd-run --quiet --unit=reader --property=RequiresMountsFor=/srv/part cat /srv/part/large
sleep 2
systemctl is-active --quiet reader || fail "a read of what is not here does not wait"
