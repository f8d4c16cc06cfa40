# A directory is mounted into a sandbox that runs, changed, snapshot, and unmounted.
inlay sandbox create base --name a >/dev/null
inlay exec a -- sh -c 'mkdir /project && echo hidden >/project/before'
inlay mount project a:/project >/dev/null
inlay exec a -- sh -c 'cd /project && cat link | sha256sum; sha256sum random' >inside
{ sha256sum <project/numbers; (cd project && sha256sum random); } >outside
cmp inside outside
inlay exec a -- sh -c 'echo mine >/project/own && rm /project/link'
inlay snapshot a:/project --name changed >/dev/null
[ "$(inlay cat changed:/own)" = mine ] || fail "the snapshot lacks a change"
inlay umount a:/project >/dev/null
[ "$(inlay exec a -- cat /project/before)" = hidden ] || fail "what was there before does not show again"
inlay mount --read-only changed a:/elsewhere >/dev/null
[ "$(inlay exec a -- cat /elsewhere/own)" = mine ] || fail "the snapshot is not mounted"
! inlay exec a -- touch /elsewhere/new 2>/dev/null || fail "a read-only mount can be written to"
inlay umount a:/elsewhere >/dev/null
inlay sandbox rm --force a >/dev/null
