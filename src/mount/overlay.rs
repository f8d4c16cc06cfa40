//! The overlay that makes a snapshot writable: what changes goes to a directory on local disk.

use std::ffi::{OsStr, OsString};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
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

/// How the overlay is to behave:
/// - `redirect_dir`: a directory of the snapshot can be renamed, instead of `EXDEV`.
/// - `metacopy`: `chmod` and `chown` of a file copy its attributes, not its contents, which would
///   otherwise have to be fetched for that.
/// - `xino`: one device number for the whole tree, so that `find -xdev` and `tar
///   --one-file-system` see all of it. Inode numbers of snapshots leave the bits free that it needs.
/// - `index`: off. It would keep hard links together when they are changed, but needs a lower
///   filesystem that finds inodes by file handles after they were forgotten.
const OPTIONS: [(&str, &str); 4] =
    [("redirect_dir", "on"), ("metacopy", "on"), ("xino", "on"), ("index", "off")];

/// The directories that an overlay is made of.
#[derive(Debug)]
pub(crate) struct Layers {
    /// Those above first; at least one.
    pub(crate) lower: Vec<PathBuf>,
    /// Whether setuid and setgid bits count.
    pub(crate) setuid: Setuid,
    pub(crate) upper: PathBuf,
    pub(crate) work: PathBuf,
}

/// How the kernel is told the directories.
#[derive(Debug, Clone, Copy)]
enum Form {
    /// By open descriptors, whatever the paths are: since Linux 6.13.
    Descriptors,
    /// By paths, `lowerdir+` taken as it is: since Linux 6.8. No path of more than 255 bytes.
    Paths,
    /// By paths, `lowerdir` a list with colons, which are escaped in names.
    Escaped,
}

/// Makes an overlay of `layers` that is mounted nowhere yet; `mountpoint` is for messages.
pub(crate) fn tree(layers: &Layers, mountpoint: &Path) -> Result<OwnedFd, MountError> {
    let mut outcome = assemble(layers, Form::Descriptors);
    for form in [Form::Paths, Form::Escaped] {
        if let Err(Failed { source: Errno::INVAL | Errno::BADF, .. }) = outcome {
            outcome = assemble(layers, form);
        }
    }
    outcome.map_err(|Failed { step, source, kernel }| MountError::Overlay {
        mountpoint: mountpoint.to_owned(),
        step,
        source: source.into(),
        kernel,
    })
}

/// Whether an overlay has `upper` as its upper directory, though it may be mounted nowhere any more
/// and only be in use.
///
/// The kernel is asked for an overlay that can't be, because its work directory is its upper one.
/// Before it looks at that, it says if the upper directory is taken.
pub(crate) fn has_upper(upper: &Path, beside: &Path) -> Result<bool, Errno> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let [upper, beside] = [directory(upper)?, directory(beside)?];
    fsconfig_set_fd(&fs, "lowerdir+", &beside)?;
    fsconfig_set_fd(&fs, "upperdir", &upper)?;
    fsconfig_set_fd(&fs, "workdir", &upper)?;
    // Without it the kernel only warns.
    fsconfig_set_string(&fs, "index", "on")?;
    match fsconfig_create(&fs) {
        Err(Errno::BUSY) => Ok(true),
        Err(Errno::INVAL) | Ok(()) => Ok(false),
        Err(other) => Err(other),
    }
}

fn directory(path: &Path) -> Result<OwnedFd, Errno> {
    open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// What failed, and what the kernel wrote about it.
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

/// Makes the overlay without attaching it anywhere. Each option is a value of its own, so that paths
/// may have commas and colons.
fn assemble(layers: &Layers, form: Form) -> Result<OwnedFd, Failed> {
    let fs = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)
        .map_err(|e| Failed::at("is the kernel module `overlay` there?", e))?;
    let failed = |step| {
        let fs = &fs;
        move |source| Failed { step, source, kernel: kernel_log(fs) }
    };
    fsconfig_set_string(&fs, "source", SOURCE).map_err(failed("source"))?;
    let lower = layers.lower.iter().map(|path| ("lowerdir+", "lower directory", path));
    let upper = [
        ("upperdir", "upper directory", &layers.upper),
        ("workdir", "work directory", &layers.work),
    ];
    if matches!(form, Form::Escaped) {
        let list: Vec<_> = layers.lower.iter().map(|path| escape(path)).collect();
        fsconfig_set_string(&fs, "lowerdir", list.join(OsStr::new(":")))
            .map_err(failed("lower directory"))?;
    }
    for (key, step, path) in lower.chain(upper) {
        match (form, key) {
            (Form::Descriptors, _) => {
                directory(path).and_then(|dir| fsconfig_set_fd(&fs, key, dir))
            }
            (Form::Paths, "lowerdir+") => fsconfig_set_string(&fs, key, path),
            (Form::Escaped, "lowerdir+") => continue,
            // These two are one path each, but the kernel takes backslashes out of them nevertheless.
            (Form::Paths | Form::Escaped, _) => fsconfig_set_string(&fs, key, escape(path)),
        }
        .map_err(failed(step))?;
    }
    for (key, value) in OPTIONS {
        fsconfig_set_string(&fs, key, value).map_err(failed(key))?;
    }
    fsconfig_create(&fs).map_err(failed("create"))?;
    let attributes = match layers.setuid {
        Setuid::Kept => MountAttrFlags::empty(),
        Setuid::Ignored => MountAttrFlags::MOUNT_ATTR_NOSUID,
    };
    fsmount(&fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).map_err(failed("mount"))
}

/// The kernel's messages about a filesystem that is being made, each with ": " before it.
fn kernel_log(fs: &OwnedFd) -> String {
    let mut text = String::new();
    let mut message = [0; 512];
    for _ in 0..8 {
        // "e overlay: what is wrong": the first letter is the message's weight.
        let Ok(len) = rustix::io::read(fs, &mut message) else { break };
        let message = message.get(2..len).unwrap_or_default();
        text.push_str(": ");
        text.push_str(String::from_utf8_lossy(message).trim_end());
    }
    text
}

fn escape(path: &Path) -> OsString {
    let mut out = Vec::new();
    for byte in path.as_os_str().as_bytes() {
        if matches!(byte, b':' | b'\\') {
            out.push(b'\\');
        }
        out.push(*byte);
    }
    OsString::from_vec(out)
}
