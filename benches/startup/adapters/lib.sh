# What the adapters share: errors, processes and mounts that are surely ended. To be sourced by an
# adapter, which then defines describe, prepare, up and down, and ends with: run_adapter "$@"

set -euo pipefail
adapters=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# Where scripts/setup puts what is no package of the system.
tools=$adapters/../../../target/tools
export PATH="$tools/bin:$tools/venv/bin:$tools/debian/usr/bin:$PATH:/usr/sbin:/sbin"
adapter=${0##*/}

fail() {
    printf '%s: %s\n' "$adapter" "$*" >&2
    exit 1
}
# PROGRAM WHAT: ends with 3 unless there is the program, which WHAT brings.
need() {
    command -v "$1" >/dev/null && return
    printf '%s: %s is missing: %s brings it (scripts/setup peers)\n' "$adapter" "$1" "$2" >&2
    exit 3
}
# WHAT true|false VERSION: the answer to `describe`.
described() {
    local version=${3//[\"\\]/}
    printf '{"name":"%s","what":"%s","lazy":%s,"version":"%s"}\n' "$adapter" "$1" "$2" "${version%%$'\n'*}"
}
# COMMAND...: what it says is kept for the error, of which it is the last line.
quietly() {
    "$@" >"$BENCH_WORK/last-output" 2>&1 </dev/null \
        || fail "$1 failed: $(tail -n 1 "$BENCH_WORK/last-output")"
}

# KEY FILE ENDPOINT: an object of the bucket, whole.
s3_get() { s3_curl "$1" "$3" --output "$2"; }
s3_put() { s3_curl "$1" "$3" --upload-file "$2"; }
s3_curl() { # KEY ENDPOINT OPTION...
    local key=$1 endpoint=$2
    shift 2
    # The key goes by a file, so that no list of processes shows it.
    quietly curl --silent --show-error --fail --aws-sigv4 "aws:amz:${AWS_REGION:-us-east-1}:s3" \
        --config <(printf 'user = "%s:%s"\n' "$AWS_ACCESS_KEY_ID" "$AWS_SECRET_ACCESS_KEY") \
        --header "x-amz-content-sha256: UNSIGNED-PAYLOAD" "$@" "$endpoint/$BENCH_BUCKET/$key"
}

# Processes: each has a file with its id and when it began, so that no other is ever ended for it.
began_at() { sed 's/.*) //' "/proc/$1/stat" 2>/dev/null | cut -d' ' -f20; }
start_process() { # NAME COMMAND...
    local name=$1 pid
    shift
    setsid "$@" >"$BENCH_WORK/$name.log" 2>&1 </dev/null &
    pid=$!
    note_process "$name" "$pid"
}
note_process() { printf '%s %s\n' "$2" "$(began_at "$2")" >"$BENCH_WORK/$1.pid"; }
is_running() { # NAME
    local pid began
    [ -f "$BENCH_WORK/$1.pid" ] && read -r pid began <"$BENCH_WORK/$1.pid" \
        && [ -n "$began" ] && [ "$(began_at "$pid")" = "$began" ] \
        && [ "$(sed 's/.*) //' "/proc/$pid/stat" | cut -d' ' -f1)" != Z ]
}
stop_process() { # NAME
    local pid began try
    if is_running "$1"; then
        read -r pid began <"$BENCH_WORK/$1.pid"
        kill -TERM "$pid" 2>/dev/null || true
        for ((try = 0; try < 100; try++)); do
            is_running "$1" || break
            sleep 0.1
        done
        if is_running "$1"; then kill -KILL "$pid" 2>/dev/null || true; fi
    fi
    rm -f "$BENCH_WORK/$1.pid"
}
# NAME COMMAND...: until the command succeeds, as long as the process NAME runs.
wait_for() {
    local name=$1 try
    shift
    for ((try = 0; try < 600; try++)); do
        "$@" >/dev/null 2>&1 </dev/null && return
        is_running "$name" || fail "$name ended: $(tail -n 1 "$BENCH_WORK/$name.log")"
        sleep 0.05
    done
    fail "$name does not answer: $(tail -n 1 "$BENCH_WORK/$name.log")"
}

# Mounts. What is not below BENCH_WORK is written down before it is mounted.
note_point() {
    mkdir -p "$1"
    realpath "$1" >>"$BENCH_WORK/points"
}
unmount() { # POINT
    if mountpoint -q "$1"; then umount "$1" 2>/dev/null || umount -l "$1"; fi
}
bind_read_only() { # DIR POINT
    note_point "$2"
    quietly mount --bind "$1" "$2"
    quietly mount -o remount,bind,ro "$2"
}
mount_image() { # FILE TYPE POINT
    note_point "$3"
    quietly mount -t "$2" -o loop,ro "$1" "$3"
}
unmount_all() {
    local point
    if [ -f "$BENCH_WORK/points" ]; then
        while read -r point; do unmount "$point"; done < <(tac "$BENCH_WORK/points")
        rm -f "$BENCH_WORK/points"
    fi
    # The last mounted first.
    while read -r point; do
        case $point in
            "$BENCH_WORK"/* | "${BENCH_HOST:-$BENCH_WORK}"/*) umount -l "$point" || true ;;
        esac
    done < <(awk '{ print $5 }' /proc/self/mountinfo | tac)
}

# What most adapters do; those with processes define their own.
down() { unmount "$2"; }
clean() { unmount_all; }

run_adapter() {
    local operation=${1:-}
    shift || true
    case $operation in
        describe) ;;
        prepare | up | down | clean)
            [ -d "${BENCH_WORK:-}" ] || fail "BENCH_WORK is not a directory: ${BENCH_WORK:-not set}"
            BENCH_WORK=$(realpath "$BENCH_WORK")
            ;;
        *) fail "no such operation: write describe, prepare PART, up PART POINT, down PART POINT or clean" ;;
    esac
    case $operation:${1:-} in
        describe:* | clean:*) ;;
        # It becomes a part of keys, file names and an image's name.
        *:*[!a-z0-9._-]* | *:) fail "not a part's name: '${1:-}'" ;;
    esac
    "$operation" "$@"
}
