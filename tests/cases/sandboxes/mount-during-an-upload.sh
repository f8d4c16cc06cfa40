#!/usr/bin/env bash
# A live mount does not wait for the upload of a snapshot of the same sandbox.
#
# Reported: codenvy/codenvy#1127, containerd/containerd#4415. Oracle: a live mount without an upload.
. "$(dirname "$0")/lib/lib.sh"
store=$INLAY_STATE/store; [ -d "$store" ] || skip "the base must be in the state's own store"
port=$(python3 -c 'import socket; s=socket.socket(); s.bind(("127.0.0.1",0)); print(s.getsockname()[1])')
mkdir -p "$work/s3/b"; python3 "$here/lib/slow_s3.py" "$work/s3" "$port" "$work/slow" 2>/dev/null & s3=$!; after+=("kill $s3")
sleep 0.7
export INLAY_STATE=$work/state AWS_ACCESS_KEY_ID=k AWS_SECRET_ACCESS_KEY=s AWS_REGION=us-east-1 AWS_ENDPOINT_URL=http://127.0.0.1:$port
after=("$INLAY daemon stop --force" "${after[@]}")
"$INLAY" --store "$store" sandbox create "$BASE" --name q >/dev/null || skip "no sandbox"
"$INLAY" mount empty q:/project >/dev/null
begun=$(date +%s%N); "$INLAY" mount empty q:/before >/dev/null; before=$(( ($(date +%s%N) - begun) / 1000000 ))
"$INLAY" exec q -- python3 -c 'import os; open("/project/f","wb").write(os.urandom(3000000))'
echo 3 > "$work/slow"        # from now on a PUT takes 3 s
"$INLAY" --store s3://b/x snapshot q:/project > "$work/out" 2>&1 & snapshot=$!
sleep 1.5
begun=$(date +%s%N); "$INLAY" mount empty q:/other >/dev/null; took=$(( ($(date +%s%N) - begun) / 1000000 ))
kill -0 $snapshot 2>/dev/null && beside=yes || beside=no
wait $snapshot || skip "no snapshot: $(cat "$work/out")"; rm -f "$work/slow"; say "$(tail -1 "$work/out")"
say "a live mount before it took $before ms, one beside it $took ms"
# Whatever the host's load: a mount that waits comes back after the snapshot.
[ $beside = yes ] && pass "a live mount does not wait for a snapshot that is on its way to the store"
fail "a live mount into the same sandbox waited $took ms (before: $before) for the snapshot's upload; so do umount, stop and rm"
