//! Opens, reads and fills content files.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use zerocopy::{FromZeros, IntoBytes};

use super::content::{
    CachedContent, ContentState, Part, Right, Sealed, WholeFile, part_cost, ready_len_max,
};
use super::disk::Open;
use super::entry::{BLOCK, file_cost};
use super::groups::Stored;
use super::placement::{ContentId, Piece, Placement};
use super::ranges::{HEADER_LEN, RECORD_LEN, RangeRecord, Ranges, RangesHeader, Ready, parse};
use super::seal::Seal;
use super::stats::count;
use super::store::CacheInner;
use super::{CacheError, Lookup, lease};
use crate::ids::{Digest, GroupDigest};

/// The outcome of opening a part for writing.
pub(super) enum Writable {
    Part(Arc<Part>),
    /// Another process holds the write lock or evicts the part, or the content is sealed or a lie.
    Elsewhere,
    /// A new part does not fit the budget.
    NoRoom,
}

/// The open files of a part, before it is prepared for writing.
struct PartFiles {
    file: File,
    ready: File,
    ranges: Ranges,
    /// Length of the valid records in the `.ready` file; 0 without a valid header.
    ready_len: u64,
}

impl CacheInner {
    /// Returns the state of a content. Probes the disk if an absent content was not probed in this
    /// epoch.
    pub(super) fn state_of(&self, content: &CachedContent) -> ContentState {
        let state = content.state.read().clone();
        let epoch = self.epoch();
        let stale = match &state {
            ContentState::Absent { epoch: seen } => *seen != epoch,
            ContentState::Part(_) | ContentState::Sealed(_) | ContentState::Lie => false,
        };
        if !stale {
            return state;
        }
        // The thread that writes or evicts it will set the state.
        let Some(_writing) = content.writing.try_lock() else { return state };
        let mut slot = content.state.write();
        if matches!(&*slot, ContentState::Absent { epoch: seen } if *seen != epoch) {
            *slot = self.find(content, epoch);
        }
        slot.clone()
    }

    /// Returns the sealed file of a content, even if another process has just sealed it.
    pub(super) fn sealed(&self, content: &CachedContent) -> Option<Arc<Sealed>> {
        match self.state_of(content) {
            ContentState::Sealed(sealed) => Some(sealed),
            ContentState::Part(part) if part.right == Right::Read => {
                let _writing = content.writing.try_lock()?;
                let Ok(WholeFile::Sealed(sealed)) = self.open_sealed(content) else { return None };
                *content.state.write() = ContentState::Sealed(Arc::clone(&sealed));
                Some(sealed)
            }
            ContentState::Part(_) | ContentState::Absent { .. } | ContentState::Lie => None,
        }
    }

    /// Probes the disk for a content: the sealed file first, then the part.
    fn find(&self, content: &CachedContent, epoch: u64) -> ContentState {
        match self.open_sealed(content) {
            Ok(WholeFile::Sealed(sealed)) => return ContentState::Sealed(sealed),
            Ok(WholeFile::Unproved | WholeFile::Leaving) => {}
            Err(error) => self.content_unreadable(&error),
        }
        match self.open_to_read(content) {
            Ok(Some(part)) => ContentState::Part(part),
            Ok(None) => ContentState::Absent { epoch },
            Err(error) => {
                self.content_unreadable(&error);
                ContentState::Absent { epoch }
            }
        }
    }

    fn content_unreadable(&self, error: &io::Error) {
        if error.kind() != ErrorKind::NotFound {
            tracing::debug!(%error, "opening a content file");
            count(&self.counters.read_failures);
        }
    }

    /// Opens the sealed file and checks it against its seal. Queues a file without a matching seal
    /// for verification on the worker thread.
    pub(super) fn open_sealed(&self, content: &CachedContent) -> io::Result<WholeFile> {
        let file = self.disk.open(&content.paths.sealed, Open::Read)?;
        if !lease::share(&file)? {
            return Ok(WholeFile::Leaving);
        }
        let stamp = self.disk.stamp(&file)?;
        if stamp.links == 0 {
            return Ok(WholeFile::Leaving);
        }
        let seal = self.read_seal(content)?;
        if seal.is_some_and(|seal| seal.is_of(&content.id, &stamp)) {
            return Ok(WholeFile::Sealed(Arc::new(Sealed { file: Arc::new(file) })));
        }
        tracing::warn!(path = %content.paths.sealed.display(), "verifying a cache file that changed");
        self.worker.seal(content.id);
        Ok(WholeFile::Unproved)
    }

    fn read_seal(&self, content: &CachedContent) -> io::Result<Option<Seal>> {
        let mut seal = Seal::new_zeroed();
        let read = self
            .disk
            .open(&content.paths.seal, Open::Read)
            .and_then(|file| self.disk.read(&file, seal.as_mut_bytes(), 0));
        match read {
            Ok(()) => Ok(Some(seal)),
            Err(error) => match error.kind() {
                ErrorKind::NotFound | ErrorKind::UnexpectedEof => Ok(None),
                _ => Err(error),
            },
        }
    }

    /// Opens a part read-only.
    pub(super) fn open_to_read(&self, content: &CachedContent) -> io::Result<Option<Arc<Part>>> {
        let files = self.open_part(content, Right::Read)?;
        Ok(files.map(|files| self.part(content, files, Right::Read)))
    }

    /// Opens the files of a part. With `Right::Write`, creates them if they do not exist. Returns
    /// `None` if the part is being evicted, or another process holds the write lock.
    fn open_part(&self, content: &CachedContent, right: Right) -> io::Result<Option<PartFiles>> {
        let how = match right {
            Right::Write => Open::ReadWrite,
            Right::Read => Open::Read,
        };
        let file = self.disk.open(&content.paths.part, how)?;
        if !lease::share(&file)? || self.disk.stamp(&file)?.links == 0 {
            return Ok(None);
        }
        let ready = self.disk.open(&content.paths.ready, how)?;
        if right == Right::Write && (!lease::own(&ready)? || self.disk.stamp(&ready)?.links == 0) {
            return Ok(None);
        }
        let mut ranges = Ranges::default();
        let mut ready_len = 0;
        // A part without its full length is new: the `.ready` file describes an older part, which
        // was sealed by a process that died before it could remove that file.
        if self.disk.stamp(&file)?.len == content.id.size {
            ready_len = self.load_ready(&content.id, &ready, 0, &mut ranges)?;
        }
        Ok(Some(PartFiles { file, ready, ranges, ready_len }))
    }

    /// Queues the part for sealing if it is complete.
    fn part(&self, content: &CachedContent, files: PartFiles, right: Right) -> Arc<Part> {
        let PartFiles { file, ready, ranges, ready_len } = files;
        if ranges.is_whole(&content.id) {
            self.worker.seal(content.id);
        }
        let (ranges, ready_len) = (RwLock::new(ranges), AtomicU64::new(ready_len));
        let condemned = AtomicBool::new(false);
        Arc::new(Part { file, ready, right, ranges, condemned, ready_len })
    }

    /// Adds the ranges in the `.ready` file from offset `from` on. Returns the offset up to which
    /// the file is valid.
    fn load_ready(
        &self,
        id: &ContentId,
        file: &File,
        from: u64,
        ranges: &mut Ranges,
    ) -> io::Result<u64> {
        let len = self.disk.stamp(file)?.len.min(ready_len_max(id));
        if len < HEADER_LEN.max(from) {
            return Ok(from);
        }
        let mut bytes = vec![0; usize::try_from(len - from).unwrap_or(0)];
        self.disk.read(file, &mut bytes, from)?;
        let (records, start) = if from == 0 {
            let mut header = RangesHeader::new_zeroed();
            let (head, records) = bytes.split_at(size_of::<RangesHeader>().min(bytes.len()));
            header.as_mut_bytes().get_mut(..head.len()).unwrap_or_default().copy_from_slice(head);
            if !header.is_of(id) {
                return Ok(0);
            }
            (records, HEADER_LEN)
        } else {
            (bytes.as_slice(), from)
        };
        let ready = parse(id, records);
        let end = start + RECORD_LEN * ready.len() as u64;
        for ready in ready {
            ranges.add(ready);
        }
        Ok(end)
    }

    /// Brings a part that this process may write to a consistent state: truncates invalid records
    /// and frees the blocks outside the ready ranges. Returns the new length of the `.ready` file.
    fn prepare(&self, content: &CachedContent, files: &PartFiles) -> io::Result<u64> {
        let PartFiles { file, ready, ranges, ready_len } = files;
        let (size, ready_len) = (content.id.size, *ready_len);
        if self.disk.stamp(ready)?.len != ready_len {
            self.disk.set_len(ready, ready_len)?;
        }
        // Last, because the full length marks the `.ready` file as belonging to this part.
        if self.disk.stamp(file)?.len != size {
            self.disk.set_len(file, size)?;
        }
        self.give_back(&content.id, file, ranges, &(0..size))?;
        if ready_len == 0 {
            self.disk.write(ready, RangesHeader::new(&content.id).as_bytes(), 0)?;
            return Ok(HEADER_LEN);
        }
        Ok(ready_len)
    }

    /// Frees the blocks in and around `range` that no ready range covers. Only saves space: bytes
    /// outside ready ranges are never read.
    fn give_back(
        &self,
        id: &ContentId,
        file: &File,
        ranges: &Ranges,
        range: &Range<u64>,
    ) -> io::Result<()> {
        let around = range.start / BLOCK * BLOCK..range.end.next_multiple_of(BLOCK).min(id.size);
        for gap in ranges.missing(around) {
            let start = gap.start.next_multiple_of(BLOCK);
            let end = if gap.end == id.size { gap.end } else { gap.end / BLOCK * BLOCK };
            if start < end {
                self.disk.punch(file, start..end.next_multiple_of(BLOCK))?;
            }
        }
        Ok(())
    }

    /// Fills `buf` with a piece of a content that belongs to `group`.
    pub(super) fn read_piece(
        &self,
        content: &CachedContent,
        group: &GroupDigest,
        piece: &Piece,
        buf: &mut [u8],
    ) -> Lookup {
        let part = match self.state_of(content) {
            ContentState::Sealed(sealed) => {
                return self.read_whole(content, &sealed, piece.file_offset, buf);
            }
            ContentState::Part(part) => part,
            ContentState::Absent { .. } | ContentState::Lie => return Lookup::Miss,
        };
        if part.condemned.load(Ordering::Relaxed) {
            return Lookup::Miss;
        }
        let Some(_ready) = self.ready_range(content, &part, group, piece) else {
            return Lookup::Miss;
        };
        content.mark_used();
        match self.disk.read(&part.file, buf, piece.file_offset) {
            Ok(()) => Lookup::Hit,
            Err(error) => {
                tracing::debug!(%error, "can't read a content file");
                count(&self.counters.read_failures);
                part.condemned.store(true, Ordering::Relaxed);
                Lookup::Miss
            }
        }
    }

    /// Fills `buf` with the bytes of a sealed content from `offset`.
    pub(super) fn read_whole(
        &self,
        content: &CachedContent,
        sealed: &Sealed,
        offset: u64,
        buf: &mut [u8],
    ) -> Lookup {
        content.mark_used();
        match self.disk.read(&sealed.file, buf, offset) {
            Ok(()) => Lookup::Hit,
            Err(error) => {
                tracing::debug!(%error, "can't read a whole content file");
                count(&self.counters.read_failures);
                Lookup::Miss
            }
        }
    }

    /// Returns the verified range of a part that contains `piece` of `group`.
    pub(super) fn ready_range(
        &self,
        content: &CachedContent,
        part: &Part,
        group: &GroupDigest,
        piece: &Piece,
    ) -> Option<Arc<Ready>> {
        let find = || part.ranges.read().find(group, piece).cloned();
        let ready = find().or_else(|| {
            self.learn(&content.id, part);
            find()
        })?;
        self.prove_range(part, &ready).then_some(ready)
    }

    /// Loads the records that the process with the write lock has appended.
    fn learn(&self, id: &ContentId, part: &Part) {
        if part.right == Right::Write {
            return;
        }
        let seen = part.ready_len.load(Ordering::Acquire);
        if self.disk.stamp(&part.ready).is_ok_and(|stamp| stamp.len > seen) {
            let mut ranges = part.ranges.write();
            let seen = part.ready_len.load(Ordering::Acquire);
            if let Ok(end) = self.load_ready(id, &part.ready, seen, &mut ranges) {
                part.ready_len.store(end, Ordering::Release);
            }
        }
    }

    /// Returns whether a range holds the right bytes. Verifies it on first use in this process, and
    /// removes it if it is damaged.
    fn prove_range(&self, part: &Part, ready: &Ready) -> bool {
        ready.is_proved() || self.check_range(part, ready)
    }

    /// Verifies every range of a part, including those already verified. Returns whether all are
    /// right.
    pub(super) fn prove_ranges(&self, part: &Part) -> bool {
        let all = part.ranges.read().all();
        // `filter().count()` does not short-circuit, so that all damage is found at once.
        all.iter().filter(|ready| !self.check_range(part, ready)).count() == 0
    }

    /// Verifies a range. Removes a damaged one, and condemns the part if reading fails.
    fn check_range(&self, part: &Part, ready: &Ready) -> bool {
        let mut bytes = vec![0; ready.piece.len as usize];
        match self.disk.read(&part.file, &mut bytes, ready.piece.file_offset) {
            Ok(()) if Digest::of(&bytes) == ready.bytes => {
                count(&self.counters.verified);
                ready.proved();
                true
            }
            Ok(()) => {
                tracing::warn!("removing a damaged range of a content file");
                count(&self.counters.verify_failures);
                // Its blocks stay allocated, so they stay counted.
                part.ranges.write().remove(ready);
                false
            }
            Err(error) => {
                tracing::debug!(%error, "can't read a range of a content file");
                count(&self.counters.read_failures);
                part.condemned.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// Opens the part for writing, and reserves the space of a new `.ready` file. Replaces a
    /// condemned part. The caller holds `content.writing`.
    pub(super) fn writable(&self, content: &CachedContent) -> Result<Writable, CacheError> {
        let state = content.state.read().clone();
        match state {
            ContentState::Part(part) if part.right == Right::Write => {
                if !part.condemned.load(Ordering::Relaxed) {
                    return Ok(Writable::Part(part));
                }
                self.discard_part(content, part.cost());
            }
            ContentState::Part(_) | ContentState::Absent { .. } => {}
            ContentState::Sealed(_) | ContentState::Lie => return Ok(Writable::Elsewhere),
        }
        let make = || self.open_part(content, Right::Write);
        let opened = match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.disk.make_dir(&content.paths.dir).and_then(|()| make())
            }
            opened => opened,
        };
        let opened = opened.map_err(CacheError::io("opening", &content.paths.part))?;
        let Some(mut files) = opened else { return Ok(Writable::Elsewhere) };
        // A `.ready` file with a valid header is already counted.
        let is_new = files.ready_len == 0;
        let space = if is_new { self.room.reserve(file_cost(HEADER_LEN))? } else { None };
        if is_new && space.is_none() {
            // Nothing in it is valid. If it stayed, its eviction would release space that was never
            // reserved.
            self.discard_part(content, 0);
            return Ok(Writable::NoRoom);
        }
        files.ready_len = self
            .prepare(content, &files)
            .map_err(CacheError::io("preparing", &content.paths.part))?;
        if let Some(space) = space {
            space.keep();
        }
        let part = self.part(content, files, Right::Write);
        *content.state.write() = ContentState::Part(Arc::clone(&part));
        Ok(Writable::Part(part))
    }

    /// Stores the pieces of a group in its content.
    pub(super) fn store_pieces(
        &self,
        placement: &Placement,
        group: &GroupDigest,
        decoded: &[u8],
    ) -> Result<Stored, CacheError> {
        let content = self.contents.get(placement.content());
        if matches!(self.state_of(&content), ContentState::Sealed(_)) {
            return Ok(Stored::Before);
        }
        let _writing = content.writing.lock();
        if matches!(&*content.state.read(), ContentState::Sealed(_)) {
            return Ok(Stored::Before);
        }
        let part = match self.writable(&content)? {
            Writable::Part(part) => part,
            Writable::Elsewhere => return Ok(Stored::Elsewhere),
            Writable::NoRoom => return Ok(Stored::NoRoom),
        };
        let mut outcome = Stored::Before;
        for piece in placement.pieces() {
            let before = part.ranges.read().find(group, piece).cloned();
            if before.is_some_and(|ready| self.prove_range(&part, &ready)) {
                continue;
            }
            let Some(bytes) = piece.of(decoded) else { return Ok(Stored::Elsewhere) };
            match self.store_piece(&content, &part, group, piece, bytes)? {
                Stored::New | Stored::Before => outcome = Stored::New,
                refused => return Ok(refused),
            }
        }
        if part.ranges.read().is_whole(&content.id) {
            self.worker.seal(content.id);
        }
        Ok(outcome)
    }

    /// Stores one piece: the missing bytes first, then the record. A crash in between leaves bytes
    /// without a record, which are never read. The caller holds `content.writing`.
    fn store_piece(
        &self,
        content: &CachedContent,
        part: &Part,
        group: &GroupDigest,
        piece: &Piece,
        bytes: &[u8],
    ) -> Result<Stored, CacheError> {
        let range = piece.range();
        // Ranges stored by other groups must agree with these bytes, or one of the snapshots makes
        // a false claim.
        let overlapping = part.ranges.read().overlapping(&range);
        for ready in overlapping {
            self.prove_range(part, &ready);
        }
        let missing = part.ranges.read().missing(range.clone());
        if !self.agrees(part, &range, &missing, bytes) {
            count(&self.counters.contradictions);
            return Ok(Stored::Elsewhere);
        }
        let blocks: u64 =
            missing.iter().map(|gap| (gap.end.div_ceil(BLOCK) - gap.start / BLOCK) * BLOCK).sum();
        let Some(space) = self.room.reserve(blocks + BLOCK)? else { return Ok(Stored::NoRoom) };
        let before = part.cost();
        let written = self.write_gaps(part, &range, &missing, bytes).and_then(|()| {
            let ready = Ready::new(*piece, *group, bytes);
            let at = part.ready_len.load(Ordering::Relaxed);
            let record = RangeRecord::new(&content.id, &ready);
            self.disk.write(&part.ready, record.as_bytes(), at)?;
            part.ready_len.store(at + RECORD_LEN, Ordering::Release);
            Ok(ready)
        });
        match written {
            Ok(ready) => {
                part.ranges.write().add(ready);
                space.keep_only(part.cost().saturating_sub(before));
                Ok(Stored::New)
            }
            Err(error) => {
                let ranges = part.ranges.read();
                let given = self.give_back(&content.id, &part.file, &ranges, &range);
                drop(ranges);
                if given.is_err() {
                    // Otherwise these blocks would never be accounted for.
                    self.discard_part(content, part.cost());
                }
                Err(CacheError::io("writing", &content.paths.part)(error))
            }
        }
    }

    fn write_gaps(
        &self,
        part: &Part,
        range: &Range<u64>,
        missing: &[Range<u64>],
        bytes: &[u8],
    ) -> io::Result<()> {
        for gap in missing {
            let part_of = within(range, gap).and_then(|part| bytes.get(part));
            self.disk.write(&part.file, part_of.unwrap_or_default(), gap.start)?;
        }
        Ok(())
    }

    /// Returns whether the stored bytes of `range` equal those in `bytes`.
    fn agrees(
        &self,
        part: &Part,
        range: &Range<u64>,
        missing: &[Range<u64>],
        bytes: &[u8],
    ) -> bool {
        if missing == std::slice::from_ref(range) {
            return true;
        }
        let mut there = vec![0; bytes.len()];
        if self.disk.read(&part.file, &mut there, range.start).is_err() {
            return false;
        }
        for gap in missing {
            let Some(gap) = within(range, gap) else { continue };
            if let (Some(to), Some(from)) = (there.get_mut(gap.clone()), bytes.get(gap)) {
                to.copy_from_slice(from);
            }
        }
        there == bytes
    }
}

/// Returns the position of `part` in a buffer that holds `range`.
fn within(range: &Range<u64>, part: &Range<u64>) -> Option<Range<usize>> {
    let at = |offset: u64| usize::try_from(offset.checked_sub(range.start)?).ok();
    Some(at(part.start)?..at(part.end)?)
}

/// Returns the cost of a part against the budget, computed from its `.ready` file alone.
pub(super) fn cost_of_ready(inner: &CacheInner, id: &ContentId, file: &File) -> io::Result<u64> {
    let mut ranges = Ranges::default();
    let len = inner.load_ready(id, file, 0, &mut ranges)?;
    Ok(part_cost(&ranges, len.max(HEADER_LEN)))
}
