//! Tar archives with every kind of entry, as `tar` itself writes them.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use inlay_testkit::scratch;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, lsetxattr, makedev, mknodat};

/// Names and bytes of archives in the forms that are read.
pub(crate) fn all() -> io::Result<Vec<(&'static str, Vec<u8>)>> {
    let dir = scratch()?;
    fill(dir.path())?;
    let pax = ["--format=posix", "--xattrs", "--sparse"];
    let gnu = ["--format=gnu", "--sparse"];
    Ok(vec![
        ("pax", tar(dir.path(), &pax, ".")?),
        ("gnu", tar(dir.path(), &gnu, ".")?),
        ("ustar", tar(dir.path(), &["--format=ustar"], "short")?),
        ("v7", tar(dir.path(), &["--format=v7"], "short/file")?),
        ("gzip", tar(dir.path(), &["--format=posix", "--gzip"], "short")?),
        ("zstd", zstd::bulk::compress(&tar(dir.path(), &pax, "short")?, 3)?),
    ])
}

/// Two layers, the upper one first, which hides things of the lower one.
pub(crate) fn layers() -> io::Result<Vec<u8>> {
    let dir = scratch()?;
    let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
    for layer in [&upper, &lower] {
        fs::create_dir_all(layer.join("opaque/inside"))?;
        fs::write(layer.join("both"), b"bytes")?;
    }
    fs::write(upper.join(".wh.gone"), b"")?;
    fs::write(upper.join("opaque/.wh..wh..opq"), b"")?;
    fs::write(lower.join("gone"), b"not seen")?;
    fs::hard_link(lower.join("gone"), lower.join("kept"))?;
    fs::write(lower.join("opaque/hidden"), b"not seen")?;
    let mut bytes = Vec::new();
    for layer in [&upper, &lower] {
        let archive = tar(layer, &["--format=ustar"], ".")?;
        let len = u16::try_from(archive.len()).map_err(io::Error::other)?;
        bytes.extend_from_slice(&len.to_le_bytes());
        bytes.extend_from_slice(&archive);
    }
    Ok(bytes)
}

fn fill(root: &Path) -> io::Result<()> {
    let short = root.join("short");
    fs::create_dir(&short)?;
    fs::write(short.join("file"), b"contents")?;
    fs::hard_link(short.join("file"), short.join("hard-link"))?;
    symlink("file", short.join("symlink"))?;
    let mode = Mode::from_raw_mode(0o600);
    mknodat(CWD, short.join("fifo"), FileType::Fifo, mode, 0)?;
    mknodat(CWD, short.join("null"), FileType::CharacterDevice, mode, makedev(1, 3))?;
    mknodat(CWD, short.join("disk"), FileType::BlockDevice, mode, makedev(8, 1))?;
    // Past what fits a plain header.
    let long = root.join("n".repeat(120));
    fs::write(&long, b"a long name")?;
    symlink("t".repeat(130), root.join("long-target"))?;
    lsetxattr(&long, "user.attribute", b"value", XattrFlags::empty())?;
    let sparse = fs::File::create(root.join("sparse"))?;
    sparse.set_len(200_000)?;
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 100_000)
}

/// What `tar` makes of `what` in `dir`.
pub(super) fn tar(dir: &Path, options: &[&str], what: &str) -> io::Result<Vec<u8>> {
    let output = Command::new("tar")
        .args(["--create", "--blocking-factor=1", "--mtime=@1700000000", "--sort=name"])
        .args(["--numeric-owner", "--directory"])
        .arg(dir)
        .args(options)
        .arg(what)
        .output()?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).into_owned()))
}
