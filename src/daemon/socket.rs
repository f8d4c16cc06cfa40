//! Creates the daemon's socket with access for one user and optionally a group, at a path of any
//! length.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use inlay_base::sockets::with_short_path;

/// Who may connect to the daemon besides its own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// No other user.
    Owner,
    /// Members of this group (gid).
    Group(u32),
}

/// Listens at `path`, atomically replacing the socket of an earlier daemon.
pub(super) fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    // Bound under a temporary name and renamed, so that clients only see a socket that has its mode
    // and accepts connections.
    let new = path.with_extension(format!("new-{}", std::process::id()));
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = with_short_path(&new, |short| UnixListener::bind(short))?;
    let mode = match access {
        Access::Owner => 0o600,
        Access::Group(group) => {
            chown(&new, None, Some(group))?;
            0o660
        }
    };
    fs::set_permissions(&new, Permissions::from_mode(mode))?;
    fs::rename(&new, path)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Lets exactly those who may connect reach the socket in `run`, a directory of `state`. For a
/// group, both directories become searchable; everything else in them is restricted to the owner.
pub(super) fn let_through(state: &Path, run: &Path, access: Access) -> io::Result<()> {
    match access {
        Access::Owner => {
            close(run)?;
            // Left alone unless an earlier daemon opened it: otherwise its mode is the
            // administrator's.
            if mode_of(state)? == OPENED { close(state) } else { Ok(()) }
        }
        Access::Group(group) => {
            for dir in [state, run] {
                // Before the directory is opened, while no other user can enter it.
                close_entries(dir, run)?;
                chown(dir, None, Some(group))?;
                fs::set_permissions(dir, Permissions::from_mode(OPENED))?;
            }
            Ok(())
        }
    }
}

/// Mode of a directory that a group may search.
const OPENED: u32 = 0o710;

fn mode_of(path: &Path) -> io::Result<u32> {
    Ok(fs::symlink_metadata(path)?.permissions().mode() & 0o7777)
}

/// Restricts a directory to its owner.
fn close(dir: &Path) -> io::Result<()> {
    fs::set_permissions(dir, Permissions::from_mode(0o700))?;
    chown(dir, None, Some(rustix::process::getegid().as_raw()))
}

/// Restricts everything in `dir` except `except` to its owner.
fn close_entries(dir: &Path, except: &Path) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        let meta = match fs::symlink_metadata(&path) {
            // Removed since it was listed.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            meta => meta?,
        };
        let mode = meta.permissions().mode() & 0o7777;
        let closed = mode & !0o077;
        if path != except && !meta.is_symlink() && mode != closed {
            fs::set_permissions(&path, Permissions::from_mode(closed))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use inlay_base::sockets::connect;
    use std::io::{Read, Write};

    #[test]
    fn a_group_reaches_the_socket_only_and_as_long_as_it_may() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let run = state.join("run");
        fs::create_dir_all(&run).unwrap();
        fs::create_dir(state.join("store")).unwrap();
        for file in ["config.json", "store/object", "run/lock"] {
            fs::write(state.join(file), "x").unwrap();
        }
        let mode = |path: &str| mode_of(&state.join(path)).unwrap() & 0o077;
        assert_ne!(mode("store"), 0);
        let_through(&state, &run, Access::Group(12)).unwrap();
        assert_eq!((mode(""), mode("run")), (0o010, 0o010));
        for closed in ["config.json", "store", "run/lock"] {
            assert_eq!(mode(closed), 0, "{closed}");
        }
        let_through(&state, &run, Access::Owner).unwrap();
        for closed in ["", "run"] {
            assert_eq!(mode(closed), 0, "{closed}");
            let group =
                std::os::unix::fs::MetadataExt::gid(&fs::metadata(state.join(closed)).unwrap());
            assert_ne!(group, 12, "{closed}");
        }
    }

    #[test]
    fn a_long_path_is_as_good_as_a_short_one() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(100)).join("e".repeat(100));
        fs::create_dir_all(&deep).unwrap();
        for path in [dir.path().join("a.sock"), deep.join("a.sock")] {
            let listener = listen(&path, Access::Owner).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
            let mut client = connect(&path).unwrap();
            listener.set_nonblocking(false).unwrap();
            listener.accept().unwrap().0.write_all(b"x").unwrap();
            let mut said = String::new();
            client.read_to_string(&mut said).unwrap();
            assert_eq!(said, "x");
            // The next daemon takes over the path.
            drop(listener);
            assert!(connect(&path).is_err());
            let next = listen(&path, Access::Group(0)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
            connect(&path).unwrap();
            drop(next);
        }
    }
}
