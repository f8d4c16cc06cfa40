#!/usr/bin/env bash
# exec takes command lines as long as execve(2) takes.
#
# Reported: podman#25396. Oracle: the same words on the host.
. "$(dirname "$0")/lib/lib.sh"
sandbox a; bad=()
word=$(head -c 120000 /dev/zero | tr '\0' x)
out=$(ex a sh -c 'echo $#' sh "$word" "$word" "$word" "$word" 2>&1); say "4 words of 120 KB: $out"; [ "$out" = 4 ] || bad+=("4 words of 120 KB")
w=(); for _ in $(seq 12); do w+=("$word"); done
here_=$(env sh -c 'echo $#' sh "${w[@]}"); out=$(ex a sh -c 'echo $#' sh "${w[@]}" 2>&1); say "12 words of 120 KB: here $here_; in the sandbox: ${out:0:150}"; [ "$out" = 12 ] || bad+=("12 words of 120 KB: ${out:0:90}")
here_=$(seq 6000 | xargs -n 6000 sh -c 'echo $#' sh); out=$(seq 6000 | xargs -n 6000 "$INLAY" exec "$tag-a" -- sh -c 'echo $#' sh 2>&1); say "6000 short words, as xargs gives them: here $here_; in the sandbox: $out"; [ "$out" = 6000 ] || bad+=("6000 words: $out")
[ ${#bad[@]} = 0 ] && pass "what a program takes, exec takes"
fail "$(printf '%s; ' "${bad[@]}")(docker exec takes them all)"
