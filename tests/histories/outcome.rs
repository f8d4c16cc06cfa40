//! What an operation does to the model: when it has succeeded, and when it may have happened.

use serde_json::Value;

use crate::action::picked;
use crate::failure::Failure;
use crate::model::{Files, Life, Sandbox, Seen, TORN};
use crate::plan::{Changes, Fault, Flush, Op, Place};
use crate::run::{Play, find, mounted};

/// The name under which a file is written before it is renamed.
const NEW: &str = ".new";

/// How an operation has ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) result: Result<Done, Failure>,
    /// The contents that it tried to give to files.
    pub(crate) tried: Seen,
    /// The power was cut before it ended.
    pub(crate) may_be_lost: bool,
}

impl Outcome {
    pub(crate) fn panicked() -> Self {
        let result = Err(Failure::Wrong("it panicked".to_owned()));
        Self { result, tried: Seen::new(), may_be_lost: false }
    }
}

/// What an operation has done.
#[derive(Debug)]
pub(crate) enum Done {
    Nothing,
    Files(Seen),
    Snapshot(String),
}

/// The operation has succeeded.
pub(crate) fn apply(play: &mut Play<'_>, client: usize, op: Op, done: &Done) {
    match (op, done) {
        (Op::Create, _) => {
            play.model.sandboxes.insert(client, Sandbox::new());
        }
        (Op::Write(place, ..) | Op::CopyIn(place), Done::Files(files)) => {
            for (name, value) in files {
                if let Some(have) = play.files_mut(client, place) {
                    have.write(name, Some(*value));
                    if matches!(op, Op::Write(..)) {
                        have.write(NEW, None);
                    }
                }
            }
            if let (Op::Write(_, _, Flush::Yes), Some(sandbox)) =
                (op, play.model.sandboxes.get_mut(&client))
            {
                sandbox.all_files().for_each(Files::sync);
            }
        }
        (Op::Delete(place, file), _) => {
            if let Some(have) = play.files_mut(client, place) {
                have.write(&format!("f{file}"), None);
            }
        }
        (Op::CopyShared, Done::Files(files)) => {
            if let Some(first) = play.model.sandboxes.get_mut(&0) {
                for (name, value) in files {
                    first.shared.write(name, Some(*value));
                }
            }
        }
        (Op::Mount(slot, _), Done::Snapshot(snapshot)) => {
            let original = play.original(snapshot);
            if let Some(sandbox) = play.model.sandboxes.get_mut(&client) {
                mounted(sandbox, slot, snapshot, &original);
            }
        }
        (Op::Umount(slot, changes), _) => unmounted(play, client, slot, changes),
        (Op::RenameAbove, _) => renamed(play, client),
        (Op::Snapshot(place, _, to), Done::Snapshot(id)) => {
            let files = play.files(client, place);
            play.model.add(id, files);
            let name = play.name(client, to);
            play.model.names.insert(name, [Some(id.clone())].into());
        }
        (Op::Stop, _) => {
            if let Some(sandbox) = play.model.sandboxes.get_mut(&client) {
                sandbox.life = Life::Stopped;
            }
        }
        (Op::Remove, _) => {
            play.model.sandboxes.remove(&client);
        }
        _ => {}
    }
}

/// The operation has happened, or not, or in part. `tried` are the contents that it tried to give to
/// files, and `listed` are the sandboxes now.
pub(crate) fn apply_maybe(
    play: &mut Play<'_>,
    client: usize,
    op: Op,
    tried: &Seen,
    listed: &Value,
    fault: Fault,
) -> Result<(), String> {
    let shown = find(listed, &play.sandbox(client)).cloned();
    match op {
        Op::Create => created_maybe(play, client, shown.is_some()),
        Op::Write(place, ..) => {
            if let Some(files) = play.files_mut(client, place) {
                written_maybe(files, tried, fault);
                // A shell writes this one in place, and renames it when it is whole.
                written_maybe(files, &Seen::from([(NEW.to_owned(), 0)]), fault);
                for value in tried.values() {
                    files.write_maybe(NEW, Some(*value));
                }
                files.write_maybe(NEW, None);
            }
            Ok(())
        }
        Op::Delete(place, file) => {
            if let Some(files) = play.files_mut(client, place) {
                files.write_maybe(&format!("f{file}"), None);
            }
            Ok(())
        }
        Op::CopyIn(place) => {
            if let Some(files) = play.files_mut(client, place) {
                written_maybe(files, tried, fault);
            }
            Ok(())
        }
        Op::CopyShared => {
            if let Some(first) = play.model.sandboxes.get_mut(&0) {
                written_maybe(&mut first.shared, tried, fault);
            }
            Ok(())
        }
        Op::Mount(slot, pick) => {
            let is_there = is_mounted(play, client, slot, shown.as_ref());
            if let (true, Some(snapshot)) = (is_there, picked(play, pick)) {
                apply(play, client, op, &Done::Snapshot(snapshot));
            }
            Ok(())
        }
        Op::Umount(slot, changes) => {
            if !is_mounted(play, client, slot, shown.as_ref()) {
                unmounted_maybe(play, client, slot, changes);
            }
            Ok(())
        }
        Op::RenameAbove => renamed_maybe(play, client),
        Op::Snapshot(place, _, to) => snapshot_maybe(play, client, place, to),
        Op::Remove if shown.is_none() => {
            apply(play, client, op, &Done::Nothing);
            Ok(())
        }
        Op::Stop | Op::Remove => {
            if let (Some(shown), Some(sandbox)) = (shown, play.model.sandboxes.get_mut(&client))
                && shown["state"] == "stopped"
            {
                sandbox.life = Life::Stopped;
            }
            Ok(())
        }
        Op::Check | Op::CopyOut(_) | Op::Sync => Ok(()),
    }
}

/// A creation is made whole or undone: the test makes it again, to have its directories.
fn created_maybe(play: &mut Play<'_>, client: usize, is_there: bool) -> Result<(), String> {
    play.model.sandboxes.remove(&client);
    if is_there {
        let name = play.sandbox(client);
        play.host.inlay(&["sandbox", "rm", "--force", &name])?;
    }
    Ok(())
}

/// Each file is as it was or as it was to be. On a disk that was full it may be torn; after a power cut
/// all files may be that were not synced.
fn written_maybe(files: &mut Files, tried: &Seen, fault: Fault) {
    for (name, value) in tried {
        files.write_maybe(name, Some(*value));
        if fault == Fault::DiskFull {
            files.maybe(name, Some(TORN));
        }
    }
}

fn is_mounted(play: &Play<'_>, client: usize, slot: u8, shown: Option<&Value>) -> bool {
    let path = play.dir_of_slot(client, slot);
    let mounts = shown.and_then(|shown| shown["mounts"].as_array());
    mounts.is_some_and(|mounts| mounts.iter().any(|mount| mount["path"] == *path))
}

fn unmounted(play: &mut Play<'_>, client: usize, slot: u8, changes: Changes) {
    let Some(sandbox) = play.model.sandboxes.get_mut(&client) else { return };
    let Some(mount) = sandbox.mounts.remove(&slot) else { return };
    let key = (mount.snapshot, slot, mount.above);
    match changes {
        Changes::Keep => sandbox.kept.insert(key, mount.files),
        Changes::Discard => sandbox.kept.remove(&key),
    };
}

/// It is gone; whether its changes were discarded is not known.
fn unmounted_maybe(play: &mut Play<'_>, client: usize, slot: u8, changes: Changes) {
    let Some(sandbox) = play.model.sandboxes.get_mut(&client) else { return };
    let Some(mount) = sandbox.mounts.remove(&slot) else { return };
    let mut files = mount.files;
    if changes == Changes::Discard {
        files.maybe_all(&mount.original);
    }
    sandbox.kept.insert((mount.snapshot, slot, mount.above), files);
}

fn renamed(play: &mut Play<'_>, client: usize) {
    if let Some(sandbox) = play.model.sandboxes.get_mut(&client) {
        sandbox.above = if sandbox.above == "p" { "q".into() } else { "p".into() };
        sandbox.moved |= !sandbox.mounts.is_empty();
    }
}

fn renamed_maybe(play: &mut Play<'_>, client: usize) -> Result<(), String> {
    let name = play.sandbox(client);
    match play.host.shell(&name, "test -d /q && echo q; test -d /p && echo p; true") {
        Ok(seen) => {
            let above = play.model.sandboxes.get(&client).map(|sandbox| sandbox.above.clone());
            let seen = seen.trim();
            if Some(seen) != above.as_deref() {
                if seen != "p" && seen != "q" {
                    return Err(format!("{name}: a rename left {seen:?}"));
                }
                renamed(play, client);
            }
        }
        Err(wrong @ Failure::Wrong(_)) => return Err(wrong.into()),
        // It was stopped: where its mounts are now is not asked any more.
        Err(Failure::Failed(_)) => {
            if let Some(sandbox) = play.model.sandboxes.get_mut(&client) {
                sandbox.moved = true;
            }
        }
    }
    Ok(())
}

/// The snapshot was taken or not; if its name stands for something new, that is it.
fn snapshot_maybe(play: &mut Play<'_>, client: usize, place: Place, to: u8) -> Result<(), String> {
    let name = play.name(client, to);
    let shown = match play.host.json(&["show", &name]) {
        Ok(shown) => shown,
        Err(wrong @ Failure::Wrong(_)) => return Err(wrong.into()),
        Err(Failure::Failed(_)) => {
            let before = play.model.names.get(&name);
            return match before {
                Some(ids) if !ids.contains(&None) => Err(format!("the name {name} is gone")),
                _ => Ok(()),
            };
        }
    };
    let id = crate::action::id_of(&shown)?;
    let known = play.model.names.get(&name).is_some_and(|ids| ids.contains(&Some(id.clone())));
    if known {
        // The daemon may still carry what it has sealed.
        return Ok(());
    }
    let files = play.files(client, place);
    play.model.add(&id, files);
    play.model.names.insert(name, [Some(id)].into());
    Ok(())
}
