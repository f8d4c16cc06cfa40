# A shutdown with everything in use ends in time; after it, changes and snapshots are there.
inlay import --quiet "dir:$tree" --name base --kind image >/dev/null
mkdir -p /mnt/{read-only,writable}
systemctl enable --now inlay 2>/dev/null
inlay mount base /mnt/read-only >/dev/null
inlay mount --rw base /mnt/writable >/dev/null
printf 'kept\n' >/mnt/writable/data/new
rm /mnt/writable/data/many/file-1
inlay sandbox create base --name a >/dev/null
inlay exec a -- sh -c 'echo kept >/data/new'
inlay mount base a:/inner >/dev/null
inlay exec --detach a -- sh -c 'while true; do cat /data/many/* /inner/data/many/* >/dev/null; done'
exec 7</mnt/read-only/data/large 8>>/mnt/writable/data/new
