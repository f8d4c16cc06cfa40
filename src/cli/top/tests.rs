//! Tests of drawing and key bindings.

use std::collections::BTreeMap;

use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::layout::Rect;

use super::draw::{draw, text};
use super::state::{Link, Table, Then, ViewState};
use super::view::{CacheRow, DaemonRow, MountRow, SandboxRow, StoreRow, View, WaitRow};

fn sandbox(name: &str, cpu: f64, memory: u64) -> SandboxRow {
    SandboxRow {
        id: "sb-0123456789ab".into(),
        name: name.into(),
        state: "running".into(),
        image: "base".into(),
        age_s: Some(125),
        cpu: Some(cpu),
        memory_bytes: Some(memory),
        mounts: 1,
    }
}

fn mount(path: &str, progress: f64) -> MountRow {
    MountRow {
        path: path.into(),
        snapshot: "img-0123456789abcdef".into(),
        phase: "rest".into(),
        progress: Some(progress),
        fetched_bytes: 5 << 20,
        read_bytes: 1 << 20,
        store_readers_waiting: 2,
        ..MountRow::default()
    }
}

fn full() -> View {
    View {
        interval_s: Some(1.0),
        daemon: DaemonRow {
            version: "0.1.0".into(),
            pid: 42,
            state: "/var/lib/inlay".into(),
            uptime_s: Some(7200),
            sealed: 1,
        },
        cache: CacheRow {
            used_bytes: 3 << 30,
            budget_bytes: 4 << 30,
            hits: Some(0.5),
            disk_failing: true,
        },
        stores: vec![StoreRow {
            store: "s3://bucket".into(),
            round_trip_ms: Some(12.34),
            rate: Some(50_000_000.0),
            share: 0.25,
            readers_waiting: 2,
            queued: 9,
        }],
        waits: BTreeMap::from([(
            "store".to_owned(),
            WaitRow { reads: 10, p50_ms: Some(15.0), p99_ms: Some(40.0) },
        )]),
        fetch: BTreeMap::from([("demand".to_owned(), 1_048_576.0)]),
        sandboxes: vec![sandbox("a", 0.1, 900), sandbox("b", 1.5, 100)],
        mounts: vec![mount("/mnt/x", 1.0), mount("/mnt/a", 0.3)],
        ..View::default()
    }
}

fn drawn(view: &View, state: &ViewState, width: u16, height: u16) -> Vec<String> {
    let area = Rect::new(0, 0, width, height);
    let mut buffer = Buffer::empty(area);
    draw(view, state, area, &mut buffer);
    let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
    (0..height).map(line).collect()
}

#[test]
fn everything_is_shown_where_there_is_room() {
    let all = text(&full(), 120).join("\n");
    for part in [
        "inlay 0.1.0 pid 42  up 2h  /var/lib/inlay  2 mounts  2 sandboxes run  1 not durable",
        "███████░░░ 3.0G of 4.0G (75%)  50% of lookups hit  its disk fails",
        "s3://bucket  round trip 12.3 ms  47MB/s  25% for prefetch  9 groups queued",
        "2 readers wait",
        "store 10 reads p50 15.00 p99 40.00 ms",
        "demand 1.0MB/s",
        "sandboxes (2), by age",
        "150%",
        "███░░░░░░░  30%",
        "img-0123456789",
    ] {
        assert!(all.contains(part), "{part}\n{all}");
    }
}

#[test]
fn small_terminals_show_as_much_as_fits() {
    for (width, height) in [(1, 1), (5, 40), (20, 8), (34, 12), (200, 3), (400, 100)] {
        drawn(&full(), &ViewState { help: true, ..ViewState::default() }, width, height);
        let lines = drawn(&full(), &ViewState::default(), width, height);
        if width >= 20 && height > 10 {
            assert!(lines.iter().any(|line| line.contains("NAME")), "{lines:?}");
        }
    }
    let narrow = drawn(&full(), &ViewState::default(), 34, 20).join("\n");
    assert!(narrow.contains("PHASE") && !narrow.contains("SNAPSHOT"), "{narrow}");
}

#[test]
fn missing_values_are_shown_as_missing() {
    let lines = text(&View::default(), 80);
    assert_eq!(lines.iter().filter(|line| *line == "none").count(), 2, "{lines:?}");
    assert!(lines.iter().any(|line| line.contains("nothing was read")));
}

#[test]
fn hostile_names_are_harmless() {
    let evil = "\x1b]0;owned\x07\x1b[2J\r\n\u{9b}31m\u{202e}";
    let mut view = full();
    view.sandboxes = vec![SandboxRow { image: evil.into(), ..sandbox(evil, 0.0, 0) }];
    view.stores = vec![StoreRow { store: evil.into(), ..StoreRow::default() }];
    view.mounts = vec![MountRow {
        sandbox: Some(evil.into()),
        phase: evil.into(),
        path: super::output::escaped(evil.as_bytes()),
        ..MountRow::default()
    }];
    view.daemon.state = evil.into();
    let state = ViewState { link: Link::Gone(evil.into()), ..ViewState::default() };
    for line in drawn(&view, &state, 200, 40).into_iter().chain(text(&view, 200)) {
        assert!(!line.chars().any(char::is_control), "{line:?}");
    }
    assert!(text(&view, 200).join("").contains("\\u{1b}]0;owned"));
}

#[test]
fn a_daemon_that_is_gone_is_said_so() {
    let gone = Link::Gone("no daemon serves /x; `inlay mount` starts one".into());
    let lines = drawn(&full(), &ViewState { link: gone, ..ViewState::default() }, 100, 30);
    assert!(lines[1].contains("no daemon serves /x"), "{lines:?}");
    assert!(lines[1].contains("waiting for one"));
}

#[test]
fn keys_match_the_help() {
    let view = full();
    let mut state = ViewState::default();
    let press =
        |state: &mut ViewState, code| state.key(KeyEvent::new(code, KeyModifiers::NONE), &view);
    let names = |state: &ViewState| {
        state.sorted_sandboxes(&view).iter().map(|row| row.name.clone()).collect()
    };
    let expect = |state: &ViewState, wanted: [&str; 2]| {
        let names: Vec<String> = names(state);
        assert_eq!(names, wanted);
    };
    press(&mut state, KeyCode::Down);
    press(&mut state, KeyCode::Down);
    assert_eq!(state.mark(Table::Sandboxes, 2), 1);
    press(&mut state, KeyCode::Home);
    assert_eq!(state.mark(Table::Sandboxes, 2), 0);
    for wanted in [["a", "b"], ["b", "a"], ["a", "b"], ["a", "b"]] {
        press(&mut state, KeyCode::Char('s'));
        expect(&state, wanted);
    }
    press(&mut state, KeyCode::Tab);
    press(&mut state, KeyCode::Char('s'));
    assert_eq!(state.sorted_mounts(&view)[0].path, "/mnt/a");
    press(&mut state, KeyCode::Char('p'));
    assert!(state.paused);
    press(&mut state, KeyCode::Char('?'));
    assert!(state.help);
    // Any key closes the help.
    assert_eq!(press(&mut state, KeyCode::Esc), Then::Continue);
    assert!(!state.help);
    assert_eq!(press(&mut state, KeyCode::Esc), Then::Quit);
    let interrupt = KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL);
    assert_eq!(state.key(interrupt, &view), Then::Quit);
}

#[test]
fn the_object_is_one_line() {
    let json = serde_json::to_string(&full()).unwrap();
    assert!(!json.contains('\n'));
    let value: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!(value["stores"][0]["readers_waiting"], 2);
}
