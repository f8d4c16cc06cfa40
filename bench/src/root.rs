//! Assembles the root directory of a start from supplied parts, writable, and tears it down in
//! reverse.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use rustix::mount::{
    MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount,
};

use super::error::BenchError;
use super::parts::Part;
use super::supply::{Gives, Supply};

/// The overlay options of `inlay mount --rw`, so that all methods are compared alike.
const OVERLAY: &str = "redirect_dir=on,metacopy=on,xino=off,index=off";
/// Maximum number of retries while an unmount fails with EBUSY, and the pause between them.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// A mount to undo.
enum Step {
    /// An overlay or bind mount of the benchmark, with its directory of changes.
    Ours { point: PathBuf, changes: Option<PathBuf> },
    /// A part that the supply has made visible.
    Supplied { part: Part, point: PathBuf },
}

/// An assembled root directory. The owner calls [`Root::take_apart`] with the same supply.
#[derive(Default)]
pub(super) struct Root {
    steps: Vec<Step>,
}

impl Root {
    /// Assembles the parts at `place`/root. Undoes completed steps if one fails.
    pub(super) fn assemble(
        parts: &[(&Part, PathBuf)],
        place: &Path,
        supply: &mut dyn Supply,
    ) -> Result<Self, BenchError> {
        let mut root = Self::default();
        for (number, (part, below)) in parts.iter().enumerate() {
            if let Err(error) = root.add(part, below, number, place, supply) {
                if let Err(second) = root.take_apart(supply) {
                    tracing::warn!(error = %second, "a root is not taken apart");
                }
                return Err(error);
            }
        }
        Ok(root)
    }

    fn add(
        &mut self,
        part: &Part,
        below: &Path,
        number: usize,
        place: &Path,
        supply: &mut dyn Supply,
    ) -> Result<(), BenchError> {
        let point = place.join("root").join(below);
        fs::create_dir_all(&point).map_err(BenchError::path("make", &point))?;
        let supplied = match supply.gives() {
            Gives::Writable => point.clone(),
            Gives::ReadOnly => made(&place.join(format!("lower-{number}")))?,
        };
        self.steps.push(Step::Supplied { part: part.clone(), point: supplied.clone() });
        if let Err(error) = supply.up(part, &supplied) {
            // The supply may have completed half of it.
            drop(supply.down(part, &supplied));
            self.steps.pop();
            return Err(error);
        }
        if supply.gives() == Gives::ReadOnly {
            let changes = place.join(format!("changes-{number}"));
            self.steps.push(Step::Ours { point: point.clone(), changes: Some(changes.clone()) });
            overlay(&supplied, &changes, &point)?;
        }
        Ok(())
    }

    /// Undoes all steps in reverse. Continues after an error, and returns the first one.
    pub(super) fn take_apart(self, supply: &mut dyn Supply) -> Result<(), BenchError> {
        let mut outcome = Ok(());
        for step in self.steps.into_iter().rev() {
            let done = match step {
                Step::Ours { point, changes } => end_ours(&point, changes.as_deref()),
                Step::Supplied { part, point } => supply.down(&part, &point),
            };
            outcome = outcome.and(done);
        }
        outcome
    }
}

fn made(path: &Path) -> Result<PathBuf, BenchError> {
    fs::create_dir_all(path).map_err(BenchError::path("make", path))?;
    Ok(path.to_owned())
}

fn overlay(lower: &Path, changes: &Path, point: &Path) -> Result<(), BenchError> {
    let [upper, work] = ["upper", "work"].map(|name| changes.join(name));
    for dir in [&upper, &work] {
        fs::create_dir_all(dir).map_err(BenchError::path("make", dir))?;
    }
    let options = format!(
        "lowerdir={},upperdir={},workdir={},{OVERLAY}",
        lower.display(),
        upper.display(),
        work.display()
    );
    let options =
        std::ffi::CString::new(options).map_err(|error| BenchError::Request(error.to_string()))?;
    mount("overlay", point, "overlay", MountFlags::empty(), &*options)
        .map_err(|error| BenchError::path("mount an overlay on", point)(error.into()))
}

/// Bind-mounts `directory` at `point`, with private propagation.
pub(super) fn bind(directory: &Path, point: &Path) -> Result<(), BenchError> {
    let failed =
        |error: rustix::io::Errno| BenchError::path("bind a directory to", point)(error.into());
    mount(directory, point, "", MountFlags::BIND, None).map_err(failed)?;
    mount_change(point, MountPropagationFlags::PRIVATE).map_err(failed)
}

fn end_ours(point: &Path, changes: Option<&Path>) -> Result<(), BenchError> {
    end_mount(point)?;
    let Some(changes) = changes else { return Ok(()) };
    match fs::remove_dir_all(changes) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(BenchError::path("remove", changes)(error))
        }
        _ => Ok(()),
    }
}

/// Unmounts `point`; no-op if it is not a mount point. Retries while it is busy.
pub(super) fn end_mount(point: &Path) -> Result<(), BenchError> {
    let mut tries = 0;
    loop {
        match unmount(point, UnmountFlags::NOFOLLOW) {
            // Not a mount point, or missing.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if tries < TRIES => {
                tries += 1;
                thread::sleep(PAUSE);
            }
            Err(error) => {
                // A detached mount hides nothing at `point` and ends with its last user.
                let _ = unmount(point, UnmountFlags::DETACH);
                return Err(BenchError::path("unmount", point)(error.into()));
            }
        }
    }
}
