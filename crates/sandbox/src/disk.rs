//! Enforces the disk limit of a sandbox's root: an ext4 filesystem of that size in a sparse file.
//!
//! It is mounted `nodev` and `nosuid`, so that a device node or set-user-id program in it is
//! harmless to the host. The overlay above has mount options of its own.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};

use inlay_base::durable;
use inlay_base::programs;

use super::error::SandboxError;
use super::files;
use super::layout::Layout;
use super::mounts;

/// The maximum length of quoted tool output, in characters.
const MESSAGE_LEN_MAX: usize = 1000;

/// Creates the image file if it does not exist, and mounts it at [`Layout::rw`] unless mounted.
/// Idempotent.
pub(super) fn attach(layout: &Layout, bytes: u64) -> Result<(), SandboxError> {
    let (image, dir) = (layout.disk_image(), layout.rw());
    files::make_private_dirs(&dir)?;
    if mounts::is_mounted(&dir)? {
        return Ok(());
    }
    if !image.exists() {
        // Build it under a temporary name and rename it when complete, so that a crash leaves no
        // torn image.
        let new = image.with_extension("new");
        let file = File::create(&new).map_err(SandboxError::io("make", &new))?;
        file.set_len(bytes).map_err(SandboxError::io("set the size of", &new))?;
        let options = "lazy_itable_init=1,lazy_journal_init=1,nodiscard";
        tool("mkfs.ext4", &["-q", "-F", "-m", "0", "-E", options], &[&new])?;
        file.sync_all().map_err(SandboxError::io("sync", &new))?;
        durable::rename(&new, &image).map_err(SandboxError::io("rename", &new))?;
    }
    // mount(8) sets up a loop device with autoclear: unmounting releases it.
    tool("mount", &["-t", "ext4", "-o", "loop,nodev,nosuid"], &[&image, &dir])
}

fn tool(name: &'static str, options: &[&str], paths: &[&Path]) -> Result<(), SandboxError> {
    let on = paths.first().copied().unwrap_or(Path::new("")).to_owned();
    let failed = |message: String| SandboxError::Tool { tool: name, path: on.clone(), message };
    let program = programs::find(name).ok_or_else(|| failed("it is not installed".to_owned()))?;
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
