# Limits of memory, processes and disk hold.
inlay sandbox create base --name a --memory 64M --cpus 0.5 --pids-limit 20 --disk 32M >/dev/null
! inlay exec a -- dd if=/dev/zero of=/fill bs=1000000 count=60 2>/dev/null || fail "the disk's limit does not hold"
inlay exec a -- rm -f /fill
! inlay exec a -- sh -c 'for n in $(seq 40); do sleep 5 & done; wait' 2>/dev/null || fail "the processes' limit does not hold"
inlay sandbox rm --force a >/dev/null
