//! Random histories of an outbox against a model.

use proptest::prelude::*;

use super::*;

/// An event on a host.
#[derive(Debug, Clone)]
enum Event {
    Seal { contents: u8, name: Option<u8> },
    Ship,
    Down,
    Up,
    Restart,
    MovedElsewhere(u8),
    Damage,
    Repair,
    SetClock(i64),
}

fn event() -> impl Strategy<Value = Event> {
    let name = prop::option::weighted(0.8, 0..2u8);
    prop_oneof![
        6 => (0..5u8, name).prop_map(|(contents, name)| Event::Seal { contents, name }),
        4 => Just(Event::Ship),
        1 => Just(Event::Down),
        2 => Just(Event::Up),
        2 => Just(Event::Restart),
        2 => (0..2u8).prop_map(Event::MovedElsewhere),
        1 => Just(Event::Damage),
        1 => Just(Event::Repair),
        1 => (-100_000..100_000i64).prop_map(Event::SetClock),
    ]
}

/// Expected history of a name.
#[derive(Debug, Clone, Default)]
struct Moves {
    /// Moves of this host, by time of sealing.
    sealed: Vec<(usize, SnapshotId)>,
    /// Last move of another host.
    elsewhere: Option<(usize, SnapshotId)>,
    /// Number of this host's moves that had been applied before it.
    moved: usize,
}

struct History {
    world: World,
    names: BTreeMap<u8, Moves>,
    sealed: Vec<SnapshotId>,
    damaged: BTreeMap<PathBuf, Vec<u8>>,
    step: usize,
}

impl History {
    fn new() -> Self {
        let world = World::new();
        // Lets this host learn the targets of names: none, in this store only.
        world.seal("first", None);
        world.ship();
        for name in 0..2u8 {
            world.usual().note(&name.to_string().parse().unwrap(), None);
        }
        let (names, sealed, damaged) = Default::default();
        Self { world, names, sealed, damaged, step: 0 }
    }

    fn apply(&mut self, event: &Event) {
        self.step += 1;
        match event {
            Event::Seal { contents, name } => {
                let text = name.map(|name| name.to_string());
                let id = self.world.seal(&contents.to_string(), text.as_deref());
                self.sealed.push(id);
                if let Some(name) = name {
                    self.names.entry(*name).or_default().sealed.push((self.step, id));
                }
                // A rewritten file is intact again.
                self.damaged.retain(|path, bytes| fs::read(path).is_ok_and(|now| now != *bytes));
            }
            Event::Ship => self.world.retry(),
            Event::Down => self.world.down(),
            Event::Up => self.world.faulty.set_faults(Vec::new()),
            Event::Restart => self.world.restart(),
            Event::MovedElsewhere(name) => {
                let id = foreign(u32::try_from(self.step).unwrap());
                let record = NameRecord::now(name.to_string().parse().unwrap(), id);
                let set = self.world.runtime.block_on(self.world.far.set_name(&record));
                let Ok(before) = set else { return };
                let moves = self.names.entry(*name).or_default();
                moves.elsewhere = Some((self.step, id));
                if before.is_some() && before == moves.sealed.last().map(|(_, id)| *id) {
                    moves.moved = moves.sealed.len();
                }
            }
            Event::Damage => {
                let Some(id) = self.world.waiting().first().copied() else { return };
                let path = self.world.blob_of(id);
                if let (Ok(bytes), false) = (fs::read(&path), self.damaged.contains_key(&path)) {
                    fs::write(&path, "damaged").unwrap();
                    self.damaged.insert(path, bytes);
                }
            }
            Event::Repair => self.repair(),
            Event::SetClock(off) => self.world.off.store(*off, SeqCst),
        }
    }

    fn repair(&mut self) {
        for (path, bytes) in std::mem::take(&mut self.damaged) {
            if path.exists() {
                fs::write(path, bytes).unwrap();
            }
        }
    }

    fn finish(mut self) {
        self.world.faulty.set_faults(Vec::new());
        self.world.retry();
        self.check_names();
        self.repair();
        self.world.retry();
        self.check_names();
        let report = self.world.outboxes.report();
        assert_eq!((report.waiting, report.failing, report.damaged), (0, vec![], vec![]));
        assert_eq!(self.world.objects(), Vec::<PathBuf>::new());
        for id in &self.sealed {
            self.world.verify(*id);
        }
        for (name, moves) in &self.names {
            let Some((_, last)) = moves.sealed.last() else { continue };
            let found = self.world.far_name(&name.to_string());
            let reported = report.name_conflicts.iter().any(|it| it.name == name.to_string());
            if moves.moved == moves.sealed.len() {
                continue;
            }
            assert!(found == Some(*last) || reported, "{name}: {moves:?}, {found:?}");
            if moves.elsewhere.is_none() {
                assert_eq!((found, reported), (Some(*last), false), "{name}: {moves:?}");
            }
        }
    }

    /// Asserts that no name was moved away from a target that another host set after the seal.
    fn check_names(&self) {
        for (name, moves) in &self.names {
            let Some((when, id)) = moves.elsewhere else { continue };
            let found = self.world.far_name(&name.to_string());
            let later =
                moves.sealed.iter().any(|(sealed, id)| *sealed > when && found == Some(*id));
            assert!(found == Some(id) || later, "{name}: {moves:?}, {found:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn histories_lose_no_snapshot_and_move_no_name_backwards(
        events in prop::collection::vec(event(), 1..16)
    ) {
        let mut history = History::new();
        for event in &events {
            history.apply(event);
        }
        history.finish();
    }
}
