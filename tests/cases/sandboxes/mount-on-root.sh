#!/usr/bin/env bash
# A mount on / is refused with the reason.
#
# Reported: none: docker refuses a destination of / by name. Oracle: docker.
. "$(dirname "$0")/lib/lib.sh"
sandbox a; sandbox b; ex b mkdir /p; id=$(snap b /p)
out=$(live a "$id" / 2>&1); rc=$?
say "exit $rc: $out"
ex a sh -c 'ls /etc/passwd' >/dev/null || fail "the sandbox's root is covered"
[ $rc != 0 ] || fail "it is mounted"
case $out in *"it is the root directory"*) pass "it is refused: $out";; esac
fail "it is refused with another reason: $out"
