//! The limit of what a sandbox's root may take on disk: a filesystem of that size in a sparse file.
//!
//! Mounted without devices and set-user-id programs: that bounds what the host could be made to do
//! with the directory, and the overlay above it has its own rules.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use super::error::SandboxError;
use super::files;
use super::layout::Layout;
use super::mounts;
use crate::config::find_program;

/// The longest complaint of a tool that is quoted, in bytes.
const MESSAGE_LEN_MAX: usize = 1000;

/// Makes the file, if there is none, and mounts it where the root's changes go, if it is not.
pub(super) fn attach(layout: &Layout, bytes: u64) -> Result<(), SandboxError> {
    let (image, dir) = (layout.disk_image(), layout.rw());
    files::make_private_dirs(&dir)?;
    if mounts::is_mounted(&dir)? {
        return Ok(());
    }
    if !image.exists() {
        // Under another name until it is whole.
        let new = image.with_extension("new");
        let file = File::create(&new).map_err(SandboxError::io("make", &new))?;
        file.set_len(bytes).map_err(SandboxError::io("set the size of", &new))?;
        let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        tool("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", options], &[&new])?;
        file.sync_all().map_err(SandboxError::io("sync", &new))?;
        std::fs::rename(&new, &image).map_err(SandboxError::io("rename", &new))?;
    }
    // mount(8) makes a loop device that goes with the mount.
    tool("mount", &["-t", "ext4", "-o", "loop,nodev,nosuid"], &[&image, &dir])
}

fn tool(name: &'static str, options: &[&str], paths: &[&Path]) -> Result<(), SandboxError> {
    let on = paths.first().copied().unwrap_or(Path::new("")).to_owned();
    let failed = |message: String| SandboxError::Tool { tool: name, path: on.clone(), message };
    let program = find_program(name).ok_or_else(|| failed("it is not installed".to_owned()))?;
    let output = Command::new(program)
        .args(options)
        .args(paths)
        .stdin(Stdio::null())
        .output()
        .map_err(SandboxError::io("run", name.as_ref()))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let message: String = said.trim().chars().take(MESSAGE_LEN_MAX).collect();
    Err(failed(if message.is_empty() { output.status.to_string() } else { message }))
}
