# limit: 400 s
# A host uses a remote store: one snapshot is read as a whole, one is mounted only, one is not looked at.
url=http://10.99.0.2:8000
for name in whole part other; do
    mkdir -p "$name"
    # Of each its own: what several snapshots have is in the cache once.
    head -c 6000000 /dev/urandom >"$name/large"
    printf '%s\n' "$name" >"$name/name"
    inlay --store /var/lib/served import --quiet "dir:$name" --name "$name" >"$name.id"
done
busybox ip link set lo up
busybox ip addr add 10.99.0.2/32 dev lo
systemd-run --quiet --unit=served --property=DefaultDependencies=no python3 /work/guest/serve.py 10.99.0.2 8000 /var/lib/served
for _ in $(seq 20); do
    ! inlay --plain-http --store "$url" cat whole:/name >/dev/null 2>&1 || break
    sleep 0.1
done
[ "$(inlay --plain-http --store "$url" cat whole:/name)" = whole ] || fail "the store does not answer"
id=$(cat whole.id)
{
    echo "inlay:whole /srv/named inlay ro,store=$url,plain-http,x-systemd.after=inlay.service 0 0"
    echo "inlay:$id /srv/numbered inlay ro,store=$url,plain-http,x-systemd.after=inlay.service 0 0"
    echo "inlay:whole /srv/writable inlay writable,store=$url,plain-http,x-systemd.after=inlay.service 0 0"
    echo "inlay:part /srv/part inlay ro,store=$url,plain-http,x-systemd.after=inlay.service 0 0"
    echo "inlay:other /srv/other inlay ro,nofail,store=$url,plain-http,x-systemd.after=inlay.service 0 0"
} >/etc/fstab
awk '/^inlay/ { print $2 }' /etc/fstab | xargs mkdir -p
for dir in named numbered writable part; do mount "/srv/$dir"; done
cmp /srv/named/large whole/large
cmp /srv/named/name whole/name
printf 'kept\n' >/srv/writable/new
umount /srv/{named,numbered,writable,part}
# From the next boot on, packets to that address are swallowed.
cat >/etc/systemd/system/swallow.service <<'U'
[Unit]
DefaultDependencies=no
Before=local-fs-pre.target inlay.service
Wants=local-fs-pre.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/busybox modprobe dummy
ExecStart=/bin/busybox ip link set dummy0 up
ExecStart=/bin/busybox ip addr add 10.99.0.1/24 dev dummy0
[Install]
WantedBy=local-fs-pre.target sysinit.target
U
systemctl enable --quiet swallow
