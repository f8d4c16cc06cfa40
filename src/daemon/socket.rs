//! The daemon's socket: made for one user (and a group), reachable however long its path is.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::net::UnixListener;
use std::path::Path;

use crate::sockets::with_short_path;

/// Who may talk to the daemon besides its own user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nobody.
    Owner,
    /// A group, by its number.
    Group(u32),
}

/// Listens at `path`, in the place of whoever listened there before.
pub(super) fn listen(path: &Path, access: Access) -> io::Result<UnixListener> {
    // Made under another name: clients see it when it has its mode and is listened at.
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

/// Lets who may talk to the daemon reach `dir`, one of the directories that its socket is in.
pub(super) fn let_through(dir: &Path, access: Access) -> io::Result<()> {
    match access {
        Access::Owner => Ok(()),
        Access::Group(group) => {
            chown(dir, None, Some(group))?;
            fs::set_permissions(dir, Permissions::from_mode(0o710))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sockets::connect;
    use std::io::{Read, Write};

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
            // The next one takes the name.
            drop(listener);
            assert!(connect(&path).is_err());
            let next = listen(&path, Access::Group(0)).unwrap();
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
            connect(&path).unwrap();
            drop(next);
        }
    }
}
