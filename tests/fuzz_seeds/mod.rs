//! Valid inputs for each fuzz target.

mod archives;
mod images;

use std::fs;
use std::io;
use std::path::Path;
use std::sync::mpsc;

use inlay_store::format::check::check_index;
use inlay_store::format::packed::{Effort, pack_index, unpack_index};
use inlay_store::format::write::{IndexParts, write_index};
use inlay_store::format::{Device, GroupIdx, Index, Timestamp};
use inlay_store::ids::{BlobId, Digest, IndexDigest, Kind, SnapshotId};
use inlay_store::pack::{
    BlobStore, Content, FileSink as _, KnownChunks, PackError, PackOptions, Packer,
};
use inlay_store::profile::{Profile, ProfileLabel, Run};
use inlay_store::tree::{Meta, NodeId, NodeKind, Tree, TreeLimits};
use inlay_testkit::content;

use crate::entries;

/// Blobs go to whoever holds the other end.
struct Blobs(mpsc::Sender<Vec<u8>>);

impl BlobStore for Blobs {
    fn put(&mut self, _: BlobId, bytes: Vec<u8>) -> Result<(), PackError> {
        self.0.send(bytes).map_err(|error| PackError::Store(error.to_string()))
    }

    fn finish(&mut self) -> Result<(), PackError> {
        Ok(())
    }
}

fn meta(number: u16) -> Meta {
    let mut meta = Meta {
        perm: 0o4000 | (number & 0o777),
        uid: number.into(),
        gid: 7,
        mtime: Timestamp { secs: i64::from(number) - 10, nanos: u32::from(number) * 1000 + 1 },
        xattrs: Vec::new(),
    };
    for attribute in 0..number % 3 {
        let name = format!("user.attribute-{attribute}").into_bytes();
        meta.xattrs.push((name.into(), vec![b'v'; usize::from(number)].into()));
    }
    meta
}

fn files(packer: &mut Packer) -> Vec<(u64, Content)> {
    let small = content::compressible("small", 700);
    let large = content::random("large", 9000);
    let mut files = vec![(3, Content::Inline(b"abc".as_slice().into())), (1 << 33, Content::Hole)];
    for bytes in [&small, &large, &small] {
        let whole = 0..bytes.len() as u64;
        let size = bytes.len() as u64;
        files.push((
            size,
            packer.add_file(size, std::slice::from_ref(&whole), &mut bytes.as_slice()).unwrap(),
        ));
    }
    // Data, hole, data, hole.
    let sparse = packer.add_file(90_000, &[0..5000, 40_000..44_000], &mut large.as_slice());
    files.push((90_000, sparse.unwrap()));
    files
}

/// An index with every kind of object, and the blobs that it refers to.
fn snapshot() -> (Vec<u8>, Vec<Vec<u8>>) {
    let (sender, blobs) = mpsc::channel();
    let options = PackOptions {
        group_len: 4096,
        blob_len: 8192,
        inline_len_max: 16,
        small_len_max: 1024,
        chunk_len: inlay_store::pack::ChunkLen { min: 512, avg: 1024, max: 4096 },
        workers: 1,
        ..PackOptions::default()
    };
    let mut packer = Packer::new(options, KnownChunks::default(), Box::new(Blobs(sender))).unwrap();
    let mut tree = Tree::new(TreeLimits::default());
    let mut number = 0;
    let mut insert = |tree: &mut Tree, dir, name: &[u8], kind| {
        number += 1;
        tree.insert(dir, name, meta(number), kind).unwrap()
    };
    let root = NodeId::ROOT;
    let dir = insert(&mut tree, root, b"directory", NodeKind::Directory);
    let deeper = insert(&mut tree, dir, b"\xff not UTF-8", NodeKind::Directory);
    insert(&mut tree, deeper, b"link", NodeKind::Symlink(b"../../nowhere".as_slice().into()));
    let device = Device { major: 8, minor: 70_000 };
    insert(&mut tree, root, b"disk", NodeKind::BlockDevice(device));
    insert(&mut tree, root, b"null", NodeKind::CharDevice(device));
    insert(&mut tree, root, b"fifo", NodeKind::Fifo);
    insert(&mut tree, root, b"socket", NodeKind::Socket);
    for (place, (size, content)) in files(&mut packer).into_iter().enumerate() {
        let name = format!("file-{place}");
        let kind = NodeKind::Regular { size, content };
        let file = insert(&mut tree, dir, name.as_bytes(), kind);
        tree.link(deeper, format!("hard-{place}").as_bytes(), file).unwrap();
    }
    let groups = packer.finish().unwrap();
    let mut index = Vec::new();
    let config = br#"{"config":{"Cmd":["sh"]}}"#;
    write_index(IndexParts { kind: Kind::Image, tree: &tree, groups: &groups, config }, &mut index)
        .unwrap();
    (index, blobs.iter().collect())
}

/// Profiles whose entries stand as they are, and compressed.
fn profiles() -> [(&'static str, Profile); 2] {
    let of = |groups: &[std::ops::Range<u32>]| {
        let id = SnapshotId { kind: Kind::Image, index: IndexDigest(Digest::of(b"an index")) };
        let mut profile = Profile::new(id, ProfileLabel::default());
        for groups in groups {
            profile.merge(&Run::in_order(groups.clone().map(GroupIdx)));
        }
        profile
    };
    [("plain", of(&[0..2, 0..1])), ("packed", of(&[0..200, 50..300]))]
}

/// The seeds must be what this version reads, or the fuzzers find nothing.
pub(crate) fn check(dir: &Path) {
    let seed = fs::read(dir.join("seeds/index")).unwrap();
    let index = Index::from_bytes(seed).expect("make the seeds anew");
    let checked = check_index(&index).expect("make the seeds anew");
    assert!(checked.groups > 1 && checked.files > 5, "{checked:?}");
    let packed = fs::read(dir.join("corpus/packed/valid")).unwrap();
    unpack_index(&packed, index.digest(), &mut Vec::new()).expect("make the seeds anew");
    for (name, profile) in profiles() {
        let stored = fs::read(dir.join("corpus/profile").join(name)).unwrap();
        let stored = Profile::decode(&stored).expect("make the seeds anew");
        assert_eq!(stored, profile, "make the seeds anew");
        let entries = profile.entries().len() * 12;
        assert_eq!(profile.encode().len() == 128 + entries + 32, name == "plain");
    }
    let layout = fs::read(dir.join("corpus/oci/one-layer")).unwrap();
    entries::image::oci(&layout).expect("make the seeds anew");
    let archive = fs::read(dir.join("corpus/docker_archive/one-layer")).unwrap();
    entries::image::docker_archive(&archive).expect("make the seeds anew");
}

/// Writes the seeds. What the fuzzers added stays.
pub(crate) fn write(dir: &Path) -> io::Result<()> {
    let (bytes, blobs) = snapshot();
    let save = |path: &str, bytes: &[u8]| {
        let path = dir.join(path);
        fs::create_dir_all(path.parent().unwrap())?;
        fs::write(path, bytes)
    };
    save("seeds/index", &bytes)?;
    save("corpus/index/valid", &bytes)?;
    save("corpus/patched_index/one-patch", &[0x40, 0, 4, 1, 2, 3, 4])?;
    let mut packed = Vec::new();
    pack_index(&bytes, Effort::Thorough, &mut packed)?;
    save("corpus/packed/valid", &packed)?;

    let index = Index::from_bytes(bytes).unwrap();
    let group = index.group(GroupIdx(0)).unwrap();
    let first = blobs.first().unwrap();
    let start = usize::try_from(group.offset).unwrap();
    let stored = &first[start..start + group.stored_len as usize];
    save("corpus/group/valid", &[&group.raw_len.to_le_bytes(), stored].concat())?;
    let stored = zstd::bulk::compress(&[b'x'; 4000], 3)?;
    save("corpus/group/repeated", &[&4000_u32.to_le_bytes(), stored.as_slice()].concat())?;

    let blob = index.blob(inlay_store::format::BlobIdx(0)).unwrap();
    let toc = &first[usize::try_from(blob.toc_offset).unwrap()..];
    save("corpus/toc/valid", &[&blob.toc_offset.to_le_bytes(), toc].concat())?;

    for (name, profile) in profiles() {
        let bytes = profile.encode();
        save(&format!("corpus/profile/{name}"), &bytes)?;
        // The target adds the digest, so changes of these reach what is behind its check.
        let (content, _) = bytes.split_last_chunk::<32>().unwrap();
        save(&format!("corpus/profile/{name}-without-digest"), content)?;
    }
    for (name, archive) in archives::all()? {
        save(&format!("corpus/tar/{name}"), &archive)?;
    }
    save("corpus/layers/two", &archives::layers()?)?;
    save("corpus/oci/one-layer", &images::oci_layout()?)?;
    save("corpus/docker_archive/one-layer", &images::docker_archive()?)
}
