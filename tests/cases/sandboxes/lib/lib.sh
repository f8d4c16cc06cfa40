# Shared by all cases. A case prints one line that begins with PASS, FAIL or SKIP, and exits with 0, 1 or 77.
#
#   INLAY        the program under test
#   INLAY_STATE  a state directory with the base in its own store
#   BASE         the name of the base: a Debian with python3
set -uo pipefail
: "${INLAY:?}" "${INLAY_STATE:?}" "${BASE:?}"
export INLAY_STATE
unset INLAY_STORE INLAY_NETWORK INLAY_PREFETCH
here=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
work=$(mktemp -d "${TMPDIR:-/tmp}/inlay-case-XXXXXX")
# Names are unique, so that cases can run at the same time.
tag=c$$
made=() after=()

inlay() { "$INLAY" --quiet "$@"; }
sandbox() { # NAME OPTION...: creates the sandbox TAG-NAME
    local name=$1
    shift
    made+=("$tag-$name")
    inlay sandbox create "$BASE" --name "$tag-$name" "$@" >/dev/null || fail "no sandbox of $BASE"
}
ex() { local name=$1; shift; inlay exec "$tag-$name" -- "$@"; }
put() { inlay cp "$2" "$tag-$1:$3" >/dev/null; }
get() { inlay cp "$tag-$1:$2" "$3" >/dev/null; }
live() { local name=$1 snapshot=$2 path=$3; shift 3; inlay mount "$@" "$snapshot" "$tag-$name:$path" >/dev/null; }
snap() { local name=$1 path=$2; shift 2; inlay snapshot "$tag-$name:$path" "$@" | head -1; }
say() { printf '  %s\n' "$*"; }
pass() { printf 'PASS: %s\n' "$*"; exit 0; }
fail() { printf 'FAIL: %s\n' "$*"; exit 1; }
skip() { printf 'SKIP: %s\n' "$*"; exit 77; }
plain_overlay() { # LOWER: mounts an overlay with the kernel's defaults at $merged
    local dir=$work/overlay
    mkdir -p "$dir"/{upper,work,merged}
    merged=$dir/merged
    # Before the mount, because the case may be ended at any time; what it ran may still be in there then.
    after+=("umount $merged || umount --lazy $merged")
    mount -t overlay overlay -o "lowerdir=$1,upperdir=$dir/upper,workdir=$dir/work" "$merged"
}
ended() {
    local command name
    for command in ${after[@]+"${after[@]}"}; do eval "$command" >/dev/null 2>&1; done
    for name in ${made[@]+"${made[@]}"}; do timeout 60 "$INLAY" --quiet sandbox rm --force "$name" >/dev/null 2>&1; done
    rm -rf --one-file-system "$work"
}
trap ended EXIT
