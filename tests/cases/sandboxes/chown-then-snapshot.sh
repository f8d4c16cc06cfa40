#!/usr/bin/env bash
# Contents and owners survive chown -R over two snapshots.
#
# Reported: agent-substrate/substrate#846. Oracle: checksums before.
. "$(dirname "$0")/lib/lib.sh"
sandbox a
sums='cd /usr && find lib share -xdev -type f -size -3000k 2>/dev/null | sort | head -3000 | tr "\n" "\0" | xargs -0 sha1sum | sha1sum; find lib share -xdev ! -user 1000 2>/dev/null | wc -l'
was=$(ex a sh -c "$sums" | head -1)
begun=$(date +%s); ex a chown -R 1000 /usr/lib /usr/share; say "chown -R took $(($(date +%s)-begun)) s"
one=$("$INLAY" snapshot "$tag-a" --name "$tag-one" | tee "$work/o" | head -1); say "$(tail -1 "$work/o")"
BASE=$one; sandbox b; ex b sh -c 'chmod o-r /usr/share/doc/*/copyright 2>/dev/null; mv /usr/share/doc /usr/share/doc2; chown 0 /usr/lib/os-release'
two=$("$INLAY" snapshot "$tag-b" | head -1); BASE=$two; sandbox c
ex c mv /usr/share/doc2 /usr/share/doc
is=$(ex c sh -c "$sums"); say "contents: ${was:0:12} then ${is:0:12}; not changed: $(tail -1 <<<"$is")"
"$INLAY" untag "$tag-one" >/dev/null 2>&1
[ "$was" = "$(head -1 <<<"$is")" ] && [ "$(tail -1 <<<"$is")" = 1 ] && pass "owners change and contents stay, over two snapshots"
fail "contents or owners are not what they were"
