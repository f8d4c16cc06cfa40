# Runs the commands of a page, which are on standard input, one after the other, up to the first that
# fails. Each is printed before what it prints.
set -euo pipefail
exec 3<&0 </dev/null 2>&1

# A build is what this is a test of: the program is there already.
cargo() {
    [ "$*" = "build --release" ] || { echo "cargo $*: another build than that of the tour"; return 1; }
    mkdir -p target/release
    ln -sf "$PROGRAM" target/release/inlay
}

# A live view gets a terminal, and the key that ends it.
inlay() {
    if [ "$*" = top ]; then
        timeout 60 script --quiet --return --command "inlay top" /dev/null \
            < <(while sleep 1; do printf q 2>/dev/null; done)
    else
        command inlay "$@"
    fi
}

# A command may have several lines: it is whole when bash can parse it and has nothing to say of it.
command=
while IFS= read -r line <&3; do
    command+=$line$'\n'
    [[ $line != *\\ ]] || continue
    [ -z "$(bash -nc "$command" 2>&1)" ] || continue
    printf '$ %s' "$command"
    eval "$command"
    command=
done
[ -z "$command" ] || { printf 'not a command: %s' "$command"; exit 1; }
