# A sandbox is created, runs programs, keeps its changes, and is removed.
inlay sandbox create base --name a >/dev/null
[ "$(inlay exec a -- sh -c 'echo $((6 * 7)); cat /data/link')" = "42
deep" ] || fail "a program in it printed something else"
inlay exec a -- sh -c 'echo changed >/data/many/file-9 && rm /data/empty && mkdir /made && echo x >/made/file'
[ "$(inlay exec a -- cat /data/many/file-9 /made/file)" = "changed
x" ] || fail "changes are lost"
printf 'through a pipe' | inlay exec -i a -- sh -c 'cat >/made/piped'
inlay cp a:/made/piped copied >/dev/null
[ "$(cat copied)" = "through a pipe" ] || fail "a copied file differs"
status=0
inlay exec a -- sh -c 'exit 7' || status=$?
[ "$status" = 7 ] || fail "exit code $status instead of 7"
inlay sandbox stop a >/dev/null
inlay sandbox rm a >/dev/null
[ "$(inlay run --rm base -- echo done)" = done ] || fail "inlay run printed something else"
