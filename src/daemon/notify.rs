//! Reports the daemon's state to the service manager and stores descriptors with it, by the
//! protocol of sd_notify(3). A no-op unless `NOTIFY_SOCKET` is set.

use std::ffi::OsStr;
use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;

use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, sendmsg_addr, socket_with,
};

/// A notification.
#[derive(Debug, Clone, Copy)]
pub(super) enum Notification<'a> {
    /// The daemon serves.
    Ready,
    /// The daemon is stopping.
    Stopping,
    /// Store this descriptor for the next start of the service.
    Store { name: &'a str, descriptor: BorrowedFd<'a> },
    /// Remove the stored descriptors of this name.
    Remove { name: &'a str },
}

/// Sends a notification to `socket`, the value of `NOTIFY_SOCKET`.
pub(super) fn notify(socket: Option<&OsStr>, notification: Notification<'_>) -> io::Result<()> {
    let Some(to) = socket.filter(|socket| !socket.is_empty()) else { return Ok(()) };
    let address = match to.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddrUnix::new_abstract_name(name)?,
        None => SocketAddrUnix::new(to)?,
    };
    let text = match notification {
        Notification::Ready => format!("READY=1\nMAINPID={}\n", std::process::id()),
        Notification::Stopping => "STOPPING=1\n".to_owned(),
        // FDPOLL=0: polling would wake the service manager at each request to a FUSE device.
        Notification::Store { name, .. } => format!("FDSTORE=1\nFDNAME={name}\nFDPOLL=0\n"),
        Notification::Remove { name } => format!("FDSTOREREMOVE=1\nFDNAME={name}\n"),
    };
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let descriptor = match &notification {
        Notification::Store { descriptor, .. } => Some(std::slice::from_ref(descriptor)),
        _ => None,
    };
    if let Some(descriptor) = descriptor
        && !control.push(SendAncillaryMessage::ScmRights(descriptor))
    {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let text = [IoSlice::new(text.as_bytes())];
    sendmsg_addr(&socket, &address, &text, &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

    fn received(listener: &UnixDatagram) -> String {
        let mut text = [0; 256];
        let len = listener.recv(&mut text).unwrap();
        String::from_utf8(text[..len].to_vec()).unwrap()
    }

    #[test]
    fn notifications_reach_the_listening_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        notify(Some(path.as_os_str()), Notification::Ready).unwrap();
        let ready = format!("READY=1\nMAINPID={}\n", std::process::id());
        assert_eq!(received(&listener), ready);
        notify(Some(path.as_os_str()), Notification::Remove { name: "a" }).unwrap();
        assert_eq!(received(&listener), "FDSTOREREMOVE=1\nFDNAME=a\n");
        notify(None, Notification::Stopping).unwrap();
        drop(listener);
        assert!(notify(Some(path.as_os_str()), Notification::Stopping).is_err());
    }

    #[test]
    fn a_name_may_be_abstract() {
        let name = format!("inlay-test-{}", std::process::id());
        let address = SocketAddr::from_abstract_name(&name).unwrap();
        let listener = UnixDatagram::bind_addr(&address).unwrap();
        notify(Some(OsStr::new(&format!("@{name}"))), Notification::Stopping).unwrap();
        assert_eq!(received(&listener), "STOPPING=1\n");
    }

    #[test]
    fn a_descriptor_goes_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let listener = UnixDatagram::bind(&path).unwrap();
        let file = std::fs::File::open(dir.path()).unwrap();
        let notification = Notification::Store { name: "dir", descriptor: file.as_fd() };
        notify(Some(path.as_os_str()), notification).unwrap();
        let mut text = [0; 256];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut into = [io::IoSliceMut::new(&mut text)];
        let got = recvmsg(&listener, &mut into, &mut control, RecvFlags::CMSG_CLOEXEC).unwrap();
        let descriptors: Vec<_> = control
            .drain()
            .filter_map(|message| match message {
                RecvAncillaryMessage::ScmRights(rights) => Some(rights),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(&text[..got.bytes], b"FDSTORE=1\nFDNAME=dir\nFDPOLL=0\n");
        assert_eq!(descriptors.len(), 1);
        let same = |fd: BorrowedFd<'_>| rustix::fs::fstat(fd).unwrap().st_ino;
        assert_eq!(same(descriptors[0].as_fd()), same(file.as_fd()));
    }
}
