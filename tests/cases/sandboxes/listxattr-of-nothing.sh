#!/usr/bin/env bash
# A file without extended attributes has an empty list of them.
#
# Reported: composefs/composefs-rs#311. Oracle: plain overlayfs.
. "$(dirname "$0")/lib/lib.sh"
sandbox a; live a empty /project; ex a sh -c 'echo x > /project/file; mkdir /project/dir'
id=$(snap a /project); live a "$id" /other
out=$(ex a python3 -c '
import os,errno
bad=0
for n in ("/etc/passwd","/usr","/other/file","/other/dir"):
    for what,do,right in (("listxattr",lambda: os.listxattr(n),"[]"),("getxattr of an absent name",lambda: os.getxattr(n,"user.none"),"ENODATA")):
        try: r=str(do())
        except OSError as e: r=errno.errorcode[e.errno]
        if r!=right: bad+=1; print("   ",n,what+":",r,"instead of",right)
print(bad)')
printf '%s\n' "$out" | sed '$d'
ex a sh -c 'command -v tar >/dev/null && tar --xattrs -cf /dev/null -C / etc 2>&1 | grep -c "not supported"' | sed 's/^/    warnings of tar --xattrs for \/etc: /'
mkdir "$work/lower"; echo x > "$work/lower/file"; plain_overlay "$work/lower" && say "a plain overlay: listxattr $(python3 -c 'import os,sys; print(os.listxattr(sys.argv[1]))' "$merged/file")"
[ "$(tail -1 <<<"$out")" = 0 ] && pass "what has no extended attributes says so"
fail "files and directories without extended attributes answer EOPNOTSUPP instead of an empty list (docker, plain overlay: empty list; getfattr exits with 1, tar --xattrs warns of each file)"
