//! Disks for tests: one that injects faults, and one that simulates power loss.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use parking_lot::Mutex;
use rustix::io::Errno;

use super::disk::{Disk, Open, Stamp, SystemDisk};

/// Splitmix64: a deterministic sequence from a seed.
#[derive(Debug)]
pub(super) struct Dice(AtomicU64);

impl Dice {
    pub(super) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    pub(super) fn roll(&self, sides: u64) -> u64 {
        let state = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % sides
    }
}

/// A disk that fails operations with a probability set by the test, in per mille.
#[derive(Debug)]
pub(super) struct FaultyDisk {
    dice: Dice,
    pub(super) per_mille: AtomicU32,
    pub(super) faults: AtomicU64,
}

impl FaultyDisk {
    pub(super) fn new(seed: u64, per_mille: u32) -> Self {
        let (dice, faults) = (Dice::new(seed), AtomicU64::new(0));
        Self { dice, per_mille: AtomicU32::new(per_mille), faults }
    }

    fn fails(&self) -> bool {
        let fails = self.dice.roll(1000) < u64::from(self.per_mille.load(Ordering::Relaxed));
        if fails {
            self.faults.fetch_add(1, Ordering::Relaxed);
        }
        fails
    }

    fn may<T>(&self, done: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if !self.fails() {
            return done();
        }
        let errors = [Errno::IO, Errno::NOSPC, Errno::ROFS, Errno::NFILE, Errno::DQUOT];
        let error = errors[usize::try_from(self.dice.roll(errors.len() as u64)).unwrap()];
        // Sometimes the operation takes effect, and only its result is lost.
        if self.dice.roll(4) == 0 {
            let _ = done();
        }
        Err(error.into())
    }
}

impl Disk for FaultyDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        self.may(|| SystemDisk.open(path, how))
    }

    fn read(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<()> {
        if self.fails() {
            // The contents of the buffer are undefined after an error.
            buf.fill(0xee);
            return Err(Errno::IO.into());
        }
        SystemDisk.read(file, buf, offset)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if self.fails() {
            // A torn write: a prefix is written, possibly followed by garbage. Eight bytes are
            // never torn.
            if bytes.len() > 8 {
                let part = usize::try_from(self.dice.roll(bytes.len() as u64)).unwrap();
                let _ = file.write_all_at(&bytes[..part], offset);
                if self.dice.roll(2) == 0 {
                    let _ =
                        file.write_all_at(&vec![0xdd; bytes.len() - part], offset + part as u64);
                }
            }
            return Err(Errno::NOSPC.into());
        }
        SystemDisk.write(file, bytes, offset)
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        self.may(|| SystemDisk.set_len(file, len))
    }

    fn punch(&self, file: &File, range: Range<u64>) -> io::Result<()> {
        self.may(|| SystemDisk.punch(file, range))
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.may(|| SystemDisk.sync(file))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.may(|| SystemDisk.sync_dir(dir))
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may(|| SystemDisk.link(from, to))
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may(|| SystemDisk.rename_new(from, to))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.may(|| SystemDisk.rename(from, to))
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.may(|| SystemDisk.remove(path))
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.may(|| SystemDisk.make_dir(path))
    }

    fn stamp(&self, file: &File) -> io::Result<Stamp> {
        self.may(|| SystemDisk.stamp(file))
    }

    fn stamp_at(&self, path: &Path) -> io::Result<Stamp> {
        self.may(|| SystemDisk.stamp_at(path))
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        self.may(|| SystemDisk.touch(path))
    }
}

/// A file as a power loss may leave it.
#[derive(Debug, Clone, Default)]
struct Model {
    /// The bytes that are durable.
    synced: Vec<u8>,
    /// Changes since the last sync. Any subset may survive, in any order.
    since: Vec<Change>,
    /// Its last reported attributes.
    stamp: Option<Stamp>,
}

#[derive(Debug, Clone)]
enum Change {
    Write(u64, Vec<u8>),
    Len(u64),
}

#[derive(Debug, Default)]
struct Recorded {
    /// By an id that is never reused, unlike inode numbers.
    files: HashMap<u64, Model>,
    /// Maps inode numbers to ids.
    current: HashMap<u64, u64>,
    next: u64,
    /// The files that each name may refer to after a power loss: the one at the last sync of the
    /// directory, and every later one. `None` means no file.
    names: HashMap<PathBuf, Vec<Option<u64>>>,
}

impl Recorded {
    fn file(&mut self, file: &File) -> &mut Model {
        let inode = file.metadata().unwrap().ino();
        let next = &mut self.next;
        let id = *self.current.entry(inode).or_insert_with(|| {
            *next += 1;
            *next
        });
        self.files.entry(id).or_default()
    }

    fn id_at(&mut self, path: &Path) -> Option<u64> {
        self.names.get(path).and_then(|history| *history.last()?)
    }

    fn name(&mut self, path: &Path, id: Option<u64>) {
        self.names.entry(path.to_owned()).or_insert_with(|| vec![None]).push(id);
    }
}

/// A disk that works, and can produce a state that a power loss may leave.
#[derive(Debug, Default)]
pub(super) struct LosingDisk {
    recorded: Mutex<Recorded>,
    /// Original attributes of restored files, by their new inode number.
    stamps: HashMap<u64, Stamp>,
}

impl LosingDisk {
    /// Restores into `to` a state that a power loss may leave of `from`. Returns a disk on which
    /// the files in `to` report their original attributes.
    pub(super) fn lose(&self, dice: &Dice, from: &Path, to: &Path) -> Self {
        let recorded = self.recorded.lock();
        let mut stamps = HashMap::new();
        let mut placed: HashMap<u64, PathBuf> = HashMap::new();
        for (path, history) in &recorded.names {
            let choice = usize::try_from(dice.roll(history.len() as u64)).unwrap();
            let Some(id) = history[choice] else { continue };
            let target = to.join(path.strip_prefix(from).unwrap());
            fs::create_dir_all(target.parent().unwrap()).unwrap();
            if let Some(first) = placed.get(&id) {
                fs::hard_link(first, &target).unwrap();
                continue;
            }
            let model = &recorded.files[&id];
            let mut bytes = model.synced.clone();
            let mut changes: Vec<&Change> = model.since.iter().collect();
            for place in (1..changes.len()).rev() {
                // Mostly in order: complete shuffling would hide the effect of half-finished
                // operations.
                if dice.roll(3) == 0 {
                    changes.swap(place, usize::try_from(dice.roll(place as u64 + 1)).unwrap());
                }
            }
            for change in changes {
                match change {
                    Change::Len(len) if dice.roll(5) > 0 => {
                        bytes.resize(usize::try_from(*len).unwrap(), 0);
                    }
                    Change::Write(offset, new) => {
                        // All of the write, none, or some of its sectors.
                        let lost = [0, 0, 0, 1, 4, 8][usize::try_from(dice.roll(6)).unwrap()];
                        for (sector, part) in new.chunks(512).enumerate() {
                            if dice.roll(8) >= lost {
                                let at = usize::try_from(*offset).unwrap() + sector * 512;
                                bytes.resize(bytes.len().max(at + part.len()), 0);
                                bytes[at..at + part.len()].copy_from_slice(part);
                            }
                        }
                    }
                    Change::Len(_) => {}
                }
            }
            fs::write(&target, &bytes).unwrap();
            let inode = fs::metadata(&target).unwrap().ino();
            stamps.extend(model.stamp.map(|stamp| (inode, stamp)));
            placed.insert(id, target);
        }
        Self { recorded: Mutex::default(), stamps }
    }

    fn restamped(&self, mut stamp: Stamp) -> Stamp {
        if let Some(before) = self.stamps.get(&stamp.inode) {
            stamp.inode = before.inode;
            stamp.mtime = before.mtime;
            stamp.ctime = before.ctime;
        }
        stamp
    }
}

impl Disk for LosingDisk {
    fn open(&self, path: &Path, how: Open) -> io::Result<File> {
        let existed = path.exists();
        let file = SystemDisk.open(path, how)?;
        let mut recorded = self.recorded.lock();
        if !existed {
            // The inode number may have belonged to a deleted file.
            recorded.current.remove(&file.metadata()?.ino());
        }
        recorded.file(&file);
        let id = recorded.current[&file.metadata()?.ino()];
        if !existed {
            recorded.name(path, Some(id));
        }
        Ok(file)
    }

    fn write(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        SystemDisk.write(file, bytes, offset)?;
        let mut recorded = self.recorded.lock();
        let model = recorded.file(file);
        model.since.push(Change::Write(offset, bytes.to_vec()));
        Ok(())
    }

    fn set_len(&self, file: &File, len: u64) -> io::Result<()> {
        SystemDisk.set_len(file, len)?;
        self.recorded.lock().file(file).since.push(Change::Len(len));
        Ok(())
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        let len = usize::try_from(file.metadata()?.len()).unwrap();
        let mut bytes = vec![0; len];
        file.read_exact_at(&mut bytes, 0)?;
        let mut recorded = self.recorded.lock();
        let model = recorded.file(file);
        model.synced = bytes;
        model.since.clear();
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        for (path, history) in &mut self.recorded.lock().names {
            if path.parent() == Some(dir) {
                history.drain(..history.len() - 1);
            }
        }
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.link(from, to)?;
        let mut recorded = self.recorded.lock();
        let id = recorded.id_at(from);
        recorded.name(to, id);
        Ok(())
    }

    fn rename_new(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename_new(from, to)?;
        let mut recorded = self.recorded.lock();
        let id = recorded.id_at(from);
        recorded.name(to, id);
        recorded.name(from, None);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        SystemDisk.rename(from, to)?;
        let mut recorded = self.recorded.lock();
        let id = recorded.id_at(from);
        recorded.name(to, id);
        recorded.name(from, None);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        SystemDisk.remove(path)?;
        self.recorded.lock().name(path, None);
        Ok(())
    }

    fn stamp(&self, file: &File) -> io::Result<Stamp> {
        let stamp = SystemDisk.stamp(file)?;
        // The worst case: attributes survive the power loss at once, even without a sync.
        self.recorded.lock().file(file).stamp = Some(stamp);
        Ok(self.restamped(stamp))
    }
}
