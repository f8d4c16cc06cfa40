//! Tests mapping paths and groups of packed snapshots.

use inlay_store::ids::Kind;
use inlay_store::tree::{NodeId, NodeKind};
use proptest::prelude::*;

use super::*;
use inlay_images::export::testing::{Builder, meta};

const MIB: u64 = 1 << 20;

/// Builds two groups of small files, and a large file with its own groups.
fn snapshot() -> Index {
    let mut b = Builder::new();
    let root = NodeId::ROOT;
    let a = b.dir(root, b"a");
    let inner = b.dir(a, b"inner");
    for name in ["1", "2", "3", "4"] {
        b.file(inner, name.as_bytes(), meta(0o644), 200_000, std::slice::from_ref(&(0..200_000)));
    }
    b.file(a, b"large", meta(0o644), 3 * MIB, std::slice::from_ref(&(0..3 * MIB)));
    b.file(a, b"tiny", meta(0o644), 10, std::slice::from_ref(&(0..10)));
    b.file(root, b"z", meta(0o644), 5000, std::slice::from_ref(&(0..5000)));
    b.add(root, b"link", meta(0o777), NodeKind::Symlink(b"a/inner/1".as_slice().into()));
    b.add(root, b"loop", meta(0o777), NodeKind::Symlink(b"loop".as_slice().into()));
    b.finish(b"").index
}

fn groups_of(index: &Index, paths: &[PathPart]) -> Vec<u32> {
    let found = groups_of_paths(index, paths).unwrap();
    assert!(found.missing.is_empty(), "{found:?}");
    found.groups.iter().map(|group| group.0).collect()
}

fn whole(path: &str) -> PathPart {
    PathPart::whole(path)
}

fn range(path: &str, range: Range<u64>) -> PathPart {
    PathPart { path: path.into(), part: Part::Range(range) }
}

/// Returns the groups of a file from its extents, independently of the code under test.
fn extents_of(index: &Index, path: &str) -> Vec<(u64, u32)> {
    let inode = find(index, path.as_bytes(), LastLink::Keep).unwrap();
    let FileData::Extents(extents) = index.data(inode).unwrap() else { return Vec::new() };
    extents.iter().map(|extent| extent.unwrap()).map(|e| (e.file_offset, e.group.0)).collect()
}

#[test]
fn files_come_in_the_order_that_was_asked_for() {
    let index = snapshot();
    let of = |path: &str| {
        let mut groups: Vec<u32> = extents_of(&index, path).iter().map(|(_, g)| *g).collect();
        groups.dedup();
        groups
    };
    let large = of("/a/large");
    assert!(large.len() > 3, "{large:?}");
    assert_eq!(groups_of(&index, &[whole("/a/large"), whole("/a/inner/1")]), {
        [large.clone(), of("/a/inner/1")].concat()
    });
    assert_eq!(groups_of(&index, &[whole("link")]), of("/a/inner/1"), "links are followed");
    assert_eq!(groups_of(&index, &[whole("/a/tiny"), whole("/")]).len(), {
        index.group_count() as usize
    });
    let mut below: Vec<u32> = ["1", "2", "3", "4"].map(|n| of(&format!("/a/inner/{n}"))).concat();
    below.dedup();
    assert!(below.len() > 1);
    assert_eq!(groups_of(&index, &[whole("/a/inner/"), whole("/a/inner/2")]), below);
}

#[test]
fn a_part_of_a_file_means_its_groups_alone() {
    let index = snapshot();
    let extents = extents_of(&index, "/a/large");
    let (offset, group) = extents[extents.len() / 2];
    assert_eq!(groups_of(&index, &[range("/a/large", offset..offset + 1)]), [group]);
    assert_eq!(groups_of(&index, &[range("/a/large", 3 * MIB..4 * MIB)]), [0; 0]);
}

#[test]
fn paths_missing_from_the_snapshot_are_listed() {
    let index = snapshot();
    let paths = [whole("/absent"), whole("/z"), whole("/z/below"), whole("loop"), whole("/../z")];
    let found = groups_of_paths(&index, &paths).unwrap();
    assert_eq!(found.missing, [0, 2, 3]);
    assert_eq!(found.groups.len(), 1);
}

#[test]
fn a_group_knows_its_files() {
    let index = snapshot();
    let small = GroupIdx(extents_of(&index, "/a/inner/1")[0].1);
    let large = extents_of(&index, "/a/large");
    let first = GroupIdx(large[0].1);
    let found = files_of_groups(&index, [small, first], Keep::First(1)).unwrap();
    assert_eq!(found[&small].first, [whole("/a/inner/1")]);
    assert!(found[&small].count > 1, "{found:?}");
    let end = large.iter().find(|(_, group)| *group != first.0).unwrap().0;
    assert_eq!(found[&first].first, [range("/a/large", 0..end)]);
    assert_eq!(found[&first].count, 1);
    let all = large.iter().map(|(_, group)| GroupIdx(*group));
    let found = files_of_groups(&index, all, Keep::All).unwrap();
    assert!(found.values().all(|files| files.first == [whole("/a/large")]), "{found:?}");
}

#[test]
fn files_that_share_all_their_pieces_do_not_take_for_ever() {
    let mut b = Builder::new();
    let pieces: Vec<_> = (0..400).map(|n| n * 8192..n * 8192 + 4096).collect();
    b.file(NodeId::ROOT, b"real", meta(0o644), 4 * MIB, &pieces);
    for n in 0..400 {
        b.file(NodeId::ROOT, format!("false-{n}").as_bytes(), meta(0o644), 4 * MIB, &[]);
    }
    let honest = b.finish(b"").index;
    let mut bytes = honest.bytes().to_vec();
    let inodes = usize::try_from(u64::from_le_bytes(bytes[32..40].try_into().unwrap())).unwrap();
    let place = |name: &str| {
        let inode = honest.lookup(InodeIdx::ROOT, name.as_bytes()).unwrap().unwrap();
        inodes + 64 * inode.0 as usize
    };
    // Copy the location of the data: the tag, and the fields it applies to.
    let real = bytes[place("real")..][..64].to_vec();
    for n in 0..400 {
        let at = place(&format!("false-{n}"));
        bytes[at + 40..at + 44].copy_from_slice(&real[40..44]);
        bytes[at + 48..at + 64].copy_from_slice(&real[48..64]);
    }
    let hostile = Index::from_bytes(bytes).unwrap();
    let all = || (0..hostile.group_count()).map(GroupIdx);
    let error = files_of_groups(&hostile, all(), Keep::All).unwrap_err();
    assert!(error.to_string().contains("more pieces"), "{error}");
    // A hint is truncated.
    assert_eq!(groups_of(&hostile, &[whole("/")]).len(), hostile.group_count() as usize);
    assert_eq!(files_of_groups(&honest, all(), Keep::All).unwrap().len(), all().count());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn paths_and_groups_lead_to_each_other(mask in any::<u64>()) {
        let index = snapshot();
        let wanted: Vec<GroupIdx> =
            (0..index.group_count()).filter(|n| mask >> n & 1 == 1).map(GroupIdx).collect();
        let files = files_of_groups(&index, wanted.iter().copied(), Keep::All).unwrap();
        let parts: Vec<PathPart> =
            wanted.iter().flat_map(|group| files[group].first.clone()).collect();
        let mut found = groups_of_paths(&index, &parts).unwrap();
        found.groups.sort();
        prop_assert_eq!(found, GroupsOfPaths { groups: wanted, missing: Vec::new() });
    }

    #[test]
    fn a_damaged_index_ends_in_an_answer(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
    ) {
        let mut bytes = snapshot().bytes().to_vec();
        for (at, byte) in changes {
            // Not in the header: most changes there are detected on opening.
            let place = 256 + at.index(bytes.len() - 256);
            bytes[place] = byte;
        }
        let Ok(index) = Index::from_bytes(bytes) else { return Ok(()) };
        prop_assert_eq!(index.kind(), Kind::Image);
        let _ = groups_of_paths(&index, &[whole("/a/large"), whole("/link"), whole("/")]);
        let all = (0..index.group_count()).map(GroupIdx);
        let _ = files_of_groups(&index, all, Keep::All);
    }
}
