//! Sends notifications to the kernel. Written by hand, because the error `ENOENT`, which fuser
//! hides, tells that the kernel does not know an inode.

use std::io::{self, IoSlice};
use std::os::fd::AsFd;

use fuser::INodeNo;
use rustix::io::{Errno, writev};

const INVAL_INODE: u32 = 2;
const INVAL_ENTRY: u32 = 3;
const RESEND: u32 = 7;
const HEADER_LEN: usize = 16;

/// Whether the kernel knew the target of a notification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Known {
    /// It did.
    Yes,
    /// It has forgotten it, or never knew it.
    No,
}

/// Makes the kernel resend requests that were read from the connection and not answered.
pub(crate) fn resend(device: impl AsFd) -> io::Result<()> {
    send(device, RESEND, &[]).map(drop)
}

/// Invalidates the entry `name` of the directory `parent`.
pub(crate) fn forget_name(device: impl AsFd, parent: INodeNo, name: &[u8]) -> io::Result<Known> {
    let len = u32::try_from(name.len()).map_err(io::Error::other)?;
    let mut head = [0; 16];
    put(&mut head, 0, &parent.0.to_ne_bytes());
    put(&mut head, 8, &len.to_ne_bytes());
    send(device, INVAL_ENTRY, &[&head, name, &[0]])
}

/// Invalidates a directory's cached listing.
pub(crate) fn forget_listing(device: impl AsFd, directory: INodeNo) -> io::Result<Known> {
    inval_inode(device, directory, 0)
}

/// Returns whether the kernel has the inode in memory. Side effect: invalidates its cached
/// attributes, but no pages.
pub(crate) fn is_known(device: impl AsFd, inode: INodeNo) -> io::Result<Known> {
    inval_inode(device, inode, -1)
}

fn inval_inode(device: impl AsFd, inode: INodeNo, from: i64) -> io::Result<Known> {
    let mut body = [0; 24];
    put(&mut body, 0, &inode.0.to_ne_bytes());
    put(&mut body, 8, &from.to_ne_bytes());
    send(device, INVAL_INODE, &[&body])
}

fn send(device: impl AsFd, code: u32, parts: &[&[u8]]) -> io::Result<Known> {
    let len = HEADER_LEN + parts.iter().map(|part| part.len()).sum::<usize>();
    let mut header = [0; HEADER_LEN];
    put(&mut header, 0, &u32::try_from(len).map_err(io::Error::other)?.to_ne_bytes());
    put(&mut header, 4, &code.to_ne_bytes());
    let mut pieces = vec![IoSlice::new(&header)];
    pieces.extend(parts.iter().map(|part| IoSlice::new(part)));
    match writev(device, &pieces) {
        Ok(_) => Ok(Known::Yes),
        // ENOTDIR: the kernel does not have the parent in memory.
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Known::No),
        Err(errno) => Err(errno.into()),
    }
}

fn put(into: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = into.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}
