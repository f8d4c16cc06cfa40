# What the guest's scripts share. To be sourced.

export INLAY_STATE=/var/lib/inlay INLAY_LOG=info PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/root LANG=C.UTF-8 SHORT=${short:-${SHORT:-}} KILLS=${kills:-${KILLS:-}} \
    PATIENCE=${patience:-${PATIENCE:-1}}
readonly tree=/work/tree scratch=/var/tmp/kernels

milliseconds() { echo $(($(date +%s%N) / 1000000)); }

# FILE NAME: runs it, and tells of it in one line unless it fails.
run_scenario() {
    local begun output=$scratch/output end
    begun=$(milliseconds)
    dmesg -C
    timeout -k 5 "$(limit_of "$1")" bash -euo pipefail -c '
        . /work/guest/lib.sh
        set -o errtrace
        trap '\''printf "line %s: %s\n" "$LINENO" "$BASH_COMMAND"'\'' ERR
        cd "$scratch"
        . "$0"' "$1" >"$output" 2>&1
    end=$?
    if [ "$end" = 0 ]; then
        printf 'ok %s (%s s)%s\n' "$2" "$(since "$begun")" "$(sed -n 's/^note: /; /p' "$output" | tr -d '\n')"
        return
    fi
    [ "$end" -lt 124 ] || printf 'not done in time\n' >>"$output"
    printf 'FAILED %s (%s s): %s\n' "$2" "$(since "$begun")" "$(grep -v '^line' "$output" | tail -1)"
    tail -n 25 "$output" | sed 's/^/    /'
    tell_more | sed 's/^/    | /'
    return 1
}

# Those whose names match, one after the other; each begins with nothing mounted.
run_scenarios() {
    local file name failed=0 passed=0
    for file in /work/guest/scenarios/*.sh; do
        name=$(basename "$file" .sh)
        # shellcheck disable=SC2053 # a pattern; what the others need is made in any case
        [[ $name = $only || $name = *-import ]] || continue
        if run_scenario "$file" "$name"; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
        clean
    done
    printf '%s passed, %s failed\n' "$passed" "$failed"
    [ "$failed" = 0 ]
}

# The host takes the machine's power away; what was not on the disk is lost.
power_cut() {
    printf 'power cut\n' >/dev/ttyS1
    sleep 1000
}

since() { printf '%s' $((($(milliseconds) - $1) / 1000)); }
limit_of() { echo $(($(sed -n 's/^# limit: \([0-9]*\) s$/\1/p' "$1" | grep . || echo 240) * PATIENCE)); }

tell_more() {
    grep -v 'the kernel does not offer this' "$INLAY_STATE/log/daemon.log" 2>/dev/null | tail -n 10
    dmesg | grep -E 'fuse|overlay|WARNING|BUG|Oops|Call Trace|blocked for more|segfault|inlay' | tail -n 10
    for id in $(pgrep -x inlay); do
        printf 'still runs: %s, in %s\n' "$(tr '\0' ' ' <"/proc/$id/cmdline")" "$(cat "/proc/$id/wchan")"
    done
}

# After a scenario, whatever it has left is ended, so that the next one begins with nothing.
clean() {
    local id place
    for id in $(timeout 20 inlay sandbox ls --json 2>/dev/null | sed -n 's/.*"id": "\([^"]*\)".*/\1/p'); do
        timeout 30 inlay sandbox rm --force "$id" >/dev/null 2>&1
    done
    timeout 30 inlay daemon stop --force >/dev/null 2>&1
    for place in $(inlay_mounts | tac); do umount -l "$place" 2>/dev/null; done
    for id in $(pgrep -x inlay); do kill -KILL "$id" 2>/dev/null; done
    : >"$INLAY_STATE/log/daemon.log" 2>/dev/null
    return 0
}

# Where something of inlay's is mounted, be it a FUSE mount or an overlay on one.
inlay_mounts() {
    awk '{ for (i = 7; $i != "-"; i++); if ($(i + 2) ~ /inlay/ || $(i + 3) ~ /inlay/) print $5 }' /proc/self/mountinfo
}

fail() {
    printf '%s\n' "$*"
    exit 1
}
note() { printf 'note: %s\n' "$*"; }

# DIR: a line of fstab without nofail was mounted before local-fs.target was reached.
mounted_at_boot() {
    mountpoint -q "$1" && return
    journalctl -b --no-pager -o cat -u "$(systemd-escape --path --suffix=mount "$1")" | tail -n 5
    fail "the boot has not mounted $1"
}
# DIR: one with nofail is mounted at some time.
wait_for_mount() {
    for _ in $(seq $((600 * PATIENCE))); do
        ! mountpoint -q "$1" || return 0
        sleep 0.1
    done
    mounted_at_boot "$1"
}
no_unit_failed() {
    local failed
    failed=$(systemctl --failed --plain --no-legend)
    [ -z "$failed" ] || fail "a unit has failed: $failed"
}

# COPY: looks and reads like what was imported.
same_as_source() { python3 /work/guest/same.py "$tree" "$1" || fail "the trees differ"; }

daemon_pid() { inlay daemon status --json | python3 -c 'import json, sys; print(json.load(sys.stdin)["server"]["pid"])'; }

# COPY...: starts a program that reads them over and over.
start_reader() {
    rm -f enough count
    python3 /work/guest/reader.py "$tree/data" "$@" >errors 2>&1 &
    reader=$!
}
# WHAT: waits until the reader has done more than at the moment, whatever has happened.
goes_on() {
    local before
    before=$(cat count 2>/dev/null || echo 0)
    for _ in $(seq $((600 * PATIENCE))); do
        kill -0 "$reader" 2>/dev/null || { cat errors; fail "a program had an error after: $1"; }
        [ "$(cat count 2>/dev/null || echo 0)" -le $((before + 50)) ] || return 0
        sleep 0.1
    done
    fail "a program hangs after: $1"
}
end_reader() {
    touch enough
    wait "$reader" || { cat errors; fail "a program had an error"; }
}
# PID: waits for another daemon than that.
until_another() {
    local new
    for _ in $(seq $((200 * PATIENCE))); do
        new=$(daemon_pid 2>/dev/null || true)
        [ -z "$new" ] || [ "$new" = "$1" ] || return 0
        sleep 0.1
    done
    fail "no other daemon has followed"
}
