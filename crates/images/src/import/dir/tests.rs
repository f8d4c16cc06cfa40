//! Tests imports of real directories, including one with every kind of object. Requires root.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::path::PathBuf;
use std::process::Command;

use inlay_store::pack::{Content, PackError};
use inlay_store::tree::NodeKind;
use inlay_testkit::tree::EveryKind;
use rustix::mount::{UnmountFlags, mount_bind, unmount};

use super::*;
use crate::import::testing::{Listing, MemorySink, TestObject, file, list};
use crate::import::{FileLayer, Mounts, NoProgress, import_tar};

fn import(path: &Path, mounts: Mounts) -> Result<Listing, ImportError> {
    let mut sink = MemorySink::default();
    let options = ImportOptions { mounts, ..ImportOptions::default() };
    let tree = import_dir(path, &options, &mut sink, &NoProgress)?;
    Ok(list(&tree, &sink))
}

fn names(listing: &Listing) -> Vec<String> {
    listing.keys().map(|path| String::from_utf8_lossy(path).into_owned()).collect()
}

/// Calls a closure on its first file, to modify the directory during an import.
struct Saboteur<F>(Option<F>);

impl<F: FnOnce()> FileSink for Saboteur<F> {
    fn add_file(
        &mut self,
        size: u64,
        _: &[Range<u64>],
        reader: &mut dyn Read,
    ) -> Result<Content, PackError> {
        if let Some(act) = self.0.take() {
            act();
        }
        let read = io::copy(reader, &mut io::sink()).map_err(PackError::Read)?;
        assert_eq!(read, size);
        Ok(Content::Hole)
    }
}

fn import_sabotaged(path: &Path, act: impl FnOnce()) -> Result<Tree, ImportError> {
    import_dir(path, &ImportOptions::default(), &mut Saboteur(Some(act)), &NoProgress)
}

#[test]
fn every_kind_of_object_comes_as_gnu_tar_reads_it() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir(&root).unwrap();
    EveryKind { entries: 50, large: 3 << 20 }.make(&root).unwrap();
    let mut from_dir = import(&root, Mounts::Skip).unwrap();
    let sockets = from_dir.len();
    from_dir.retain(|_, seen| seen.object != TestObject::Other(NodeKind::Socket));
    assert!(from_dir.len() < sockets, "there was a socket");
    for form in ["posix", "gnu"] {
        let archive = scratch.path().join(form);
        let mut tar = Command::new("tar");
        tar.arg("-C").arg(&root).arg("-cSf").arg(&archive).arg(format!("--format={form}"));
        if form == "posix" {
            tar.args(["--xattrs", "--xattrs-include=*", "--acls"]);
        }
        assert!(tar.arg(".").output().unwrap().status.success());
        let mut sink = MemorySink::default();
        let options = ImportOptions::default();
        let tree = import_tar(&mut FileLayer::new(archive), &options, &mut sink, &NoProgress);
        let from_tar = list(&tree.unwrap(), &sink);
        assert_eq!(names(&from_tar), names(&from_dir), "{form}");
        for (path, mut expected) in from_dir.clone() {
            let mut seen = from_tar[&path].clone();
            if form == "gnu" {
                // The GNU format has neither fractional seconds nor attributes.
                expected.meta.mtime.nanos = 0;
                expected.meta.xattrs.clear();
                seen.meta.mtime.nanos = 0;
            }
            if matches!(
                seen.object,
                TestObject::Other(
                    NodeKind::Fifo | NodeKind::CharDevice(_) | NodeKind::BlockDevice(_)
                )
            ) {
                // It writes each name of such an inode as a separate object.
                expected.first_name.clone_from(&seen.first_name);
            }
            if let TestObject::File { size: size @ 1..=512, stored } = &mut expected.object
                && stored.data.is_empty()
            {
                // It stores holes of up to a block as data.
                expected.object = file(&vec![0; usize::try_from(*size).unwrap()]);
            }
            let path = path.escape_ascii();
            assert!(seen.object == expected.object, "{form} {path}");
            assert_eq!(seen.meta, expected.meta, "{form} {path}");
            assert_eq!(seen.first_name, expected.first_name, "{form} {path}");
        }
    }
}

#[test]
fn a_deep_tree_needs_few_descriptors() {
    let scratch = tempfile::tempdir().unwrap();
    let mut dir = scratch.path().to_owned();
    for _ in 0..300 {
        dir.push("d");
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("a"), "x").unwrap();
        fs::write(dir.join("z"), "y").unwrap();
    }
    let listing = import(scratch.path(), Mounts::Skip).unwrap();
    assert_eq!(listing.len(), 1 + 3 * 300);
    let deepest = [&b"d/".repeat(300)[..], b"z"].concat();
    assert_eq!(listing[&deepest].object, file(b"y"));
}

/// A bind mount, unmounted on drop.
struct Bound(PathBuf);

impl Bound {
    fn new(root: &Path, from: &str, to: &str) -> Self {
        let to = root.join(to);
        mount_bind(root.join(from), &to).unwrap();
        Self(to)
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

#[test]
fn other_mounts_are_left_out_unless_wanted() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::write(root.join("file"), "own").unwrap();
    fs::create_dir(root.join("bound")).unwrap();
    fs::create_dir(root.join("other")).unwrap();
    fs::write(root.join("other/secret"), "x").unwrap();
    let _bound = Bound::new(root, "other", "bound");
    let _file = Bound::new(root, "other/secret", "file");
    let skipped = import(root, Mounts::Skip).unwrap();
    let followed = import(root, Mounts::Follow).unwrap();
    assert_eq!(names(&skipped), ["", "bound", "other", "other/secret"]);
    assert_eq!(names(&followed), ["", "bound", "bound/secret", "file", "other", "other/secret"]);
    assert_eq!(followed[&b"file"[..]].object, file(b"x"));
}

#[test]
fn directories_that_are_to_be_left_empty_are() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path();
    fs::create_dir_all(root.join("var/state/cache")).unwrap();
    fs::write(root.join("var/file"), "own").unwrap();
    let left_empty = vec![root.join("var/state"), root.join("not there")];
    let options = ImportOptions { left_empty, ..ImportOptions::default() };
    let mut sink = MemorySink::default();
    let tree = import_dir(root, &options, &mut sink, &NoProgress).unwrap();
    assert_eq!(names(&list(&tree, &sink)), ["", "var", "var/file", "var/state"]);
}

#[test]
fn a_file_that_shrinks_is_an_error_and_one_that_grows_keeps_its_size() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("file");
    for sparse in [false, true] {
        let mut open = File::create(&path).unwrap();
        if sparse {
            open.set_len(1 << 20).unwrap();
        }
        open.write_all_at(&[1; 4096], 0).unwrap();
        let error = import_sabotaged(scratch.path(), || open.set_len(100).unwrap()).unwrap_err();
        let message = error.to_string();
        assert!(matches!(error, ImportError::Changed { .. }), "{message}");
        assert!(message.contains("/file became shorter"), "{message}");
        open.write_all(b"x").unwrap();
    }
    fs::write(&path, "short").unwrap();
    let tree = import_sabotaged(scratch.path(), || fs::write(&path, "longer").unwrap()).unwrap();
    let node = tree.child(inlay_store::tree::NodeId::ROOT, b"file").unwrap();
    assert!(matches!(tree.kind(node), NodeKind::Regular { size: 5, .. }));
}

#[test]
fn a_directory_swapped_for_a_link_is_not_followed() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    fs::create_dir_all(root.join("b")).unwrap();
    fs::write(root.join("a"), "").unwrap();
    let swap = || {
        fs::remove_dir(root.join("b")).unwrap();
        symlink("/etc", root.join("b")).unwrap();
    };
    let message = import_sabotaged(&root, swap).unwrap_err().to_string();
    assert!(message.contains("/b was replaced by something else"), "{message}");
}

#[test]
fn a_directory_moved_out_of_the_tree_is_not_followed() {
    let scratch = tempfile::tempdir().unwrap();
    let root = scratch.path().join("root");
    let deep = root.join("d/".repeat(50));
    fs::create_dir_all(&deep).unwrap();
    fs::write(deep.join("file"), "x").unwrap();
    fs::write(root.join("d/z"), "x").unwrap();
    let act = || fs::rename(root.join("d/d/d"), scratch.path().join("away")).unwrap();
    let message = import_sabotaged(&root, act).unwrap_err().to_string();
    assert!(message.contains("was moved"), "{message}");
}

#[test]
fn a_file_removed_after_its_name_was_read_is_an_error() {
    let scratch = tempfile::tempdir().unwrap();
    fs::write(scratch.path().join("a"), "").unwrap();
    let b = scratch.path().join("b");
    fs::write(&b, "").unwrap();
    let error = import_sabotaged(scratch.path(), || fs::remove_file(&b).unwrap()).unwrap_err();
    assert!(error.to_string().contains("/b was removed"), "{error}");
    let error = import(&b, Mounts::Skip).unwrap_err();
    assert!(error.to_string().contains("/b: open: No such file"), "{error}");
}

#[test]
fn holes_are_kept_as_the_file_system_tells_them() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("sparse");
    let open = File::create(&path).unwrap();
    open.set_len(10 << 20).unwrap();
    open.write_all_at(&[1; 4096], 4 << 20).unwrap();
    if fs::metadata(&path).unwrap().blocks() * 512 >= 10 << 20 {
        return; // this filesystem has no holes
    }
    let listing = import(scratch.path(), Mounts::Skip).unwrap();
    let TestObject::File { size, stored } = &listing[&b"sparse"[..]].object else { panic!() };
    assert_eq!(*size, 10 << 20);
    assert!(stored.bytes.len() <= 128 << 10, "{}", stored.bytes.len());
    assert!(stored.data.iter().any(|range| range.contains(&(4 << 20))));
}
