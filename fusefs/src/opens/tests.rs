//! Tests opens, closes, server deaths and resent requests against a model of the kernel's rules.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::OwnedFd;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;

const KIND: ConnectionKind = ConnectionKind::General;

/// State of the kernel, and the rules under which it returns EIO.
#[derive(Default)]
struct Kernel {
    registered: RefCell<BTreeMap<u32, u64>>,
    next_id: RefCell<u32>,
    refuses: RefCell<bool>,
    /// Open files of each inode, by handle.
    open: BTreeMap<u64, BTreeMap<u64, Mode>>,
    /// Number of the kernel's next request.
    next_unique: u64,
}

impl Registry for Kernel {
    fn register(&self, _: ConnectionKind, _: &std::fs::File) -> io::Result<u32> {
        if *self.refuses.borrow() {
            return Err(io::Error::from_raw_os_error(libc::EPERM));
        }
        *self.next_id.borrow_mut() += 1;
        let id = *self.next_id.borrow();
        self.registered.borrow_mut().insert(id, 0);
        Ok(id)
    }

    fn close(&self, _: ConnectionKind, id: u32) -> io::Result<()> {
        let known = self.registered.borrow_mut().remove(&id);
        known.map(drop).ok_or_else(|| io::Error::from_raw_os_error(libc::ENOENT))
    }
}

impl Kernel {
    /// Handles the reply to an open.
    fn opened(&mut self, inode: u64, opened: Opened) {
        let open = self.open.entry(inode).or_default();
        for mode in open.values() {
            // Mixed modes, or another registration, are an I/O error for the program.
            assert_eq!(*mode, opened.mode, "inode {inode}");
        }
        if let Mode::Passthrough(id) = opened.mode {
            assert!(self.registered.borrow().contains_key(&id), "id {id} is not registered");
        }
        assert_eq!(open.insert(opened.handle, opened.mode), None, "a handle was given twice");
    }
}

/// A server, and the ledger that outlives it.
struct Server {
    ledger: Ledger,
    opens: Opens,
}

impl Server {
    fn adopt(file: &OwnedFd) -> Self {
        let (ledger, left) = Ledger::open(file.try_clone().unwrap()).unwrap();
        let opens = Opens::load(&ledger, &left);
        Self { ledger, opens }
    }

    fn open(&mut self, kernel: &Kernel, inode: u64, unique: u64, whole: bool) -> Opened {
        let opening = Opening { kind: KIND, inode, content: content(inode), unique };
        if let Some(opened) = self.opens.open(&mut self.ledger, &opening).unwrap() {
            return opened;
        }
        let whole = whole.then(|| WholeFile {
            file: Arc::new(std::fs::File::open("/dev/null").unwrap()),
            content: content(inode),
            guard: Box::new(()),
        });
        let with = self.opens.open_with(&mut self.ledger, kernel, &opening, whole);
        with.unwrap().0
    }

    fn release(&mut self, kernel: &Kernel, handle: u64) {
        self.opens.release(&mut self.ledger, kernel, handle).unwrap();
    }
}

fn content(inode: u64) -> Digest {
    Digest::of(&inode.to_ne_bytes())
}

#[derive(Clone, Debug)]
enum Step {
    /// A program opens the inode; `whole` says whether its cache file is complete.
    Open {
        inode: u64,
        whole: bool,
    },
    /// The server records an open and dies before it replies.
    OpenAndDie {
        inode: u64,
        whole: bool,
    },
    /// A program closes one of the open files.
    Close {
        which: prop::sample::Index,
    },
    /// The same, and the server dies before or after it has recorded the close.
    CloseAndDie {
        which: prop::sample::Index,
        noted: bool,
    },
    /// The kernel starts or stops refusing registrations.
    Refuse(bool),
    /// The cache reclaims space.
    CloseIdle,
    Die,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (2u64..6, any::<bool>()).prop_map(|(inode, whole)| Step::Open { inode, whole }),
        3 => (2u64..6, any::<bool>()).prop_map(|(inode, whole)| Step::OpenAndDie { inode, whole }),
        8 => any::<prop::sample::Index>().prop_map(|which| Step::Close { which }),
        3 => (any::<prop::sample::Index>(), any::<bool>())
            .prop_map(|(which, noted)| Step::CloseAndDie { which, noted }),
        1 => any::<bool>().prop_map(Step::Refuse),
        1 => Just(Step::CloseIdle),
        1 => Just(Step::Die),
    ];
    prop::collection::vec(step, 1..80)
}

/// Removes one of the kernel's open files, as a close does before the server handles it.
fn close_one(kernel: &mut Kernel, which: prop::sample::Index) -> Option<u64> {
    let all: Vec<_> = kernel
        .open
        .iter()
        .flat_map(|(inode, open)| open.keys().map(|handle| (*inode, *handle)))
        .collect();
    let (inode, handle) = (!all.is_empty()).then(|| *which.get(&all))?;
    kernel.open.get_mut(&inode)?.remove(&handle);
    Some(handle)
}

fn run(steps: Vec<Step>) -> Result<(), TestCaseError> {
    let file = Ledger::create().unwrap();
    let mut kernel = Kernel::default();
    let mut server = Server::adopt(&file);
    for step in steps {
        match step {
            Step::Open { inode, whole } => {
                kernel.next_unique += 2;
                let opened = server.open(&kernel, inode, kernel.next_unique, whole);
                kernel.opened(inode, opened);
            }
            Step::OpenAndDie { inode, whole } => {
                kernel.next_unique += 2;
                let lost = server.open(&kernel, inode, kernel.next_unique, whole);
                server = Server::adopt(&file);
                // Resent, it gets the same reply, regardless of the cache.
                let again = server.open(&kernel, inode, kernel.next_unique | RESENT, !whole);
                prop_assert_eq!(lost, again);
                kernel.opened(inode, again);
            }
            Step::Close { which } => {
                if let Some(handle) = close_one(&mut kernel, which) {
                    server.release(&kernel, handle);
                }
            }
            Step::CloseAndDie { which, noted } => {
                if let Some(handle) = close_one(&mut kernel, which) {
                    if noted {
                        server.release(&kernel, handle);
                    }
                    server = Server::adopt(&file);
                    server.release(&kernel, handle);
                    server.release(&kernel, handle);
                }
            }
            Step::Refuse(refuses) => *kernel.refuses.borrow_mut() = refuses,
            Step::CloseIdle => {
                server.opens.close_idle(&mut server.ledger, &kernel, 0);
            }
            Step::Die => server = Server::adopt(&file),
        }
        let open: usize = kernel.open.values().map(BTreeMap::len).sum();
        prop_assert_eq!(server.opens.counts().0, open);
    }
    // After all closes, nothing is left in the ledger or the kernel.
    let handles: Vec<_> = kernel.open.values().flat_map(BTreeMap::keys).copied().collect();
    for handle in handles {
        server.release(&kernel, handle);
    }
    server.opens.close_idle(&mut server.ledger, &kernel, 0);
    prop_assert!(kernel.registered.borrow().is_empty());
    prop_assert!(server.opens.inodes.is_empty());
    let (_, left) = Ledger::open(file).unwrap();
    prop_assert!(left.handles.is_empty() && left.backings.is_empty());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn the_kernel_never_has_to_refuse_an_open(steps in steps()) {
        run(steps)?;
    }
}

#[test]
fn an_open_that_is_sent_again_to_the_same_server_has_one_handle() {
    let file = Ledger::create().unwrap();
    let kernel = Kernel::default();
    let mut server = Server::adopt(&file);
    let first = server.open(&kernel, 2, 6, true);
    assert_eq!(server.open(&kernel, 2, 6 | RESENT, true), first);
    assert_eq!(server.opens.counts().0, 1);
    // The resent request may be answered first, by another thread.
    let second = server.open(&kernel, 2, 8 | RESENT, true);
    assert_ne!(second.handle, first.handle);
    assert_eq!(server.open(&kernel, 2, 8 | RESENT, true), second);
    assert_eq!(server.open(&kernel, 2, 8, true), second);
    assert_eq!(server.opens.counts().0, 2);
    server.release(&kernel, first.handle);
    server.release(&kernel, second.handle);
    assert_eq!(server.opens.counts().0, 0);
    assert!(server.opens.by_request.is_empty());
}

#[test]
fn idle_registrations_are_bounded() {
    let file = Ledger::create().unwrap();
    let kernel = Kernel::default();
    let mut server = Server::adopt(&file);
    let inodes = 2..u64::try_from(IDLE_MAX).unwrap() + 12;
    for inode in inodes.clone() {
        let opened = server.open(&kernel, inode, inode * 2, true);
        assert!(matches!(opened.mode, Mode::Passthrough(_)));
        server.release(&kernel, opened.handle);
    }
    let registered: BTreeSet<u32> = kernel.registered.borrow().keys().copied().collect();
    assert_eq!(registered.len(), IDLE_MAX);
    // The least recently used was closed first.
    assert!(!registered.contains(&1) && registered.contains(&11));
}

#[test]
fn registrations_that_were_not_used_for_a_while_are_let_go() {
    let file = Ledger::create().unwrap();
    let kernel = Kernel::default();
    let mut server = Server::adopt(&file);
    let touch = |server: &mut Server, inode| {
        let opened = server.open(&kernel, inode, inode * 2, true);
        server.release(&kernel, opened.handle);
    };
    touch(&mut server, 2);
    touch(&mut server, 3);
    let open = server.open(&kernel, 4, 100, true);
    let mark = server.opens.close_unused_since(&mut server.ledger, &kernel, 0);
    touch(&mut server, 3);
    assert_eq!(kernel.registered.borrow().len(), 3);
    let mark = server.opens.close_unused_since(&mut server.ledger, &kernel, mark);
    // One was used again, and one is in use.
    assert_eq!(kernel.registered.borrow().keys().copied().collect::<Vec<_>>(), [2, 3]);
    server.opens.close_unused_since(&mut server.ledger, &kernel, mark);
    assert_eq!(kernel.registered.borrow().keys().copied().collect::<Vec<_>>(), [3]);
    kernel.registered.borrow().get(&3).unwrap();
    assert_eq!(open.mode, Mode::Passthrough(3));
}

#[test]
fn a_file_that_could_not_be_registered_is_tried_again() {
    let file = Ledger::create().unwrap();
    let kernel = Kernel::default();
    let mut server = Server::adopt(&file);
    *kernel.refuses.borrow_mut() = true;
    let plain = server.open(&kernel, 2, 2, true);
    assert_eq!(plain.mode, Mode::Plain);
    *kernel.refuses.borrow_mut() = false;
    // Other files are unaffected; this one uses passthrough again once it is open nowhere.
    assert!(matches!(server.open(&kernel, 3, 4, true).mode, Mode::Passthrough(_)));
    assert_eq!(server.open(&kernel, 2, 6, true).mode, Mode::Plain);
    server.release(&kernel, plain.handle);
    let (handle, _) = server.ledger_handles(2);
    server.release(&kernel, handle);
    assert!(matches!(server.open(&kernel, 2, 8, true).mode, Mode::Passthrough(_)));
}

impl Server {
    /// Returns an open file of an inode.
    fn ledger_handles(&self, inode: u64) -> (u64, Mode) {
        let open = self.opens.handles.iter().find(|(_, open)| open.key == (KIND, inode));
        let (place, open) = open.unwrap();
        (self.ledger.handle_number(*place), open.mode)
    }
}
