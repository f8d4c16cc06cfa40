//! Tests copies against concurrent copies, writes, renames and swaps.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use rustix::fs::{RenameFlags, inotify, renameat_with};

use super::*;

/// Stops the adversary thread at the end of a test, even on failure.
struct Until<'a>(&'a AtomicBool);

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn copies_into_one_directory_at_the_same_time_do_not_mix() {
    let root = TempDir::new().unwrap();
    fs::create_dir(root.path().join("into")).unwrap();
    let archives: Vec<_> = (0..8u8)
        .map(|client| {
            let from = root.path().join(format!("from{client}"));
            fs::create_dir(&from).unwrap();
            // One name unique to this archive, and one shared by all.
            fs::write(from.join(format!("own{client}")), vec![client; 200_000]).unwrap();
            fs::write(from.join("shared"), vec![client; 200_000]).unwrap();
            symlink(format!("{client}"), from.join("link")).unwrap();
            packed(root.path(), &format!("/from{client}/.")).1
        })
        .collect();
    for _ in 0..5 {
        thread::scope(|scope| {
            for bytes in &archives {
                scope.spawn(|| unpacked(root.path(), "/into", bytes).unwrap());
            }
        });
        for client in 0..8u8 {
            let own = fs::read(root.path().join(format!("into/own{client}"))).unwrap();
            assert!(own == vec![client; 200_000], "{client}");
        }
        let shared = fs::read(root.path().join("into/shared")).unwrap();
        assert!(shared.len() == 200_000 && shared.iter().all(|byte| *byte == shared[0]));
        assert_eq!(names(&root.path().join("into")).len(), 10);
    }
}

#[test]
fn a_fifo_swapped_in_for_a_file_is_never_opened() {
    let root = TempDir::new().unwrap();
    let dir = root.path().join("dir");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("one"), "x").unwrap();
    fifo(&dir.join("two"));
    // The watch follows the FIFO across renames.
    let watch = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&watch, dir.join("two"), inotify::WatchFlags::OPEN).unwrap();
    let done = AtomicBool::new(false);
    let open = File::open(&dir).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (dir, swap) = (open.as_fd(), RenameFlags::EXCHANGE);
                renameat_with(dir, "one", dir, "two", swap).unwrap();
            }
        });
        let _until = Until(&done);
        for _ in 0..2000 {
            let root = Root::open(root.path()).unwrap();
            pack(&root, Path::new("/dir"), Holes::Kept, std::io::sink()).unwrap();
            pack(&root, Path::new("/dir/one"), Holes::Kept, std::io::sink()).unwrap();
        }
    });
    let mut event = [0u8; 4096];
    assert_eq!(rustix::io::read(&watch, &mut event), Err(rustix::io::Errno::AGAIN));
}

#[test]
fn a_file_that_changes_while_it_is_read_is_whole_or_an_error() {
    let root = TempDir::new().unwrap();
    let path = root.path().join("file");
    fs::write(&path, "").unwrap();
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
            while !done.load(Ordering::Relaxed) {
                for len in [0, 1000, 100_000, 10_000, 1_000_000] {
                    file.set_len(len).unwrap();
                    file.write_all_at(&vec![1; usize::try_from(len / 2).unwrap()], 0).unwrap();
                }
            }
        });
        let _until = Until(&done);
        let to = TempDir::new().unwrap();
        let mut whole = 0;
        for _ in 0..300 {
            let mut bytes = Vec::new();
            let root = Root::open(root.path()).unwrap();
            match pack(&root, Path::new("/file"), Holes::Kept, &mut bytes) {
                Ok(sum) => {
                    whole += 1;
                    unpacked(to.path(), "/file", &bytes).unwrap();
                    assert_eq!(fs::metadata(to.path().join("file")).unwrap().len(), sum.bytes);
                }
                Err(CopyError::Shrunk(_)) => {}
                Err(other) => panic!("{other}"),
            }
        }
        assert!(whole > 0);
    });
}

#[test]
fn a_directory_that_becomes_a_link_leads_no_copy_out() {
    let root = TempDir::new().unwrap();
    let outside = TempDir::new().unwrap();
    fs::write(outside.path().join("secret"), "s").unwrap();
    for name in ["tree/dir/sub", "away"] {
        fs::create_dir_all(root.path().join(name)).unwrap();
    }
    symlink(outside.path(), root.path().join("tree/link")).unwrap();
    let (_, bytes) = packed(root.path(), "/tree");
    let done = AtomicBool::new(false);
    let open = File::open(root.path().join("tree")).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let (dir, swap) = (open.as_fd(), RenameFlags::EXCHANGE);
                renameat_with(dir, "dir", dir, "link", swap).unwrap();
            }
        });
        let _until = Until(&done);
        for _ in 0..500 {
            let mut out = Vec::new();
            let at = Root::open(root.path()).unwrap();
            pack(&at, Path::new("/tree"), Holes::Kept, &mut out).unwrap();
            assert!(!out.windows(6).any(|bytes| bytes == b"secret"));
            // It fails when the symlink is in the way.
            let _ = unpacked(root.path(), "/", &bytes);
        }
    });
    assert_eq!(names(outside.path()), ["secret"]);
}
