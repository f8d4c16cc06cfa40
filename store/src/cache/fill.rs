//! Opening content files, reading ranges of them, and filling them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use parking_lot::RwLock;
use zerocopy::{FromZeros, IntoBytes};

use super::content::{Content, Part, Right, Sealed, State, part_cost, ready_len_max};
use super::disk::Open;
use super::entry::{BLOCK, file_cost};
use super::groups::Stored;
use super::placement::{ContentId, Piece, Placement};
use super::ranges::{HEADER_LEN, Header, RECORD_LEN, Ranges, Ready, Record, parse};
use super::seal::Seal;
use super::stats::count;
use super::store::Inner;
use super::{CacheError, Lookup, lease};
use crate::ids::{Digest, GroupDigest};

impl Inner {
    /// What there is of a content; looks on the disk when that was not done for a while.
    pub(super) fn state_of(&self, content: &Content) -> State {
        let state = content.state.read().clone();
        let epoch = self.epoch();
        let stale = match &state {
            State::Absent { epoch: seen } => *seen != epoch,
            State::Part(_) | State::Sealed(_) | State::Lie => false,
        };
        if !stale {
            return state;
        }
        // Whoever writes or evicts it knows better.
        let Some(_writing) = content.writing.try_lock() else { return state };
        let mut slot = content.state.write();
        if matches!(&*slot, State::Absent { epoch: seen } if *seen != epoch) {
            *slot = self.find(content, epoch);
        }
        slot.clone()
    }

    /// The whole file of a content, also if another process has just sealed it.
    pub(super) fn sealed(&self, content: &Content) -> Option<Arc<Sealed>> {
        match self.state_of(content) {
            State::Sealed(sealed) => Some(sealed),
            State::Part(part) if part.right == Right::Read => {
                let _writing = content.writing.try_lock()?;
                let sealed = self.open_sealed(content).ok()??;
                *content.state.write() = State::Sealed(Arc::clone(&sealed));
                Some(sealed)
            }
            State::Part(_) | State::Absent { .. } | State::Lie => None,
        }
    }

    fn find(&self, content: &Content, epoch: u64) -> State {
        match self.open_sealed(content) {
            Ok(Some(sealed)) => return State::Sealed(sealed),
            Ok(None) => {}
            Err(error) => self.content_unreadable(&error),
        }
        match self.open_part(content, Right::Read) {
            Ok(Some(part)) => State::Part(part),
            Ok(None) => State::Absent { epoch },
            Err(error) => {
                self.content_unreadable(&error);
                State::Absent { epoch }
            }
        }
    }

    fn content_unreadable(&self, error: &io::Error) {
        if error.kind() != ErrorKind::NotFound {
            tracing::debug!(%error, "opening a content file");
            count(&self.counters.read_failures);
        }
    }

    /// The sealed file, if it is the one that its seal tells of. One without a seal is looked at in
    /// the background.
    pub(super) fn open_sealed(&self, content: &Content) -> io::Result<Option<Arc<Sealed>>> {
        let file = self.disk.open(&content.paths.sealed, Open::Read)?;
        if !lease::share(&file)? {
            return Ok(None);
        }
        let stamp = self.disk.stamp(&file)?;
        if stamp.links == 0 {
            return Ok(None);
        }
        let seal = self.read_seal(content)?;
        if seal.is_some_and(|seal| seal.is_of(&content.id, &stamp)) {
            return Ok(Some(Arc::new(Sealed { file: Arc::new(file) })));
        }
        tracing::warn!(path = %content.paths.sealed.display(), "a changed cache file is not used unchecked");
        self.worker.seal(content.id);
        Ok(None)
    }

    fn read_seal(&self, content: &Content) -> io::Result<Option<Seal>> {
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

    /// Opens a part as one who only reads it.
    pub(super) fn open_to_read(&self, content: &Content) -> io::Result<Option<Arc<Part>>> {
        self.open_part(content, Right::Read)
    }

    /// Opens a part. To write, it is made if it is not there; `None` if that is another's right.
    fn open_part(&self, content: &Content, right: Right) -> io::Result<Option<Arc<Part>>> {
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
        // A part without its full length has just been made: what is ready tells of another, which
        // was sealed by a process that died before it could remove this.
        if self.disk.stamp(&file)?.len == content.id.size {
            ready_len = self.load_ready(&content.id, &ready, 0, &mut ranges)?;
        }
        if right == Right::Write {
            ready_len = self.prepare(content, &file, &ready, ready_len, &ranges)?;
        }
        let whole = ranges.is_whole(&content.id);
        let ranges = RwLock::new(ranges);
        let ready_len = AtomicU64::new(ready_len);
        if whole {
            self.worker.seal(content.id);
        }
        let condemned = AtomicBool::new(false);
        Ok(Some(Arc::new(Part { file, ready, right, ranges, condemned, ready_len })))
    }

    /// Takes what the file of ready ranges says after its first `from` bytes, and tells up to where
    /// it can be believed.
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
            let mut header = Header::new_zeroed();
            let (head, records) = bytes.split_at(size_of::<Header>().min(bytes.len()));
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

    /// Makes a part that this process may write what its ready ranges say: nothing else is in it.
    fn prepare(
        &self,
        content: &Content,
        file: &File,
        ready: &File,
        ready_len: u64,
        ranges: &Ranges,
    ) -> io::Result<u64> {
        let size = content.id.size;
        if self.disk.stamp(ready)?.len != ready_len {
            self.disk.set_len(ready, ready_len)?;
        }
        // Last, because the length says that what is ready tells of this file.
        if self.disk.stamp(file)?.len != size {
            self.disk.set_len(file, size)?;
        }
        self.give_back(&content.id, file, ranges, &(0..size))?;
        if ready_len == 0 {
            self.disk.write(ready, Header::new(&content.id).as_bytes(), 0)?;
            return Ok(HEADER_LEN);
        }
        Ok(ready_len)
    }

    /// Frees the blocks in and around `range` that no ready range has bytes of. Only for room: what
    /// is no ready range is not read.
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
        content: &Content,
        group: &GroupDigest,
        piece: &Piece,
        buf: &mut [u8],
    ) -> Lookup {
        let part = match self.state_of(content) {
            State::Sealed(sealed) => {
                return self.read_whole(content, &sealed, piece.file_offset, buf);
            }
            State::Part(part) => part,
            State::Absent { .. } | State::Lie => return Lookup::Miss,
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
                tracing::debug!(%error, "a content file can't be read");
                count(&self.counters.read_failures);
                part.condemned.store(true, Ordering::Relaxed);
                Lookup::Miss
            }
        }
    }

    /// Fills `buf` with the bytes of a whole content.
    pub(super) fn read_whole(
        &self,
        content: &Content,
        sealed: &Sealed,
        offset: u64,
        buf: &mut [u8],
    ) -> Lookup {
        content.mark_used();
        match self.disk.read(&sealed.file, buf, offset) {
            Ok(()) => Lookup::Hit,
            Err(error) => {
                tracing::debug!(%error, "a whole content file can't be read");
                count(&self.counters.read_failures);
                Lookup::Miss
            }
        }
    }

    /// The proved range of a part that has `piece` of `group`.
    pub(super) fn ready_range(
        &self,
        content: &Content,
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

    /// Looks what the process that writes a part has added to it.
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

    /// Whether the file holds the bytes that it should. Those that it does not hold are taken out.
    fn prove_range(&self, part: &Part, ready: &Ready) -> bool {
        ready.is_proved() || self.check_range(part, ready)
    }

    /// Whether every range of a part holds the bytes that it should, however often it was proved.
    pub(super) fn prove_ranges(&self, part: &Part) -> bool {
        let all = part.ranges.read().all();
        // All of them, so that all damage is found at once.
        all.iter().filter(|ready| !self.check_range(part, ready)).count() == 0
    }

    fn check_range(&self, part: &Part, ready: &Ready) -> bool {
        let mut bytes = vec![0; ready.piece.len as usize];
        match self.disk.read(&part.file, &mut bytes, ready.piece.file_offset) {
            Ok(()) if Digest::of(&bytes) == ready.bytes => {
                count(&self.counters.verified);
                ready.proved();
                true
            }
            Ok(()) => {
                tracing::warn!("a damaged range of a content file is removed");
                count(&self.counters.verify_failures);
                // Its blocks stay counted: they are still there.
                part.ranges.write().remove(ready);
                false
            }
            Err(error) => {
                tracing::debug!(%error, "a range of a content file can't be read");
                count(&self.counters.read_failures);
                part.condemned.store(true, Ordering::Relaxed);
                false
            }
        }
    }

    /// The part that this process may write.
    pub(super) fn writable(&self, content: &Content) -> Result<Option<Arc<Part>>, CacheError> {
        let state = content.state.read().clone();
        match state {
            State::Part(part) if part.right == Right::Write => {
                if !part.condemned.load(Ordering::Relaxed) {
                    return Ok(Some(part));
                }
                self.discard(content, part.cost());
            }
            State::Part(_) | State::Absent { .. } => {}
            State::Sealed(_) | State::Lie => return Ok(None),
        }
        let make = || self.open_part(content, Right::Write);
        let opened = match make() {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.disk.make_dir(&content.paths.dir).and_then(|()| make())
            }
            opened => opened,
        };
        let opened = opened.map_err(CacheError::io("opening", &content.paths.part))?;
        if let Some(part) = &opened {
            *content.state.write() = State::Part(Arc::clone(part));
        }
        Ok(opened)
    }

    /// Stores the pieces of a group in the content that they belong to.
    pub(super) fn store_pieces(
        &self,
        placement: &Placement,
        group: &GroupDigest,
        decoded: &[u8],
    ) -> Result<Stored, CacheError> {
        let content = self.contents.get(placement.content());
        if matches!(self.state_of(&content), State::Sealed(_)) {
            return Ok(Stored::Before);
        }
        let _writing = content.writing.lock();
        if matches!(&*content.state.read(), State::Sealed(_)) {
            return Ok(Stored::Before);
        }
        let fresh = matches!(&*content.state.read(), State::Absent { .. });
        let Some(part) = self.writable(&content)? else { return Ok(Stored::Elsewhere) };
        if fresh {
            // The file that says what is ready.
            let is_new = part.ranges.read().len() == 0;
            if is_new {
                match self.room.reserve(file_cost(HEADER_LEN))? {
                    Some(space) => space.keep(),
                    None => return Ok(Stored::NoRoom),
                }
            }
        }
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

    fn store_piece(
        &self,
        content: &Content,
        part: &Part,
        group: &GroupDigest,
        piece: &Piece,
        bytes: &[u8],
    ) -> Result<Stored, CacheError> {
        let range = piece.range();
        // What is there under another group's name must be the same, or one of the two lies.
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
            let record = Record::new(&content.id, &ready);
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
                    // Nobody would know of these blocks.
                    self.discard(content, part.cost());
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

    /// Whether what is there of `range` is what `bytes` says.
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

/// Where `part` is in a buffer that holds `range`.
fn within(range: &Range<u64>, part: &Range<u64>) -> Option<Range<usize>> {
    let at = |offset: u64| usize::try_from(offset.checked_sub(range.start)?).ok();
    Some(at(part.start)?..at(part.end)?)
}

/// What a part on the disk counts against the budget, told from its file of ready ranges alone.
pub(super) fn cost_of_ready(inner: &Inner, id: &ContentId, file: &File) -> io::Result<u64> {
    let mut ranges = Ranges::default();
    let len = inner.load_ready(id, file, 0, &mut ranges)?;
    Ok(part_cost(&ranges, len.max(HEADER_LEN)))
}
