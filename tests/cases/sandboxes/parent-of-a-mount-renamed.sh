#!/usr/bin/env bash
# A live mount moves with the directory that it is in.
#
# Reported: docker/for-linux#147, util-linux#1660. Oracle: the sandbox's own view.
. "$(dirname "$0")/lib/lib.sh"
sandbox a; bad=()
ex a sh -c 'mkdir -p /deps; echo dep > /deps/dep.js'; deps=$(snap a /deps)
live a empty /project; ex a sh -c 'mkdir -p /project/web; echo app > /project/web/app.js'; live a "$deps" /project/web/node_modules
ex a sh -c 'echo changed > /project/web/node_modules/changed.js; mv /project/web /project/frontend' || skip "it can't be renamed"
say "seen in the sandbox: $(ex a sh -c 'cd /project; find . -type f | sort | tr "\n" " "')"
out=$("$INLAY" snapshot "$tag-a:/project" 2>&1); id=$(head -1 <<<"$out"); say "$(tail -1 <<<"$out")"
"$INLAY" ls "$id:/frontend/node_modules" 2>/dev/null | grep -q changed.js || bad+=("the contents of the live mount are not in the snapshot of the directory around it")
say "inlay mounts: $("$INLAY" mounts | grep "$tag-a:/project/" | tr -s ' ' | cut -d' ' -f1)"
out=$("$INLAY" snapshot "$tag-a:/project/frontend/node_modules" 2>&1) || bad+=("it can't be captured: ${out:0:160}")
new=$("$INLAY" umount "$tag-a:/project/frontend/node_modules" 2>&1) || { old=$("$INLAY" umount "$tag-a:/project/web/node_modules" 2>&1) || bad+=("it can't be unmounted, by its new path (${new#inlay: }) or its old one (${old#inlay: })"); }
[ ${#bad[@]} = 0 ] && pass "a live mount goes with the directory that it is in"
fail "$(printf '%s; ' "${bad[@]}")mounts are told by the paths at which they were made"
