# limit: 300 s
# The daemon is killed and replaced again and again while programs read: they see no error.
mkdir -p read-only writable
inlay mount base read-only >/dev/null
inlay mount --rw base writable >/dev/null
start_reader read-only/data writable/data
goes_on "started"
rounds=10
[ -z "$SHORT" ] || rounds=3
rounds=${KILLS:-$rounds}
for round in $(seq "$rounds"); do
    old=$(daemon_pid)
    kill -KILL "$old"
    goes_on "kill $round"
    until_another "$old"
done
takeovers=$((rounds / 2 + 1))
[ "$takeovers" -le 6 ] || takeovers=6
for round in $(seq "$takeovers"); do
    old=$(daemon_pid)
    inlay daemon --takeover >takeover.log 2>&1 &
    until_another "$old"
    goes_on "takeover $round"
done
end_reader
note "$rounds kills, $takeovers takeovers, $(cat count) files read"
inlay umount read-only >/dev/null
inlay umount --discard writable >/dev/null
