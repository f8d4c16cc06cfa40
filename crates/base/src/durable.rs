//! Writes files durably: after a crash or power cut a file has its old or its new contents, never a
//! mix.
//!
//! A write goes to a temporary file in the same directory, which is synced, renamed over the
//! target, and made durable by syncing the directory. Pillai et al., "All File Systems Are Not
//! Created Equal" (OSDI 2014), describe this recipe and the failures of shorter ones.

use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Mode of files: state is private to its owner.
const FILE_MODE: u32 = 0o600;
/// Prefix of temporary files' names.
const UNFINISHED: &str = ".new-";
/// Mode of created directories.
const DIR_MODE: u32 = 0o700;

/// The reason losing a file in a power cut is safe.
///
/// Every write is durable unless its caller passes one of these, so each exception documents its
/// reason at the call site.
#[derive(Debug, Clone, Copy)]
pub struct Volatile(pub &'static str);

/// Replaces the file at `path` with `bytes`, mode 0600.
///
/// On success the new contents survive a power cut. On an error the old file is intact, except that
/// a failure to sync the directory leaves either the old or the new file.
///
/// # Errors
///
/// Any error of creating, writing, syncing or renaming the temporary file. `InvalidInput` if `path`
/// has no parent directory.
pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    publish(written_beside(parent(path)?, bytes)?, path)
}

/// Replaces the file at `path` with `bytes`, mode 0600, without syncing it.
///
/// Concurrent readers see the old or the new contents. A power cut may leave an empty or torn file;
/// `reason` says why that is safe.
///
/// # Errors
///
/// As for [`write`].
pub fn write_volatile(path: &Path, bytes: &[u8], reason: Volatile) -> io::Result<()> {
    publish_volatile(written_beside(parent(path)?, bytes)?, path, reason)
}

/// Renames the finished file `file` to `path`, durably. Both must be on the same filesystem.
///
/// # Errors
///
/// Any error of syncing or renaming the file, or of syncing the directory.
pub fn publish(file: tempfile::NamedTempFile, path: &Path) -> io::Result<()> {
    let dir = parent(path)?;
    file.as_file().sync_all()?;
    file.persist(path)?;
    sync_dir(dir)
}

/// Renames the finished file `file` to `path` without syncing; `_reason` as for [`write_volatile`].
///
/// # Errors
///
/// Any error of renaming the file.
pub fn publish_volatile(
    file: tempfile::NamedTempFile,
    path: &Path,
    _reason: Volatile,
) -> io::Result<()> {
    file.persist(path)?;
    Ok(())
}

/// Creates the directory `path` and its missing ancestors, mode 0700, durably.
///
/// Existing directories keep their mode.
///
/// # Errors
///
/// Any error of `mkdir` or of syncing a parent directory.
pub fn create_dirs(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(DIR_MODE).create(path) {
        Ok(()) => sync_dir(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && path.is_dir() => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create_dirs(parent(path)?)?;
            match DirBuilder::new().mode(DIR_MODE).create(path) {
                // Lost a race against another process, which may not have synced yet.
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
                _ => sync_dir(parent(path)?),
            }
        }
        Err(error) => Err(error),
    }
}

/// Removes the file at `path` durably. No-op if it does not exist.
///
/// # Errors
///
/// Any error of `unlink` other than `NotFound`, or of syncing the directory.
pub fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Ok(()) => sync_dir(parent(path)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

/// Renames `from` to `to` durably. Both must be on the same filesystem.
///
/// The contents of `from` are not synced: the caller must `sync_all` it first if they are new.
///
/// # Errors
///
/// Any error of `rename` or of syncing the two directories.
pub fn rename(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)?;
    let (old, new) = (parent(from)?, parent(to)?);
    sync_dir(new)?;
    if old == new { Ok(()) } else { sync_dir(old) }
}

/// Whether the name is that of a temporary file left by a crash. No reader opens such files; the
/// sole writer of the directory may remove them.
pub fn is_unfinished(name: &OsStr) -> bool {
    name.as_encoded_bytes().starts_with(UNFINISHED.as_bytes())
}

/// Syncs the directory `dir`, so that entries created, renamed or removed in it survive a power
/// cut.
///
/// # Errors
///
/// Any error of opening or syncing it.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn written_beside(dir: &Path, bytes: &[u8]) -> io::Result<tempfile::NamedTempFile> {
    let mut file = tempfile::Builder::new()
        .prefix(UNFINISHED)
        .permissions(Permissions::from_mode(FILE_MODE))
        .tempfile_in(dir)?;
    file.write_all(bytes)?;
    Ok(file)
}

fn parent(path: &Path) -> io::Result<&Path> {
    let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
    Ok(if parent.as_os_str().is_empty() { Path::new(".") } else { parent })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_write_replaces_and_leaves_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record.json");
        write(&path, b"old").unwrap();
        write(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, FILE_MODE);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_finished_file_is_published_under_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("published");
        for reason in [None, Some(Volatile("a test"))] {
            let mut file = tempfile::NamedTempFile::new_in(dir.path()).unwrap();
            write!(file, "{reason:?}").unwrap();
            match reason {
                None => publish(file, &path).unwrap(),
                Some(reason) => publish_volatile(file, &path, reason).unwrap(),
            }
            assert_eq!(fs::read_to_string(&path).unwrap(), format!("{reason:?}"));
            assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        }
        write_volatile(&path, b"volatile", Volatile("a test")).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"volatile");
        assert!(write(Path::new("/"), b"").is_err());
        let unfinished = written_beside(dir.path(), b"x").unwrap();
        assert!(is_unfinished(unfinished.path().file_name().unwrap()));
        assert!(!is_unfinished(path.file_name().unwrap()));
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("is-a-directory");
        fs::create_dir(&path).unwrap();
        assert!(write(&path, b"new").is_err());
        assert!(path.is_dir());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn directories_are_created_with_their_ancestors_for_their_owner_only() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b/c");
        create_dirs(&path).unwrap();
        create_dirs(&path).unwrap();
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().mode() & 0o7777, DIR_MODE);
        fs::write(dir.path().join("file"), b"").unwrap();
        assert!(create_dirs(&dir.path().join("file")).is_err());
        assert!(create_dirs(&dir.path().join("file/below")).is_err());
        // Fails only after its parent was created.
        let too_long = dir.path().join("d").join("n".repeat(300));
        assert!(create_dirs(&too_long).is_err());
    }

    #[test]
    fn failures_to_remove_and_to_sync_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        assert!(remove(dir.path()).is_err());
        assert!(sync_dir(&dir.path().join("absent")).is_err());
    }

    #[test]
    fn removing_and_renaming() {
        let dir = tempfile::tempdir().unwrap();
        let (one, two) = (dir.path().join("one"), dir.path().join("sub/two"));
        create_dirs(two.parent().unwrap()).unwrap();
        write(&one, b"x").unwrap();
        rename(&one, &two).unwrap();
        assert!(!one.exists() && two.exists());
        remove(&two).unwrap();
        remove(&two).unwrap();
        assert!(!two.exists());
    }
}
