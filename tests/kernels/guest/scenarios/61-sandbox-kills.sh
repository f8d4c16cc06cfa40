# limit: 200 s
# A sandbox and what is mounted in it live on while the daemon is killed.
inlay sandbox create base --name a >/dev/null
inlay mount project a:/project >/dev/null
inlay exec --detach a -- sh -c 'while sha256sum /project/numbers /project/random /data/many/file-* >>/seen 2>>/errors; do
    echo >>/rounds; done; echo ended >>/errors'
rounds=3
[ -z "$SHORT" ] || rounds=1
for round in $(seq "$rounds"); do
    sleep 3
    kill -KILL "$(daemon_pid)"
    sleep 2
    [ "$(inlay exec a -- sh -c 'cat /errors; wc -l </rounds')" -gt 0 ] || fail "nothing was read"
done
[ "$(inlay exec a -- sh -c 'sort -u /seen | wc -l')" -le 303 ] || fail "other contents were read"
inlay exec a -- sh -c '! test -s /errors' || { inlay exec a -- cat /errors; fail "a program had an error"; }
inlay umount --lazy a:/project >/dev/null
inlay sandbox rm --force a >/dev/null
