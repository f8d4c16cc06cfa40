#!/usr/bin/env bash
# Snapshots of a PostgreSQL server under load recover and are consistent.
#
# Reported: TencentCloud/CubeSandbox#1760, opensandbox-group/OpenSandbox#1831. Oracle: pgbench's balances.
. "$(dirname "$0")/../sandboxes/lib/lib.sh"
cat > "$work/pg.sh" <<'END'
export PATH=$(ls -d /usr/lib/postgresql/*/bin):$PATH PGHOST=/project/sock
case $1 in
init) mkdir -p /project/sock; initdb -D /project/pg -A trust >/dev/null; pg_ctl -D /project/pg -o "-k /project/sock -h ''" -l /project/log -w start >/dev/null; createdb b; pgbench -q -i -s 3 b >/dev/null 2>&1;;
load) pgbench -c 4 -T 20 b > /project/bench 2>&1;;
check) rm -f /project/log; pg_ctl -D /project/pg -o "-k /project/sock -h ''" -l /project/log -w start >/dev/null 2>&1 || { tail -3 /project/log; exit 1; }
 psql -Atc "select (select sum(abalance) from pgbench_accounts)=(select sum(delta) from pgbench_history) and (select sum(bbalance) from pgbench_branches)=(select sum(delta) from pgbench_history) and (select count(*) from pgbench_history)>0" b; pg_ctl -D /project/pg -m fast stop >/dev/null;;
esac
END
sandbox a; ex a sh -c 'ls -d /usr/lib/postgresql/*/bin >/dev/null 2>&1' || skip "the base has no PostgreSQL"
live a empty /project; ex a chown postgres /project; put a "$work/pg.sh" /pg.sh
"$INLAY" exec --user postgres --workdir /project "$tag-a" -- sh /pg.sh init; "$INLAY" exec --detach --user postgres "$tag-a" -- sh /pg.sh load; sleep 3
bad=0; for i in 1 2 3; do sleep 1; id=$(snap a /project); sandbox "c$i"; live "c$i" "$id" /project; put "c$i" "$work/pg.sh" /pg.sh; out=$("$INLAY" exec --user postgres --workdir /project "$tag-c$i" -- sh /pg.sh check 2>&1); say "balances agree after recovery: $out"; [ "$out" = t ] || bad=$((bad+1)); done
[ $bad = 0 ] && pass "three snapshots of a server under load recover and are consistent"
fail "$bad of 3 are not"
