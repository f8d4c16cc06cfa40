# The power fails while files are written and snapshots are taken: what was reported as done is there.
inlay import --quiet "dir:$tree" --name base --kind image >/dev/null
mkdir -p /mnt/writable
echo 'inlay:base /mnt/writable inlay writable,x-systemd.after=inlay.service 0 0' >/etc/fstab
sync
mount /mnt/writable
python3 - <<'P'
import os
for number in range(50):
    with open(f'/mnt/writable/data/synced-{number}', 'w') as file:
        file.write(f'{number}\n' * 1000)
        file.flush()
        os.fsync(file.fileno())
directory = os.open('/mnt/writable/data', os.O_RDONLY)
os.fsync(directory)
P
inlay sandbox create base --name a >/dev/null
inlay exec a -- sh -c 'echo kept >/data/new; sync'
inlay snapshot a --name durable >/dev/null
inlay snapshot a:/data --wait sealed --name sealed >/dev/null
(while true; do inlay exec a -- sh -c 'dd if=/dev/urandom of=/data/junk bs=1000 count=3000' 2>/dev/null; inlay snapshot a >/dev/null; done) &
(while true; do dd if=/dev/urandom of=/mnt/writable/data/junk bs=100000 count=50 2>/dev/null; done) &
sleep 5
power_cut
