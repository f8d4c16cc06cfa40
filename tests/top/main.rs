//! `inlay top` with real daemons: in a terminal, as text and as JSON. Needs root and /dev/fuse.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "../common/mod.rs"]
mod common;
mod terminal;

use std::fs;

use common::boxes::Boxes;
use common::{import, local, of};
use inlay_testkit::cli::Inlay;
use inlay_testkit::scratch;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use terminal::Terminal;

/// A host with a directory snapshot `data`.
fn host() -> Inlay {
    let inlay = local();
    let dir = scratch().unwrap();
    fs::write(dir.path().join("file"), vec![7; 300_000]).unwrap();
    import(&inlay, &of("dir", dir.path()), "data");
    inlay
}

fn has(lines: &[String], text: &str) -> bool {
    lines.iter().any(|line| line.contains(text))
}

#[test]
fn without_a_daemon_it_says_so_and_starts_none() {
    let inlay = local();
    for words in [&["top", "--once"][..], &["top", "--json", "--count", "1"]] {
        let ran = inlay.fail(words).unwrap();
        let said = &ran.stderr;
        assert!(said.contains("no daemon serves") && said.contains("inlay daemon"), "{said}");
    }
    let ran = inlay.fail(["top"]).unwrap();
    assert!(ran.stderr.contains("--once"));
    assert_eq!(ran.status.code(), Some(2));
    inlay.daemon_status().unwrap_err();
}

#[test]
fn one_view_is_text_and_each_interval_is_an_object() {
    let host = Boxes::new(local());
    host.create("box", &[]);
    let mounted = host.inlay.mount("data", &[]).unwrap();
    fs::read(mounted.path().join("file")).unwrap();
    let text = host.succeed(&["top", "--once", "--interval", "200ms"]).text();
    for part in ["sandboxes (1)", "box", "running", "base", "mounts (2)", "cache", "embedded"] {
        assert!(text.contains(part), "{part}\n{text}");
    }
    assert!(text.contains(mounted.path().to_str().unwrap()), "{text}");
    assert!(!text.contains('\x1b'));

    let words = ["top", "--json", "--count", "2", "--interval", "200ms"];
    let text = host.succeed(&words).text();
    let views: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(views.len(), 2);
    for view in &views {
        assert_eq!(view["sandboxes"][0]["name"], "box");
        assert!(view["sandboxes"][0]["memory_bytes"].as_u64().unwrap() > 0, "{view}");
        assert!(view["sandboxes"][0]["cpu"].as_f64().is_some(), "{view}");
        assert_eq!(view["mounts"].as_array().unwrap().len(), 2);
        assert!(view["cache"]["budget_bytes"].as_u64().unwrap() > 0);
        assert!(view["interval_s"].as_f64().unwrap() >= 0.2);
        assert!(view["daemon"]["uptime_s"].as_u64().unwrap() < 3600, "{view}");
    }
    mounted.unmount().unwrap();
    host.assert_clean("top");
}

#[test]
fn it_is_live_follows_the_daemon_and_gives_the_terminal_back() {
    let inlay = host();
    let mounted = inlay.mount("data", &[]).unwrap();
    let path = mounted.path().to_str().unwrap().to_owned();
    let mut terminal = Terminal::new(200, 30);
    let modes = terminal.modes();
    let mut top = inlay.command();
    let mut top = terminal.spawn(top.args(["top", "--interval", "100ms"]));
    terminal.wait_for("mounts (1)");
    terminal.wait_for(&path);
    assert_ne!(terminal.modes(), modes);

    terminal.press("?");
    terminal.wait_for(" keys ");
    terminal.press("xp");
    terminal.wait_for("PAUSED");
    terminal.press("p\tss");
    terminal.wait_for("by progress");
    terminal.resize(60, 20);
    let narrow = |lines: &[String]| has(lines, "q quit") && !has(lines, "WAITING");
    terminal.wait_until("the narrow view", narrow);

    mounted.unmount().unwrap();
    inlay.wait_until_quiet().unwrap();
    terminal.wait_for("no daemon serves");
    let mounted = inlay.mount("data", &[]).unwrap();
    let back = |lines: &[String]| has(lines, "mounts (1)") && !has(lines, "no daemon serves");
    terminal.wait_until("the next daemon", back);

    kill_process(Pid::from_child(&top), Signal::TERM).unwrap();
    assert!(top.wait().unwrap().success());
    given_back(&mut terminal, &modes);

    // And when it is left by its key, or by Ctrl-C.
    for key in ["q", "\x03"] {
        let mut top = inlay.command();
        let mut top = terminal.spawn(top.arg("top"));
        terminal.written.clear();
        terminal.wait_for("mounts (1)");
        terminal.press(key);
        assert!(top.wait().unwrap().success());
        given_back(&mut terminal, &modes);
    }
    mounted.unmount().unwrap();
    inlay.wait_until_quiet().unwrap();
}

fn given_back(terminal: &mut Terminal, modes: &str) {
    terminal.read();
    let written = String::from_utf8_lossy(&terminal.written).into_owned();
    let at = |text: &str| written.rfind(text).unwrap_or_else(|| panic!("{text:?} is missing"));
    assert!(at("\x1b[?1049l") > at("\x1b[?1049h"));
    assert!(at("\x1b[?25h") > at("\x1b[?25l"));
    assert_eq!(terminal.modes(), modes);
}
