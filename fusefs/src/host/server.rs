//! The server of a host's snapshots, from the keeper's grant to the end of the session.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};

use super::Host;
use super::replay::Replayer;
use super::serve::Adopted;
use super::sweeper::Sweeper;
use super::table::{Attached, Opener};
use crate::control::{cut_connection, device_minor, raise_read_ahead};
use crate::counters::RequestCounters;
use crate::features::{FuseFeature, FuseFeatures};
use crate::fs::SnapshotFs;
use crate::fuse::{Adapter, Origin};
use crate::inflight;
use crate::inode::Slot;
use crate::keeper::{KeeperError, Kept, Link, LinkEvent, SessionId};
use crate::kind::ConnectionKind;
use crate::ledger::{LedgerError, Left, Visibility};
use crate::meter::RequestMeter;
use crate::notify::{Known, resend};
use crate::unmounted::{EndOnDrop, Ended};

/// Timeout of a forced unmount, after which its threads are left behind. The kernel wakes them at
/// once when the connection ends; only a request being served takes time.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How long an unmounted filesystem may take to end before its connection is aborted.
const END_BY_ITSELF: Duration = Duration::from_secs(1);

/// Options of a server.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Threads per connection. More than cores, because a page fault in an index may wait for the
    /// disk.
    pub threads: NonZeroUsize,
    /// Kernel read-ahead for sequential reads of a file, in KiB.
    pub read_ahead_kib: u32,
    /// Kernel features not to use even if offered.
    pub without: Vec<FuseFeature>,
}

impl Default for ServeOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = NonZeroUsize::new((2 * cores).min(8)).unwrap_or(NonZeroUsize::MIN);
        Self { threads, read_ahead_kib: 1024, without: Vec::new() }
    }
}

/// A slot of an earlier server, and how to reopen its snapshot.
pub struct Restored {
    /// One of [`Kept::slots`].
    pub slot: Slot,
    /// Called on the slot's first request.
    pub opener: Opener,
}

impl std::fmt::Debug for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restored").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Open large files at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// All.
    pub open: usize,
    /// Those with passthrough.
    pub passthrough: usize,
}

/// Why snapshots cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The handshake with the kernel failed.
    #[error("the {kind} connection can't be adopted: {source}")]
    Adopt {
        /// The connection.
        kind: ConnectionKind,
        /// The cause.
        source: io::Error,
    },
    /// The ledger cannot be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// Communication with the keeper failed.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The snapshot's index has no usable root directory.
    #[error("the snapshot can't be attached: {0}")]
    Snapshot(#[from] crate::error::FsError),
    /// The slot does not exist.
    #[error("no snapshot is attached in slot {0}")]
    NoSlot(Slot),
    /// The connections did not end in time.
    #[error("the mounts below {} do not end", .0.display())]
    StillMounted(PathBuf),
}

/// Serves all snapshots of a host. Dropping it leaves the session to the keeper.
#[derive(Debug)]
pub struct HostServer {
    session: SessionId,
    host: Arc<Host>,
    mountpoints: BTreeMap<ConnectionKind, PathBuf>,
    link: Arc<Link>,
    ended: Arc<Ended>,
    asked_to_leave: Arc<Ended>,
    threads: Vec<JoinHandle<()>>,
    replayers: Vec<Replayer>,
    sweeper: Sweeper,
    over: bool,
}

impl HostServer {
    /// Serves a session granted by the keeper. `restored` has the slots of earlier servers
    /// ([`Kept::slots`]); slots missing from it are abandoned and their files become stale.
    pub fn start(
        kept: Kept,
        restored: Vec<Restored>,
        options: &ServeOptions,
    ) -> Result<Self, HostError> {
        let session = kept.session().clone();
        let Kept { connections, ledger, left, link, .. } = kept;
        ledger.become_writer()?;
        let mut devices = BTreeMap::new();
        let mut adopted = Vec::new();
        let mut mountpoints = BTreeMap::new();
        for connection in connections {
            mountpoints.insert(connection.kind, connection.mountpoint);
            devices.insert(connection.kind, Arc::new(connection.device));
            adopted.push((connection.kind, connection.init));
        }
        let counters = Arc::new(RequestCounters::default());
        // All connections belong to the same kernel.
        let offered = adopted.first().map(|(_, init): &(_, Vec<u8>)| FuseFeatures::of(init));
        let features = offered.unwrap_or_default().without(&options.without);
        let host = Host::new(ledger, &left, devices.clone(), counters, features);
        let host = Arc::new(host.map_err(LedgerError::from)?);
        restore(&host, &left, restored);
        let threads = match host.shared.in_flight() {
            Some(_) => options.threads.min(inflight::THREADS_MAX),
            None => options.threads,
        };
        let mut ready = Vec::new();
        let mut inits = Vec::new();
        for (kind, init) in adopted {
            let Some(device) = devices.get(&kind) else { continue };
            let failed = |source| HostError::Adopt { kind, source };
            let adapter = Adapter::new(Arc::clone(&host), kind, Origin::Kernel);
            let adopted = Adopted::new(adapter, device, &init, threads);
            ready.push((kind, adopted.map_err(failed)?));
            inits.push((kind, init));
        }
        let sweeper = Sweeper::start(Arc::clone(&host)).map_err(KeeperError::from)?;
        let mut server = Self {
            session,
            host,
            mountpoints,
            link: Arc::new(link),
            ended: Arc::default(),
            asked_to_leave: Arc::default(),
            threads: Vec::new(),
            replayers: Vec::new(),
            sweeper,
            over: false,
        };
        server.run(ready).map_err(KeeperError::from)?;
        server.ask_again(&devices, &inits)?;
        server.greet(&devices, options)?;
        Ok(server)
    }

    fn run(&mut self, ready: Vec<(ConnectionKind, Adopted)>) -> io::Result<()> {
        let last = Arc::new(EndOnDrop::new(Arc::clone(&self.ended)));
        let (shared, file) = (Arc::clone(&self.host.shared), self.host.ledger_file());
        for (kind, adopted) in ready {
            let threads = adopted.threads();
            let (last, ended) = (Arc::clone(&last), Arc::clone(&self.ended));
            let serve = move || {
                let _last = last;
                if let Err(error) = adopted.run() {
                    // The kernel's requests would hang forever: signal the end, so that another
                    // process can adopt the connections.
                    tracing::error!(%error, "a FUSE session ended with an error");
                    ended.set();
                }
            };
            let start = || std::thread::Builder::new().name("inlay-fuse".into()).spawn(serve);
            self.threads.push(match shared.in_flight() {
                None => start()?,
                Some(_) => inflight::lend(&file, kind, threads, start)?,
            });
        }
        let (link, asked) = (Arc::clone(&self.link), Arc::clone(&self.asked_to_leave));
        let listen = move || match link.receive() {
            LinkEvent::Leave => asked.set(),
            LinkEvent::Ended => tracing::debug!("the keeper has exited"),
        };
        self.threads.push(std::thread::Builder::new().name("inlay-keeper".into()).spawn(listen)?);
        Ok(())
    }

    /// Starts the replay of recorded requests, on kernels that do not resend. Must run after the
    /// FUSE threads have taken their shared buffers.
    fn ask_again(
        &mut self,
        devices: &BTreeMap<ConnectionKind, Arc<OwnedFd>>,
        inits: &[(ConnectionKind, Vec<u8>)],
    ) -> Result<(), HostError> {
        for (kind, init) in inits {
            if self.host.shared.in_flight().is_some()
                && let Some(device) = devices.get(kind)
            {
                let started = Replayer::start(&self.host, *kind, device, init);
                let failed = |source| HostError::Adopt { kind: *kind, source };
                self.replayers.push(started.map_err(failed)?);
            }
        }
        Ok(())
    }

    /// Requests a resend or replay of unanswered requests, and tells the keeper that this server is
    /// ready.
    fn greet(
        &self,
        devices: &BTreeMap<ConnectionKind, Arc<OwnedFd>>,
        options: &ServeOptions,
    ) -> Result<(), HostError> {
        for (kind, device) in devices {
            if let Some(in_flight) = self.host.shared.in_flight() {
                in_flight.look_again(*kind);
                continue;
            }
            resend(device).map_err(|source| HostError::Adopt { kind: *kind, source })?;
        }
        self.link.serving()?;
        for attached in self.host.table.all() {
            if !attached.is_visible() && self.host.let_go_if_unused(&attached) == Known::Yes {
                self.sweeper.wake();
            }
        }
        for mountpoint in self.mountpoints.values() {
            if let Some(minor) = device_minor(mountpoint) {
                raise_read_ahead(minor, options.read_ahead_kib);
            }
        }
        Ok(())
    }

    /// Returns the session; slots are only valid within one session.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// Attaches a snapshot to a slot that was never used before.
    pub fn attach(&self, fs: SnapshotFs) -> Result<Slot, HostError> {
        fs.open_dir(inlay_store::format::InodeIdx::ROOT)?;
        Ok(self.host.attach(fs)?)
    }

    /// Hides a slot. Its files that are in use are still served; the returned event signals that
    /// they are not any more and the snapshot was released.
    pub fn detach(&self, slot: Slot) -> Result<Arc<Ended>, HostError> {
        match self.host.detach(slot)? {
            Some(attached) => {
                self.sweeper.wake();
                Ok(Arc::clone(attached.ended()))
            }
            None => Err(HostError::NoSlot(slot)),
        }
    }

    /// Prunes a detached slot and releases it if unused: the kernel keeps cached inodes of past
    /// users and does not report the end of their use.
    pub fn let_go_if_unused(&self, slot: Slot) {
        if let Some(attached) = self.host.table.get(slot) {
            self.host.prune(&attached);
        }
    }

    /// Prepares to reopen a slot of an earlier server before its first request. The returned
    /// function may block as long as the slot's opener does.
    pub fn opening(
        &self,
        slot: Slot,
    ) -> Result<impl FnOnce() -> Result<(), HostError> + Send + use<>, HostError> {
        let attached = self.host.table.get(slot).ok_or(HostError::NoSlot(slot))?;
        Ok(move || Ok(attached.fs().map(drop)?))
    }

    /// Returns a slot's directory, to bind-mount or to use as an overlay layer.
    pub fn dir(&self, slot: Slot) -> Result<PathBuf, HostError> {
        let attached = self.host.table.get(slot).ok_or(HostError::NoSlot(slot))?;
        let mountpoint = self.mountpoints.get(&attached.kind()).ok_or(HostError::NoSlot(slot))?;
        Ok(mountpoint.join(slot.to_string()))
    }

    /// Returns the connection of a slot.
    pub fn kind(&self, slot: Slot) -> Result<ConnectionKind, HostError> {
        Ok(self.host.table.get(slot).ok_or(HostError::NoSlot(slot))?.kind())
    }

    /// Returns the request counters.
    pub fn counters(&self) -> &Arc<RequestCounters> {
        &self.host.shared.counters
    }

    /// Returns the meter of request durations.
    pub fn meter(&self) -> &Arc<RequestMeter> {
        &self.host.shared.meter
    }

    /// Retries at once to release slots that were detached while in use, which otherwise happens
    /// periodically. Returns the number still in use.
    pub fn sweep(&self) -> usize {
        self.host.sweep()
    }

    /// Returns the number of open large files, and how many use passthrough.
    pub fn open_files(&self) -> OpenFiles {
        let (open, passthrough) = self.host.open_counts();
        OpenFiles { open, passthrough }
    }

    /// Signals that the session is over, or that this process cannot serve it any more: exit the
    /// process.
    pub fn ended(&self) -> &Arc<Ended> {
        &self.ended
    }

    /// Signals that another process wants to serve: call [`HostServer::leave`] and exit the
    /// process.
    pub fn asked_to_leave(&self) -> &Arc<Ended> {
        &self.asked_to_leave
    }

    /// Leaves the session to the keeper. Requests are still served until this process exits, which
    /// must be soon: the keeper waits a few seconds before it kills the process, and only grants
    /// the session to the next server after that. Reads that fail from now on are left to the next
    /// server.
    pub fn leave(&mut self) {
        if !self.over {
            self.over = true;
            self.host.shared.leave();
            if let Err(error) = self.link.goodbye() {
                tracing::warn!(%error, "can't tell the keeper that this process exits");
            }
        }
    }

    /// Ends the session: unmounts everything and stops the keeper. Files in use get errors.
    pub fn unmount(mut self) -> Result<(), HostError> {
        self.over = true;
        let minor = |(kind, mountpoint): (&ConnectionKind, &PathBuf)| {
            Some((*kind, device_minor(mountpoint)?))
        };
        let minors: Vec<_> = self.mountpoints.iter().filter_map(minor).collect();
        for mountpoint in self.mountpoints.values() {
            // `MNT_FORCE` aborts the connection, so that all waiting requests fail. The keeper also
            // unmounts, but it may be gone.
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = unmount(mountpoint, flags);
        }
        if let Err(error) = self.link.stop() {
            tracing::debug!(%error, "the keeper had exited");
        }
        self.end(&minors)?;
        self.link.hang_up();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a FUSE thread panicked");
            }
        }
        Ok(())
    }

    fn end(&self, minors: &[(ConnectionKind, u32)]) -> Result<(), HostError> {
        if self.ended.within(END_BY_ITSELF) {
            return Ok(());
        }
        for (kind, minor) in minors {
            // The device number of an ended connection may have been reused.
            if self.host.has_ended(*kind) {
                continue;
            }
            if let Err(error) = cut_connection(*minor)
                && error.kind() != io::ErrorKind::NotFound
            {
                tracing::warn!(%error, "can't cut a FUSE connection");
            }
        }
        if self.ended.within(END_WITHIN) {
            return Ok(());
        }
        let any = self.mountpoints.values().next().cloned().unwrap_or_default();
        Err(HostError::StillMounted(any))
    }
}

impl Drop for HostServer {
    fn drop(&mut self) {
        self.leave();
    }
}

fn restore(host: &Arc<Host>, left: &Left, restored: Vec<Restored>) {
    for Restored { slot, opener } in restored {
        if let Some((_, entry)) = left.slots.get(&slot.get()) {
            let visible = entry.visibility == Visibility::Attached;
            let (kind, host_then) = (entry.kind, Arc::downgrade(host));
            let opener: Opener = Box::new(move || {
                let fs = opener()?;
                if let Some(host) = host_then.upgrade() {
                    host.keep_registered(kind, slot, &fs);
                }
                Ok(fs)
            });
            host.table.insert(Attached::later(slot, kind, entry.numbers, visible, opener));
        } else {
            tracing::warn!(%slot, "this session has no such slot");
        }
    }
    for slot in left.slots.keys().filter_map(|slot| Slot::new(*slot)) {
        if host.table.get(slot).is_none() {
            tracing::warn!(%slot, "the record of a slot is lost; its files return ESTALE");
        }
    }
}
