//! Tests against the kernel: after any operations on a mounted overlay, a capture of its layers
//! equals an import of the merged directory.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};

use inlay_store::ids::Kind;
use proptest::prelude::*;
use rustix::fs::{
    AtFlags, CWD, FileType, Mode, Timespec, Timestamps, XattrFlags, lsetxattr, makedev, mknodat,
    utimensat,
};

use super::world::*;
use crate::Captured;

/// The numbers select among the existing paths.
#[derive(Debug, Clone)]
enum Op {
    Create(u16, u8, u32),
    Write(u16, u16, u16),
    Sparse(u16, u8),
    Truncate(u16, u32),
    Rename(u16, u16, u8),
    Exchange(u16, u16),
    Remove(u16),
    Recreate(u16, u8),
    MakeDir(u16, u8),
    Chmod(u16, u16),
    Chown(u16, u8),
    Link(u16, u16, u8),
    Symlink(u16, u8),
    Xattr(u16, u8, u8),
    OverlayXattr(u16),
    Node(u16, u8, u8),
    Times(u16, i32),
    Remount,
}

fn op() -> impl Strategy<Value = Op> {
    use Op::*;
    let n = any::<u16>;
    let b = any::<u8>;
    prop_oneof![
        3 => (n(), b(), 0u32..400_000).prop_map(|(a, b, c)| Create(a, b, c)),
        3 => (n(), n(), n()).prop_map(|(a, b, c)| Write(a, b, c)),
        1 => (n(), b()).prop_map(|(a, b)| Sparse(a, b)),
        2 => (n(), 0u32..5000).prop_map(|(a, b)| Truncate(a, b)),
        8 => (n(), n(), b()).prop_map(|(a, b, c)| Rename(a, b, c)),
        2 => (n(), n()).prop_map(|(a, b)| Exchange(a, b)),
        3 => n().prop_map(Remove),
        2 => (n(), b()).prop_map(|(a, b)| Recreate(a, b)),
        2 => (n(), b()).prop_map(|(a, b)| MakeDir(a, b)),
        3 => (n(), n()).prop_map(|(a, b)| Chmod(a, b)),
        2 => (n(), b()).prop_map(|(a, b)| Chown(a, b)),
        3 => (n(), n(), b()).prop_map(|(a, b, c)| Link(a, b, c)),
        1 => (n(), b()).prop_map(|(a, b)| Symlink(a, b)),
        2 => (n(), b(), b()).prop_map(|(a, b, c)| Xattr(a, b, c)),
        1 => n().prop_map(OverlayXattr),
        1 => (n(), b(), b()).prop_map(|(a, b, c)| Node(a, b, c)),
        1 => (n(), any::<i32>()).prop_map(|(a, b)| Times(a, b)),
        1 => Just(Remount),
    ]
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().fill(&mut out);
    out
}

fn node(path: &Path, kind: FileType, device: u64) {
    mknodat(CWD, path, kind, Mode::from(0o640), device).ok();
}

/// Creates a directory with all kinds of objects.
pub(super) fn make_lower(root: &Path) {
    for dir in ["a/b/c", "a/d", "e/f", "g", "empty"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    let sizes = [("a/tiny", 5), ("a/b/small", 3000), ("a/b/c/large", 400_000), ("e/f/x", 700)];
    for (seed, (name, len)) in (1..).zip(sizes) {
        fs::write(root.join(name), noise(seed, len)).unwrap();
    }
    for n in 0..6 {
        fs::write(root.join(format!("g/file-{n}")), noise(10 + n, 2000)).unwrap();
    }
    fs::write(root.join("zero"), b"").unwrap();
    let sparse = File::create(root.join("a/d/sparse")).unwrap();
    sparse.set_len(1 << 20).unwrap();
    sparse.write_all_at(&noise(5, 9000), 300_000).unwrap();
    fs::hard_link(root.join("a/b/small"), root.join("e/linked")).unwrap();
    fs::hard_link(root.join("a/b/small"), root.join("a/linked")).unwrap();
    symlink("a/b", root.join("to-b")).unwrap();
    symlink(OsStr::from_bytes(b"no\xffwhere"), root.join("e/dangling")).unwrap();
    node(&root.join("e/fifo"), FileType::Fifo, 0);
    node(&root.join("e/device"), FileType::CharacterDevice, makedev(7, 3));
    fs::write(root.join(OsStr::from_bytes(b"g/\xfe\xff")), b"odd").unwrap();
    lsetxattr(root.join("a/b"), "user.note", b"lower", XattrFlags::empty()).unwrap();
    lsetxattr(root.join("a/b/small"), "trusted.note", b"x", XattrFlags::empty()).unwrap();
    fs::set_permissions(root.join("g/file-0"), Permissions::from_mode(0o4755)).unwrap();
    chown(root.join("g/file-1"), Some(1000), Some(1001)).unwrap();
}

fn paths(root: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    let mut todo = vec![root.to_owned()];
    while let Some(dir) = todo.pop() {
        let mut entries: Vec<_> =
            fs::read_dir(&dir).unwrap().map(|entry| entry.unwrap().path()).collect();
        entries.sort();
        for path in entries {
            if fs::symlink_metadata(&path).unwrap().is_dir() {
                todo.push(path.clone());
            }
            out.push(path);
        }
    }
    out.sort();
    out
}

/// Selects among the paths in a directory.
struct Choice {
    root: PathBuf,
    all: Vec<PathBuf>,
}

impl Choice {
    fn new(root: PathBuf) -> Self {
        Self { all: paths(&root), root }
    }

    fn pick(&self, n: u16) -> PathBuf {
        let place = usize::from(n) % self.all.len().max(1);
        self.all.get(place).unwrap_or(&self.root).clone()
    }

    fn dir(&self, n: u16) -> PathBuf {
        let dirs: Vec<_> = std::iter::once(&self.root)
            .chain(&self.all)
            .filter(|path| fs::symlink_metadata(path).unwrap().is_dir())
            .collect();
        dirs[usize::from(n) % dirs.len()].clone()
    }

    /// Returns a path that may or may not exist.
    fn place(&self, dir: u16, name: u8) -> PathBuf {
        self.dir(dir).join(file_name(name))
    }
}

fn file_name(n: u8) -> String {
    match n % 8 {
        0 => "a".to_owned(),
        1 => "b".to_owned(),
        2 => "small".to_owned(),
        n => format!("new-{n}"),
    }
}

fn regular(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file())
}

/// Applies an operation. One that is impossible for the selected paths is skipped.
fn apply(op: &Op, overlay: &mut Overlay, step: u64) {
    let choice = Choice::new(overlay.merged());
    let pick = |n| choice.pick(n);
    let place = |dir, name| choice.place(dir, name);
    match *op {
        Op::Create(d, n, len) => {
            let path = place(d, n);
            if fs::symlink_metadata(&path).is_err() || regular(&path) {
                fs::write(path, noise(step, len as usize)).ok();
            }
        }
        Op::Write(p, at, len) => {
            let path = pick(p);
            if regular(&path) {
                let file = OpenOptions::new().write(true).open(path).unwrap();
                file.write_all_at(&noise(step, usize::from(len)), at.into()).unwrap();
            }
        }
        Op::Sparse(d, n) => {
            let path = place(d, n);
            if let Ok(file) = File::create_new(path) {
                file.write_all_at(b"end", 5_000_000 + u64::from(n)).unwrap();
            }
        }
        Op::Truncate(p, len) => {
            let path = pick(p);
            if regular(&path) {
                OpenOptions::new().write(true).open(path).unwrap().set_len(len.into()).unwrap();
            }
        }
        Op::Rename(p, d, n) => drop(fs::rename(pick(p), place(d, n))),
        Op::Exchange(a, b) => {
            let flags = rustix::fs::RenameFlags::EXCHANGE;
            rustix::fs::renameat_with(CWD, pick(a), CWD, pick(b), flags).ok();
        }
        Op::Remove(p) => remove(&pick(p)),
        Op::Recreate(p, n) => {
            let path = pick(p);
            remove(&path);
            if n % 3 == 0 {
                fs::write(path, noise(step, 100)).unwrap();
            } else {
                fs::create_dir(&path).unwrap();
                fs::write(path.join(file_name(n)), noise(step, 900)).unwrap();
            }
        }
        Op::MakeDir(d, n) => drop(fs::create_dir(place(d, n))),
        Op::Link(p, d, n) => drop(fs::hard_link(pick(p), place(d, n))),
        Op::Symlink(d, n) => drop(symlink(file_name(n.wrapping_add(1)), place(d, n))),
        Op::Node(d, n, kind) => {
            let kind = match kind % 3 {
                0 => (FileType::Fifo, 0),
                1 => (FileType::Socket, 0),
                _ => (FileType::CharacterDevice, makedev(1, n.into())),
            };
            node(&place(d, n), kind.0, kind.1);
        }
        Op::Remount => {
            overlay.unmount();
            overlay.mount();
        }
        _ => apply_attributes(op, &choice),
    }
}

fn apply_attributes(op: &Op, choice: &Choice) {
    let pick = |n| choice.pick(n);
    match *op {
        Op::Chmod(p, mode) => {
            let path = pick(p);
            if !fs::symlink_metadata(&path).unwrap().is_symlink() {
                fs::set_permissions(path, Permissions::from_mode(u32::from(mode) & 0o7777))
                    .unwrap();
            }
        }
        Op::Chown(p, id) => lchown(pick(p), Some(id.into()), Some(7)).unwrap(),
        Op::Xattr(p, n, v) => {
            let flags = XattrFlags::empty();
            lsetxattr(pick(p), format!("trusted.x{}", n % 3), &[v], flags).ok();
        }
        Op::OverlayXattr(p) => {
            let flags = XattrFlags::empty();
            lsetxattr(pick(p), "trusted.overlay.opaque", b"y", flags).ok();
        }
        Op::Times(p, secs) => {
            let time = Timespec { tv_sec: secs.into(), tv_nsec: 123_456_789 };
            let times = Timestamps { last_access: time, last_modification: time };
            utimensat(CWD, pick(p), &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
        }
        _ => {}
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

struct Ground {
    world: World,
    lower_dir: tempfile::TempDir,
    lower: crate::Lower,
}

fn ground() -> Ground {
    let world = World::new();
    let lower_dir = tempfile::tempdir().unwrap();
    make_lower(lower_dir.path());
    let lower = world.import(lower_dir.path(), Kind::Directory);
    Ground { world, lower_dir, lower }
}

/// Captures and imports, and compares the results.
fn check(world: &World, overlay: &Overlay, subject: &Simple) -> Captured {
    let captured = world.capture(subject).unwrap();
    let shown = world.import(&overlay.merged().join(&subject.0.path), Kind::Directory);
    assert_same(&world.list(captured.record.id), &world.list_index(&shown.index));
    captured
}

thread_local! {
    static GROUND: Ground = ground();
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, ..ProptestConfig::default() })]
    #[test]
    fn a_capture_equals_the_kernels_view(
        rounds in prop::collection::vec(prop::collection::vec(op(), 0..14), 1..4),
        sub in any::<u16>(),
    ) {
        GROUND.with(|ground| {
            let mut overlay = Overlay::new(ground.lower_dir.path(), ground.lower.clone());
            let mut step = 1000;
            for ops in &rounds {
                for op in ops {
                    step += 1;
                    apply(op, &mut overlay, step);
                }
                check(&ground.world, &overlay, &overlay.subject());
                let merged = overlay.merged();
                let dirs: Vec<_> = paths(&merged)
                    .into_iter()
                    .filter(|path| fs::symlink_metadata(path).unwrap().is_dir())
                    .collect();
                if let Some(dir) = dirs.get(usize::from(sub) % dirs.len().max(1)) {
                    let mut subject = overlay.subject();
                    subject.0.path = dir.strip_prefix(&merged).unwrap().to_owned();
                    check(&ground.world, &overlay, &subject);
                }
                let again = check(&ground.world, &overlay, &overlay.subject());
                assert!(again.unchanged, "{:?}", again.stats);
            }
        });
    }
}
