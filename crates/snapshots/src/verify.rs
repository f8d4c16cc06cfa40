//! Reads and verifies all data in the store that a snapshot refers to.

use std::io;

use futures::stream::{self, StreamExt};
use inlay_store::format::check::check_index;
use inlay_store::format::packed::unpack_index;
use inlay_store::format::{Blob, BlobIdx, FormatError, Group, GroupIdx, Index};
use inlay_store::group::{check_decoded, decode_group};
use inlay_store::ids::{DecodedDigest, SnapshotId};
use inlay_store::pack::{TOC_LEN_MAX, read_toc};
use inlay_store::remote::{ObjectKey, Remote, StoreError};
use serde::Serialize;

use super::error::SnapshotError;
use super::open::open_index;
use crate::host::Host;

/// Bytes per request.
const REQUEST_LEN: u64 = 4 << 20;
/// Maximum concurrent requests.
const REQUESTS: usize = 4;
/// Maximum lines of damage kept.
const DAMAGE_MAX: usize = 1000;
/// Maximum size of a packed index that is verified, in bytes.
const PACKED_LEN_MAX: u64 = 1 << 30;

/// Progress of a verification.
#[derive(Debug, Clone, Copy)]
pub enum Step {
    /// Total number of bytes to read.
    Expect(u64),
    /// Number of additional bytes verified.
    Done(u64),
}

/// Result of a verification.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Number of groups read and checked, whether intact or damaged.
    pub groups: u64,
    /// Number of blobs that hold the snapshot's groups.
    pub blobs: u64,
    /// Bytes read from the store.
    pub bytes_read: u64,
    /// Damage, one line each; at most 1000.
    pub damage: Vec<String>,
    /// Number of lines dropped beyond these.
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

/// A group, and the digest of its decoded bytes if the index has it.
struct VerifyGroup {
    group: Group,
    decoded: Option<DecodedDigest>,
}

impl VerifyGroup {
    fn end(&self) -> u64 {
        self.group.offset + u64::from(self.group.stored_len)
    }

    fn check(&self, stored: &[u8]) -> Result<(), FormatError> {
        let raw = decode_group(stored, &self.group)?;
        self.decoded.map_or(Ok(()), |expected| check_decoded(&raw, &self.group, expected))
    }
}

/// Neighbouring groups of one blob, or its chunk table.
enum VerifyPart {
    Groups { blob: Blob, groups: Vec<VerifyGroup> },
    Toc { blob: Blob },
}

impl VerifyPart {
    fn blob(&self) -> Blob {
        match self {
            Self::Groups { blob, .. } | Self::Toc { blob } => *blob,
        }
    }

    fn range(&self) -> std::ops::Range<u64> {
        match self {
            Self::Toc { blob } => blob.toc_offset..blob.size,
            Self::Groups { groups, .. } => {
                let start = groups.first().map_or(0, |first| first.group.offset);
                let end = groups.iter().map(VerifyGroup::end).max();
                start..end.unwrap_or(start)
            }
        }
    }

    /// Number of groups in this part.
    fn groups(&self) -> u64 {
        match self {
            Self::Toc { .. } => 0,
            Self::Groups { groups, .. } => groups.len() as u64,
        }
    }

    /// Returns a line if this part is too large to be read. Readers refuse such a table, so the blob
    /// is unusable as a parent; its groups are still readable.
    fn too_large(&self) -> Option<String> {
        let Self::Toc { blob } = self else { return None };
        let found = blob.size.saturating_sub(blob.toc_offset);
        let error = FormatError::TooLarge { what: "table of chunks", found, limit: TOC_LEN_MAX };
        (found > TOC_LEN_MAX).then(|| format!("blob {}: {error}", blob.id))
    }

    /// Returns a line for each defect in `bytes`.
    fn check(&self, bytes: &[u8]) -> Vec<String> {
        match self {
            Self::Toc { blob } => read_toc(bytes, blob.toc_offset, blob.toc_digest)
                .err()
                .map(|error| format!("blob {}: {error}", blob.id))
                .into_iter()
                .collect(),
            Self::Groups { blob, groups } => {
                let start = self.range().start;
                let wrong = |of: &VerifyGroup| {
                    let from = usize::try_from(of.group.offset - start).ok()?;
                    let len = of.group.stored_len as usize;
                    of.check(bytes.get(from..from.checked_add(len)?)?).err()
                };
                groups
                    .iter()
                    .filter_map(|of| {
                        let error = wrong(of)?;
                        Some(format!("blob {} at byte {}: {error}", blob.id, of.group.offset))
                    })
                    .collect()
            }
        }
    }
}

/// Verifies the snapshot `id`. Damage goes into the report; an error means that the verification
/// could not continue.
pub fn verify(
    host: &Host,
    id: SnapshotId,
    step: &mut dyn FnMut(Step),
) -> Result<Report, SnapshotError> {
    let mut report = Report::default();
    let remote = host.remote();
    // Nothing can be verified without the index, so this is an error.
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
    if let Err(error) = host.wait(remote.snapshot(&id)) {
        report.add(format!("record: {error}"));
    }
    if let Err(error) = check_index(&index) {
        report.add(format!("index: {error}"));
    }
    let mut parts = parts_of(&index).map_err(|source| SnapshotError::Index { id, source })?;
    parts.retain(|part| part.too_large().map(|line| report.add(line)).is_none());
    report.blobs = index.blob_count().into();
    step(Step::Expect(parts.iter().map(|part| part.range().end - part.range().start).sum()));
    host.wait(check_parts(remote, parts, &mut report, step));
    Ok(report)
}

async fn check_parts(
    remote: &Remote,
    parts: Vec<VerifyPart>,
    report: &mut Report,
    step: &mut dyn FnMut(Step),
) {
    let checks = parts.into_iter().map(|part| async move {
        let key = ObjectKey::Blob(part.blob().id);
        let bytes = remote.get_range(&key, part.range(), remote.policy().budget()).await?;
        let (len, groups) = (bytes.len() as u64, part.groups());
        // Decoding takes a while, so keep it off the threads that drive network I/O.
        let damage = tokio::task::spawn_blocking(move || part.check(&bytes)).await;
        let damage = damage.unwrap_or_else(|error| vec![error.to_string()]);
        Ok::<_, StoreError>((len, groups, damage))
    });
    let mut checks = stream::iter(checks).buffered(REQUESTS);
    while let Some(checked) = checks.next().await {
        match checked {
            Ok((len, groups, damage)) => {
                report.bytes_read += len;
                report.groups += groups;
                step(Step::Done(len));
                for line in damage {
                    report.add(line);
                }
            }
            Err(error) => report.add(error.to_string()),
        }
    }
}

fn parts_of(index: &Index) -> Result<Vec<VerifyPart>, FormatError> {
    let mut parts = Vec::new();
    for blob in (0..index.blob_count()).map(BlobIdx) {
        parts.push(VerifyPart::Toc { blob: index.blob(blob)? });
    }
    let mut open: Option<(BlobIdx, Vec<VerifyGroup>)> = None;
    let close = |open: Option<(BlobIdx, Vec<VerifyGroup>)>, parts: &mut Vec<VerifyPart>| {
        let Some((blob, groups)) = open else { return Ok(()) };
        parts.push(VerifyPart::Groups { blob: index.blob(blob)?, groups });
        Ok::<_, FormatError>(())
    };
    for group in (0..index.group_count()).map(GroupIdx) {
        let decoded = index.decoded(group)?;
        let of = VerifyGroup { group: index.group(group)?, decoded };
        match &mut open {
            Some((blob, groups))
                if *blob == of.group.blob
                    && groups.last().is_some_and(|last| last.group.offset <= of.group.offset)
                    && groups
                        .first()
                        .is_some_and(|first| of.end() - first.group.offset <= REQUEST_LEN) =>
            {
                groups.push(of);
            }
            _ => close(open.replace((of.group.blob, vec![of])), &mut parts)?,
        }
    }
    close(open, &mut parts)?;
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use inlay_images::import::{ImportOptions, NoProgress, Source};
    use inlay_store::format::packed::{Effort, pack_index};
    use inlay_store::ids::Kind;
    use inlay_store::pack::PackOptions;
    use inlay_store::remote::{Existing, SnapshotRecord, StoreConfig};

    use super::*;
    use crate::state::State;
    use crate::{CreateOptions, Parent, create};

    struct Fixture {
        dir: tempfile::TempDir,
        host: Host,
        record: SnapshotRecord,
    }

    impl Fixture {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            let state = State::open(&dir.path().join("state")).unwrap();
            let store = StoreConfig::new(dir.path().join("store").display().to_string());
            let host = Host::open(state, &store).unwrap();
            let source = dir.path().join("source");
            fs::create_dir_all(&source).unwrap();
            fs::write(source.join("file"), "contents".repeat(10_000)).unwrap();
            let options = CreateOptions {
                existing: Existing::Compared,
                kind: Kind::Directory,
                name: None,
                parent: Parent::None,
                dedup: Vec::new(),
                labels: [].into(),
                import: ImportOptions::default(),
                pack: PackOptions::default(),
            };
            let record = create(&host, &Source::Dir(source), &options, &NoProgress).unwrap().record;
            Self { dir, host, record }
        }

        fn index(&self) -> Index {
            let opened = open_index(self.host.remote(), self.host.state(), self.record.id);
            self.host.wait(opened).unwrap()
        }

        fn verify(&self, id: SnapshotId) -> Report {
            verify(&self.host, id, &mut |_| {}).unwrap()
        }

        /// Stores a snapshot that differs from the fixture's only in its index.
        fn put(&self, index: &Index) -> SnapshotId {
            let mut packed = Vec::new();
            pack_index(index.bytes(), Effort::Quick, &mut packed).unwrap();
            let id = SnapshotId { index: index.digest(), ..self.record.id };
            self.host.wait(async {
                let remote = self.host.remote();
                let key = ObjectKey::Index(id.index);
                remote.put_checked(&key, packed.into(), Existing::Compared).await.unwrap();
                remote.put_snapshot(&SnapshotRecord { id, ..self.record.clone() }).await.unwrap();
            });
            id
        }

        fn blob_file(&self) -> PathBuf {
            let blob = self.index().blob(BlobIdx(0)).unwrap();
            ObjectKey::Blob(blob.id).file(&self.dir.path().join("store"))
        }
    }

    #[test]
    fn a_table_that_no_reader_accepts_is_damage() {
        let of = Fixture::new();
        let report = of.verify(of.record.id);
        assert_eq!((report.groups, report.blobs), (of.index().group_count().into(), 1));
        assert!(report.damage.is_empty() && report.groups > 0, "{report:?}");

        // The same snapshot, with an index that gives the blob another size.
        let index = of.index();
        let blob = index.blob(BlobIdx(0)).unwrap();
        let mut bytes = index.bytes().to_vec();
        let id = blob.id.0.as_bytes();
        let at = bytes.windows(id.len()).position(|window| window == id).unwrap() + id.len();
        assert_eq!(bytes[at..at + 8], blob.size.to_le_bytes());
        let size = blob.toc_offset + TOC_LEN_MAX + 1;
        bytes[at..at + 8].copy_from_slice(&size.to_le_bytes());
        let index = Index::from_bytes(bytes).unwrap();
        let id = of.put(&index);
        let report = of.verify(id);
        let [line] = &report.damage[..] else { panic!("{report:?}") };
        let name = blob.id.to_string();
        assert!(line.contains(&name) && line.contains("table of chunks"), "{line}");
        assert_eq!(report.groups, u64::from(index.group_count()));
    }

    #[test]
    fn a_wrong_digest_of_decoded_bytes_is_damage() {
        let of = Fixture::new();
        let index = of.index();
        let decoded = index.decoded(GroupIdx(0)).unwrap().unwrap();
        let mut bytes = index.bytes().to_vec();
        let digest = decoded.0.as_bytes();
        let at = bytes.windows(32).position(|window| window == digest).unwrap();
        bytes[at] ^= 1;
        let id = of.put(&Index::from_bytes(bytes).unwrap());
        let report = of.verify(id);
        let [line] = &report.damage[..] else { panic!("{report:?}") };
        assert!(line.contains("the contents of group"), "{line}");
    }

    #[test]
    fn groups_that_could_not_be_read_are_not_counted() {
        let of = Fixture::new();
        let file = of.blob_file();
        let mut bytes = fs::read(&file).unwrap();
        // A group with other bytes is read and found damaged.
        bytes[20] ^= 1;
        fs::write(&file, &bytes).unwrap();
        let report = of.verify(of.record.id);
        assert_eq!(report.groups, u64::from(of.index().group_count()), "{report:?}");
        assert_eq!(report.damage.len(), 1, "{report:?}");
        fs::remove_file(&file).unwrap();
        let report = of.verify(of.record.id);
        assert_eq!((report.groups, report.blobs), (0, 1), "{report:?}");
        assert!(!report.damage.is_empty());
    }
}
