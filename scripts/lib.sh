# What the scripts share. To be sourced; expects to find itself in scripts/.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"

# Everything that the scripts install or make, apart from Debian packages, is below target/.
tools=$root/target/tools
fixtures=$root/target/fixtures
# What README names as supported, and tests/readme.rs compares with it.
oldest_kernel=5.15 script_debian=12
export PATH="$tools/bin:$tools/venv/bin:$tools/debian/usr/bin:$PATH"

say() { printf '== %s\n' "$*" >&2; }
fail() {
    printf '%s: %s\n' "${0##*/}" "$*" >&2
    exit 1
}
have() { command -v "$1" >/dev/null; }
need_root() { [ "$(id -u)" = 0 ] || fail "run this as root: $1"; }

# RELEASE: where apt finds packages of that Debian release, going by where it finds those of this one.
sources_of() {
    local own format='deb $(REPO_URI) $(RELEASE) $(COMPONENT)'
    own=$(. /etc/os-release && printf '%s' "$VERSION_CODENAME")
    apt-get indextargets --format "$format" 'Created-By: Packages' 'Origin: Debian' \
        | grep -E " $own(-security)? " | sed "s/ $own/ $1/" | grep . \
        || fail "apt knows no source of Debian packages"
}

# [KERNEL [OS-RELEASE]]: ends the script unless this host is what README names as supported.
need_supported_host() {
    local kernel=${1:-$(uname -r)} release=${2:-/etc/os-release} ID= VERSION_ID= PRETTY_NAME=
    printf '%s\n' "$oldest_kernel" "$kernel" | sort --version-sort --check=quiet \
        || fail "Linux $kernel is not supported: Linux $oldest_kernel or later is needed"
    [ ! -r "$release" ] || . "$release"
    [ "$ID $VERSION_ID" = "debian $script_debian" ] \
        || fail "${PRETTY_NAME:-this distribution} is not supported: Debian $script_debian is needed"
}
