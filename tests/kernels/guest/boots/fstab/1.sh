# Lines of fstab, the shipped examples among them, are written. Nothing is mounted in this boot.
inlay import --quiet "dir:$tree" --name base --kind image >/dev/null
{
    grep -v '^#\|_netdev' /work/guest/fstab.example
    echo 'inlay:base /srv/needed inlay ro,nosuid,x-systemd.after=inlay.service 0 0'
} >/etc/fstab
awk '/^inlay/ { print $2 }' /etc/fstab | xargs mkdir -p
[ "$(grep -c '^inlay' /etc/fstab)" = 5 ] || fail "other lines than expected: $(cat /etc/fstab)"
