# What the scripts share. To be sourced; expects to find itself in scripts/.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# Everything that the scripts install or make, apart from Debian packages, is below target/.
tools=$root/target/tools
fixtures=$root/target/fixtures
export PATH="$tools/bin:$tools/venv/bin:$tools/debian/usr/bin:$PATH"

say() { printf '== %s\n' "$*" >&2; }
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null; }
need_root() { [ "$(id -u)" = 0 ] || fail "run this as root: $1"; }
