//! Tells systemd how the daemon is: the protocol of sd_notify(3), if `NOTIFY_SOCKET` is set.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

/// What is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Told {
    /// It serves.
    Ready,
    /// It is about to end.
    Stopping,
}

/// Tells it to whoever listens at `socket`, the value of `NOTIFY_SOCKET`.
pub(super) fn tell(socket: Option<&OsStr>, told: Told) -> io::Result<()> {
    let Some(socket) = socket.filter(|socket| !socket.is_empty()) else { return Ok(()) };
    let address = match socket.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    let text = match told {
        Told::Ready => format!("READY=1\nMAINPID={}\n", std::process::id()),
        Told::Stopping => "STOPPING=1\n".to_owned(),
    };
    UnixDatagram::unbound()?.send_to_addr(text.as_bytes(), &address)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_listens_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        tell(Some(path.as_os_str()), Told::Ready).unwrap();
        let mut text = [0; 64];
        let len = listener.recv(&mut text).unwrap();
        assert!(text[..len].starts_with(b"READY=1\n"));
        tell(None, Told::Stopping).unwrap();
        drop(listener);
        assert!(tell(Some(path.as_os_str()), Told::Stopping).is_err());
    }
}
