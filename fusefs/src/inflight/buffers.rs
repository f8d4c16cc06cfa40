//! Places fuser's request buffers in the ledger's memfd.
//!
//! fuser does not accept a caller's buffer: each of its threads allocates one, with a length that
//! no other allocation has. While a connection's threads start ([`lend`]), the global allocator
//! serves exactly this allocation from shared memory; it forwards everything else to the system
//! allocator. [`lend`] fails if the threads did not take the buffers, so a fuser version that
//! allocates differently is detected at the first start.
//!
//! Each connection has an area: a page with the number of the request that each thread answered
//! last, then the buffers. A buffer is unanswered if its request has a different number.
#![allow(unsafe_code, reason = "an allocator, and memory that other processes map")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering::Relaxed, Ordering::SeqCst};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rustix::fs::{fstat, ftruncate};
use rustix::io::pread;
use rustix::mm::{MapFlags, ProtFlags, mlock, mmap, munmap};

use super::log::punch;
use super::text::{RequestText, TEXT_LEN_MAX, Unique};
use crate::kind::ConnectionKind;

/// Buffer size that fuser allocates per thread: its maximum write and a page.
const BUFFER_LEN: usize = (16 << 20) + 4096;
/// Maximum threads of a connection with a shared buffer. Evaluated at compile time; zero would not
/// compile.
pub(crate) const THREADS_MAX: NonZeroUsize = NonZeroUsize::new(BUFFERS).unwrap();
const BUFFERS: usize = 16;
const STATUS_LEN: usize = 4096;
const AREA_LEN: usize = STATUS_LEN + BUFFERS * BUFFER_LEN;
/// Offset of the areas in the file, behind the records.
const AREAS_AT: u64 = 2 << 30;
/// Bytes of a buffer locked in memory: recorded requests are shorter.
const RESIDENT_LEN: usize = 4096;
/// Maximum areas that a process maps in its lifetime: four per session that it serves.
const AREAS_MAX: usize = 256;
/// Timeout for the start of fuser's threads.
const START_WITHIN: Duration = Duration::from_secs(30);

const _: () = assert!(TEXT_LEN_MAX <= RESIDENT_LEN && BUFFERS * 8 <= STATUS_LEN);
const _: () = assert!(BUFFERS <= u16::BITS as usize);

/// Addresses of all mapped areas. They stay mapped until the process exits, because a buffer may be
/// freed at any time.
static AREAS: [AtomicUsize; AREAS_MAX] = [const { AtomicUsize::new(0) }; AREAS_MAX];
/// The buffers of each area that were freed, one bit each. They are never lent again.
static FREED: [AtomicU16; AREAS_MAX] = [const { AtomicU16::new(0) }; AREAS_MAX];
/// The next buffer to lend, and the end of the lent range; both 0 if none is lent.
static NEXT: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
/// Held while buffers are lent.
static LENDING: Mutex<()> = Mutex::new(());

thread_local! {
    /// Addresses of this thread's shared buffer and of its last answered number.
    static MINE: Cell<Option<Mine>> = const { Cell::new(None) };
}

#[derive(Clone, Copy)]
struct Mine {
    buffer: NonNull<u8>,
    answered: &'static AtomicU64,
    place: Place,
}

/// Position of a shared buffer.
#[derive(Clone, Copy)]
struct Place {
    freed: &'static AtomicU16,
    area: usize,
    number: usize,
}

/// Whether a thread's requests are read into shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    Yes,
    No,
}

/// The system allocator, plus shared memory for the buffers of fuser's threads.
#[derive(Debug, Clone, Copy)]
pub(super) struct SharedReads;

#[global_allocator]
static ALLOCATOR: SharedReads = SharedReads;

// SAFETY: everything is forwarded to the system allocator except blocks of one layout, which come
// from a mapping: page-aligned, zeroed, of the requested length, lent once and never unmapped.
// Blocks of the mapping are recognized by address and never reach the system allocator.
unsafe impl GlobalAlloc for SharedReads {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: forwarded unchanged.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if is_buffer(layout)
            && let Some(lent) = take()
        {
            return lent.as_ptr();
        }
        // SAFETY: forwarded unchanged.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if is_buffer(layout)
            && let Some(place) = place(block as usize)
        {
            place.free();
            return;
        }
        // SAFETY: forwarded unchanged; the block is not from the mapping.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, len: usize) -> *mut u8 {
        let place = if is_buffer(layout) { place(block as usize) } else { None };
        let Some(place) = place else {
            // SAFETY: forwarded unchanged; the block is not from the mapping.
            return unsafe { System.realloc(block, layout, len) };
        };
        // SAFETY: the caller guarantees a valid `len`, as `realloc` requires; the alignment is a
        // buffer's.
        let moved = unsafe { System.alloc(Layout::from_size_align_unchecked(len, layout.align())) };
        if !moved.is_null() {
            // SAFETY: both blocks have at least the shorter length and do not overlap.
            unsafe { ptr::copy_nonoverlapping(block, moved, len.min(layout.size())) };
            place.free();
        }
        moved
    }
}

fn is_buffer(layout: Layout) -> bool {
    layout.size() == BUFFER_LEN && layout.align() == 1
}

/// Returns the position of the shared buffer at `address`; `None` outside the areas' buffers.
fn place(address: usize) -> Option<Place> {
    let areas = AREAS.iter().zip(&FREED).map(|(area, freed)| (area.load(SeqCst), freed));
    let mut areas = areas.take_while(|(start, _)| *start != 0);
    let (area, freed) = areas.find(|(start, _)| (*start..*start + AREA_LEN).contains(&address))?;
    let number = (address - area).checked_sub(STATUS_LEN)? / BUFFER_LEN;
    Some(Place { freed, area, number })
}

impl Place {
    fn bit(self) -> u16 {
        1 << self.number
    }

    /// Records that the buffer was freed. The thread that took it may be another one.
    fn free(self) {
        self.freed.fetch_or(self.bit(), SeqCst);
    }

    fn is_free(self) -> bool {
        self.freed.load(SeqCst) & self.bit() != 0
    }
}

/// Takes the next lent buffer for this thread.
fn take() -> Option<NonNull<u8>> {
    let end = END.load(SeqCst);
    let next = NEXT
        .fetch_update(SeqCst, SeqCst, |next| (next != 0 && next < end).then_some(next + BUFFER_LEN))
        .ok()?;
    let place = place(next)?;
    // SAFETY: the page at `area` is mapped until the process exits, has room for one number per
    // buffer, and all users access such a number atomically.
    let answered = unsafe { AtomicU64::from_ptr((place.area as *mut u64).add(place.number)) };
    let buffer = NonNull::new(next as *mut u8)?;
    MINE.set(Some(Mine { buffer, answered, place }));
    Some(buffer)
}

/// Lends `threads` shared buffers of the connection `kind` to the threads that `start` creates, and
/// waits until all are taken. No other fuser session may start in this process meanwhile: it would
/// take them. Does not preserve earlier contents; read them first with [`unanswered`].
pub(crate) fn lend<T>(
    file: &OwnedFd,
    kind: ConnectionKind,
    threads: usize,
    start: impl FnOnce() -> io::Result<T>,
) -> io::Result<T> {
    let _one_at_a_time = LENDING.lock();
    if threads > BUFFERS {
        return Err(io::Error::other("more threads than shared buffers"));
    }
    let area = map(file, kind)?;
    let first = area + STATUS_LEN;
    END.store(first + threads * BUFFER_LEN, SeqCst);
    NEXT.store(first, SeqCst);
    let started = start();
    let deadline = Instant::now() + START_WITHIN;
    while started.is_ok() && NEXT.load(SeqCst) < END.load(SeqCst) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_micros(200));
    }
    let taken = NEXT.swap(0, SeqCst) == END.swap(0, SeqCst);
    let started = started?;
    if taken {
        Ok(started)
    } else {
        Err(io::Error::other("requests are not read into shared memory"))
    }
}

/// Maps the area of a connection, extending the file if needed.
fn map(file: &OwnedFd, kind: ConnectionKind) -> io::Result<usize> {
    let offset = offset(kind);
    let len = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    if len < offset + AREA_LEN as u64 {
        ftruncate(file, offset + AREA_LEN as u64)?;
    }
    let (access, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
    // SAFETY: the kernel chooses the address, so no existing mapping is replaced. The file cannot
    // shrink: it is sealed against that.
    let start = unsafe { mmap(ptr::null_mut(), AREA_LEN, access, flags, file, offset)? };
    let place =
        AREAS.iter().find(|area| area.compare_exchange(0, start as usize, SeqCst, SeqCst).is_ok());
    if place.is_none() {
        // SAFETY: it was just mapped, and nothing refers to it.
        unsafe { munmap(start, AREA_LEN)? };
        return Err(io::Error::other("this process has served too many sessions"));
    }
    for number in 0..BUFFERS {
        // Touch the page now: requests must be copied into resident memory. A first touch could
        // fail in a process that is being killed, and the kernel would answer the request with an
        // error.
        let buffer = start as usize + STATUS_LEN + number * BUFFER_LEN;
        // SAFETY: it is within the mapping, which nothing else refers to yet, and already holds
        // zero.
        let locked = unsafe {
            ptr::write_volatile(buffer as *mut u8, 0);
            mlock(buffer as *mut _, RESIDENT_LEN)
        };
        if let Err(error) = locked {
            tracing::debug!(%error, "a request buffer is not locked in memory");
        }
    }
    Ok(start as usize)
}

fn offset(kind: ConnectionKind) -> u64 {
    AREAS_AT + (AREA_LEN as u64) * u64::from(kind.code() - 1)
}

/// Returns this thread's shared buffer, unless it was freed.
fn mine() -> Option<Mine> {
    MINE.get().filter(|mine| !mine.place.is_free())
}

/// Returns the request that this thread works on, if it is in a shared buffer and has the number
/// `unique`.
pub(super) fn of_thread(unique: Unique) -> Option<RequestText> {
    let Mine { buffer, .. } = mine()?;
    let mut bytes = [0; TEXT_LEN_MAX];
    // SAFETY: the buffer is mapped until the process exits and longer than this. It belongs to this
    // thread: only this thread's own reads from the device write it.
    unsafe { ptr::copy_nonoverlapping(buffer.as_ptr(), bytes.as_mut_ptr(), bytes.len()) };
    RequestText::parse(&bytes).filter(|text| text.unique() == unique)
}

/// Marks the request in this thread's shared buffer, if it has one, as done: it was answered, or
/// has a record of its own.
pub(crate) fn answered_by_thread(unique: Unique) -> Recorded {
    match mine() {
        Some(Mine { answered, .. }) => {
            answered.store(unique.0, Relaxed);
            Recorded::Yes
        }
        None => Recorded::No,
    }
}

/// Returns the requests that earlier servers left unanswered in the buffers of `file`.
pub(super) fn unanswered(file: &OwnedFd) -> io::Result<Vec<(ConnectionKind, RequestText)>> {
    let mut found = Vec::new();
    for kind in ConnectionKind::ALL {
        let mut status = [0; STATUS_LEN];
        let len = pread(file.as_fd(), &mut status[..], offset(kind))?;
        let (numbers, _) = status.get(..len).unwrap_or_default().as_chunks::<8>();
        for (number, answered) in numbers.iter().take(BUFFERS).enumerate() {
            let at = offset(kind) + (STATUS_LEN + number * BUFFER_LEN) as u64;
            let mut bytes = [0; TEXT_LEN_MAX];
            let len = pread(file.as_fd(), &mut bytes[..], at)?;
            if let Some(text) = RequestText::parse(bytes.get(..len).unwrap_or_default())
                && text.unique().0 != u64::from_ne_bytes(*answered)
            {
                found.push((kind, text));
            }
        }
    }
    Ok(found)
}

/// Clears all buffers in `file`.
pub(super) fn clear(file: &OwnedFd) -> io::Result<()> {
    let len = u64::try_from(fstat(file)?.st_size).unwrap_or(0);
    match len.checked_sub(AREAS_AT) {
        Some(areas @ 1..) => punch(file, AREAS_AT, areas),
        Some(0) | None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Ledger;

    const KIND: ConnectionKind = ConnectionKind::OpenLess;

    #[test]
    fn unanswered_requests_in_thread_buffers_are_found_in_the_ledger() {
        let file = Ledger::create().unwrap();
        let texts = [2, 4].map(|unique| RequestText::for_tests(unique, 9, 1));
        let threads = lend(&file, KIND, 2, || {
            let read = |text: RequestText| {
                std::thread::spawn(move || {
                    let mut buffer = vec![0u8; BUFFER_LEN];
                    assert!(place(buffer.as_ptr() as usize).is_some());
                    buffer[..text.bytes().len()].copy_from_slice(text.bytes());
                    assert_eq!(of_thread(text.unique()).as_ref(), Some(&text));
                    assert_eq!(of_thread(Unique(6)), None);
                    if text.unique() == Unique(2) {
                        answered_by_thread(text.unique());
                    }
                    buffer
                })
            };
            Ok(texts.clone().map(read))
        })
        .unwrap();
        let buffers = threads.map(|thread| thread.join().unwrap());
        assert_eq!(unanswered(&file).unwrap(), [(KIND, texts[1].clone())]);
        drop(buffers);
        clear(&file).unwrap();
        assert!(unanswered(&file).unwrap().is_empty());
        // No longer lent.
        let other = vec![0u8; BUFFER_LEN];
        assert!(place(other.as_ptr() as usize).is_none());
    }

    #[test]
    fn threads_that_allocate_nothing_shared_are_noticed() {
        let file = Ledger::create().unwrap();
        let failed = lend(&file, KIND, 1, || Err::<(), _>(io::ErrorKind::Other.into()));
        assert!(failed.is_err());
        assert!(take().is_none());
    }

    #[test]
    fn a_shared_block_can_grow() {
        let file = Ledger::create().unwrap();
        let text = RequestText::for_tests(2, 9, 1);
        let mut block = lend(&file, KIND, 1, || {
            let mut made = vec![0u8; BUFFER_LEN];
            made[..text.bytes().len()].copy_from_slice(text.bytes());
            Ok(made)
        })
        .unwrap();
        assert!(place(block.as_ptr() as usize).is_some());
        assert_eq!(of_thread(text.unique()).as_ref(), Some(&text));
        block.resize(BUFFER_LEN + 1, 1);
        assert!(place(block.as_ptr() as usize).is_none());
        assert_eq!(block[..text.bytes().len()], *text.bytes());
        // The thread reads into private memory now.
        assert_eq!(of_thread(text.unique()), None);
        assert_eq!(answered_by_thread(text.unique()), Recorded::No);
    }

    #[test]
    fn a_block_that_another_thread_frees_is_lost_to_the_thread_that_took_it_only() {
        let file = Ledger::create().unwrap();
        let mine = lend(&file, KIND, 1, || Ok(vec![0u8; BUFFER_LEN])).unwrap();
        assert_eq!(answered_by_thread(Unique(2)), Recorded::Yes);
        let file = Ledger::create().unwrap();
        std::thread::scope(|scope| {
            let theirs = lend(&file, KIND, 1, || {
                Ok(scope.spawn(|| {
                    let taken = vec![0u8; BUFFER_LEN];
                    std::thread::scope(|inner| inner.spawn(|| drop(taken)).join().unwrap());
                    answered_by_thread(Unique(2))
                }))
            });
            assert_eq!(theirs.unwrap().join().unwrap(), Recorded::No);
            let theirs = lend(&file, KIND, 1, || {
                Ok(scope.spawn(|| {
                    let taken = vec![0u8; BUFFER_LEN];
                    assert_eq!(answered_by_thread(Unique(2)), Recorded::Yes);
                    taken
                }))
            });
            drop(theirs.unwrap().join().unwrap());
        });
        assert_eq!(answered_by_thread(Unique(2)), Recorded::Yes);
        drop(mine);
        assert_eq!(answered_by_thread(Unique(2)), Recorded::No);
    }
}
