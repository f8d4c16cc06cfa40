#!/usr/bin/env bash
# The host name of a sandbox resolves inside it.
#
# Reported: e2b-dev/infra#70, podman#3547, podman#11988. Oracle: docker.
. "$(dirname "$0")/lib/lib.sh"
bad=
for net in none host; do
    sandbox "$net" --network "$net"
    out=$(ex "$net" python3 -c '
import socket,time
t=time.time()
try: print("resolves to", socket.gethostbyname(socket.gethostname()))
except OSError as e: print("does not resolve:", e, "after %.1f s" % (time.time()-t))' 2>&1)
    say "--network $net: $out"
    case $out in resolves*) ;; *) bad+=" $net" ;; esac
    ex "$net" sh -c 'command -v sudo >/dev/null && sudo true' 2>&1 | sed 's/^/    /'
done
[ -z "$bad" ] && pass "a sandbox's own host name resolves"
fail "a sandbox's own host name does not resolve with --network$bad: sudo, java, MPI, databases complain or wait for DNS (docker run --network host: it does, the name is the host's)"
