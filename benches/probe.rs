//! The loops that `benches/driver` times: each measures one thing on files that are there.
//!
//! `cargo bench --bench probe -- OPERATION DIR LIST [THREADS]` prints how many operations it did,
//! on how many bytes, in how many nanoseconds. LIST is a file of names below DIR, each with a NUL
//! after it. What is timed begins when names have been read and buffers made.
//!
//! `walk` lists and stats everything below each name; `stat` takes the names' attributes; `absent`
//! asks for names beside them that are not there; `files` opens, reads to the end and closes;
//! `sequential` reads in pieces of 128 KiB and `random` 4 KiB anywhere; `map` and `map-random`
//! touch pages of a mapped file. With THREADS, names are dealt out among so many.

#![allow(
    unsafe_code,
    reason = "mapped files are read by pointer, so that a fault is all that is timed"
)]

use std::ffi::{CStr, CString};
use std::fs::File;
use std::hint::black_box;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, RawDir, fstat, open, openat, statat};
use rustix::io::{Errno, pread, read};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

const PIECE: usize = 128 << 10;
const PAGE: usize = 4096;
/// How often `random` reads, and `map-random` touches a page, in each file.
const RANDOM_READS: u64 = 4096;
const READ_ONLY: OFlags = OFlags::RDONLY.union(OFlags::CLOEXEC);

#[derive(Clone, Copy)]
enum Operation {
    Walk,
    Stat,
    Absent,
    Files,
    Sequential,
    Random,
    Map,
    MapRandom,
}

impl Operation {
    fn from_word(word: &str) -> Option<Self> {
        Some(match word {
            "walk" => Self::Walk,
            "stat" => Self::Stat,
            "absent" => Self::Absent,
            "files" => Self::Files,
            "sequential" => Self::Sequential,
            "random" => Self::Random,
            "map" => Self::Map,
            "map-random" => Self::MapRandom,
            _ => return None,
        })
    }
}

/// What was done.
#[derive(Clone, Copy, Default)]
struct Done {
    operations: u64,
    bytes: u64,
}

impl Done {
    fn add(&mut self, other: Self) {
        self.operations += other.operations;
        self.bytes += other.bytes;
    }
}

fn main() -> io::Result<()> {
    // `cargo bench` adds a word of its own.
    let words: Vec<String> = std::env::args().skip(1).filter(|word| word != "--bench").collect();
    let [operation, dir, list, rest @ ..] = words.as_slice() else {
        println!("nothing is measured without OPERATION DIR LIST; scripts/bench driver gives them");
        return Ok(());
    };
    let operation = Operation::from_word(operation)
        .ok_or_else(|| io::Error::other(format!("no such operation: {operation}")))?;
    let threads = rest.first().map_or(Ok(1), |word| word.parse()).map_err(io::Error::other)?;
    let names = names(Path::new(dir), Path::new(list), operation)?;
    let (done, time) = measure(operation, &names, threads)?;
    println!("{} {} {}", done.operations, done.bytes, time.as_nanos());
    Ok(())
}

fn names(dir: &Path, list: &Path, operation: Operation) -> io::Result<Vec<CString>> {
    let path = |name: &[u8]| {
        let mut path: PathBuf = dir.join(std::ffi::OsStr::from_bytes(name));
        if let Operation::Absent = operation {
            path.as_mut_os_string().push(".absent");
        }
        CString::new(path.into_os_string().into_encoded_bytes()).map_err(io::Error::other)
    };
    std::fs::read(list)?
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
        .map(path)
        .collect()
}

/// Does it with so many threads, from when all are ready until the last has ended.
fn measure(
    operation: Operation,
    names: &[CString],
    threads: usize,
) -> io::Result<(Done, Duration)> {
    let share = names.len().div_ceil(threads.max(1)).max(1);
    let shares: Vec<&[CString]> = names.chunks(share).collect();
    let start = Barrier::new(shares.len());
    let results: Vec<io::Result<(Done, Instant, Instant)>> = thread::scope(|scope| {
        let work = |names: &[CString]| {
            let mut buffer = vec![0; PIECE];
            let mut done = Done::default();
            start.wait();
            let begin = Instant::now();
            for name in names {
                done.add(run(operation, name, &mut buffer)?);
            }
            Ok((done, begin, Instant::now()))
        };
        let workers: Vec<_> = shares.iter().map(|names| scope.spawn(move || work(names))).collect();
        let died = |_| io::Error::other("a thread panicked");
        workers.into_iter().map(|worker| worker.join().map_err(died).flatten()).collect()
    });
    let mut all = Done::default();
    let (mut first, mut last) = (None, None);
    for result in results {
        let (done, begin, end) = result?;
        all.add(done);
        first = first.min(Some(begin)).or(Some(begin));
        last = last.max(Some(end));
    }
    let time = first.zip(last).map_or(Duration::ZERO, |(first, last)| last.duration_since(first));
    Ok((all, time))
}

fn run(operation: Operation, path: &CStr, buffer: &mut [u8]) -> io::Result<Done> {
    let done = match operation {
        Operation::Walk => walk(&open(path, READ_ONLY | OFlags::DIRECTORY, Mode::empty())?),
        Operation::Stat => {
            statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW).map(|_| Done { operations: 1, bytes: 0 })
        }
        Operation::Absent => match statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => Ok(Done { operations: 1, bytes: 0 }),
            Err(error) => Err(error),
            Ok(_) => return Err(io::Error::other(format!("{path:?} is there"))),
        },
        Operation::Files => whole(path, buffer).map(|bytes| Done { operations: 1, bytes }),
        Operation::Sequential => whole(path, buffer)
            .map(|bytes| Done { operations: bytes.div_ceil(PIECE as u64), bytes }),
        Operation::Random => random(path, buffer),
        Operation::Map => return mapped(path, |pages, n| (n < pages).then_some(n)),
        Operation::MapRandom => {
            let mut numbers = Numbers::default();
            return mapped(path, |pages, n| (n < RANDOM_READS).then(|| numbers.below(pages)));
        }
    };
    done.map_err(|error| io::Error::other(format!("{path:?}: {error}")))
}

/// Lists and stats everything below a directory, in the order of its listings.
fn walk(dir: &OwnedFd) -> Result<Done, Errno> {
    let mut done = Done::default();
    let mut below = Vec::new();
    let mut buffer = Vec::with_capacity(32 << 10);
    let mut listing = RawDir::new(dir, buffer.spare_capacity_mut());
    while let Some(entry) = listing.next() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let stat = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
        done.operations += 1;
        if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
            below.push(name.to_owned());
        }
    }
    for name in below {
        let flags = READ_ONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW;
        done.add(walk(&openat(dir, name, flags, Mode::empty())?)?);
    }
    Ok(done)
}

fn whole(path: &CStr, buffer: &mut [u8]) -> Result<u64, Errno> {
    let file = open(path, READ_ONLY, Mode::empty())?;
    let mut bytes = 0;
    loop {
        match read(&file, &mut *buffer)? {
            0 => return Ok(bytes),
            len => bytes += len as u64,
        }
    }
}

fn random(path: &CStr, buffer: &mut [u8]) -> Result<Done, Errno> {
    let file = open(path, READ_ONLY, Mode::empty())?;
    let pages = u64::try_from(fstat(&file)?.st_size).unwrap_or(0) / PAGE as u64;
    let page = buffer.get_mut(..PAGE).unwrap_or_default();
    let mut numbers = Numbers::default();
    let mut done = Done::default();
    for _ in 0..RANDOM_READS {
        done.bytes += pread(&file, &mut *page, numbers.below(pages) * PAGE as u64)? as u64;
        done.operations += 1;
    }
    Ok(done)
}

/// Maps a file and reads a byte of each page that `next` names, given how many there are and how
/// many it has named.
fn mapped(path: &CStr, mut next: impl FnMut(u64, u64) -> Option<u64>) -> io::Result<Done> {
    let file = File::from(open(path, READ_ONLY, Mode::empty())?);
    let len = usize::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let pages = (len / PAGE) as u64;
    let mut done = Done::default();
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start =
        unsafe { mmap(std::ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, &file, 0)? };
    while let Some(page) = next(pages, done.operations) {
        let offset = usize::try_from(page).map_err(io::Error::other)? * PAGE;
        // SAFETY: `page` is below `pages`, so the byte is within the mapping, which is readable.
        // Nobody cuts the file short: it is on a filesystem that is only read.
        black_box(unsafe { start.cast::<u8>().add(offset).read_volatile() });
        done.operations += 1;
    }
    done.bytes = done.operations * PAGE as u64;
    // SAFETY: it is what was mapped above, and nothing points into it any more.
    unsafe { munmap(start, len)? };
    Ok(done)
}

/// The same numbers in every run (xorshift).
struct Numbers(u64);

impl Default for Numbers {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Numbers {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}
