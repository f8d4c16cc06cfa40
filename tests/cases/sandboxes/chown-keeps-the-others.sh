#!/usr/bin/env bash
# mount --chown gives root's files to a user and leaves the user's own files theirs.
#
# Reported: NVIDIA/NemoClaw#1667, podman#24918. Oracle: the option's help.
. "$(dirname "$0")/lib/lib.sh"
sandbox a
# a directory that root made, and files in it that root and the user 1000 made
ex a sh -ec 'mkdir -m 777 /p; echo r > /p/of-root; echo u > /p/of-user; chown 1000:1000 /p/of-user; chmod 644 /p/*'
id=$(snap a /p); sandbox b; live b "$id" /p --chown 1000:1000 || skip "no --chown"
owners=$(ex b stat -c '%n %u' /p /p/of-root /p/of-user | tr '\n' ' ')
say "$owners"
out=$("$INLAY" exec --user 1000:1000 "$tag-b" -- sh -c 'echo more >> /p/of-root && echo more >> /p/of-user' 2>&1); rc=$?
[ $rc = 0 ] && pass "the user owns what was root's, and what was the user's already"
fail "mount --chown 1000:1000 makes the files that belonged to 1000 root's ($owners): 'Everybody else stays', says the help; $out"
