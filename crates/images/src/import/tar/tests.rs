//! Tests archives of other writers, and malformed ones.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;

use inlay_store::format::{Device, Timestamp};
use inlay_store::tree::{NodeKind, TreeLimits};
use proptest::prelude::*;
use tar::{EntryType, Header};

use crate::import::testing::{ArchiveWriter, Listing, MemorySink, TestObject, file, list};
use crate::import::{
    BytesLayer, Flattener, ImportError, ImportOptions, Markers, NoProgress, import_tar_bytes,
};

const LIMIT: u64 = 64 << 20;

fn import(archive: &[u8]) -> Result<Listing, ImportError> {
    let mut sink = MemorySink::default();
    let tree = import_tar_bytes(archive, TreeLimits::default(), LIMIT, &mut sink)?;
    Ok(list(&tree, &sink))
}

fn import_error(archive: &[u8]) -> String {
    import(archive).unwrap_err().to_string()
}

/// Builds an archive with one entry, passing its header to `change` before computing the checksum.
fn with_header(data: &[u8], change: impl FnOnce(&mut Header)) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = Header::new_gnu();
    header.as_old_mut().name[0] = b'a';
    header.set_size(data.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    change(&mut header);
    header.set_cksum();
    builder.append(&header, data).unwrap();
    builder.into_inner().unwrap()
}

/// Builds an archive with one file preceded by these PAX records.
fn with_records(records: &[(&str, &[u8])], data: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions(records.iter().copied()).unwrap();
    let mut archive = builder.get_ref().clone();
    archive.extend(with_header(data, |_| {}));
    archive
}

fn sample() -> Vec<u8> {
    let mut writer = ArchiveWriter::new();
    writer.add(EntryType::Directory, "d", "", b"");
    writer.add(EntryType::Regular, "d/file", "", &[1; 700]);
    writer.add(EntryType::Link, "d/link", "d/file", b"");
    writer.add(EntryType::Symlink, "d/symlink", "../x", b"");
    let mut archive = writer.finish();
    archive.truncate(archive.len() - 1024);
    archive.extend(with_records(&[("SCHILY.xattr.user.x", b"value")], b"more"));
    archive
}

#[test]
fn compression_is_told_by_the_bytes() {
    let plain = sample();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let expected = import(&plain).unwrap();
    assert_eq!(expected.len(), 6);
    assert_eq!(import(&gzip.finish().unwrap()).unwrap(), expected);
    assert_eq!(import(&zstd::encode_all(&plain[..], 1).unwrap()).unwrap(), expected);
    assert!(import_error(b"BZh91AY").contains("bzip2 is not supported"));
}

#[test]
fn data_after_the_end_of_an_archive_is_ignored() {
    let mut archive = sample();
    let expected = import(&archive).unwrap();
    archive.extend([7; 5000]);
    assert_eq!(import(&archive).unwrap(), expected);
}

#[test]
fn an_archive_cut_short_anywhere_is_an_error() {
    let archive = sample();
    let end = archive.len() - 1024;
    for len in 0..end {
        let error = import_error(&archive[..len]);
        assert!(error.contains("cut short"), "{len}: {error}");
    }
    assert!(import(&archive[..end + 512]).is_ok());
    // A digest verifies a layer's completeness, and some writers omit the end mark.
    let options = ImportOptions::default();
    let mut sink = MemorySink::default();
    let mut flattener = Flattener::new(&options, Markers::Apply, &mut sink, &NoProgress);
    flattener.layer(&mut BytesLayer::new("layer", archive[..end].to_vec())).unwrap();
    flattener.layer(&mut BytesLayer::new("layer", Vec::new())).unwrap();
    let error = flattener.layer(&mut BytesLayer::new("layer", archive[..end - 1].to_vec()));
    assert!(error.unwrap_err().to_string().contains("cut short"));
}

#[test]
fn damage_is_an_error_or_harmless() {
    let archive = sample();
    let mut errors = 0;
    for at in 0..archive.len() - 1024 {
        for bit in [0, 3, 7] {
            let mut damaged = archive.clone();
            damaged[at] ^= 1 << bit;
            errors += usize::from(import(&damaged).is_err());
        }
    }
    assert!(errors > 5 * 512, "every bit of a header counts: {errors}");
}

#[test]
fn bombs_are_bounded() {
    let bomb = with_header(&vec![0; 4 << 20], |_| {});
    for packed in [zstd::encode_all(&bomb[..], 1).unwrap(), bomb] {
        let mut sink = MemorySink::default();
        let result = import_tar_bytes(&packed, TreeLimits::default(), 1 << 20, &mut sink);
        let error = result.unwrap_err();
        assert!(matches!(error, ImportError::Limit { limit: 1_048_576, .. }), "{error}");
        assert!(sink.files.is_empty(), "told before the bytes were taken");
    }
    // Bytes after the end count, too.
    let mut tail = sample();
    tail.resize(2 << 20, 0);
    let mut sink = MemorySink::default();
    let tail = zstd::encode_all(&tail[..], 1).unwrap();
    assert!(import_tar_bytes(&tail, TreeLimits::default(), 1 << 20, &mut sink).is_err());
    let huge = with_header(b"", |header| header.set_size(1 << 62));
    assert!(import_error(&huge).contains("more than 67108864 bytes when decompressed"));
    for (kind, len, limit) in [(b'L', 2 << 20, "2097152"), (b'x', 17 << 20, "17825792")] {
        let long = with_header(b"", |header| {
            header.set_entry_type(EntryType::new(kind));
            header.set_size(len);
        });
        let error = import_error(&long);
        assert!(error.contains(&format!("an extended header has {limit} bytes")), "{error}");
    }
    let options = TreeLimits { entries: 3, ..TreeLimits::default() };
    let error = import_tar_bytes(&sample(), options, LIMIT, &mut MemorySink::default());
    assert!(error.unwrap_err().to_string().contains("more than 3 entries"));
}

#[test]
fn headers_say_more_than_octal_numbers() {
    let archive = with_header(b"x", |header| {
        header.as_old_mut().name[..4].copy_from_slice(b"//\xffa");
        header.as_old_mut().mtime = [0xff; 12];
        header.as_old_mut().uid = *b"\x80\0\0\0\xff\xff\xff\xfe";
    });
    let seen = &import(&archive).unwrap()[&b"\xffa"[..]];
    assert_eq!(seen.meta.mtime, Timestamp { secs: -1, nanos: 0 });
    assert_eq!(seen.meta.uid, u32::MAX - 1);
    // A pre-POSIX archive: a trailing slash denotes a directory.
    let archive = with_header(b"", |header| {
        *header = Header::new_old();
        header.as_old_mut().name[..2].copy_from_slice(b"d/");
        header.set_mode(0o700);
        header.set_uid(0);
        header.set_gid(0);
        header.set_size(0);
        header.as_old_mut().linkflag = [0];
    });
    let seen = &import(&archive).unwrap()[&b"d"[..]];
    assert_eq!(seen.object, TestObject::Other(NodeKind::Directory));
    let archive = with_header(b"", |header| {
        header.set_entry_type(EntryType::Block);
        header.set_device_major(259).unwrap();
        header.set_device_minor(70_000).unwrap();
    });
    let device = NodeKind::BlockDevice(Device { major: 259, minor: 70_000 });
    assert_eq!(import(&archive).unwrap()[&b"a"[..]].object, TestObject::Other(device));
}

#[test]
fn senseless_headers_are_errors() {
    let long_value = vec![0; 65537];
    for (archive, message) in [
        (with_header(b"", |h| h.set_entry_type(EntryType::new(b'Z'))), "its type 'Z' is not known"),
        (with_header(b"", |h| h.set_entry_type(EntryType::new(b'M'))), "several volumes"),
        (with_header(b"", |h| h.set_entry_type(EntryType::Symlink)), "has no target"),
        (with_header(b"", |h| h.as_old_mut().uid = *b"12345x7\0"), "its owner '12345x7"),
        (with_header(b"", |h| h.as_old_mut().gid = [0xff; 8]), "its group"),
        (with_header(b"", |h| h.as_old_mut().size[0] = b'9'), "its size"),
        (with_records(&[("path", b"a/../../etc/passwd")], b""), "its name has a '..'"),
        (with_records(&[("path", b"a\0b")], b""), "is not a file name"),
        (with_records(&[("path", &[b'n'; 256])], b""), "is not a file name"),
        (with_records(&[("uid", b"4294967296")], b""), "its owner 4294967296 is too large"),
        (with_records(&[("size", b"-1")], b""), "record 'size' has no valid value"),
        (with_records(&[("GNU.sparse.major", b"2")], b""), "sparse format 2.0 is not supported"),
        (with_records(&[("SCHILY.xattr.user.x", &long_value)], b""), "larger than Linux allows"),
    ] {
        let error = import_error(&archive);
        assert!(error.contains(message), "{error}");
    }
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_pax_extensions([("path", &b"x"[..])]).unwrap();
    let error = import_error(&builder.into_inner().unwrap());
    assert!(error.contains("an extended header belongs to no entry"), "{error}");
}

#[test]
fn records_override_headers() {
    let archive = with_records(
        &[
            ("path", b"/dir/\xfe\n=name"),
            ("uid", b"3000000000"),
            ("gid", b"7"),
            ("mtime", b"-0.25"),
            ("SCHILY.xattr.user.k", b"a\n\0b"),
        ],
        b"data",
    );
    let listing = import(&archive).unwrap();
    let seen = &listing[&b"dir/\xfe\n=name"[..]];
    assert_eq!((seen.meta.uid, seen.meta.gid), (3_000_000_000, 7));
    assert_eq!(seen.meta.mtime, Timestamp { secs: -1, nanos: 750_000_000 });
    assert_eq!(seen.meta.xattrs, [(b"user.k"[..].into(), b"a\n\0b"[..].into())]);
    assert_eq!(seen.object, file(b"data"));
    assert_eq!(listing[&b"dir"[..]].meta.perm, 0o755);
    // The record's size wins.
    let archive = with_records(&[("size", b"4")], b"datadata");
    let mut archive = archive;
    let header = archive.len() - 1024 - 1024;
    assert_eq!(archive[header], b'a');
    archive[header + 124..header + 136].fill(0);
    let mut header_block = Header::new_old();
    header_block.as_mut_bytes().copy_from_slice(&archive[header..header + 512]);
    header_block.set_cksum();
    archive[header..header + 512].copy_from_slice(header_block.as_bytes());
    assert_eq!(import(&archive).unwrap()[&b"a"[..]].object, file(b"data"));
}

#[test]
fn global_records_hold_for_all_that_follow() {
    let global = with_header(b"9 uid=42\n", |header| {
        header.set_entry_type(EntryType::XGlobalHeader);
    });
    let mut archive = global[..1024].to_vec();
    archive.extend(sample());
    let listing = import(&archive).unwrap();
    assert_eq!(listing[&b"d"[..]].meta.uid, 42);
    assert_eq!(listing[&b"a"[..]].meta.uid, 42);
}

#[test]
fn sparse_files_of_every_form_keep_their_holes() {
    let scratch = tempfile::tempdir().unwrap();
    // Enough pieces for two more blocks in the old format, and for a second one in format 1.0.
    for pieces in [0, 1, 4, 5, 30, 100u64] {
        let sparse = File::create(scratch.path().join(format!("{pieces}"))).unwrap();
        for piece in 0..pieces {
            let data = vec![u8::try_from(piece + 1).unwrap(); 4096];
            sparse.write_all_at(&data, piece * 65_536 + 32_768).unwrap();
        }
        sparse.set_len(pieces * 65_536 + 20_000).unwrap();
    }
    let mut listings = Vec::new();
    for form in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let mut tar = Command::new("tar");
        tar.args(form).arg("-C").arg(scratch.path()).args(["--mtime=@7", "-cSf", "-", "."]);
        let mut listing = import(&tar.output().unwrap().stdout).unwrap();
        for seen in listing.values_mut() {
            seen.meta.mtime.nanos = 0;
        }
        listings.push(listing);
    }
    assert!(listings.iter().all(|listing| *listing == listings[0]));
    let TestObject::File { size, stored } = &listings[0][&b"100"[..]].object else { panic!() };
    assert_eq!(*size, 100 * 65_536 + 20_000);
    assert_eq!(stored.data.len(), 100);
    assert_eq!(stored.data[99], 99 * 65_536 + 32_768..99 * 65_536 + 36_864);
    assert_eq!(stored.bytes[99 * 4096..], [100; 4096]);
}

/// Type of a generated entry.
#[derive(Debug, Clone)]
enum Kind {
    File(Vec<u8>),
    Dir,
    Symlink(Vec<u8>),
    /// A hard link to the previous file, if any.
    Link,
    Fifo,
    Char(u32, u32),
}

#[derive(Debug, Clone)]
struct Generated {
    name: Vec<u8>,
    kind: Kind,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: u64,
    fraction: Option<u32>,
    xattrs: BTreeMap<String, Vec<u8>>,
}

fn name(len: usize) -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|b| if matches!(b, 0 | b'/' | b'.') { b'n' } else { b });
    prop::collection::vec(byte, 1..len)
}

fn generated() -> impl Strategy<Value = Generated> {
    let kind = prop_oneof![
        4 => prop::collection::vec(any::<u8>(), 0..1500).prop_map(Kind::File),
        2 => Just(Kind::Dir),
        1 => name(300).prop_map(Kind::Symlink),
        2 => Just(Kind::Link),
        1 => Just(Kind::Fifo),
        1 => (0..4096u32, 0..1_000_000u32).prop_map(|(major, minor)| Kind::Char(major, minor)),
    ];
    let name = prop_oneof![3 => name(20), 1 => name(256)];
    let xattrs = prop::collection::btree_map(
        "user\\.[a-z]{1,9}",
        prop::collection::vec(any::<u8>(), 0..50),
        0..3,
    );
    let owner = prop_oneof![Just(0), Just(1000), any::<u32>()];
    let fraction = prop::option::of(0..1_000_000_000u32);
    (name, kind, 0..0o10000u32, owner.clone(), owner, 0..1u64 << 35, fraction, xattrs).prop_map(
        |(name, kind, mode, uid, gid, mtime, fraction, xattrs)| Generated {
            name,
            kind,
            mode,
            uid,
            gid,
            mtime,
            fraction,
            xattrs,
        },
    )
}

/// Writes a name into a header's field, preceded by a GNU entry if it is too long.
fn long_name(out: &mut tar::Builder<Vec<u8>>, field: &mut [u8; 100], name: &[u8], kind: u8) {
    let short = name.len().min(100);
    field[..short].copy_from_slice(&name[..short]);
    if name.len() > 100 {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::new(kind));
        header.set_size(name.len() as u64 + 1);
        header.set_cksum();
        out.append(&header, &[name, b"\0"].concat()[..]).unwrap();
    }
}

/// Writes the entries: long names in the GNU format, the rest as PAX records.
fn write(entries: &BTreeMap<Vec<u8>, Generated>) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut last_file: &[u8] = &[];
    for (path, entry) in entries {
        let mut records: Vec<(String, Vec<u8>)> = Vec::new();
        for (name, value) in &entry.xattrs {
            records.push((format!("SCHILY.xattr.{name}"), value.clone()));
        }
        if let Some(fraction) = entry.fraction {
            records.push(("mtime".into(), format!("{}.{fraction:09}", entry.mtime).into()));
        }
        if !records.is_empty() {
            let records = records.iter().map(|(key, value)| (key.as_str(), value.as_slice()));
            builder.append_pax_extensions(records).unwrap();
        }
        let mut header = Header::new_gnu();
        header.set_mode(entry.mode);
        header.set_uid(entry.uid.into());
        header.set_gid(entry.gid.into());
        header.set_mtime(entry.mtime);
        let (kind, link, data) = match &entry.kind {
            Kind::File(data) => (EntryType::Regular, &[][..], data.as_slice()),
            Kind::Link if last_file.is_empty() => (EntryType::Fifo, &[][..], &[][..]),
            Kind::Link => (EntryType::Link, last_file, &[][..]),
            Kind::Symlink(target) => (EntryType::Symlink, target.as_slice(), &[][..]),
            Kind::Dir => (EntryType::Directory, &[][..], &[][..]),
            Kind::Fifo => (EntryType::Fifo, &[][..], &[][..]),
            Kind::Char(major, minor) => {
                header.set_device_major(*major).unwrap();
                header.set_device_minor(*minor).unwrap();
                (EntryType::Char, &[][..], &[][..])
            }
        };
        long_name(&mut builder, &mut header.as_old_mut().name, path, b'L');
        long_name(&mut builder, &mut header.as_old_mut().linkname, link, b'K');
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_cksum();
        builder.append(&header, data).unwrap();
        if kind == EntryType::Regular {
            last_file = path;
        }
    }
    builder.into_inner().unwrap()
}

proptest! {
    #[test]
    fn random_trees_come_back(entries in prop::collection::vec((any::<prop::sample::Index>(), generated()), 1..12)) {
        // Each entry goes into one of the preceding directories.
        let mut dirs: Vec<Vec<u8>> = vec![Vec::new()];
        let mut tree: BTreeMap<Vec<u8>, Generated> = BTreeMap::new();
        for (dir, entry) in entries {
            let mut path = dirs[dir.index(dirs.len())].clone();
            if !path.is_empty() {
                path.push(b'/');
            }
            path.extend_from_slice(&entry.name);
            if tree.contains_key(&path) {
                continue;
            }
            if matches!(entry.kind, Kind::Dir) {
                dirs.push(path.clone());
            }
            tree.insert(path, entry);
        }
        let listing = import(&write(&tree)).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(listing.len(), tree.len() + 1);
        let mut last_file: Option<(&Vec<u8>, &Generated)> = None;
        for (path, entry) in &tree {
            let seen = &listing[path];
            let (first, source) = match (&entry.kind, last_file) {
                (Kind::Link, Some(file)) => file,
                _ => (path, entry),
            };
            let object = match &source.kind {
                Kind::File(data) => file(data),
                Kind::Dir => TestObject::Other(NodeKind::Directory),
                Kind::Symlink(target) => TestObject::Other(NodeKind::Symlink(target.as_slice().into())),
                Kind::Char(major, minor) => {
                    TestObject::Other(NodeKind::CharDevice(Device { major: *major, minor: *minor }))
                }
                Kind::Fifo | Kind::Link => TestObject::Other(NodeKind::Fifo),
            };
            prop_assert_eq!(&seen.object, &object);
            prop_assert_eq!(&seen.first_name, first);
            prop_assert_eq!(u32::from(seen.meta.perm), source.mode);
            prop_assert_eq!((seen.meta.uid, seen.meta.gid), (source.uid, source.gid));
            let nanos = source.fraction.unwrap_or_default();
            let secs = i64::try_from(source.mtime).unwrap();
            prop_assert_eq!(seen.meta.mtime, Timestamp { secs, nanos });
            let xattrs = source.xattrs.iter().map(|(k, v)| (k.as_bytes().into(), v.as_slice().into()));
            prop_assert_eq!(&seen.meta.xattrs, &xattrs.collect::<Vec<_>>());
            if matches!(entry.kind, Kind::File(_)) {
                last_file = Some((path, entry));
            }
        }
    }
}

#[test]
fn an_archive_with_long_names_by_gnu_tar() {
    let scratch = tempfile::tempdir().unwrap();
    let dir = scratch.path().join("d".repeat(200)).join("e".repeat(255));
    fs::create_dir_all(&dir).unwrap();
    fs::write(dir.join("f".repeat(255)), "x").unwrap();
    std::os::unix::fs::symlink("t".repeat(300), dir.join("link")).unwrap();
    for format in ["--format=gnu", "--format=posix"] {
        let mut tar = Command::new("tar");
        tar.arg(format).arg("-C").arg(scratch.path()).args(["-cf", "-", "."]);
        let listing = import(&tar.output().unwrap().stdout).unwrap();
        let path = format!("{}/{}/{}", "d".repeat(200), "e".repeat(255), "f".repeat(255));
        assert_eq!(listing[path.as_bytes()].object, file(b"x"), "{format}");
        let link = format!("{}/{}/link", "d".repeat(200), "e".repeat(255));
        let target = NodeKind::Symlink("t".repeat(300).into_bytes().into());
        assert_eq!(listing[link.as_bytes()].object, TestObject::Other(target), "{format}");
    }
}
