#!/usr/bin/env bash
# cp copies the contents of files in /proc, whose size is 0.
#
# Reported: docker/for-linux#997, moby/moby#9998. Oracle: cp(1).
. "$(dirname "$0")/lib/lib.sh"
sandbox a
for file in version cpuinfo; do
    "$INLAY" cp "$tag-a:/proc/$file" "$work/$file" > "$work/out" 2>&1; rc=$?
    say "$file: exit $rc, $(cat "$work/out"), $(stat -c %s "$work/$file" 2>&1) bytes"
    [ $rc = 0 ] || fail "/proc/$file is refused"
    # Speeds change from one look to the next.
    ex a cat "/proc/$file" | grep -v MHz > "$work/wanted"
    grep -v MHz "$work/$file" > "$work/copied"
    [ -s "$work/wanted" ] || fail "/proc/$file can't be read in the sandbox"
    cmp "$work/wanted" "$work/copied" || fail "the copy of /proc/$file has not its contents"
done
pass "the contents were copied"
