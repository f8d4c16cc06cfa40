//! Snapshots that a test has mounted, and that are gone when it ends.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Signal, kill_process};
use tempfile::TempDir;

use crate::cli::{Inlay, RUN_WITHIN, Ran};
use crate::output::output;
use crate::scratch::scratch;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum OnDrop {
    Unmount,
    Nothing,
}

/// A mounted snapshot. Dropping it unmounts it, by force if need be.
#[derive(Debug)]
pub struct Mounted<'a> {
    inlay: &'a Inlay,
    pid: u32,
    dir: PathBuf,
    on_drop: OnDrop,
    // Dropped last.
    _scratch: TempDir,
}

impl Inlay {
    /// Mounts a snapshot on a new directory, with options such as `--rw`.
    pub fn mount(&self, snapshot: &str, options: &[&str]) -> io::Result<Mounted<'_>> {
        let scratch = scratch()?;
        let dir = scratch.path().join("mnt");
        std::fs::create_dir(&dir)?;
        self.mount_on(snapshot, options, dir, scratch)
    }

    fn mount_on<'a>(
        &'a self,
        snapshot: &str,
        options: &[&str],
        dir: PathBuf,
        scratch: TempDir,
    ) -> io::Result<Mounted<'a>> {
        let mut command = self.command();
        command.arg("mount").args(options).args(["--json", snapshot]).arg(&dir);
        let output = output(&mut command, RUN_WITHIN)?;
        // Made first, so that it is unmounted should what follows fail.
        let mut mounted =
            Mounted { inlay: self, pid: 0, dir, on_drop: OnDrop::Unmount, _scratch: scratch };
        if !output.status.success() {
            mounted.on_drop = OnDrop::Nothing;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            return Err(io::Error::other(format!("mounting {snapshot}: {said}")));
        }
        let record: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        mounted.pid = record
            .pointer("/server/pid")
            .and_then(serde_json::Value::as_u64)
            .and_then(|pid| u32::try_from(pid).ok())
            .ok_or_else(|| io::Error::other(format!("no pid in {record}")))?;
        Ok(mounted)
    }
}

impl Mounted<'_> {
    /// Where the snapshot is mounted.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// The daemon that served it when it was made.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Unmounts it; fails if somebody uses it.
    pub fn unmount(mut self) -> io::Result<Ran> {
        let ran = self.inlay.succeed(["umount".as_ref(), self.dir.as_os_str()])?;
        self.on_drop = OnDrop::Nothing;
        Ok(ran)
    }

    /// Ends the daemon at once, as a crash does. The keeper starts another one.
    pub fn kill_server(&self) -> io::Result<()> {
        let (daemon, _) = self.inlay.daemon_pids()?;
        Ok(kill_process(daemon, Signal::KILL)?)
    }

    /// Ends the daemon and its keeper at once, so that nothing serves the mount any more.
    pub fn kill_all_servers(&self) -> io::Result<()> {
        let (daemon, keeper) = self.inlay.daemon_pids()?;
        kill_process(keeper, Signal::KILL)?;
        Ok(kill_process(daemon, Signal::KILL)?)
    }

    /// Mounts a snapshot on the same directory again, after [`Mounted::kill_all_servers`].
    pub fn mount_again(&mut self, snapshot: &str, options: &[&str]) -> io::Result<()> {
        // The new mount is guarded by this one.
        let mut again = self.inlay.mount_on(snapshot, options, self.dir.clone(), scratch()?)?;
        self.pid = again.pid;
        again.on_drop = OnDrop::Nothing;
        Ok(())
    }

    /// A command that runs inside, with the mount as its root directory.
    pub fn chroot(&self, program: &str) -> Command {
        let mut command = Command::new("/usr/sbin/chroot");
        command.arg(&self.dir).arg(program).env_clear().env("PATH", "/usr/bin:/bin");
        command
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        if self.on_drop == OnDrop::Nothing {
            return;
        }
        let ran = self.inlay.run(["umount".as_ref(), self.dir.as_os_str()]);
        if ran.is_ok_and(|ran| ran.status.success()) {
            return;
        }
        // The test has failed already, or will, for what stands in its way here. What must not
        // happen is that something stays. Processes end with the command line that started them.
        let _ = self.inlay.run(["umount".as_ref(), "--lazy".as_ref(), self.dir.as_os_str()]);
        while unmount(&self.dir, UnmountFlags::DETACH).is_ok() {}
    }
}
