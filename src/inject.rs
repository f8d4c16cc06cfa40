//! Faults at chosen steps, so that tests can see what is left behind by a process that dies there.
//!
//! `INLAY_INJECT=STEP=kill`, `STEP=error` or `STEP=sleep:MS` arms one step in every process that has
//! the variable; with `@FILE` at its end the fault happens once, and FILE is there afterwards. Only
//! builds with debug assertions have any of it.

use std::io;

/// Lists the steps: a name, what has just happened, and what does it.
macro_rules! steps {
    ($($(#[doc = $doc:literal])+ $step:ident $name:literal $scene:ident,)+) => {
        /// A moment at which a process may die: right after what it says.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Step {
            $($(#[doc = $doc])+ $step,)+
        }

        impl Step {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$step),+];

            /// What it is called in the variable.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$step => $name),+ }
            }

            /// What does it.
            pub const fn scene(self) -> Scene {
                match self { $(Self::$step => Scene::$scene),+ }
            }
        }
    };
}

/// What is done when a step is come by. The tests know how to do each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scene {
    /// A writable mount.
    Mount,
    /// The end of one.
    Umount,
    /// A snapshot is made and given a name.
    Import,
    /// A sandbox is made and started.
    Create,
    /// A snapshot is mounted into a sandbox.
    LiveMount,
    /// And unmounted.
    LiveUmount,
    /// A snapshot of a sandbox's directory is taken.
    Snapshot,
    /// A sealed snapshot is carried to its store.
    Ship,
    /// A sandbox is stopped.
    Stop,
    /// A sandbox is removed.
    Remove,
}

steps! {
    /// The mount point is taken, and made if it was missing.
    MountClaimed "mount-claimed" Mount,
    /// The kernel sees a snapshot; no file says which.
    SlotAttached "slot-attached" Mount,
    /// A file says which.
    SlotRecorded "slot-recorded" Mount,
    /// The upper directory is there.
    UpperPrepared "upper-prepared" Mount,
    /// There is a record; nothing is mounted.
    MountRecorded "mount-recorded" Mount,
    /// Users see it; nobody was told.
    MountAttached "mount-attached" Mount,
    /// It stays, whatever becomes of this daemon.
    MountConfirmed "mount-confirmed" Mount,
    /// The answer to a request with a key is on disk; it was not given.
    AnswerKept "answer-kept" Mount,
    /// An unmount was asked for.
    UmountBegun "umount-begun" Umount,
    /// Users don't see it any more.
    UmountDone "umount-done" Umount,
    /// Its changes are given up.
    UpperReleased "upper-released" Umount,
    /// Its record is gone.
    RecordRemoved "record-removed" Umount,
    /// The name of its slot is gone.
    SlotDetached "slot-detached" Umount,
    /// The file about its slot is gone.
    SlotForgotten "slot-forgotten" Umount,
    /// The blobs are in the store.
    BlobsStored "blobs-stored" Import,
    /// The index is.
    IndexStored "index-stored" Import,
    /// The record is: others see the snapshot.
    RecordStored "record-stored" Import,
    /// Its name stands for it.
    NameStored "name-stored" Import,
    /// A sandbox has a record, and nothing else.
    SandboxRecorded "sandbox-recorded" Create,
    /// It has its directories and its disk, and no secrets.
    SandboxDiskAttached "sandbox-disk-attached" Create,
    /// It has its directories, its disk and its secrets.
    SandboxPrepared "sandbox-prepared" Create,
    /// Its root is mounted.
    SandboxRootMounted "sandbox-root-mounted" Create,
    /// What the runtime is given is written.
    SandboxBundleWritten "sandbox-bundle-written" Create,
    /// The container is there, and its monitor; nothing was started.
    SandboxContainerMade "sandbox-container-made" Create,
    /// Its first process was started, and its record says that it runs.
    SandboxRunning "sandbox-running" Create,
    /// A live mount has its file; nothing is mounted.
    LiveMountNoted "live-mount-noted" LiveMount,
    /// A live mount is out of sight; its file and its changes are there.
    LiveUmounted "live-umounted" LiveUmount,
    /// A sandbox is frozen for a snapshot.
    SandboxFrozen "sandbox-frozen" Snapshot,
    /// What has changed was set aside, and the sandbox goes on; nothing is in the store.
    SandboxThawed "sandbox-thawed" Snapshot,
    /// The blobs of a sealed snapshot are in the store.
    SealedBlobsShipped "sealed-blobs-shipped" Ship,
    /// Its record is; its name is not.
    SealedRecordShipped "sealed-record-shipped" Ship,
    /// A snapshot was taken; nobody was told.
    SnapshotTaken "snapshot-taken" Snapshot,
    /// A sandbox is about to be stopped.
    SandboxStopping "sandbox-stopping" Stop,
    /// Its processes have ended; its record does not say so.
    SandboxProcessesEnded "sandbox-processes-ended" Stop,
    /// Its record says that it is being removed.
    SandboxRemovalNoted "sandbox-removal-noted" Remove,
    /// Its processes have ended.
    SandboxRemovalEnded "sandbox-removal-ended" Remove,
    /// Nothing of it is mounted; its directory is there.
    SandboxRemovalUnmounted "sandbox-removal-unmounted" Remove,
}

/// Lets the fault happen that is armed for `step`, if one is. In release builds: nothing.
#[cfg(not(debug_assertions))]
#[inline(always)]
#[allow(clippy::unnecessary_wraps, clippy::inline_always)] // so that it is not there at all
pub(crate) fn point(_: Step) -> io::Result<()> {
    Ok(())
}

/// Has this process fail as `text` says. In release builds: nothing.
#[cfg(not(debug_assertions))]
#[allow(clippy::unnecessary_wraps)] // as the other one
pub fn arm(_: Option<&str>) -> Result<(), String> {
    Ok(())
}

#[cfg(debug_assertions)]
pub use armed::arm;
#[cfg(debug_assertions)]
pub(crate) use armed::point;

#[cfg(debug_assertions)]
mod armed {
    use std::fs::File;
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::thread;
    use std::time::Duration;

    use rustix::process::{Signal, getpid, kill_process};

    use super::{Step, io};

    static ARMED: OnceLock<Armed> = OnceLock::new();

    /// What happens where.
    #[derive(Debug, PartialEq, Eq)]
    pub(super) struct Armed {
        step: Step,
        fault: Fault,
        /// Made when it happens; if it is there, it has happened.
        once: Option<PathBuf>,
    }

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum Fault {
        Kill,
        Error,
        Sleep(Duration),
    }

    /// Has this process fail as `text` says.
    pub fn arm(text: Option<&str>) -> Result<(), String> {
        let Some(text) = text else { return Ok(()) };
        let armed = parse(text).ok_or_else(|| {
            format!(
                "'{text}' is no fault; it is STEP=kill, STEP=error or STEP=sleep:MS, with @FILE \
                 if it is to happen once"
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
            _ => {
                let millis = fault.strip_prefix("sleep:")?.parse().ok()?;
                Fault::Sleep(Duration::from_millis(millis))
            }
        };
        Some(Armed { step, fault, once })
    }

    /// Lets the fault happen that is armed for `step`, if one is.
    pub(crate) fn point(step: Step) -> io::Result<()> {
        let Some(armed) = ARMED.get().filter(|armed| armed.step == step) else { return Ok(()) };
        if let Some(file) = &armed.once
            && File::create_new(file).is_err()
        {
            return Ok(());
        }
        tracing::warn!(step = step.name(), fault = ?armed.fault, "a fault is injected");
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_read_and_steps_have_names_of_their_own() {
        for text in ["mount-attached=kill", "mount-attached=sleep:5@/a=b", "slot-attached=error"] {
            assert!(armed::parse(text).is_some(), "{text}");
        }
        for text in ["", "kill", "no-step=kill", "mount-attached=", "mount-attached=sleep:x"] {
            assert!(armed::parse(text).is_none(), "{text}");
        }
        for (at, step) in Step::ALL.iter().enumerate() {
            assert!(Step::ALL[at + 1..].iter().all(|other| other.name() != step.name()));
        }
    }
}
