#!/usr/bin/env bash
# A tree of 30,000 nested directories can be discarded; the daemon and other sandboxes do not notice.
#
# Reported: docker/for-linux#342, moby/moby#13451, rust-lang/rust#95925. Oracle: the daemon's pid.
. "$(dirname "$0")/lib/lib.sh"
store=$INLAY_STATE/store; [ -d "$store" ] || skip "the base must be in the state's own store"
export INLAY_STATE=$work/state       # a daemon of its own: it may die
"$INLAY" --store "$store" sandbox create "$BASE" --name deep >/dev/null || skip "no sandbox"
"$INLAY" --store "$store" sandbox create "$BASE" --name other >/dev/null
first() { "$INLAY" sandbox inspect "$1" --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["pid"])'; }
monitors=$(pgrep -f "monitor --state $work/state " | tr '\n' ' ')
after=("$INLAY daemon stop --force" "kill -KILL $(first deep) $(first other)" "sleep 1; kill $monitors" \
    "sleep 1; umount -l $work/state/sandboxes/*/rootfs" "python3 $here/lib/flatten.py $work/state/sandboxes" "$INLAY daemon stop --force")
"$INLAY" mount empty deep:/project >/dev/null; "$INLAY" cp "$here/lib/deep.py" deep:/deep.py >/dev/null
depth=${DEPTH:-30000}
"$INLAY" exec deep -- python3 /deep.py /project "$depth" | sed 's/^/  /'
daemon() { "$INLAY" daemon status --json 2>/dev/null | python3 -c 'import json,sys; print(json.load(sys.stdin)["server"]["pid"])'; }
before=$(daemon)
# A program in another sandbox of the host
"$INLAY" exec other -- sh -c 'sleep 15; echo whole' > "$work/other" 2>&1 & other=$!
sleep 0.5
timeout -s KILL 120 "$INLAY" umount --discard deep:/project > "$work/out" 2>&1; rc=$?
say "umount --discard: exit $rc, $(head -c 200 "$work/out")"
now=$(daemon)
grep -h 'overflowed its stack\|Too many open files' "$work/state/log/daemon.log" | cut -c1-200 | sed 's/^/    log: /'
listed=$("$INLAY" sandbox ls | grep -c '^deep ')
say "daemon $before, now $now; times that 'sandbox ls' lists the sandbox: $listed"
wait $other; say "the program in the other sandbox: $(head -c 150 "$work/other")"
timeout -s KILL 120 "$INLAY" sandbox rm --force deep > "$work/out2" 2>&1; rm=$?
say "sandbox rm: exit $rm, $(head -c 150 "$work/out2")"
[ "$before" = "$now" ] || fail "the daemon died over a directory tree of $depth levels that a program in a sandbox made (stack overflow); the sandbox is listed $listed times, rm exits with $rm; a program in another sandbox: $(head -c 100 "$work/other")"
[ $rc = 0 ] && [ $rm = 0 ] && pass "a tree of $depth levels is thrown away"
fail "a tree of $depth levels is not thrown away: $(head -c 200 "$work/out") $(head -c 200 "$work/out2")"
