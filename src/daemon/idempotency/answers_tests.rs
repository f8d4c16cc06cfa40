//! Tests of answers on disk, with random histories against a model.

use proptest::prelude::*;

use super::*;

const HOUR_MS: u64 = 60 * 60 * 1000;

fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

fn at(unix_s: u64, boot: &str, since_boot_ms: u64) -> Moment {
    Moment { unix_s, unix_ns: 0, boot: boot.to_owned(), since_boot_ms }
}

fn start() -> Moment {
    at(1_800_000_000, "boot", 1_000)
}

fn after(ms: u64) -> Moment {
    Moment { since_boot_ms: 1_000 + ms, ..start() }
}

fn done(key: &str) -> Done<'static> {
    Done {
        key: digest(key),
        request: digest("r"),
        status: StatusCode::CREATED,
        body: Some("{\"a\":1}"),
        lasts: Lasts::Forever,
        unwritten: Unwritten::Kept,
    }
}

fn find(answers: &mut Answers, key: &str, now: &Moment) -> Found {
    answers.find(&digest(key), &digest("r"), now)
}

fn is_answer(found: &Found) -> bool {
    matches!(found, Found::Answer(given) if (given.status, &*given.body, given.cut) == (201, "{\"a\":1}", false))
}

#[test]
fn answers_outlive_a_daemon() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    answers.keep(done("k"), &start()).unwrap();
    assert!(is_answer(&find(&mut answers, "k", &start())));
    let mut next = Answers::open(state.path(), &start()).unwrap();
    assert!(is_answer(&find(&mut next, "k", &start())));
    assert_eq!(next.find(&digest("k"), &digest("other"), &start()), Found::Other);
    assert_eq!(find(&mut next, "l", &start()), Found::Nothing);
}

#[test]
fn an_answer_of_an_older_version_is_read_and_ages_from_then_on() {
    let state = tempfile::tempdir().unwrap();
    let dir = state.path().join("answers");
    fs::create_dir(&dir).unwrap();
    let (key, request) = (digest("k").to_hex(), digest("r").to_hex());
    let text = format!(
        r#"{{"key":"{key}","request":"{request}","status":201,"body":"{{\"a\":1}}","at":5}}"#
    );
    fs::write(dir.join(format!("{key}.json")), text).unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    assert!(is_answer(&find(&mut answers, "k", &after(24 * HOUR_MS - 1))));
    assert_eq!(find(&mut answers, "k", &after(24 * HOUR_MS)), Found::Nothing);
}

#[test]
fn the_wall_clock_neither_discards_nor_resurrects() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    answers.keep(done("k"), &start()).unwrap();
    let day = 24 * 60 * 60;
    for unix_s in [0, 1_800_000_000 - 10 * day, 1_800_000_000 + 10 * day, u64::MAX] {
        let now = Moment { unix_s, ..after(5) };
        assert!(is_answer(&find(&mut answers, "k", &now)), "{unix_s}");
        answers = Answers::open(state.path(), &now).unwrap();
        assert!(is_answer(&find(&mut answers, "k", &now)), "{unix_s}");
    }
    let late = Moment { unix_s: 0, ..after(24 * HOUR_MS) };
    assert_eq!(find(&mut answers, "k", &late), Found::Nothing);
    assert_eq!(fs::read_dir(&answers.dir).unwrap().count(), 0);
}

#[test]
fn the_age_goes_on_in_the_next_boot() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    answers.keep(done("early"), &start()).unwrap();
    answers.keep(done("late"), &after(20 * HOUR_MS)).unwrap();
    let now = |hours: u64| at(7, "next", hours * HOUR_MS);
    let mut answers = Answers::open(state.path(), &now(3)).unwrap();
    assert!(is_answer(&find(&mut answers, "early", &now(3))));
    assert_eq!(find(&mut answers, "early", &now(4)), Found::Nothing);
    assert!(is_answer(&find(&mut answers, "late", &now(23))));
    assert_eq!(find(&mut answers, "late", &now(24)), Found::Nothing);
}

#[test]
fn answers_valid_until_reboot_are_forgotten_after_it() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    answers.keep(Done { lasts: Lasts::UntilBoot, ..done("mount") }, &start()).unwrap();
    answers.keep(done("remove"), &start()).unwrap();
    let mut same = Answers::open(state.path(), &after(1)).unwrap();
    assert!(is_answer(&find(&mut same, "mount", &after(1))));
    let now = at(1_800_000_100, "next", 5);
    let mut next = Answers::open(state.path(), &now).unwrap();
    assert_eq!(find(&mut next, "mount", &now), Found::Nothing);
    assert!(is_answer(&find(&mut next, "remove", &now)));
    assert_eq!(fs::read_dir(&next.dir).unwrap().count(), 1);
}

#[test]
fn an_answer_that_can_not_be_read_stays_and_refuses_its_key() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    answers.keep(done("good"), &start()).unwrap();
    let good = fs::read_to_string(answers.path(&digest("good"))).unwrap();
    let mut damaged = Vec::new();
    for (name, text) in [
        ("cut", good[..good.len() / 2].to_owned()),
        ("empty", String::new()),
        ("newer", good.replace("\"version\":1", "\"version\":2")),
        ("status", good.replace("201", "9")),
        ("place", good.clone()),
    ] {
        let path = answers.path(&digest(name));
        fs::write(&path, &text).unwrap();
        damaged.push((name, path, text));
    }
    fs::write(answers.dir.join("unknown"), "?").unwrap();
    fs::write(answers.dir.join(".new-x"), "?").unwrap();
    let mut next = Answers::open(state.path(), &start()).unwrap();
    assert!(is_answer(&find(&mut next, "good", &start())));
    for now in [start(), after(100 * HOUR_MS)] {
        for (name, path, text) in &damaged {
            let found = find(&mut next, name, &now);
            assert!(matches!(found, Found::Damaged(_)), "{name}: {found:?}");
            assert_eq!(&fs::read_to_string(path).unwrap(), text);
        }
    }
    assert!(next.dir.join("unknown").exists() && !next.dir.join(".new-x").exists());
}

#[test]
fn an_answer_that_is_damaged_while_it_is_known_stays_so() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    for key in ["damaged", "removed", "swapped"] {
        answers.keep(done(key), &start()).unwrap();
    }
    fs::write(answers.path(&digest("damaged")), "{").unwrap();
    fs::remove_file(answers.path(&digest("removed"))).unwrap();
    let swapped = answers.path(&digest("swapped"));
    let text = fs::read_to_string(&swapped).unwrap();
    fs::write(&swapped, text.replace(&digest("r").to_hex(), &digest("x").to_hex())).unwrap();
    for key in ["damaged", "removed", "swapped"] {
        for _ in 0..2 {
            let found = find(&mut answers, key, &start());
            assert!(matches!(found, Found::Damaged(_)), "{key}: {found:?}");
        }
    }
    // Not removed by age, either.
    assert!(matches!(find(&mut answers, "damaged", &after(30 * HOUR_MS)), Found::Damaged(_)));
    assert!(answers.path(&digest("damaged")).exists());
}

#[test]
fn there_are_only_so_many_and_the_oldest_go() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    for number in 0..5 {
        answers.keep(done(&number.to_string()), &after(number * 10)).unwrap();
    }
    let one = answers.bytes / 5;
    answers.make_room(4, u64::MAX);
    assert!(!answers.kept.contains_key(&digest("0")) && answers.kept.len() == 4);
    answers.make_room(5, one * 3 + 5);
    assert!(!answers.kept.contains_key(&digest("1")) && answers.kept.len() == 3);
    assert_eq!(fs::read_dir(&answers.dir).unwrap().count(), 3);
    let on_disk: u64 =
        fs::read_dir(&answers.dir).unwrap().map(|it| it.unwrap().metadata().unwrap().len()).sum();
    assert_eq!(answers.bytes, on_disk);
    // A replaced answer counts once.
    answers.keep(done("4"), &after(40)).unwrap();
    assert_eq!((answers.kept.len(), answers.bytes), (3, on_disk));
    let reopened = Answers::open(state.path(), &after(50)).unwrap();
    assert_eq!((reopened.kept.len(), reopened.bytes), (3, on_disk));
}

#[test]
fn an_answer_that_can_not_be_written_is_known_to_this_process() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    fs::remove_dir(&answers.dir).unwrap();
    assert!(answers.keep(done("k"), &start()).is_err());
    assert!(is_answer(&find(&mut answers, "k", &start())));
    assert_eq!(answers.find(&digest("k"), &digest("other"), &start()), Found::Other);
    for number in 0..UNWRITTEN_MAX {
        assert!(answers.keep(done(&number.to_string()), &start()).is_err());
    }
    // One that ran is kept even beyond the limit; the next one must not run.
    assert_eq!(answers.unwritten.len(), UNWRITTEN_MAX + 1);
    assert_eq!(find(&mut answers, "new", &start()), Found::NoRoom);
    assert!(is_answer(&find(&mut answers, "k", &after(24 * HOUR_MS - 1))));
    assert_eq!(find(&mut answers, "k", &after(24 * HOUR_MS)), Found::Nothing);
    assert!(answers.unwritten.is_empty());
}

#[test]
fn a_long_answer_leaves_a_trace() {
    let state = tempfile::tempdir().unwrap();
    let mut answers = Answers::open(state.path(), &start()).unwrap();
    answers.keep(Done { body: None, ..done("k") }, &start()).unwrap();
    let mut next = Answers::open(state.path(), &start()).unwrap();
    assert!(matches!(find(&mut next, "k", &start()), Found::Answer(given) if given.cut));
}

/// An event in the life of one state directory.
#[derive(Debug, Clone)]
enum Event {
    Ask(u8),
    Pass(u64),
    SetClock(u64),
    Restart,
    Reboot,
    Damage(u8),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        4 => (0..6u8).prop_map(Event::Ask),
        2 => (0..10 * HOUR_MS).prop_map(Event::Pass),
        1 => (0..4_000_000_000u64).prop_map(Event::SetClock),
        1 => Just(Event::Restart),
        1 => Just(Event::Reboot),
        1 => (0..6u8).prop_map(Event::Damage),
    ]
}

/// What the model knows of a key.
#[derive(Debug, Clone, Copy, Default)]
struct Known {
    age_ms: u64,
    /// Whether its file is damaged.
    damaged: bool,
    /// Whether the damage was noticed.
    noticed: bool,
}

/// The answers of one state directory, and their expected state.
struct World {
    state: tempfile::TempDir,
    answers: Answers,
    now: Moment,
    boots: u32,
    model: HashMap<u8, Known>,
}

impl World {
    fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let answers = Answers::open(state.path(), &start()).unwrap();
        Self { state, answers, now: start(), boots: 0, model: HashMap::new() }
    }

    fn expire(&mut self) {
        self.model.retain(|_, known| known.noticed || known.age_ms < 24 * HOUR_MS);
    }

    fn reopen(&mut self) {
        self.answers = Answers::open(self.state.path(), &self.now).unwrap();
        self.model.values_mut().for_each(|known| known.noticed |= known.damaged);
        self.expire();
    }

    fn apply(&mut self, event: &Event) {
        match event {
            Event::Pass(ms) => {
                self.now.since_boot_ms += ms;
                self.model.values_mut().for_each(|known| known.age_ms += ms);
            }
            Event::SetClock(unix_s) => self.now.unix_s = *unix_s,
            Event::Restart => self.reopen(),
            Event::Reboot => {
                self.boots += 1;
                // Only the process knows the time since the last answer.
                let readable = self.model.values().filter(|known| !known.damaged);
                let unknown = readable.map(|known| known.age_ms).min().unwrap_or(0);
                for known in self.model.values_mut() {
                    known.age_ms = known.age_ms.saturating_sub(unknown) + 10;
                }
                self.now = at(self.now.unix_s, &format!("boot-{}", self.boots), 10);
                self.reopen();
            }
            Event::Damage(key) => {
                if let Some(known) = self.model.get_mut(key) {
                    fs::write(self.answers.path(&digest(&key.to_string())), "").unwrap();
                    known.damaged = true;
                }
            }
            Event::Ask(key) => self.ask(*key),
        }
    }

    fn ask(&mut self, key: u8) {
        let name = key.to_string();
        let found = find(&mut self.answers, &name, &self.now);
        self.expire();
        match self.model.get_mut(&key) {
            Some(known) if known.damaged => {
                known.noticed = true;
                assert!(matches!(found, Found::Damaged(_)), "{found:?}");
            }
            Some(_) => assert!(is_answer(&found), "{found:?}"),
            None => {
                assert_eq!(found, Found::Nothing);
                self.answers.keep(done(&name), &self.now).unwrap();
                self.model.insert(key, Known::default());
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn histories_fit_a_model(events in prop::collection::vec(event(), 1..40)) {
        let mut world = World::new();
        for event in &events {
            world.apply(event);
        }
    }
}
