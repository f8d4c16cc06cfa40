# Changes of a writable mount are there at once, after the next mount, and gone when thrown away.
mkdir -p mnt
inlay mount --rw base mnt >/dev/null
same_as_source mnt
printf 'new\n' >mnt/data/new
printf 'more\n' >>mnt/data/compressible
rm mnt/data/many/file-1
mv mnt/data/many/file-2 mnt/data/moved
mv mnt/data/deep mnt/data/deeper
ln mnt/data/many/file-3 mnt/data/linked
chmod 640 mnt/data/many/file-4
chown 1000:1000 mnt/data/large
setfattr -n user.colour -v red mnt/data/large
check() {
    [ "$(cat mnt/data/new)" = new ] || fail "$1: a new file differs"
    [ "$(tail -1 mnt/data/compressible)" = more ] || fail "$1: an appended file differs"
    [ ! -e mnt/data/many/file-1 ] || fail "$1: a removed file is there"
    cmp mnt/data/moved "$tree/data/many/file-2"
    cmp mnt/data/deeper/a/b/c/file "$tree/data/deep/a/b/c/file"
    cmp mnt/data/linked "$tree/data/many/file-3"
    [ "$(stat -c %a mnt/data/many/file-4)" = 640 ] || fail "$1: another mode"
    cmp mnt/data/large "$tree/data/large"
    [ "$(getfattr --only-values -n user.colour mnt/data/large)" = red ] || fail "$1: another attribute"
}
check "written"
inlay umount mnt >/dev/null
inlay mount --rw base mnt >/dev/null
check "mounted again"
inlay umount --discard mnt >/dev/null
inlay mount --rw base mnt >/dev/null
same_as_source mnt
inlay umount --discard mnt >/dev/null
