//! Creates the overlay that makes a snapshot writable: changes go to a directory on the local disk.

use std::ffi::{OsStr, OsString};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use inlay_fusefs::SOURCE;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_fd,
    fsconfig_set_string, fsmount, fsopen,
};

use super::error::MountError;
use super::ids::Setuid;
use super::metacopy::Metacopy;
use crate::features::KernelFeature;

/// The overlay's mount options:
/// - `redirect_dir`: on. A directory of the snapshot can be renamed instead of failing with
///   `EXDEV`.
/// - `xino`: off. With it, the kernel encodes the layer in the top bits of inode numbers, which
///   neither 32-bit programs nor JavaScript can represent: distinct files look identical to them.
///   Without it, each layer's files have a device number of their own; directories, which
///   `find -xdev` and `tar --one-file-system` check, have the overlay's.
/// - `index`: off. It would preserve hard links on copy-up, but requires a lower filesystem that
///   can resolve file handles of inodes it has forgotten.
/// - `metacopy`: see [`Metacopy`].
const OPTIONS: [(&str, &str); 3] = [("redirect_dir", "on"), ("xino", "off"), ("index", "off")];

/// The directories of an overlay.
#[derive(Debug)]
pub(crate) struct Layers {
    /// The lower directories, topmost first; at least one.
    pub(crate) lower: Vec<PathBuf>,
    /// Whether setuid and setgid bits are honoured.
    pub(crate) setuid: Setuid,
    /// The length of the longest path in the lower directories, in bytes.
    pub(crate) longest_path: u32,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// How directories are passed to the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    /// As descriptors, so that any path works: requires Linux 6.13.
    Descriptors,
    /// As paths, one call per lower directory: requires Linux 6.8.
    Paths,
    /// As paths, the lower ones in a colon-separated list.
    List,
}

impl Form {
    const ALL: [Self; 3] = [Self::Descriptors, Self::Paths, Self::List];

    /// Returns the forms to try in turn: a kernel without support for one fails with `EINVAL`,
    /// `EBADF` or `EOPNOTSUPP`.
    fn to_try() -> impl Iterator<Item = Self> {
        let without = KernelFeature::OverlayDescriptors.is_disabled();
        Self::ALL.into_iter().filter(move |form| !(without && *form == Self::Descriptors))
    }
}

/// Reports whether this kernel takes layers as descriptors; fails if it has no overlayfs. Creates
/// nothing.
pub fn takes_descriptors() -> Result<bool, Errno> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    Ok(fsconfig_set_fd(&fs, "lowerdir+", directory(Path::new("/"))?).is_ok())
}

/// Calls `assemble` with one form after another until the kernel supports one.
fn in_a_known_form<T>(mut assemble: impl FnMut(Form) -> Result<T, Failed>) -> Result<T, Failed> {
    let mut last = Err(Failed::at("no form", Errno::INVAL));
    for form in Form::to_try() {
        last = assemble(form);
        // Kernels before 6.5 fail with the last one when given a descriptor.
        let unknown = [Errno::INVAL, Errno::BADF, Errno::OPNOTSUPP];
        if !last.as_ref().is_err_and(|failed| unknown.contains(&failed.source)) {
            break;
        }
    }
    last
}

/// Creates a detached overlay of `layers`; `mountpoint` is for messages.
pub(crate) fn tree(layers: &Layers, mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let metacopy = Metacopy::choose(layers.longest_path, &layers.upper)
        .map_err(MountError::io("look for earlier changes in", &layers.upper))?;
    let outcome = in_a_known_form(|form| assemble(layers, metacopy, form));
    outcome.map_err(|Failed { step, source, kernel }| MountError::Overlay {
        mountpoint: mountpoint.to_owned(),
        step,
        source: source.into(),
        kernel,
    })
}

/// Reports whether an overlay uses `upper` as its upper directory, even one that was lazily
/// unmounted and is only held open.
///
/// This requests an invalid overlay, with the upper directory as its work directory. Before the
/// kernel checks that, it fails with `EBUSY` if the upper directory is in use.
pub(crate) fn has_upper(upper: &Path, beside: &Path) -> Result<bool, Errno> {
    let outcome = in_a_known_form(|form| {
        let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
            .map_err(|errno| Failed::at("open", errno))?;
        let _open = set_directories(&fs, form, &[beside], upper, upper)?;
        // Without it, the kernel only logs a warning.
        fsconfig_set_string(&fs, "index", "on").map_err(|errno| Failed::at("index", errno))?;
        match fsconfig_create(&fs) {
            Err(Errno::BUSY) => Ok(true),
            Err(Errno::INVAL) | Ok(()) => Ok(false),
            Err(other) => Err(Failed::at("create", other)),
        }
    });
    outcome.map_err(|failed| failed.source)
}

fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The failed step, its errno, and the kernel's message.
struct Failed {
    step: &'static str,
    source: Errno,
    kernel: String,
}

impl Failed {
    fn at(step: &'static str, source: Errno) -> Self {
        Self { step, source, kernel: String::new() }
    }
}

/// Creates a detached overlay. Each option is passed separately, so that paths may contain commas
/// and colons.
fn assemble(layers: &Layers, metacopy: Metacopy, form: Form) -> Result<OwnedFd, Failed> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| Failed::at("is the kernel module `overlay` there?", e))?;
    let failed = |step| {
        let fs = &fs;
        move |source| Failed { step, source, kernel: kernel_log(fs) }
    };
    fsconfig_set_string(&fs, "source", SOURCE).map_err(failed("source"))?;
    let lower: Vec<_> = layers.lower.iter().map(PathBuf::as_path).collect();
    let _open = set_directories(&fs, form, &lower, &layers.upper, &layers.work)
        .map_err(|Failed { step, source, .. }| failed(step)(source))?;
    for (key, value) in OPTIONS.into_iter().chain([("metacopy", metacopy.option())]) {
        fsconfig_set_string(&fs, key, value).map_err(failed(key))?;
    }
    fsconfig_create(&fs).map_err(failed("create"))?;
    let attributes = match layers.setuid {
        Setuid::Kept => MountAttrFlags::empty(),
        Setuid::Ignored => MountAttrFlags::MOUNT_ATTR_NOSUID,
    };
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount"))
}

/// Passes the lower, upper and work directories to the kernel. The returned descriptors must stay
/// open until the overlay is created.
fn set_directories(
    fs: &OwnedFd,
    form: Form,
    lower: &[&Path],
    upper: &Path,
    work: &Path,
) -> Result<Vec<OwnedFd>, Failed> {
    let failed = |step| move |source| Failed::at(step, source);
    let mut open = Vec::new();
    let mut named = Vec::new();
    for path in lower {
        let dir = directory(path).map_err(failed("lower directory"))?;
        match form {
            Form::Descriptors => fsconfig_set_fd(fs, "lowerdir+", &dir),
            Form::Paths => fsconfig_set_string(fs, "lowerdir+", name_of(path, &dir)),
            Form::List => {
                named.push(name_of(path, &dir));
                Ok(())
            }
        }
        .map_err(failed("lower directory"))?;
        open.push(dir);
    }
    if form == Form::List {
        fsconfig_set_string(fs, "lowerdir", named.join(OsStr::new(":")))
            .map_err(failed("lower directory"))?;
    }
    for (key, step, path) in
        [("upperdir", "upper directory", upper), ("workdir", "work directory", work)]
    {
        let dir = directory(path).map_err(failed(step))?;
        match form {
            Form::Descriptors => fsconfig_set_fd(fs, key, &dir),
            Form::Paths | Form::List => fsconfig_set_string(fs, key, name_of(path, &dir)),
        }
        .map_err(failed(step))?;
        open.push(dir);
    }
    Ok(open)
}

/// Returns a name of the directory `path`, which is open as `dir`, that all kernels take literally.
/// Those before 6.8 interpret colons and backslashes, those before 6.5 reject commas, and all limit
/// it to 255 bytes; a descriptor's name in `/proc` avoids all of that.
fn name_of(path: &Path, dir: &OwnedFd) -> OsString {
    const LEN_MAX: usize = 200;
    let text = path.as_os_str().as_bytes();
    let plain = text.len() <= LEN_MAX && !text.iter().any(|byte| b",:\\\"".contains(byte));
    if plain {
        path.as_os_str().to_owned()
    } else {
        format!("/proc/self/fd/{}", dir.as_raw_fd()).into()
    }
}

/// Returns the kernel's messages about a filesystem that is being created, each prefixed with ": ".
fn kernel_log(fs: &OwnedFd) -> String {
    let mut text = String::new();
    let mut message = [0; 512];
    for _ in 0..8 {
        // Format "e overlay: message", where the first letter is the severity.
        let Ok(len) = rustix::io::read(fs, &mut message) else { break };
        let message = message.get(2..len).unwrap_or_default();
        text.push_str(": ");
        text.push_str(String::from_utf8_lossy(message).trim_end());
    }
    text
}
