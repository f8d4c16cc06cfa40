//! The root directory of a start, put together of what a supply gives: writable, with what is mounted on
//! it, and taken apart in the other order.

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

/// The options of the overlay that `inlay mount --rw` makes, so that all are compared alike.
const OVERLAY: &str = "redirect_dir=on,metacopy=on,xino=on,index=off";
/// How often, and how long apart, it is tried to unmount what is busy.
const TRIES: u32 = 40;
const PAUSE: Duration = Duration::from_millis(50);

/// Something that was mounted, and how it goes away.
enum Step {
    /// An overlay or a bind mount of ours, with the directory of its changes.
    Ours { point: PathBuf, changes: Option<PathBuf> },
    /// What the supply has put there.
    Supplied { part: Part, point: PathBuf },
}

/// A root directory that is there. To be taken apart with its supply.
#[derive(Default)]
pub(super) struct Root {
    steps: Vec<Step>,
}

impl Root {
    /// Puts the parts together at `place`/root. What was done before something failed is taken apart.
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
            // It may have come half way.
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

    /// The first error is told, but everything is tried.
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

/// Shows `directory` at `point`, too.
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

/// Unmounts, if it is mounted; what is in use a moment longer is waited for.
pub(super) fn end_mount(point: &Path) -> Result<(), BenchError> {
    let mut tries = 0;
    loop {
        match unmount(point, UnmountFlags::NOFOLLOW) {
            // Not a mount point, or gone.
            Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => return Ok(()),
            Err(rustix::io::Errno::BUSY) if tries < TRIES => {
                tries += 1;
                thread::sleep(PAUSE);
            }
            Err(error) => {
                // Out of sight it disturbs nobody, and ends with its last user.
                let _ = unmount(point, UnmountFlags::DETACH);
                return Err(BenchError::path("unmount", point)(error.into()));
            }
        }
    }
}
