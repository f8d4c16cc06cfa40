//! Reads every byte that a snapshot refers to from the store and checks it.

use std::io;

use futures::stream::{self, StreamExt};
use inlay_store::format::check::check_index;
use inlay_store::format::packed::unpack_index;
use inlay_store::format::{Blob, BlobIdx, Group, GroupIdx, Index};
use inlay_store::group::decode_group;
use inlay_store::ids::SnapshotId;
use inlay_store::pack::{TOC_LEN_MAX, read_toc};
use inlay_store::remote::{ObjectKey, Remote, StoreError};
use serde::Serialize;

use super::error::SnapshotError;
use super::open::open_index;
use crate::host::Host;

/// Bytes that are asked for at a time.
const REQUEST_LEN: u64 = 4 << 20;
/// Requests under way at once.
const REQUESTS: usize = 4;
/// Lines of damage that are kept.
const DAMAGE_MAX: usize = 1000;
/// The longest packed index that is checked in one piece.
const PACKED_LEN_MAX: u64 = 1 << 30;

/// How far a verification is.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// So many bytes are going to be read.
    Expect(u64),
    /// So many more are checked.
    Done(u64),
}

/// What was found.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Groups that were checked.
    pub groups: u64,
    /// Blobs that hold them.
    pub blobs: u64,
    /// Bytes read from the store.
    pub bytes_read: u64,
    /// What is wrong, a line each; at most a thousand.
    pub damage: Vec<String>,
    /// How many lines more there would be.
    pub damage_left_out: u64,
}

impl Report {
    fn add(&mut self, damage: String) {
        if self.damage.len() < DAMAGE_MAX {
            self.damage.push(damage);
        } else {
            self.damage_left_out += 1;
        }
    }
}

/// Neighbouring groups of one blob, or its table of chunks.
enum Part {
    Groups { blob: Blob, groups: Vec<Group> },
    Toc { blob: Blob },
}

impl Part {
    fn blob(&self) -> Blob {
        match self {
            Self::Groups { blob, .. } | Self::Toc { blob } => *blob,
        }
    }

    fn range(&self) -> std::ops::Range<u64> {
        match self {
            Self::Toc { blob } => blob.toc_offset..blob.size,
            Self::Groups { groups, .. } => {
                let start = groups.first().map_or(0, |group| group.offset);
                let end = groups.iter().map(|g| g.offset + u64::from(g.stored_len)).max();
                start..end.unwrap_or(start)
            }
        }
    }

    /// A line for everything in `bytes` that is not as it should be.
    fn check(&self, bytes: &[u8]) -> Vec<String> {
        match self {
            Self::Toc { blob } => read_toc(bytes, blob.toc_offset, blob.toc_digest)
                .err()
                .map(|error| format!("blob {}: {error}", blob.id))
                .into_iter()
                .collect(),
            Self::Groups { blob, groups } => {
                let start = self.range().start;
                let wrong = |group: &Group| {
                    let from = usize::try_from(group.offset - start).ok()?;
                    let stored = bytes.get(from..from.checked_add(group.stored_len as usize)?)?;
                    decode_group(stored, group).err()
                };
                groups
                    .iter()
                    .filter_map(|group| {
                        let error = wrong(group)?;
                        Some(format!("blob {} at byte {}: {error}", blob.id, group.offset))
                    })
                    .collect()
            }
        }
    }
}

/// Checks the snapshot `id`. Damage is reported, not an error; an error is what keeps the check from
/// going on.
pub fn verify(
    host: &Host,
    id: SnapshotId,
    step: &mut dyn FnMut(Step),
) -> Result<Report, SnapshotError> {
    let mut report = Report::default();
    let remote = host.remote();
    // Without the index nothing else can be checked: that is an error.
    let index = host.wait(open_index(remote, host.state(), id))?;
    let packed = host.wait(remote.get(&ObjectKey::Index(id.index), PACKED_LEN_MAX));
    match packed {
        Ok(packed) => {
            report.bytes_read += packed.len() as u64;
            if let Err(error) = unpack_index(&packed, id.index, &mut io::sink()) {
                report.add(format!("index: {error}"));
            }
        }
        Err(error) => report.add(format!("index: {error}")),
    }
    if let Err(error) = check_index(&index) {
        report.add(format!("index: {error}"));
    }
    let parts = parts_of(&index).map_err(|source| SnapshotError::Index { id, source })?;
    report.groups = index.group_count().into();
    report.blobs = index.blob_count().into();
    step(Step::Expect(parts.iter().map(|part| part.range().end - part.range().start).sum()));
    host.wait(check_parts(remote, parts, &mut report, step));
    Ok(report)
}

async fn check_parts(
    remote: &Remote,
    parts: Vec<Part>,
    report: &mut Report,
    step: &mut dyn FnMut(Step),
) {
    let checks = parts.into_iter().map(|part| async move {
        let key = ObjectKey::Blob(part.blob().id);
        let bytes = remote.get_range(&key, part.range(), remote.policy().budget()).await?;
        let len = bytes.len() as u64;
        // Decoding takes a while: not on a thread that others' answers wait for.
        let damage = tokio::task::spawn_blocking(move || part.check(&bytes)).await;
        let damage = damage.unwrap_or_else(|error| vec![error.to_string()]);
        Ok::<_, StoreError>((len, damage))
    });
    let mut checks = stream::iter(checks).buffered(REQUESTS);
    while let Some(checked) = checks.next().await {
        match checked {
            Ok((len, damage)) => {
                report.bytes_read += len;
                step(Step::Done(len));
                for line in damage {
                    report.add(line);
                }
            }
            Err(error) => report.add(error.to_string()),
        }
    }
}

fn parts_of(index: &Index) -> Result<Vec<Part>, inlay_store::format::FormatError> {
    let mut parts = Vec::new();
    for blob in (0..index.blob_count()).map(BlobIdx) {
        let blob = index.blob(blob)?;
        if blob.size - blob.toc_offset <= TOC_LEN_MAX {
            parts.push(Part::Toc { blob });
        }
    }
    let mut open: Option<(BlobIdx, Vec<Group>)> = None;
    let close = |open: Option<(BlobIdx, Vec<Group>)>, parts: &mut Vec<Part>| {
        let Some((blob, groups)) = open else { return Ok(()) };
        parts.push(Part::Groups { blob: index.blob(blob)?, groups });
        Ok::<_, inlay_store::format::FormatError>(())
    };
    for group in (0..index.group_count()).map(GroupIdx) {
        let group = index.group(group)?;
        let end = group.offset + u64::from(group.stored_len);
        match &mut open {
            Some((blob, groups))
                if *blob == group.blob
                    && groups.last().is_some_and(|last| last.offset <= group.offset)
                    && groups.first().is_some_and(|first| end - first.offset <= REQUEST_LEN) =>
            {
                groups.push(group);
            }
            _ => close(open.replace((group.blob, vec![group])), &mut parts)?,
        }
    }
    close(open, &mut parts)?;
    Ok(parts)
}
