//! Resolves recorded numbers after the end of a recording: paths of files, and the fetches that
//! reads waited for.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use inlay_store::format::walk::{Step, Walk};
use inlay_store::format::{FileData, FileKind, FormatError, GroupIdx, Index, InodeIdx};
use inlay_store::ids::BlobId;

use super::buffer::{Buffer, Fetch, Touch, What};
use super::events::{EventMark, EventSpan, TraceEvents};
use super::recorder::Recording;
use super::source::Source;
use crate::clock;
use crate::model::{FetchRow, FileRow, Served, SnapshotInfo, Tier, TouchRow};

/// Maximum total bytes of paths reported.
const PATH_BYTES_MAX: usize = 16 << 20;

/// A file: the position of its source, and its inode.
type File = (u32, InodeIdx);
/// A group: the position of its source, and its number.
type SourceGroup = (u32, GroupIdx);

impl Recording {
    /// Returns the recorded events, with `served` added. The recording must have ended. The time is
    /// linear in the sizes of the indexes.
    pub fn events(&self, ended: u64, served: Served) -> TraceEvents {
        let sources = self.sources.lock();
        let buffer = self.buffer.lock();
        let groups = Groups::find(&sources, &buffer);
        let mut files = Files::default();
        let touches = touches(&buffer, &groups, &mut files, ended, self.began);
        let held = groups.files(&sources, &buffer);
        let fetches = (0..).zip(&buffer.fetches).map(|(place, fetch)| {
            let group = groups.of(place);
            let file = group.and_then(|group| held.get(&group).copied());
            let file = file.map_or(-1, |file| files.place(file));
            fetch_row(fetch, group.map(|group| group.0), &sources, file, self.began)
        });
        let fetches = fetches.collect();
        TraceEvents {
            began_ns: self.began,
            duration: u64::try_from(clock::micros(self.began, ended)).unwrap_or(0),
            dropped: buffer.dropped,
            snapshots: sources.iter().map(|source| about(source)).collect(),
            files: files.named(&sources),
            touches,
            fetches,
            marks: marks(&buffer, self.began),
            spans: spans(&buffer, self.began),
            served,
        }
    }
}

fn marks(buffer: &Buffer, began: u64) -> Vec<EventMark> {
    let mark = |mark: &super::buffer::Named| EventMark {
        at: clock::micros(began, mark.at),
        name: mark.name.to_owned(),
        detail: mark.detail.clone(),
    };
    buffer.marks.iter().map(mark).collect()
}

fn spans(buffer: &Buffer, began: u64) -> Vec<EventSpan> {
    let span = |span: &super::buffer::Stretch| EventSpan {
        from: clock::micros(began, span.from),
        to: clock::micros(began, span.to),
        kind: span.kind,
        what: span.what.clone(),
    };
    buffer.spans.iter().map(span).collect()
}

fn about(source: &Source) -> SnapshotInfo {
    let index = &source.about.index;
    let groups = 0..index.group_count();
    let sizes = groups.filter_map(|group| index.group(GroupIdx(group)).ok());
    SnapshotInfo {
        id: source.about.snapshot.to_string(),
        name: source.name.get().cloned(),
        store: source.about.store.clone(),
        groups: u64::from(index.group_count()),
        files: u64::from(index.inode_count()),
        size: sizes.map(|group| u64::from(group.raw_len)).fold(0, u64::saturating_add),
    }
}

/// Converts the touches to rows in order of time.
fn touches(
    buffer: &Buffer,
    groups: &Groups,
    files: &mut Files,
    ended: u64,
    began: u64,
) -> Vec<TouchRow> {
    let mut waited: HashMap<u32, Vec<GroupIdx>> = HashMap::new();
    for (place, group) in &buffer.waited {
        waited.entry(*place).or_default().push(*group);
    }
    let mut rows: Vec<TouchRow> = Vec::with_capacity(buffer.touches.len());
    for (place, touch) in (0..).zip(&buffer.touches) {
        let end = touch.end_by(ended);
        let wanted = waited.get(&place).map_or(&[][..], Vec::as_slice);
        let fetch = groups.waited_for(touch, wanted, end, &buffer.fetches);
        let tier = match (touch.tier, fetch.and_then(|place| buffer.fetches.get(place))) {
            // The request was already in flight.
            (Tier::Store, Some(fetch)) if fetch.sent < touch.at => Tier::InFlight,
            // The data arrived in the meantime, or came from memory.
            (Tier::Store, None) if buffer.dropped == 0 && touch.end < ended => Tier::Cache,
            (tier, _) => tier,
        };
        rows.push(TouchRow {
            at: clock::micros(began, touch.at),
            wait: clock::micros(touch.at, end).max(0),
            file: files.place((touch.source, InodeIdx(touch.inode))),
            tier,
            offset: i64::try_from(touch.offset).unwrap_or(i64::MAX),
            bytes: i64::from(touch.bytes),
            fetch: fetch.and_then(|place| i64::try_from(place).ok()).unwrap_or(-1),
            first: touch.first,
        });
    }
    rows.sort_by_key(|row| row.at);
    rows
}

fn fetch_row(
    fetch: &Fetch,
    source: Option<u32>,
    sources: &[Arc<Source>],
    file: i64,
    began: u64,
) -> FetchRow {
    let time = |at| clock::micros(began, at);
    let (snapshot, groups) = match &fetch.what {
        What::Groups(_, offsets) => (source.map(|source| source as usize), offsets.len()),
        What::Of(id) => (sources.iter().position(|source| source.about.snapshot == *id), 0),
    };
    FetchRow {
        queued: time(fetch.queued),
        sent: time(fetch.sent),
        first_byte: time(fetch.first_byte),
        received: time(fetch.received),
        ready: time(fetch.ready),
        class: fetch.class,
        snapshot: snapshot.and_then(|place| i64::try_from(place).ok()).unwrap_or(-1),
        groups: i64::try_from(groups).unwrap_or(i64::MAX),
        bytes: i64::try_from(fetch.bytes).unwrap_or(i64::MAX),
        outcome: fetch.outcome,
        file,
    }
}

/// Maps groups to the requests that fetched them.
struct Groups {
    /// First group of each fetch.
    of: HashMap<usize, SourceGroup>,
    /// Fetches of each group, in order.
    fetches: HashMap<SourceGroup, Vec<usize>>,
}

impl Groups {
    /// Searches the groups of all sources for those that were fetched.
    fn find(sources: &[Arc<Source>], buffer: &Buffer) -> Self {
        let mut wanted: HashMap<(BlobId, u64), Vec<usize>> = HashMap::new();
        for (place, fetch) in buffer.fetches.iter().enumerate() {
            if let What::Groups(blob, offsets) = &fetch.what {
                for offset in offsets {
                    wanted.entry((*blob, *offset)).or_default().push(place);
                }
            }
        }
        let (mut of, mut fetches) = (HashMap::new(), HashMap::new());
        for (source, about) in (0..).zip(sources) {
            let index = &about.about.index;
            for number in (0..index.group_count()).map(GroupIdx) {
                let Ok(group) = index.group(number) else { continue };
                let Ok(blob) = index.blob(group.blob) else { continue };
                let Some(places) = wanted.get(&(blob.id, group.offset)) else { continue };
                let watched = |place: &&usize| {
                    let fetch = buffer.fetches.get(**place);
                    fetch.is_some_and(|fetch| fetch.watch == about.about.watch)
                };
                let places: Vec<usize> = places.iter().filter(watched).copied().collect();
                for place in &places {
                    of.entry(*place).or_insert((source, number));
                }
                if !places.is_empty() {
                    fetches.insert((source, number), places);
                }
            }
        }
        Self { of, fetches }
    }

    fn of(&self, fetch: usize) -> Option<SourceGroup> {
        self.of.get(&fetch).copied()
    }

    /// Returns the fetch that a read waited for last.
    fn waited_for(
        &self,
        touch: &Touch,
        groups: &[GroupIdx],
        end: u64,
        fetches: &[Fetch],
    ) -> Option<usize> {
        let places = groups.iter().filter_map(|group| self.fetches.get(&(touch.source, *group)));
        let under_way = |place: &usize| {
            let fetch = fetches.get(*place)?;
            let over = if fetch.ready == 0 { u64::MAX } else { fetch.ready };
            (fetch.sent <= end && over >= touch.at).then_some((over, *place))
        };
        places.flatten().filter_map(under_way).max().map(|(_, place)| place)
    }

    /// Returns a file with bytes in each fetch's first group: the group's owner, else a touched
    /// file, else the first file.
    fn files(&self, sources: &[Arc<Source>], buffer: &Buffer) -> HashMap<SourceGroup, File> {
        let mut found: HashMap<SourceGroup, File> = HashMap::new();
        let mut missing: HashSet<SourceGroup> = self.of.values().copied().collect();
        let mut owned = Vec::new();
        for (source, group) in &missing {
            let index = sources.get(*source as usize).map(|source| &source.about.index);
            let owner = index.and_then(|index| index.group(*group).ok()?.owner);
            owned.extend(owner.map(|inode| ((*source, *group), (*source, inode))));
        }
        let mut take = |group: SourceGroup, file: File, missing: &mut HashSet<SourceGroup>| {
            if missing.remove(&group) {
                found.insert(group, file);
            }
        };
        for (group, file) in owned {
            take(group, file, &mut missing);
        }
        for touch in &buffer.touches {
            let Some(source) = sources.get(touch.source as usize) else { continue };
            let inode = InodeIdx(touch.inode);
            each_group(&source.about.index, inode, |group| {
                take((touch.source, group), (touch.source, inode), &mut missing);
            });
        }
        for (place, source) in (0..).zip(sources) {
            let index = &source.about.index;
            if !missing.iter().any(|(of, _)| *of == place) {
                continue;
            }
            for inode in (0..index.inode_count()).map(InodeIdx) {
                each_group(index, inode, |group| {
                    take((place, group), (place, inode), &mut missing);
                });
            }
        }
        found
    }
}

/// Calls `take` for the groups of a small file; large files own theirs.
fn each_group(index: &Index, inode: InodeIdx, mut take: impl FnMut(GroupIdx)) {
    let Ok(FileData::Extents(extents)) = index.data(inode) else { return };
    // In a valid index a small file has few; the limit bounds the work for a hostile one.
    for extent in extents.iter().take(16).flatten() {
        take(extent.group);
    }
}

/// Files that rows refer to.
#[derive(Default)]
struct Files {
    places: HashMap<File, i64>,
    files: Vec<File>,
}

impl Files {
    fn place(&mut self, file: File) -> i64 {
        let next = i64::try_from(self.files.len()).unwrap_or(i64::MAX);
        *self.places.entry(file).or_insert_with(|| {
            self.files.push(file);
            next
        })
    }

    /// Returns all files with their paths.
    fn named(&self, sources: &[Arc<Source>]) -> Vec<FileRow> {
        let mut paths: HashMap<File, String> = HashMap::new();
        let mut left = PATH_BYTES_MAX;
        for (place, source) in (0..).zip(sources) {
            let of_source = self.files.iter().filter(|(of, _)| *of == place);
            let wanted: HashSet<InodeIdx> = of_source.map(|(_, inode)| *inode).collect();
            if wanted.is_empty() {
                continue;
            }
            if let Err(error) = walk(&source.about.index, place, wanted, &mut paths, &mut left) {
                tracing::debug!(%error, "can't find the paths of some files of a trace");
            }
            source.about.index.release_pages();
        }
        let row = |file: &File| {
            let index = sources.get(file.0 as usize).map(|source| &source.about.index);
            let size = index.and_then(|index| index.attr(file.1).ok()).map_or(0, |attr| attr.size);
            let path = paths.get(file).cloned();
            FileRow(path.unwrap_or_else(|| format!("(inode {})", file.1.0)), file.0, size)
        };
        self.files.iter().map(row).collect()
    }
}

/// Finds the paths of `wanted`, limited to `left` bytes in total.
fn walk(
    index: &Index,
    source: u32,
    mut wanted: HashSet<InodeIdx>,
    paths: &mut HashMap<File, String>,
    left: &mut usize,
) -> Result<(), FormatError> {
    let mut at: Vec<u8> = Vec::new();
    let mut lengths = Vec::new();
    for step in Walk::new(index, InodeIdx::ROOT)? {
        match step? {
            Step::Leave { .. } => at.truncate(lengths.pop().unwrap_or(0)),
            Step::Entry { entry, .. } => {
                let before = at.len();
                at.push(b'/');
                at.extend_from_slice(entry.name);
                if wanted.remove(&entry.inode) {
                    let path = String::from_utf8_lossy(&at).into_owned();
                    let Some(rest) = left.checked_sub(path.len()) else { return Ok(()) };
                    *left = rest;
                    paths.insert((source, entry.inode), path);
                    if wanted.is_empty() {
                        return Ok(());
                    }
                }
                if entry.kind == FileKind::Directory {
                    lengths.push(before);
                } else {
                    at.truncate(before);
                }
            }
        }
    }
    Ok(())
}
