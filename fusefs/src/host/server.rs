//! The server of a host's snapshots, from the keeper's word to its end.

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
use super::serve::Adopted;
use super::sweeper::Sweeper;
use super::table::{Attached, Opener};
use crate::control::{cut_connection, device_minor, raise_read_ahead};
use crate::counters::RequestCounters;
use crate::ended::{EndOnDrop, Ended};
use crate::fs::SnapshotFs;
use crate::fuse::Adapter;
use crate::inode::Slot;
use crate::keeper::{KeeperError, Kept, Link, LinkEvent, SessionId};
use crate::kind::ConnectionKind;
use crate::ledger::{LedgerError, Left, Visibility};
use crate::meter::RequestMeter;
use crate::notify::{Known, resend};

/// How long a forced unmount may take before its threads are left behind. The kernel wakes them at
/// once when the connection ends; what takes time is a request that is being served.
const END_WITHIN: Duration = Duration::from_secs(10);
/// How long an unmounted filesystem is given to end by itself, before the connection is cut.
const END_BY_ITSELF: Duration = Duration::from_secs(1);

/// How to serve.
#[derive(Clone, Debug)]
pub struct ServeOptions {
    /// Threads for each connection. More than cores, because a page fault in an index may wait for
    /// the disk.
    pub threads: NonZeroUsize,
    /// How far the kernel reads ahead in a file that is read in order, in KiB.
    pub read_ahead_kib: u32,
}

impl Default for ServeOptions {
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        let threads = NonZeroUsize::new((2 * cores).min(8)).unwrap_or(NonZeroUsize::MIN);
        Self { threads, read_ahead_kib: 1024 }
    }
}

/// A slot of an earlier server, and how its snapshot is opened again.
pub struct Restored {
    /// One of [`Kept::slots`].
    pub slot: Slot,
    /// Called at the slot's first request.
    pub opener: Opener,
}

impl std::fmt::Debug for Restored {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Restored").field("slot", &self.slot).finish_non_exhaustive()
    }
}

/// Large files that are open at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenFiles {
    /// All.
    pub open: usize,
    /// Those that the kernel reads itself.
    pub passthrough: usize,
}

/// Why snapshots can't be served.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The kernel and this program could not agree on how to talk.
    #[error("the {kind} connection can't be adopted: {source}")]
    Adopt {
        /// Which.
        kind: ConnectionKind,
        /// Why.
        source: io::Error,
    },
    /// The ledger can't be used.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
    /// The keeper can't be talked to.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The snapshot's index has no usable root directory.
    #[error("the snapshot can't be attached: {0}")]
    Snapshot(#[from] crate::error::FsError),
    /// There is no such slot.
    #[error("nothing is attached in slot {0}")]
    NoSlot(Slot),
    /// The connections do not end.
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
    sweeper: Sweeper,
    over: bool,
}

impl HostServer {
    /// Serves what the keeper has handed on. `restored` has the slots of earlier servers
    /// ([`Kept::slots`]); those that are missing from it are given up.
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
        let host = Arc::new(Host::new(ledger, &left, devices.clone(), counters));
        restore(&host, &left, restored);
        let ready = adopted
            .into_iter()
            .filter_map(|(kind, init)| Some((kind, init, Arc::clone(devices.get(&kind)?))))
            .map(|(kind, init, device)| {
                let adapter = Adapter::new(Arc::clone(&host), kind);
                let adopted = Adopted::new(adapter, &device, &init, options.threads);
                adopted.map_err(|source| HostError::Adopt { kind, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let sweeper = Sweeper::start(Arc::clone(&host)).map_err(KeeperError::from)?;
        let mut server = Self {
            session,
            host,
            mountpoints,
            link: Arc::new(link),
            ended: Arc::default(),
            asked_to_leave: Arc::default(),
            threads: Vec::new(),
            sweeper,
            over: false,
        };
        server.run(ready).map_err(KeeperError::from)?;
        server.greet(&devices, options)?;
        Ok(server)
    }

    fn run(&mut self, ready: Vec<Adopted>) -> io::Result<()> {
        let last = Arc::new(EndOnDrop::new(Arc::clone(&self.ended)));
        for adopted in ready {
            let (last, ended) = (Arc::clone(&last), Arc::clone(&self.ended));
            let serve = move || {
                let _last = last;
                if let Err(error) = adopted.run() {
                    // The kernel's requests would wait for ever: let another process adopt them.
                    tracing::error!(%error, "a FUSE session ended with an error");
                    ended.set();
                }
            };
            self.threads.push(std::thread::Builder::new().name("inlay-fuse".into()).spawn(serve)?);
        }
        let (link, asked) = (Arc::clone(&self.link), Arc::clone(&self.asked_to_leave));
        let hear = move || match link.hear() {
            LinkEvent::Leave => asked.set(),
            LinkEvent::Ended => tracing::debug!("the keeper has ended"),
        };
        self.threads.push(std::thread::Builder::new().name("inlay-keeper".into()).spawn(hear)?);
        Ok(())
    }

    /// The kernel sends again what the last server has not answered, and the keeper learns that it
    /// may.
    fn greet(
        &self,
        devices: &BTreeMap<ConnectionKind, Arc<OwnedFd>>,
        options: &ServeOptions,
    ) -> Result<(), HostError> {
        for (kind, device) in devices {
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

    /// Whose life this is: slots mean something within one session only.
    pub fn session(&self) -> &SessionId {
        &self.session
    }

    /// Makes a snapshot visible in a slot that was never used before.
    pub fn attach(&self, fs: SnapshotFs) -> Result<Slot, HostError> {
        fs.open_dir(inlay_store::format::InodeIdx::ROOT)?;
        Ok(self.host.attach(fs)?)
    }

    /// Takes a slot out of sight. What is in use of it goes on being served; what is returned tells
    /// when that is over and the snapshot has been let go.
    pub fn detach(&self, slot: Slot) -> Result<Arc<Ended>, HostError> {
        match self.host.detach(slot)? {
            Some(attached) => {
                self.sweeper.wake();
                Ok(Arc::clone(attached.ended()))
            }
            None => Err(HostError::NoSlot(slot)),
        }
    }

    /// Looks again whether a detached slot is still in use: the kernel keeps what its last users saw,
    /// and tells nothing of their end.
    pub fn let_go_if_unused(&self, slot: Slot) -> Result<(), HostError> {
        match self.host.table.get(slot) {
            Some(attached) => Ok(self.host.prune(&attached)?),
            None => Ok(()),
        }
    }

    /// Opens a slot that an earlier server has attached, before the kernel asks for something of it. What
    /// is returned may wait for whatever the slot's opener waits for.
    pub fn opening(
        &self,
        slot: Slot,
    ) -> Result<impl FnOnce() -> Result<(), HostError> + Send + use<>, HostError> {
        let attached = self.host.table.get(slot).ok_or(HostError::NoSlot(slot))?;
        Ok(move || Ok(attached.fs().map(drop)?))
    }

    /// Where a slot's directory is: what to bind or to put an overlay on.
    pub fn dir(&self, slot: Slot) -> Result<PathBuf, HostError> {
        let attached = self.host.table.get(slot).ok_or(HostError::NoSlot(slot))?;
        let mountpoint = self.mountpoints.get(&attached.kind()).ok_or(HostError::NoSlot(slot))?;
        Ok(mountpoint.join(slot.to_string()))
    }

    /// The connection that a slot lives on.
    pub fn kind(&self, slot: Slot) -> Result<ConnectionKind, HostError> {
        Ok(self.host.table.get(slot).ok_or(HostError::NoSlot(slot))?.kind())
    }

    /// The requests of the kernel so far.
    pub fn counters(&self) -> &Arc<RequestCounters> {
        &self.host.shared.counters
    }

    /// How long requests of the kernel take, while somebody measures it.
    pub fn meter(&self) -> &Arc<RequestMeter> {
        &self.host.shared.meter
    }

    /// Looks at once whether slots that were detached while they were in use still are, which is
    /// otherwise done every now and then. Returns how many are.
    pub fn sweep(&self) -> usize {
        self.host.sweep()
    }

    /// How many large files are open, and how many of them the kernel reads from cached files
    /// itself.
    pub fn open_files(&self) -> OpenFiles {
        let (open, passthrough) = self.host.open_counts();
        OpenFiles { open, passthrough }
    }

    /// Tells when the session is over, or this process can't serve it any more: end the process.
    pub fn ended(&self) -> &Arc<Ended> {
        &self.ended
    }

    /// Tells when another process wants to serve: call [`HostServer::leave`] and end the process.
    pub fn asked_to_leave(&self) -> &Arc<Ended> {
        &self.asked_to_leave
    }

    /// Leaves the session to the keeper. Requests go on being answered until this process ends,
    /// which must be soon: the keeper gives it a few seconds, and only then is it another's turn.
    /// Reads that fail from now on are left to the next server.
    pub fn leave(&mut self) {
        if !self.over {
            self.over = true;
            self.host.shared.leave();
            if let Err(error) = self.link.goodbye() {
                tracing::warn!(%error, "the keeper was not told that this process ends");
            }
        }
    }

    /// Ends it all: everything is unmounted, and the keeper ends. What is in use gets errors.
    pub fn unmount(mut self) -> Result<(), HostError> {
        self.over = true;
        let minor = |(kind, mountpoint): (&ConnectionKind, &PathBuf)| {
            Some((*kind, device_minor(mountpoint)?))
        };
        let minors: Vec<_> = self.mountpoints.iter().filter_map(minor).collect();
        for mountpoint in self.mountpoints.values() {
            // `MNT_FORCE` cuts the connection, so that all that waits fails. The keeper unmounts,
            // too; it may be gone.
            let flags = UnmountFlags::FORCE | UnmountFlags::DETACH | UnmountFlags::NOFOLLOW;
            let _ = unmount(mountpoint, flags);
        }
        if let Err(error) = self.link.stop() {
            tracing::debug!(%error, "the keeper had ended");
        }
        self.end(&minors)?;
        self.link.hang_up();
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that served the kernel panicked");
            }
        }
        Ok(())
    }

    fn end(&self, minors: &[(ConnectionKind, u32)]) -> Result<(), HostError> {
        if self.ended.within(END_BY_ITSELF) {
            return Ok(());
        }
        for (kind, minor) in minors {
            // The number of a connection that has ended may be another's by now.
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
            host.table.insert(Attached::later(slot, entry.kind, visible, opener));
        } else {
            tracing::warn!(%slot, "this session has no such slot");
        }
    }
    for slot in left.slots.keys().filter_map(|slot| Slot::new(*slot)) {
        if host.table.get(slot).is_none() {
            tracing::warn!(%slot, "nobody knows what was in this slot: its files are stale");
        }
    }
}
