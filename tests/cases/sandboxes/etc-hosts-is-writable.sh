#!/usr/bin/env bash
# Root can add a name to the sandbox's own /etc/hosts; the host's file is not touched.
#
# Reported: containerd/nerdctl#2685, moby/moby#1959. Oracle: docker.
. "$(dirname "$0")/lib/lib.sh"
bad=
for net in none host; do
    sandbox "$net" --network "$net"
    out=$(ex "$net" sh -c 'echo "127.0.0.1 kafka customer" >> /etc/hosts && python3 -c "import socket; print(socket.gethostbyname(\"kafka\"))"' 2>&1)
    say "--network $net: $out"
    [ "$out" = 127.0.0.1 ] || bad+=" $net"
    grep -q kafka /etc/hosts && fail "the host's own /etc/hosts was changed"
done
[ -z "$bad" ] && pass "root in a sandbox can add a name to its own /etc/hosts"
fail "root can't write to the sandbox's own /etc/hosts with --network$bad (docker: it can, and the host's file stays as it is)"
