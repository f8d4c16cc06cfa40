//! Compares a host with its model.

use std::io::Read as _;

use crate::failure::Failure;
use crate::model::{Life, Sandbox, Seen};
use crate::plan::{CLIENTS, Place};
use crate::run::Play;

/// Whose files are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Look {
    /// Those that no other client writes.
    Own,
    All,
}

/// The files of a client's sandbox, by their paths.
fn read(play: &Play<'_>, client: usize, look: Look) -> Result<Seen, Failure> {
    let shared = match look {
        Look::Own => "",
        Look::All => "/shared",
    };
    // A directory or a file that can't be read is no empty one.
    let script = format!(
        "set -e; above=; for d in /p /q; do if test -d $d; then above=\"$above $d\"; fi; done; \
         test -n \"$above\"; files=$(find /w $above {shared} -type f); \
         for f in $files; do text=$(cat $f); echo $f $text; done"
    );
    parse(&play.host.shell(&play.sandbox(client), &script)?).map_err(Failure::Wrong)
}

/// Compares what a client has in its sandbox, whatever the others do.
pub(crate) fn own(play: &Play<'_>, client: usize) -> Result<(), Failure> {
    let seen = read(play, client, Look::Own)?;
    let Some(sandbox) = play.model.sandboxes.get(&client) else { return Ok(()) };
    compare(&mut sandbox.clone(), &seen, Look::Own).map_err(Failure::Wrong)
}

/// Compares all sandboxes that run.
pub(crate) fn sandboxes(play: &mut Play<'_>) -> Result<(), String> {
    for client in 0..CLIENTS {
        let runs = play.model.sandboxes.get(&client).is_some_and(|one| one.life == Life::Running);
        if !runs {
            continue;
        }
        let name = play.sandbox(client);
        let seen = read(play, client, Look::All).map_err(|failure| failure.of(&name))?;
        let Some(sandbox) = play.model.sandboxes.get_mut(&client) else { continue };
        compare(sandbox, &seen, Look::All).map_err(|what| format!("{name}: {what}"))?;
    }
    Ok(())
}

/// Compares everything, and removes the sandboxes.
pub(crate) fn all(play: &mut Play<'_>) -> Result<(), String> {
    sandboxes(play)?;
    stopped(play)?;
    play.host.inlay(&["sync", "--time", "60s"])?;
    names(play)?;
    snapshots(play)?;
    for client in play.model.sandboxes.keys().copied().collect::<Vec<_>>() {
        let name = play.sandbox(client);
        play.host.inlay(&["sandbox", "rm", "--force", &name])?;
    }
    Ok(())
}

/// What was changed in stopped sandboxes is there until they are removed.
fn stopped(play: &mut Play<'_>) -> Result<(), String> {
    for client in 0..CLIENTS {
        let Some(sandbox) = play.model.sandboxes.get(&client) else { continue };
        if sandbox.life != Life::Stopped {
            continue;
        }
        let slots = sandbox.mounts.keys().filter(|_| !sandbox.moved).map(|slot| Place::Slot(*slot));
        for place in [Place::Work].into_iter().chain(slots).collect::<Vec<_>>() {
            let target = format!("{}:{}", play.sandbox(client), play.dir(client, place));
            let taken = play.host.json(&["snapshot", &target])?;
            let id = crate::action::id_of(&taken)?;
            let seen = exported(play, &id)?;
            let mut files = play.files(client, place);
            files.observe(&seen).map_err(|what| format!("stopped {target}: {what}"))?;
        }
    }
    Ok(())
}

fn names(play: &mut Play<'_>) -> Result<(), String> {
    for (name, ids) in &play.model.names {
        let shown = play.host.json(&["show", name])?;
        let id = crate::action::id_of(&shown)?;
        if !ids.contains(&Some(id.clone())) {
            return Err(format!("the name {name} stands for {id}, expected {ids:?}"));
        }
    }
    Ok(())
}

fn snapshots(play: &mut Play<'_>) -> Result<(), String> {
    for at in 0..play.model.snapshots.len() {
        let Some(id) = play.model.snapshots.get(at).map(|one| one.id.clone()) else { continue };
        let seen = exported(play, &id)?;
        if let Some(snapshot) = play.model.snapshots.get_mut(at) {
            snapshot.files.observe(&seen).map_err(|what| format!("snapshot {id}: {what}"))?;
        }
    }
    Ok(())
}

/// The files of a snapshot.
fn exported(play: &Play<'_>, id: &str) -> Result<Seen, String> {
    let archive = play.host.inlay(&["export", id, "tar:-"])?;
    let failed = |error: std::io::Error| format!("the archive of {id}: {error}");
    let mut seen = Seen::new();
    for entry in tar::Archive::new(&*archive).entries().map_err(failed)? {
        let mut entry = entry.map_err(failed)?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path().map_err(failed)?.to_string_lossy().into_owned();
        let mut text = String::new();
        entry.read_to_string(&mut text).map_err(failed)?;
        insert(&mut seen, name.trim_start_matches("./"), &text)?;
    }
    Ok(seen)
}

fn parse(text: &str) -> Result<Seen, String> {
    let mut seen = Seen::new();
    for line in text.lines() {
        let (name, value) = line.split_once(' ').unwrap_or((line, ""));
        insert(&mut seen, name, value)?;
    }
    Ok(seen)
}

/// Adds a file with this text.
pub(crate) fn insert(seen: &mut Seen, name: &str, text: &str) -> Result<(), String> {
    // Only a write that was interrupted may leave an empty file; the model says where.
    let value = if text.trim().is_empty() { Ok(0) } else { text.trim().parse() };
    let value = value.map_err(|_| format!("{name} holds {text:?}"))?;
    if let Some(other) = seen.insert(name.to_owned(), value) {
        return Err(format!("{name} is there twice: {other} and {value}"));
    }
    Ok(())
}

fn compare(sandbox: &mut Sandbox, seen: &Seen, look: Look) -> Result<(), String> {
    let below = |dir: &str| {
        let prefix = format!("{dir}/");
        let inside = |(path, value): (&String, &u32)| {
            path.strip_prefix(&prefix).map(|name| (name.to_owned(), *value))
        };
        seen.iter().filter_map(inside).collect::<Seen>()
    };
    let in_dir = |dir: &str, what| format!("{dir}: {what}");
    sandbox.work.observe(&below("/w")).map_err(|what| in_dir("/w", what))?;
    if look == Look::All {
        sandbox.shared.observe(&below("/shared")).map_err(|what| in_dir("/shared", what))?;
    }
    let above = sandbox.above.clone();
    for (slot, mount) in &mut sandbox.mounts {
        let dir = format!("/{above}/{slot}");
        mount.files.observe(&below(&dir)).map_err(|what| in_dir(&dir, what))?;
    }
    let known = |path: &&String| {
        let mut dirs = sandbox.mounts.keys().map(|slot| format!("/{above}/{slot}/"));
        path.starts_with("/w/")
            || path.starts_with("/shared/")
            || dirs.any(|dir| path.starts_with(&dir))
    };
    match seen.keys().find(|path| !known(path)) {
        Some(path) => Err(format!("{path} should not be there")),
        None => Ok(()),
    }
}
