//! Provides secrets as files on a tmpfs that is mounted read-only into the sandbox.
//!
//! They exist nowhere else: neither on disk, nor in a record, nor in a layer of the root.

use std::ffi::CString;
use std::fs::{OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};

use rustix::io::Errno;
use rustix::mount::{MountFlags, mount, mount_remount};

use super::error::SandboxError;
use super::files;
use super::layout::Layout;
use super::mounts;
use super::options::{SECRET_LEN_MAX, SECRETS_MAX, Secret};

/// File sizes are rounded up to this when sizing the tmpfs, in bytes: the largest page size of the
/// supported architectures.
const PAGE_LEN: usize = 64 << 10;
/// Space for the tmpfs's own needs, in bytes.
const ROOM: usize = 64 << 10;

/// Mounts the tmpfs and writes the secrets. They are world-readable in the sandbox, as in docker.
pub(super) fn mount_secrets(layout: &Layout, secrets: &[Secret]) -> Result<(), SandboxError> {
    if secrets.len() > SECRETS_MAX {
        return Err(SandboxError::option("--secret", "a sandbox can have at most 64"));
    }
    if let Some(long) = secrets.iter().find(|secret| secret.bytes.len() > SECRET_LEN_MAX) {
        let why = format!("{} is longer than {SECRET_LEN_MAX} bytes", long.name.as_str());
        return Err(SandboxError::option("--secret", why));
    }
    let dir = layout.secrets();
    files::make_private_dirs(&dir)?;
    mounts::detach(&dir)?;
    let size: usize =
        secrets.iter().map(|secret| secret.bytes.len().next_multiple_of(PAGE_LEN) + PAGE_LEN).sum();
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    let data = |swap: &str| CString::new(format!("mode=0755,size={}{swap}", size + ROOM));
    let mounted = || -> io::Result<()> {
        // Keeps the pages off swap devices; requires Linux 6.4.
        match mount("inlay-secrets", &dir, "tmpfs", flags, data(",noswap")?.as_c_str()) {
            Err(Errno::INVAL) => {
                Ok(mount("inlay-secrets", &dir, "tmpfs", flags, data("")?.as_c_str())?)
            }
            other => Ok(other?),
        }
    };
    mounted().map_err(SandboxError::io("mount a tmpfs on", &dir))?;
    for secret in secrets {
        let path = dir.join(secret.name.as_str());
        let write = || -> io::Result<()> {
            let mut file =
                OpenOptions::new().write(true).create_new(true).mode(0o444).open(&path)?;
            file.write_all(&secret.bytes)?;
            file.set_permissions(Permissions::from_mode(0o444))
        };
        write().map_err(SandboxError::io("write the secret", &path))?;
    }
    mount_remount(&dir, flags | MountFlags::RDONLY, "")
        .map_err(SandboxError::io("make read-only", &dir))
}

/// Unmounts the secrets on the host. A running sandbox keeps its mount.
pub(super) fn unmount_secrets(layout: &Layout) -> Result<(), SandboxError> {
    mounts::detach(&layout.secrets())
}
