#!/usr/bin/env bash
# exec returns when its command ends, although a background child keeps printing.
#
# Reported: moby/moby#33039, kubernetes/kubernetes#44371, kata-containers#4747. Oracle: docker.
. "$(dirname "$0")/lib/lib.sh"
sandbox a
begun=$(date +%s%N)
"$INLAY" exec "$tag-a" -- sh -c '(i=0; while :; do i=$((i+1)); echo "GET /$i 200"; echo $i > /tmp/count; sleep 0.1; done) & echo started' >/dev/null & client=$!
for _ in $(seq 100); do kill -0 $client 2>/dev/null || break; sleep 0.1; done
took=$(( ($(date +%s%N) - begun) / 1000000 )); bad=
if kill -0 $client 2>/dev/null; then
    bad="the command ended at once, but exec still waits after $took ms"
    kill -INT $client; sleep 2; kill -0 $client 2>/dev/null && { kill -TERM $client; sleep 2; }
    kill -0 $client 2>/dev/null && bad+=", and SIGINT and SIGTERM do nothing"
    kill -KILL $client 2>/dev/null
fi
wait $client 2>/dev/null
[ -n "$bad" ] && fail "$bad (docker exec comes back after 2 s): 300 ms of silence or 4 MiB are waited for"
say "exec came back after $took ms"
sleep 1; one=$(ex a cat /tmp/count); sleep 3; two=$(ex a cat /tmp/count)
say "the program in the background had printed $one lines, 3 s later $two (docker 20.10 and podman 4.3 end it by SIGPIPE, too)"
pass "exec comes back while something in the background prints"
