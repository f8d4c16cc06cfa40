#!/usr/bin/env bash
# A sandbox goes on when the client of a snapshot is killed; stopped, traced and forking programs do not hinder one.
#
# Reported: lxc/lxc#4346, opencontainers/runc#2774. Oracle: the sandbox's own log.
. "$(dirname "$0")/lib/lib.sh"
sandbox a
ex a sh -c 'mkdir /k; for i in $(seq 2000); do echo $i > /k/f$i; done; head -c 40000000 /dev/urandom > /k/big'
"$INLAY" exec --detach "$tag-a" -- sh -c 'i=0; while :; do i=$((i+1)); echo $i >> /k/log; done'
bad=0
for t in 0.01 0.03 0.06 0.1 0.2 0.3 0.4; do
    ex a sh -c "head -c 5000000 /dev/urandom > /k/big$t"
    timeout -s KILL $t "$INLAY" snapshot "$tag-a:/k" >/dev/null 2>&1
    one=$(ex a sh -c 'wc -l < /k/log'); sleep 0.5; two=$(ex a sh -c 'wc -l < /k/log'); [ "$two" -gt "$one" ] || { bad=$((bad+1)); say "killed after $t s: $one lines, then $two"; }
done 2>/dev/null
ex a sh -c 'sleep 1000 >/dev/null 2>&1 & kill -STOP $!'
"$INLAY" exec --detach "$tag-a" -- python3 -c '
import os,ctypes,signal,time
p=os.fork()
if p==0: ctypes.CDLL(None).ptrace(0,0,0,0); os.kill(os.getpid(),signal.SIGSTOP); time.sleep(1000)
os.waitpid(p,os.WUNTRACED); time.sleep(1000)'
"$INLAY" exec --detach "$tag-a" -- sh -c 'while :; do (:) & (:) & wait; done'; sleep 0.5
for i in 1 2 3; do
    ex a touch /k/x$i || fail "a file can't be made"
    begun=$(date +%s)
    out=$(timeout -s KILL 60 "$INLAY" snapshot "$tag-a:/k" 2>&1); rc=$?
    took=$(($(date +%s)-begun))
    say "exit $rc in $took s: $(tail -1 <<<"$out")"
    [ $rc = 0 ] && [ $took -lt 10 ] || bad=$((bad+1))
done
[ $bad = 0 ] && pass "a sandbox goes on when the client of a snapshot is killed, and odd processes do not hinder one"
fail "$bad times not"
