# A snapshot of a whole sandbox starts another one that has the same.
inlay sandbox create base --name a >/dev/null
inlay exec a -- sh -c 'cd /data && echo new >new && rm -r many/file-1 && mv deep deeper && ln large alias &&
    chmod 700 many && ln -s x y && dd if=/dev/zero of=zeros bs=1000 count=3000 2>/dev/null'
list='set -e; cd /; find bin data root etc/passwd -exec stat -c "%n %F %a %u:%g %s %h %Y" {} + | grep -v directory | sort;
    find data -type f -print0 | xargs -0 sha256sum | sort'
inlay exec a -- sh -c "$list" >first
inlay snapshot a --name a-as-it-was >/dev/null
inlay exec a -- sh -c 'echo later >/data/later'
inlay sandbox create a-as-it-was --name b >/dev/null
inlay exec b -- sh -c "$list" >second
cmp first second || { diff first second | head; fail "the second sandbox differs"; }
inlay snapshot a --name a-later >/dev/null
[ "$(inlay cat a-later:/data/later)" = later ] || fail "the second snapshot lacks a change"
inlay sandbox rm --force a b >/dev/null
