//! The system calls of mounts and threads that have no safe form in rustix.
#![allow(unsafe_code, reason = "statmount(2) has no wrapper, and unshare(2) only an unsafe one")]

use std::io;
use std::mem::size_of;

use rustix::io::Errno;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The number of statmount(2), the same on all architectures that this program is built for.
const SYS_STATMOUNT: libc::c_long = 457;
/// The namespace of the mount is wanted.
const WANT_NAMESPACE: u64 = 0x40;
/// How long the kernel's answer is without its texts, in words of eight bytes.
const ANSWER_WORDS: usize = 64;
/// Where in the answer the kernel says what it has filled in, and where the namespace is.
const MASK_WORD: usize = 1;
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
    let request = Request {
        size: u32::try_from(size_of::<Request>()).map_err(io::Error::other)?,
        spare: 0,
        mount,
        wanted: WANT_NAMESPACE,
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
    match (answer.get(MASK_WORD), answer.get(NAMESPACE_WORD)) {
        (Some(mask), Some(namespace)) if mask & WANT_NAMESPACE != 0 => Ok(Some(*namespace)),
        _ => Err(io::Error::other("the kernel does not tell the namespace of a mount")),
    }
}

/// Gives this thread a root and a working directory of its own, as setns(2) wants it.
pub(super) fn own_root_directory() -> Result<(), Errno> {
    // SAFETY: what is unshared is the root, the working directory and the umask. The table of
    // descriptors, of which the caller of unshare has to take care, stays common.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}
