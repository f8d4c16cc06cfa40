//! Injects faults at named steps, so that tests can inspect the state left by a process that dies
//! there.
//!
//! `INLAY_INJECT=STEP=kill`, `STEP=error`, `STEP=sleep:MS` or `STEP=hold` arms one step in every
//! process that has the variable. The suffix `@FILE` limits the fault to one occurrence, which
//! creates FILE. Commas separate several faults. `hold` creates `FILE.held` and blocks until it is
//! removed, for at most a minute. Builds without debug assertions contain none of this.

use std::io;

/// Defines the steps: variant, name, and the operation that reaches it.
macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident $name:literal $scene:ident,)+) => {
        /// A point at which a process may die, right after the described event.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step {
            $($(#[doc = $doc])+ $step,)+
        }

        impl Step {
            /// All steps.
            pub const ALL: &[Self] = &[$(Self::$step),+];

            /// Name in `INLAY_INJECT`.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$step => $name),+ }
            }

            /// Operation that reaches the step.
            pub const fn scene(self) -> Scene {
                match self { $(Self::$step => Scene::$scene),+ }
            }
        }
    };
}

/// An operation that reaches a step. The crash tests can perform each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// Create a writable mount.
    Mount,
    /// Unmount it.
    Umount,
    /// Create and name a snapshot.
    Import,
    /// Create and start a sandbox.
    Create,
    /// Mount a snapshot into a sandbox.
    LiveMount,
    /// Unmount it from the sandbox.
    LiveUmount,
    /// Snapshot a directory of a sandbox.
    Snapshot,
    /// Upload a sealed snapshot to its store.
    Ship,
    /// Stop a sandbox.
    Stop,
    /// Remove a sandbox.
    Remove,
}

steps! {
    /// The mount point is claimed, and created if it was missing.
    MountClaimed "mount-claimed" Mount,
    /// The kernel sees the attached snapshot, but no file names it yet.
    SlotAttached "slot-attached" Mount,
    /// A file names it.
    SlotRecorded "slot-recorded" Mount,
    /// The upper directory exists.
    UpperPrepared "upper-prepared" Mount,
    /// The mount's record exists, but nothing is mounted.
    MountRecorded "mount-recorded" Mount,
    /// The mount is visible to users, but not yet reported to the caller.
    MountAttached "mount-attached" Mount,
    /// The mount is final: it survives the end of this daemon.
    MountConfirmed "mount-confirmed" Mount,
    /// The response to a request with an idempotency key is on disk, but not sent.
    AnswerKept "answer-kept" Mount,
    /// An unmount has begun.
    UmountBegun "umount-begun" Umount,
    /// The mount is no longer visible to users.
    UmountDone "umount-done" Umount,
    /// Its changes are released.
    UpperReleased "upper-released" Umount,
    /// Its record is removed.
    RecordRemoved "record-removed" Umount,
    /// The name of its slot is removed.
    SlotDetached "slot-detached" Umount,
    /// The file about its slot is removed.
    SlotForgotten "slot-forgotten" Umount,
    /// The blobs are in the store.
    BlobsStored "blobs-stored" Import,
    /// The index is in the store.
    IndexStored "index-stored" Import,
    /// The record is in the store: the snapshot is visible to others.
    RecordStored "record-stored" Import,
    /// The name refers to the snapshot.
    NameStored "name-stored" Import,
    /// The sandbox has a record, and nothing else.
    SandboxRecorded "sandbox-recorded" Create,
    /// It has its directories and its disk, but no secrets.
    SandboxDiskAttached "sandbox-disk-attached" Create,
    /// It has its directories, its disk and its secrets.
    SandboxPrepared "sandbox-prepared" Create,
    /// Its root is mounted.
    SandboxRootMounted "sandbox-root-mounted" Create,
    /// The runtime's bundle is written.
    SandboxBundleWritten "sandbox-bundle-written" Create,
    /// The container and its monitor exist, but no process of it has started.
    SandboxContainerMade "sandbox-container-made" Create,
    /// Its first process has started, and its record says that it runs.
    SandboxRunning "sandbox-running" Create,
    /// A live mount has its file, but nothing is mounted.
    LiveMountNoted "live-mount-noted" LiveMount,
    /// A live mount is in effect and its file says so, but it is not yet reported to the caller.
    LiveMountWritten "live-mount-written" LiveMount,
    /// A live mount is detached; its file and its changes still exist.
    LiveUmounted "live-umounted" LiveUmount,
    /// A sandbox is frozen for a snapshot.
    SandboxFrozen "sandbox-frozen" Snapshot,
    /// The changes are set aside and the sandbox runs again; nothing is in the store.
    SandboxThawed "sandbox-thawed" Snapshot,
    /// The objects of a snapshot to seal are on this host, but it is not in the queue.
    SealedObjectsWritten "sealed-objects-written" Ship,
    /// The blobs of a sealed snapshot are in the store.
    SealedBlobsShipped "sealed-blobs-shipped" Ship,
    /// Its record is in the store, but its name is not.
    SealedRecordShipped "sealed-record-shipped" Ship,
    /// A snapshot is complete, but not yet reported to the caller.
    SnapshotTaken "snapshot-taken" Snapshot,
    /// A sandbox is about to stop.
    SandboxStopping "sandbox-stopping" Stop,
    /// Its processes have exited, but its record does not say so.
    SandboxProcessesEnded "sandbox-processes-ended" Stop,
    /// Its record says that it is being removed.
    SandboxRemovalNoted "sandbox-removal-noted" Remove,
    /// Its processes have exited.
    SandboxRemovalEnded "sandbox-removal-ended" Remove,
    /// Nothing of it is mounted, but its directory exists.
    SandboxRemovalUnmounted "sandbox-removal-unmounted" Remove,
}

/// Triggers the fault armed for `step`, if any. No-op in release builds.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[allow(clippy::unnecessary_wraps, clippy::inline_always)] // so that it compiles to nothing
pub fn point(_: Step) -> io::Result<()> {
    Ok(())
}

/// Arms the faults in `text`. No-op in release builds.
#[cfg(not(debug_assertions))]
#[allow(clippy::unnecessary_wraps)] // same signature as the other one
pub fn arm(_: Option<&str>) -> Result<(), String> {
    Ok(())
}

#[cfg(debug_assertions)]
pub use armed::arm;
#[cfg(debug_assertions)]
pub use armed::point;

#[cfg(debug_assertions)]
mod armed {
    use std::fs::File;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::thread;
    use std::time::{Duration, Instant};

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Step, io};

    static ARMED: OnceLock<Vec<Armed>> = OnceLock::new();

    /// Maximum time a step is held, and the interval at which its file is checked.
    const HELD_MAX: Duration = Duration::from_mins(1);
    const LOOK_AGAIN: Duration = Duration::from_millis(2);

    /// A fault armed at a step.
    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Armed {
        step: Step,
        fault: Fault,
        /// Created when the fault occurs; if it exists, the fault has occurred.
        once: Option<PathBuf>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        Kill,
        Error,
        Sleep(Duration),
        /// Requires a file.
        Hold,
    }

    /// Arms the faults in `text`.
    pub fn arm(text: Option<&str>) -> Result<(), String> {
        let Some(text) = text else { return Ok(()) };
        let armed: Option<Vec<Armed>> = text.split(',').map(parse).collect();
        let armed = armed.ok_or_else(|| {
            format!(
                "'{text}' is no fault; it is STEP=kill, STEP=error or STEP=sleep:MS, with @FILE \
                 if it is to happen once, or STEP=hold@FILE"
            )
        })?;
        ARMED.set(armed).map_err(|_| "a fault is armed already".to_owned())
    }

    pub(super) fn parse(text: &str) -> Option<Armed> {
        let (what, once) = match text.split_once('@') {
            Some((what, file)) => (what, Some(file.into())),
            None => (text, None),
        };
        let (name, fault) = what.split_once('=')?;
        let step = *Step::ALL.iter().find(|step| step.name() == name)?;
        let fault = match fault {
            "kill" => Fault::Kill,
            "error" => Fault::Error,
            "hold" if once.is_some() => Fault::Hold,
            _ => {
                let millis = fault.strip_prefix("sleep:")?.parse().ok()?;
                Fault::Sleep(Duration::from_millis(millis))
            }
        };
        Some(Armed { step, fault, once })
    }

    /// Triggers the fault armed for `step`, if any.
    pub fn point(step: Step) -> io::Result<()> {
        let mut all = ARMED.get().into_iter().flatten();
        let Some(armed) = all.find(|armed| armed.step == step) else { return Ok(()) };
        if let Some(file) = &armed.once
            && File::create_new(file).is_err()
        {
            return Ok(());
        }
        tracing::warn!(step = step.name(), fault = ?armed.fault, "injecting a fault");
        match armed.fault {
            Fault::Kill => {
                kill_process(getpid(), Signal::KILL)?;
                loop {
                    thread::park();
                }
            }
            Fault::Error => Err(io::Error::other(format!("injected at {}", step.name()))),
            Fault::Sleep(time) => {
                thread::sleep(time);
                Ok(())
            }
            Fault::Hold => {
                let Some(file) = &armed.once else { return Ok(()) };
                hold(&file.with_added_extension("held"))
            }
        }
    }

    fn hold(held: &Path) -> io::Result<()> {
        File::create(held)?;
        let until = Instant::now() + HELD_MAX;
        while held.exists() && Instant::now() < until {
            thread::sleep(LOOK_AGAIN);
        }
        Ok(())
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_steps_have_names_of_their_own() {
        for text in [
            "mount-attached=kill",
            "mount-attached=sleep:5@/a=b",
            "slot-attached=error",
            "slot-attached=hold@/a",
        ] {
            assert!(armed::parse(text).is_some(), "{text}");
        }
        for text in [
            "",
            "kill",
            "no-step=kill",
            "mount-attached=",
            "mount-attached=sleep:x",
            "slot-attached=hold",
        ] {
            assert!(armed::parse(text).is_none(), "{text}");
        }
        for (at, step) in Step::ALL.iter().enumerate() {
            assert!(Step::ALL[at + 1..].iter().all(|other| other.name() != step.name()));
        }
    }
}
