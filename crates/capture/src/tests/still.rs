//! Tests subjects that keep changing: everything written before the freeze is in the snapshot, and
//! the subject is thawed on any failure.

use std::cell::{Cell, RefCell};
use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt, symlink};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::thread;
use std::time::{Duration, Instant};

use super::world::*;
use crate::*;

/// The number of attempts for a race that depends on another thread.
const TRIES: u32 = 100;

/// A hook at a step of a capture.
type Act<'a> = Box<dyn Fn() -> Result<(), SubjectError> + 'a>;

/// A subject that counts calls and runs a hook at each step.
struct Told<'a> {
    plan: Plan,
    world: &'a Mutex<()>,
    plans: Cell<u32>,
    freezes: Cell<u32>,
    /// When the freeze ends on its own, and the outcomes of freezes, the last one first; then
    /// `Throughout`.
    until: Cell<Option<Instant>>,
    stood: RefCell<Vec<Stood>>,
    thaws: Cell<u32>,
    frozen: Cell<bool>,
    pids: Vec<u32>,
    /// Called after everything was read and before the freeze.
    before_freeze: RefCell<Act<'a>>,
    /// Called by `plan` while frozen.
    while_frozen: RefCell<Act<'a>>,
    at_thaw: RefCell<Act<'a>>,
}

fn nothing<'a>() -> RefCell<Act<'a>> {
    RefCell::new(Box::new(|| Ok(())))
}

impl<'a> Told<'a> {
    fn new(upper: &Path, world: &'a Mutex<()>) -> Self {
        let view = View { lower: None, upper: Some(upper.to_owned()), owners: None };
        Self {
            plan: Simple::new(view, "").0,
            world,
            plans: Cell::default(),
            freezes: Cell::default(),
            until: Cell::default(),
            stood: RefCell::default(),
            thaws: Cell::default(),
            frozen: Cell::default(),
            pids: Vec::new(),
            before_freeze: nothing(),
            while_frozen: nothing(),
            at_thaw: nothing(),
        }
    }
}

impl Subject for Told<'_> {
    fn plan(&self) -> Result<Plan, SubjectError> {
        self.plans.set(self.plans.get() + 1);
        if self.frozen.get() {
            self.while_frozen.borrow()()?;
        }
        Ok(self.plan.clone())
    }

    fn freeze(&self) -> Result<Box<dyn Frozen + '_>, SubjectError> {
        self.before_freeze.borrow()()?;
        let guard = self.world.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.freezes.set(self.freezes.get() + 1);
        self.frozen.set(true);
        Ok(Box::new(Held { told: self, _guard: guard }))
    }

    fn processes(&self) -> Result<Vec<u32>, SubjectError> {
        Ok(self.pids.clone())
    }
}

struct Held<'h, 'a> {
    told: &'h Told<'a>,
    _guard: MutexGuard<'h, ()>,
}

impl Frozen for Held<'_, '_> {
    fn until(&self) -> Option<Instant> {
        self.told.until.get()
    }

    fn thaw(self: Box<Self>) -> Result<Thawed, SubjectError> {
        self.told.at_thaw.borrow()()?;
        let stood = self.told.stood.borrow_mut().pop().unwrap_or(Stood::Throughout);
        Ok(Thawed { stood, frozen: Duration::from_millis(1) })
    }
}

impl Drop for Held<'_, '_> {
    fn drop(&mut self) {
        self.told.frozen.set(false);
        self.told.thaws.set(self.told.thaws.get() + 1);
    }
}

/// Signals the end of a test, even on failure, so that its threads stop.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn settle() {
    thread::sleep(Duration::from_millis(100));
}

fn upper(files: &[(&str, usize)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (seed, (name, len)) in (1u8..).zip(files) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, vec![seed; *len]).unwrap();
    }
    settle();
    dir
}

fn digest(bytes: &[u8]) -> inlay_store::ids::Digest {
    inlay_store::ids::Digest::of(bytes)
}

#[test]
fn writes_until_the_freeze_are_in_the_snapshot() {
    let world = World::new();
    // The small ones are set aside in memory, the large one as a file.
    let dir = upper(&[("d/changed", 5000), ("d/same", 5000), ("large", 3_000_000), ("gone", 400)]);
    let lock = Mutex::new(());
    let path = |name: &str| dir.path().join(name);
    let told = Told::new(dir.path(), &lock);
    *told.before_freeze.borrow_mut() = Box::new(|| {
        fs::write(path("d/changed"), vec![9; 6000])?;
        fs::write(path("d/new"), b"new")?;
        OpenOptions::new().write(true).open(path("large"))?.write_all_at(b"!", 2_500_000)?;
        fs::remove_file(path("gone"))?;
        fs::rename(path("d/same"), path("moved"))?;
        symlink("x", path("link"))?;
        Ok(())
    });
    let captured = world.capture(&told).unwrap();
    assert_eq!((told.freezes.get(), told.thaws.get(), told.plans.get()), (1, 1, 2));
    // A rename changes the ctime, so the file is read again, too.
    assert_eq!(captured.stats.files_set_aside, 4);
    let shown = world.import(dir.path(), inlay_store::ids::Kind::Directory);
    assert_same(&world.list(captured.record.id), &world.list_index(&shown.index));
    // Nothing is left of the files set aside.
    assert_eq!(fs::read_dir(world.host.state().scratch()).unwrap().count(), 0);
}

#[test]
fn a_writer_is_caught_between_two_steps_of_its_work() {
    let world = World::new();
    let dir = upper(&[("one", 2000), ("two", 2000)]);
    for n in 0..300 {
        fs::write(dir.path().join(format!("other-{n}")), vec![1; 9000]).unwrap();
    }
    let lock = Mutex::new(());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (lock, stop, dir) = (&lock, &stop, dir.path());
        scope.spawn(move || {
            for n in 0u64.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                // A writer without the lock counts as frozen.
                let _work = lock.lock().unwrap();
                for name in ["one", "two"] {
                    let text = n.to_string().repeat(100);
                    fs::write(dir.join(name), text).unwrap();
                }
                fs::write(dir.join(format!("log-{}", n % 50)), n.to_le_bytes()).unwrap();
            }
        });
        let _over = Over(stop);
        for _ in 0..5 {
            let told = Told::new(dir, lock);
            let captured = world.capture(&told).unwrap();
            assert_eq!((told.freezes.get(), told.thaws.get()), (1, 1));
            let listing = world.list(captured.record.id);
            assert_eq!(listing[&b"one"[..]].contents, listing[&b"two"[..]].contents);
        }
    });
}

#[test]
fn interrupted_freezes_are_retried_a_limited_number_of_times() {
    let world = World::new();
    let dir = upper(&[("file", 5000)]);
    let lock = Mutex::new(());
    let told = Told::new(dir.path(), &lock);
    *told.stood.borrow_mut() = vec![Stood::Interrupted; 2];
    let captured = world.capture(&told).unwrap();
    assert_eq!((told.freezes.get(), told.thaws.get()), (3, 3));
    assert_eq!(world.list(captured.record.id).len(), 2);

    let told = Told::new(dir.path(), &lock);
    *told.stood.borrow_mut() = vec![Stood::Interrupted; 100];
    let error = world.capture(&told).unwrap_err();
    assert!(matches!(error, CaptureError::Interrupted), "{error}");
    assert!(told.freezes.get() < 10 && told.freezes.get() == told.thaws.get());

    // A freeze that reached its limit is not retried.
    let told = Told::new(dir.path(), &lock);
    *told.stood.borrow_mut() = vec![Stood::TooLong];
    let error = world.capture(&told).unwrap_err();
    assert!(matches!(error, CaptureError::TooLong { .. }), "{error}");
    assert_eq!(told.freezes.get(), 1);
    // The scan stops when the limit is reached.
    let told = Told::new(dir.path(), &lock);
    told.until.set(Some(Instant::now()));
    let error = world.capture(&told).unwrap_err();
    assert!(matches!(error, CaptureError::TooLong { .. }), "{error}");
    assert_eq!((told.freezes.get(), told.thaws.get()), (1, 1));
}

#[test]
fn any_failure_thaws_the_subject_and_publishes_no_snapshot() {
    let world = World::new();
    let dir = upper(&[("file", 5000)]);
    let lock = Mutex::new(());
    let snapshots = world.host.state().embedded_store().join("snapshots");
    let none = |snapshots: &PathBuf| fs::read_dir(snapshots).map_or(0, Iterator::count) == 0;
    let fail = || -> Act<'_> { Box::new(|| Err("it was told to".into())) };

    let told = Told::new(dir.path(), &lock);
    *told.before_freeze.borrow_mut() = fail();
    let error = world.capture(&told).unwrap_err().to_string();
    assert!(error.contains("freezing it: it was told to"), "{error}");
    assert_eq!(told.freezes.get(), 0);

    let told = Told::new(dir.path(), &lock);
    *told.while_frozen.borrow_mut() = fail();
    assert!(world.capture(&told).is_err());
    assert_eq!((told.freezes.get(), told.thaws.get()), (1, 1));

    // After a failed thaw, everything read is worthless.
    let told = Told::new(dir.path(), &lock);
    *told.at_thaw.borrow_mut() = fail();
    let error = world.capture(&told).unwrap_err().to_string();
    assert!(error.contains("letting it go on: it was told to"), "{error}");
    assert_eq!(told.thaws.get(), 1);

    let told = Told::new(dir.path(), &lock);
    *told.while_frozen.borrow_mut() = Box::new(|| panic!("a defect"));
    assert!(catch_unwind(AssertUnwindSafe(|| world.capture(&told))).is_err());
    assert_eq!((told.freezes.get(), told.thaws.get()), (1, 1));

    let options = world.options();
    let told = Told::new(dir.path(), &lock);
    *told.before_freeze.borrow_mut() = Box::new(|| {
        options.cancel.cancel();
        Ok(())
    });
    let error = world.capture_with(&told, &options).unwrap_err();
    assert!(matches!(error, CaptureError::Cancelled), "{error}");
    assert_eq!(told.thaws.get(), told.freezes.get());

    assert!(none(&snapshots));
    world.capture(&Told::new(dir.path(), &lock)).unwrap();
    assert!(!none(&snapshots));
}

#[test]
fn a_file_written_despite_the_freeze_is_reported() {
    let world = World::new();
    let dir = upper(&[("d/a", 5000), ("d/b", 5_000_000)]);
    let lock = Mutex::new(());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (stop, path) = (&stop, dir.path().join("d/b"));
        scope.spawn(move || {
            let mut n = 0u64;
            while !stop.load(Ordering::Relaxed) {
                n += 1;
                let file = OpenOptions::new().write(true).open(&path).unwrap();
                file.write_all_at(&n.to_le_bytes(), 0).unwrap();
            }
        });
        let _over = Over(stop);
        // On a busy machine, the writer may pause for as long as it takes to set the file aside.
        let told_of = (0..TRIES).find_map(|_| {
            let told = Told::new(dir.path(), &lock);
            let captured = world.capture(&told);
            assert!(told.freezes.get() > 0);
            assert_eq!(told.thaws.get(), told.freezes.get());
            captured.err()
        });
        let error = told_of.expect("the file was never written to while it was set aside");
        assert!(matches!(error, CaptureError::Changed { .. }), "{error}");
        assert!(error.to_string().contains("d/b"), "{error}");
    });
}

#[test]
fn a_file_that_grows_without_end_does_not_hold_a_snapshot_up() {
    let world = World::new();
    let dir = upper(&[("log", 100), ("x", 3000)]);
    let lock = Mutex::new(());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (lock, stop, path) = (&lock, &stop, dir.path().join("log"));
        scope.spawn(move || {
            let log = OpenOptions::new().append(true).open(path).unwrap();
            while !stop.load(Ordering::Relaxed) {
                let _work = lock.lock().unwrap();
                std::io::Write::write_all(&mut &log, &[7; 10_000]).unwrap();
            }
        });
        let _over = Over(stop);
        let told = Told::new(dir.path(), lock);
        let captured = world.capture(&told).unwrap();
        assert!(captured.stats.rounds <= 3);
        let listing = world.list(captured.record.id);
        let log = &listing[&b"log"[..]];
        assert!((log.attr.size - 100).is_multiple_of(10_000), "{}", log.attr.size);
    });
}

#[test]
fn a_directory_that_becomes_a_link_leads_nowhere() {
    let world = World::new();
    let outside = upper(&[("secret", 3000)]);
    let dir = upper(&[("real/d/file", 3000)]);
    let lock = Mutex::new(());
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let (lock, stop, dir, outside) = (&lock, &stop, dir.path(), outside.path());
        scope.spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                let _work = lock.lock().unwrap();
                fs::rename(dir.join("real/d"), dir.join("real/e")).unwrap();
                symlink(outside, dir.join("real/d")).unwrap();
                thread::yield_now();
                fs::remove_file(dir.join("real/d")).unwrap();
                fs::rename(dir.join("real/e"), dir.join("real/d")).unwrap();
            }
        });
        let _over = Over(stop);
        for _ in 0..20 {
            let captured = world.capture(&Told::new(dir, lock)).unwrap();
            let listing = world.list(captured.record.id);
            assert!(listing.keys().all(|path| !path.ends_with(b"secret")));
            assert!(listing.contains_key(&b"real/d/file"[..]));
        }
    });
}

#[test]
fn mapped_files_are_read_again_though_their_times_stay() {
    let world = World::new();
    // There is no writeback in tmpfs that would make the kernel notice a write.
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(dir.path().join("mapped"), vec![1; 8192]).unwrap();
    let file = OpenOptions::new().read(true).write(true).open(dir.path().join("mapped")).unwrap();
    let map = Map::new(&file, 8192);
    // Dirty the page, so that no further write to it is noticed.
    map.write(1);
    settle();
    let ctime = || {
        use std::os::unix::fs::MetadataExt;
        let meta = fs::metadata(dir.path().join("mapped")).unwrap();
        (meta.ctime(), meta.ctime_nsec())
    };
    let lock = Mutex::new(());
    // The first capture is not aware of the mapping.
    world.capture(&Told::new(dir.path(), &lock)).unwrap();
    for round in 2..5 {
        let mut told = Told::new(dir.path(), &lock);
        told.pids = vec![std::process::id()];
        let before = ctime();
        *told.before_freeze.borrow_mut() = Box::new(|| {
            map.write(round);
            Ok(())
        });
        let captured = world.capture(&told).unwrap();
        assert_eq!(ctime(), before, "the test shows nothing if the time has changed");
        let listing = world.list(captured.record.id);
        let mut expected = vec![1; 8192];
        expected[0] = round;
        assert_eq!(listing[&b"mapped"[..]].contents, Some(digest(&expected)));
    }
}

/// A shared, writable mapping.
struct Map(*mut u8, usize);

#[allow(unsafe_code, reason = "a mapping is what is tested")]
impl Map {
    fn new(file: &File, len: usize) -> Self {
        use rustix::mm::{MapFlags, ProtFlags, mmap};
        let rights = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: the mapping has no fixed address, and only `write` accesses it.
        let address =
            unsafe { mmap(std::ptr::null_mut(), len, rights, MapFlags::SHARED, file, 0).unwrap() };
        Self(address.cast(), len)
    }

    fn write(&self, byte: u8) {
        // SAFETY: the first byte is inside the mapping, which lives as long as this.
        unsafe { self.0.write_volatile(byte) };
    }
}

#[allow(unsafe_code, reason = "a mapping is what is tested")]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: this owns the mapping and nothing refers to it.
        unsafe { rustix::mm::munmap(self.0.cast(), self.1).unwrap() };
    }
}
