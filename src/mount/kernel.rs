//! The system calls of mounts and threads that have no safe form in rustix.
#![allow(
    unsafe_code,
    reason = "statmount(2), mount_setattr(2) and clone(2) have no wrappers, and unshare(2) only an \
              unsafe one"
)]

use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::ioctl::Getter;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::ids::Setuid;

/// The number of statmount(2), the same on all architectures that this program is built for.
const SYS_STATMOUNT: libc::c_long = 457;
/// What is wanted: the mount's numbers, or its namespace.
const WANT_NUMBERS: u64 = 0x2;
const WANT_NAMESPACE: u64 = 0x40;
/// How long the kernel's answer is without its texts, in words of eight bytes.
const ANSWER_WORDS: usize = 64;
/// Where in the answer the kernel says what it has filled in, and where the namespace is.
const MASK_WORD: usize = 1;
const PARENT_WORD: usize = 6;
const NAMESPACE_WORD: usize = 14;

/// `struct mnt_id_req` of `linux/mount.h`.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount: u64,
    wanted: u64,
    namespace: u64,
}

/// The number of the mount namespace that holds the mount `mount`, if there is such a mount in
/// `namespace`; 0 means the namespace of this thread. `None` if the mount or the namespace is gone.
/// Both numbers are never used again while the host is up.
pub(super) fn namespace_of(mount: u64, namespace: u64) -> io::Result<Option<u64>> {
    ask(mount, namespace, WANT_NAMESPACE, NAMESPACE_WORD)
}

/// The number of the mount that the mount `mount` of `namespace` is on. `None` if it is gone.
pub(super) fn parent_of(mount: u64, namespace: u64) -> io::Result<Option<u64>> {
    ask(mount, namespace, WANT_NUMBERS, PARENT_WORD)
}

fn ask(mount: u64, namespace: u64, wanted: u64, word: usize) -> io::Result<Option<u64>> {
    let request = Request {
        size: u32::try_from(size_of::<Request>()).map_err(io::Error::other)?,
        spare: 0,
        mount,
        wanted,
        namespace,
    };
    let mut answer = [0u64; ANSWER_WORDS];
    // SAFETY: the kernel reads `size` bytes of the request and writes at most the length that it is
    // told of the answer; both live until the call returns, and any bytes are valid numbers.
    let outcome = unsafe {
        libc::syscall(
            SYS_STATMOUNT,
            &raw const request,
            answer.as_mut_ptr(),
            size_of::<[u64; ANSWER_WORDS]>(),
            0,
        )
    };
    if outcome < 0 {
        let error = io::Error::last_os_error();
        return match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(None),
            _ => Err(error),
        };
    }
    match (answer.get(MASK_WORD), answer.get(word)) {
        (Some(mask), Some(found)) if mask & wanted != 0 => Ok(Some(*found)),
        _ => Err(io::Error::other("the kernel does not tell what is asked of a mount")),
    }
}

/// Has `tree`, a mount that is nowhere yet, show owners as the user namespace `space` maps them.
pub(super) fn map_ids(
    tree: BorrowedFd<'_>,
    space: BorrowedFd<'_>,
    setuid: Setuid,
) -> io::Result<()> {
    let ignored = match setuid {
        Setuid::Kept => 0,
        Setuid::Ignored => libc::MOUNT_ATTR_NOSUID,
    };
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP | ignored,
        attr_clr: 0,
        propagation: 0,
        userns_fd: u64::try_from(space.as_raw_fd()).map_err(io::Error::other)?,
    };
    // SAFETY: both descriptors are borrowed, so open; the path is a literal that ends with a zero;
    // the kernel only reads the attributes, as many bytes as it is told.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A user namespace with these maps, in the form of user_namespaces(7), and nobody inside.
///
/// The kernel makes one only for a new process, and a process with several threads can't enter one by
/// itself: so a child is made that waits, and is ended when its namespace has been taken.
pub(super) fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let parent = std::process::id();
    let flags = libc::c_long::from(libc::CLONE_NEWUSER);
    // SAFETY: with no new stack and nothing shared this is fork(2). The child has a copy of this
    // thread alone: it calls nothing but what is safe after a fork of a process with threads, and
    // never returns.
    let child = unsafe {
        let child = libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0);
        if child == 0 {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            while u32::try_from(libc::getppid()).is_ok_and(|pid| pid == parent) {
                libc::pause();
            }
            libc::_exit(0);
        }
        child
    };
    if child < 0 {
        return Err(io::Error::last_os_error());
    }
    let child = libc::pid_t::try_from(child).map_err(io::Error::other)?;
    let taken = (|| {
        let dir = std::path::PathBuf::from(format!("/proc/{child}"));
        fs::write(dir.join("uid_map"), users)?;
        fs::write(dir.join("gid_map"), groups)?;
        Ok(OwnedFd::from(fs::File::open(dir.join("ns/user"))?))
    })();
    // SAFETY: the number is of this process's child, which nobody else waits for: it sends no signal
    // when it ends, so a wait without `__WALL` does not find it.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        while libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    taken
}

/// The number of the mount namespace whose file `namespace` is: since Linux 6.11.
pub(super) fn number_of(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    const GET_MNTNS_ID: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u64>(0xb7, 5);
    // SAFETY: NS_GET_MNTNS_ID writes 64 bits, and any bits are a number.
    let number = unsafe { rustix::ioctl::ioctl(namespace, Getter::<GET_MNTNS_ID, u64>::new()) };
    Ok(number?)
}

/// Gives this thread a root and a working directory of its own, as setns(2) wants it.
pub(super) fn own_root_directory() -> Result<(), Errno> {
    // SAFETY: what is unshared is the root, the working directory and the umask. The table of
    // descriptors, of which the caller of unshare has to take care, stays common.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}
