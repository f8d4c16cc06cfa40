//! Syscalls for mounts, file handles and threads that have no safe wrapper in rustix.
#![allow(
    unsafe_code,
    reason = "statmount(2), mount_setattr(2), clone(2), SO_PEERPIDFD and file handles have no wrappers, \
              and unshare(2) only an unsafe one"
)]

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::io::Errno;
use rustix::ioctl::Getter;
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::ids::Setuid;
use crate::features::KernelFeature;

/// The syscall number of statmount(2), the same on all supported architectures.
const SYS_STATMOUNT: libc::c_long = 457;
/// Request masks: the mount's ids, its mount point, its namespace.
const WANT_NUMBERS: u64 = 0x2;
const WANT_POINT: u64 = 0x10;
const WANT_NAMESPACE: u64 = 0x40;
/// The size of the kernel's answer without its strings, in 8-byte words. The strings follow.
const ANSWER_WORDS: usize = 64;
/// The positions in the answer of the mask of valid fields and of the fields, in words.
const MASK_WORD: usize = 1;
const NUMBER_WORD: usize = 5;
const PARENT_WORD: usize = 6;
const OLD_NUMBERS_WORD: usize = 7;
const TEXTS_WORD: usize = 13;
const NAMESPACE_WORD: usize = 14;
/// The buffer for strings, in words: initial and maximum size. A mount point may be longer than
/// `PATH_MAX`.
const TEXT_WORDS: usize = 512;
const TEXT_WORDS_MAX: usize = 128 << 10;

/// `struct mnt_id_req` of `linux/mount.h`.
#[repr(C)]
struct Request {
    size: u32,
    spare: u32,
    mount: u64,
    wanted: u64,
    namespace: u64,
}

/// A mount as described by statmount(2).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Described {
    /// Its unique id.
    pub(super) number: u64,
    /// The unique id of its parent mount.
    pub(super) parent: u64,
    /// Its id in `mountinfo`.
    pub(super) id: u64,
    /// Its mount point; `None` if unreachable from the root of its namespace.
    pub(super) point: Option<PathBuf>,
}

/// Reports whether the error means that statmount(2) is unavailable: an old kernel or a seccomp
/// filter.
pub(super) fn is_unsupported(error: &io::Error) -> bool {
    let unsupported = [libc::ENOSYS, libc::EPERM, libc::E2BIG, libc::EINVAL, libc::EOPNOTSUPP];
    error.raw_os_error().is_some_and(|number| unsupported.contains(&number))
}

/// Returns the id of the mount namespace that contains `mount`, looked up in `namespace`; 0 means
/// this thread's. `None` if the mount or the namespace is gone. Neither id is reused until reboot.
pub(super) fn namespace_of(mount: u64, namespace: u64) -> io::Result<Option<u64>> {
    let Some(answer) = ask(mount, namespace, WANT_NAMESPACE)? else { return Ok(None) };
    answer.word(WANT_NAMESPACE, NAMESPACE_WORD).map(Some)
}

/// Reports whether the mount namespace exists. It may exist without a process in it.
pub(super) fn is_namespace(namespace: u64) -> io::Result<bool> {
    /// The syscall number of listmount(2), the same on all supported architectures.
    const SYS_LISTMOUNT: libc::c_long = 458;
    /// `LSMT_ROOT`: the mounts on the root.
    const ROOT: u64 = u64::MAX;
    if KernelFeature::Statmount.is_disabled() {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let request = Request {
        size: u32::try_from(size_of::<Request>()).map_err(io::Error::other)?,
        spare: 0,
        mount: ROOT,
        wanted: 0,
        namespace,
    };
    let mut first = [0u64];
    // SAFETY: the kernel reads `size` bytes of the request and writes at most one id; both live
    // until the call returns.
    let outcome = unsafe {
        libc::syscall(SYS_LISTMOUNT, &raw const request, first.as_mut_ptr(), first.len(), 0)
    };
    match io::Error::last_os_error() {
        _ if outcome >= 0 => Ok(true),
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        error => Err(error),
    }
}

/// Describes the mount `mount` of `namespace`. `None` if it is gone. Paths are relative to the
/// namespace's root, or to this thread's root if it is in that namespace.
pub(super) fn describe(mount: u64, namespace: u64) -> io::Result<Option<Described>> {
    let wanted = WANT_NUMBERS | WANT_POINT;
    let Some(answer) = ask(mount, namespace, wanted)? else { return Ok(None) };
    // Two pairs of 32-bit fields: the `mountinfo` ids of the mount and of its parent, and the
    // string offsets of the root within its filesystem and of the mount point.
    let [id @ .., _, _, _, _] = answer.word(WANT_NUMBERS, OLD_NUMBERS_WORD)?.to_ne_bytes();
    let [_, _, _, _, point @ ..] = answer.word(0, TEXTS_WORD)?.to_ne_bytes();
    let point = answer.has(WANT_POINT).then(|| answer.text(u32::from_ne_bytes(point)));
    Ok(Some(Described {
        number: answer.word(WANT_NUMBERS, NUMBER_WORD)?,
        parent: answer.word(WANT_NUMBERS, PARENT_WORD)?,
        id: u32::from_ne_bytes(id).into(),
        point: point.flatten(),
    }))
}

struct Answer(Vec<u64>);

impl Answer {
    fn has(&self, wanted: u64) -> bool {
        self.0.get(MASK_WORD).is_some_and(|mask| mask & wanted == wanted)
    }

    fn word(&self, wanted: u64, word: usize) -> io::Result<u64> {
        match self.0.get(word) {
            Some(found) if self.has(wanted) => Ok(*found),
            _ => Err(io::Error::other("the kernel returned incomplete information about a mount")),
        }
    }

    /// Returns the NUL-terminated string at `offset` if it is an absolute path.
    fn text(&self, offset: u32) -> Option<PathBuf> {
        let texts: Vec<u8> =
            self.0.get(ANSWER_WORDS..)?.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let text = texts.get(usize::try_from(offset).ok()?..)?;
        let len = text.iter().position(|byte| *byte == 0)?;
        let text = text.get(..len).filter(|text| text.starts_with(b"/"))?;
        Some(OsStr::from_bytes(text).into())
    }
}

/// Queries a mount; `None` if it is gone.
fn ask(mount: u64, namespace: u64, wanted: u64) -> io::Result<Option<Answer>> {
    if KernelFeature::Statmount.is_disabled() {
        return Err(io::Error::from_raw_os_error(libc::ENOSYS));
    }
    let request = Request {
        size: u32::try_from(size_of::<Request>()).map_err(io::Error::other)?,
        spare: 0,
        mount,
        wanted,
        namespace,
    };
    let mut room = TEXT_WORDS;
    loop {
        let mut answer = vec![0u64; ANSWER_WORDS + room];
        // SAFETY: the kernel reads `size` bytes of the request and writes at most the given length
        // of the answer; both live until the call returns, and any bit pattern is a valid number.
        let outcome = unsafe {
            libc::syscall(
                SYS_STATMOUNT,
                &raw const request,
                answer.as_mut_ptr(),
                answer.len() * size_of::<u64>(),
                0,
            )
        };
        if outcome >= 0 {
            return Ok(Some(Answer(answer)));
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::ENOENT) => return Ok(None),
            Some(libc::EOVERFLOW) if room < TEXT_WORDS_MAX => room *= 8,
            _ => return Err(error),
        }
    }
}

/// Reports whether statmount(2) is available.
pub fn has_statmount() -> bool {
    match namespace_of(u64::MAX, 0) {
        // No mount has this id.
        Ok(_) => true,
        Err(error) => !is_unsupported(&error),
    }
}

/// The maximum length of a file handle in bytes (`MAX_HANDLE_SZ`).
const HANDLE_LEN_MAX: usize = 128;

/// `struct file_handle` with the maximum length.
#[repr(C)]
struct RawHandle {
    len: u32,
    kind: i32,
    bytes: [u8; HANDLE_LEN_MAX],
}

/// Returns the file handle of the directory `dir`, which survives renames: its type and bytes.
pub(super) fn handle_of(dir: BorrowedFd<'_>) -> io::Result<(i32, Vec<u8>)> {
    let room = u32::try_from(HANDLE_LEN_MAX).map_err(io::Error::other)?;
    let mut handle = RawHandle { len: room, kind: 0, bytes: [0; HANDLE_LEN_MAX] };
    let mut mount: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed, hence open; the path is a NUL-terminated literal; the
    // kernel writes at most `len` bytes after the handle's header, which is their capacity.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_name_to_handle_at,
            dir.as_raw_fd(),
            c"".as_ptr(),
            &raw mut handle,
            &raw mut mount,
            libc::AT_EMPTY_PATH,
        )
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    let len = usize::try_from(handle.len).map_err(io::Error::other)?;
    let bytes = handle.bytes.get(..len).ok_or_else(|| io::Error::other("a handle is too long"))?;
    Ok((handle.kind, bytes.to_vec()))
}

/// Opens the directory with this handle on the filesystem of `on`. Fails with `ESTALE` if it is
/// gone.
pub(super) fn open_handle(on: BorrowedFd<'_>, kind: i32, bytes: &[u8]) -> io::Result<OwnedFd> {
    let len = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let mut handle = RawHandle { len, kind, bytes: [0; HANDLE_LEN_MAX] };
    let room = handle.bytes.get_mut(..bytes.len());
    room.ok_or_else(|| io::Error::from(Errno::INVAL))?.copy_from_slice(bytes);
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: the descriptor is borrowed, hence open; the kernel only reads the handle, which has
    // as many bytes as its length says.
    let outcome = unsafe {
        libc::syscall(libc::SYS_open_by_handle_at, on.as_raw_fd(), &raw const handle, flags)
    };
    if outcome < 0 {
        return Err(io::Error::last_os_error());
    }
    let number = RawFd::try_from(outcome).map_err(io::Error::other)?;
    // SAFETY: the kernel has just created this descriptor for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Makes `tree`, a detached mount, map owners as the user namespace `space` does.
pub(super) fn map_ids(
    tree: BorrowedFd<'_>,
    space: BorrowedFd<'_>,
    setuid: Setuid,
) -> io::Result<()> {
    let ignored = match setuid {
        Setuid::Kept => 0,
        Setuid::Ignored => libc::MOUNT_ATTR_NOSUID,
    };
    let userns_fd = u64::try_from(space.as_raw_fd()).map_err(io::Error::other)?;
    set_attributes(tree, libc::MOUNT_ATTR_IDMAP | ignored, userns_fd)
}

/// Makes `tree`, a detached mount, ignore setuid and setgid bits.
pub(super) fn ignore_setuid(tree: BorrowedFd<'_>) -> io::Result<()> {
    set_attributes(tree, libc::MOUNT_ATTR_NOSUID, 0)
}

/// Sets attributes of `tree`, a detached mount.
pub(super) fn set_attributes(
    tree: BorrowedFd<'_>,
    attr_set: u64,
    userns_fd: u64,
) -> io::Result<()> {
    let attributes = libc::mount_attr { attr_set, attr_clr: 0, propagation: 0, userns_fd };
    // SAFETY: the descriptor of the tree is borrowed, hence open, and the kernel validates the
    // namespace's; the path is a NUL-terminated literal; the kernel only reads the attributes, up
    // to the given size.
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

/// Creates an empty user namespace with these maps, in the format of user_namespaces(7).
///
/// The kernel creates one only for a new process, and a multithreaded process can't enter one. So
/// this forks a child that waits, and kills it after opening its namespace.
pub(super) fn user_namespace(users: &str, groups: &str) -> io::Result<OwnedFd> {
    let parent = std::process::id();
    let flags = libc::c_long::from(libc::CLONE_NEWUSER);
    // SAFETY: without a new stack and shared resources this is fork(2). The child has a copy of
    // this thread alone: it only makes async-signal-safe calls and never returns.
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
        let dir = PathBuf::from(format!("/proc/{child}"));
        fs::write(dir.join("uid_map"), users)?;
        fs::write(dir.join("gid_map"), groups)?;
        Ok(OwnedFd::from(fs::File::open(dir.join("ns/user"))?))
    })();
    // SAFETY: the pid is of this process's child, and nothing else waits for it: it sends no signal
    // on exit, so a wait without `__WALL` does not find it.
    unsafe {
        libc::kill(child, libc::SIGKILL);
        while libc::waitpid(child, std::ptr::null_mut(), libc::__WALL) < 0
            && io::Error::last_os_error().kind() == io::ErrorKind::Interrupted
        {}
    }
    taken
}

/// Returns the unique id of the mount namespace with the file `namespace`; requires Linux 6.11.
pub(super) fn number_of(namespace: BorrowedFd<'_>) -> io::Result<u64> {
    const GET_MNTNS_ID: rustix::ioctl::Opcode = rustix::ioctl::opcode::read::<u64>(0xb7, 5);
    if KernelFeature::Statmount.is_disabled() {
        return Err(io::Error::from_raw_os_error(libc::ENOTTY));
    }
    // SAFETY: NS_GET_MNTNS_ID writes 64 bits, and any bit pattern is a valid number.
    let number = unsafe { rustix::ioctl::ioctl(namespace, Getter::<GET_MNTNS_ID, u64>::new()) };
    Ok(number?)
}

/// Gives this thread its own root and working directory, as setns(2) requires.
pub(super) fn own_root_directory() -> Result<(), Errno> {
    // SAFETY: this unshares the root, the working directory and the umask. The descriptor table,
    // with which a caller of unshare would have to be careful, remains shared.
    unsafe { unshare_unsafe(UnshareFlags::FS) }
}
