#!/usr/bin/env bash
# SIGINT ends exec -i whose program does not read its stdin, and the program is told.
#
# Reported: moby/moby#28207, docker/cli#2607, moby/moby#12546. Oracle: docker.
. "$(dirname "$0")/lib/lib.sh"
sandbox a
mkfifo "$work/in"; cat /dev/zero > "$work/in" 2>/dev/null & feeder=$!
"$INLAY" exec -i "$tag-a" -- sleep 1234 < "$work/in" & client=$!
sleep 2
kill -INT $client
for _ in $(seq 50); do kill -0 $client 2>/dev/null || break; sleep 0.1; done
bad=
if kill -0 $client 2>/dev/null; then bad="SIGINT to exec -i does nothing while the program does not read its input"; say "$bad"; kill -TERM $client; sleep 2; kill -0 $client 2>/dev/null && { say "nor does SIGTERM"; kill -KILL $client; }; fi
wait $client 2>/dev/null; kill $feeder 2>/dev/null; wait $feeder 2>/dev/null
sleep 2
left=$(ex a sh -c 'for p in /proc/[0-9]*; do tr "\0" " " < $p/cmdline 2>/dev/null; echo; done | grep -c "^sleep 1234"')
say "programs left in the sandbox: $left"
# A program that stays counts against the limit of exec.
[ -n "$bad" ] && fail "$bad: only SIGKILL ends it (docker exec -i ends at once), and $left program stays in the sandbox, unaware that its client is gone"
[ "$left" = 0 ] || fail "the program was not told that its client is gone"
pass "an interrupted exec ends, and its program is told"
