# limit: 300 s
# As a unit of systemd's: killed as a whole, restarted, stopped and started, while programs read.
mkdir -p read-only
systemctl daemon-reload
systemctl start inlay || { journalctl -u inlay --no-pager -o cat | tail -5; fail "the service does not start"; }
inlay mount base read-only >/dev/null
start_reader read-only/data
goes_on "started"
note "systemd keeps $(systemctl show -P NFileDescriptorStore inlay) descriptors"
kill -KILL "$(systemctl show -P MainPID inlay)"
goes_on "kill of the daemon"
systemctl kill -s KILL inlay
goes_on "kill of the whole unit"
systemctl restart inlay
goes_on "restart"
systemctl stop inlay
systemctl start inlay
goes_on "stop and start"
end_reader
inlay umount read-only >/dev/null
systemctl stop inlay
[ -z "$(inlay_mounts)" ] || fail "mounts are left: $(inlay_mounts)"
! pgrep -x inlay || fail "processes are left"
