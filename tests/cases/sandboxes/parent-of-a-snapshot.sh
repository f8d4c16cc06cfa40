#!/usr/bin/env bash
# The parent of a snapshot is the snapshot that is mounted there.
#
# Reported: daytonaio/daytona#4636, restic/restic#2819. Oracle: the id that was mounted.
. "$(dirname "$0")/lib/lib.sh"
sandbox a; ex a sh -c 'mkdir /A /B; echo A > /A/f; echo B > /B/f'; A=$(snap a /A); B=$(snap a /B)
live a "$A" /x; ex a sh -c 'echo more >> /x/f'; first=$(snap a /x); "$INLAY" umount --discard "$tag-a:/x" >/dev/null
live a "$B" /y; ex a sh -c 'echo more >> /y/f'; second=$(snap a /y)
parent=$("$INLAY" show "$second" --json | python3 -c 'import json,sys; print(json.load(sys.stdin)["parent"])')
say "A $A"; say "B $B"; say "a snapshot of A at /x, then discarded: $first"; say "a snapshot of B at /y: $second, its parent: $parent"
[ "$parent" = "$B" ] && pass "the parent is the mounted snapshot"
[ "$parent" = "$first" ] && fail "the parent of a snapshot of B at /y is the snapshot of A at /x, which has nothing to do with it"
fail "the parent is $parent"
