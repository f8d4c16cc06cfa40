//! What a client does: one operation by the command line, as a user types it.

use std::fs;
use std::io;
use std::path::Path;
use std::sync::atomic::Ordering;

use serde_json::Value;

use crate::failure::Failure;
use crate::model::Seen;
use crate::outcome::{Done, Outcome};
use crate::plan::{Changes, Flush, Op, Place, Wait};
use crate::run::Play;
use crate::verify;

/// Does `op` as `client`.
pub(crate) fn act(play: &Play<'_>, client: usize, op: Op) -> Outcome {
    let mut tried = Seen::new();
    let result = carry_out(play, client, op, &mut tried);
    let may_be_lost = play.host.power_is_gone.load(Ordering::SeqCst);
    Outcome { result, tried, may_be_lost }
}

/// `tried` gets the contents that it tries to give to files.
fn carry_out(play: &Play<'_>, client: usize, op: Op, tried: &mut Seen) -> Result<Done, Failure> {
    let (host, name) = (play.host, play.sandbox(client));
    match op {
        Op::Create => {
            if play.model.sandboxes.contains_key(&client) {
                host.inlay(&["sandbox", "rm", "--force", &name])?;
            }
            host.inlay(&["sandbox", "create", "base", "--name", &name])?;
            host.shell(&name, "mkdir -p /w /p /shared && sync -f /").map(|_| Done::Nothing)
        }
        Op::Write(place, file, flush) => {
            let (dir, value) = (play.dir(client, place), play.value());
            let sync = if flush == Flush::Yes { "sync -f /" } else { "true" };
            let script =
                format!("echo {value} > {dir}/.new && mv {dir}/.new {dir}/f{file} && {sync}");
            tried.insert(format!("f{file}"), value);
            host.shell(&name, &script).map(|_| Done::Files(tried.clone()))
        }
        Op::Delete(place, file) => {
            let dir = play.dir(client, place);
            host.shell(&name, &format!("rm -f {dir}/f{file}")).map(|_| Done::Nothing)
        }
        Op::CopyIn(place) => copy_in(play, &name, &play.dir(client, place), "c", tried),
        Op::CopyShared => copy_in(play, &play.sandbox(0), "/shared", &format!("s{client}-"), tried),
        Op::CopyOut(place) => copy_out(play, client, place),
        Op::Mount(slot, pick) => {
            let Some(snapshot) = picked(play, pick) else { return Ok(Done::Nothing) };
            let target = format!("{name}:{}", play.dir_of_slot(client, slot));
            host.inlay(&["mount", &snapshot, &target]).map(|_| Done::Snapshot(snapshot))
        }
        Op::Umount(slot, changes) => {
            let target = format!("{name}:{}", play.dir(client, Place::Slot(slot)));
            let words = match changes {
                Changes::Keep => vec!["umount", &target],
                Changes::Discard => vec!["umount", "--discard", &target],
            };
            host.inlay(&words).map(|_| Done::Nothing)
        }
        Op::RenameAbove => {
            let from = play.dir(client, Place::Above);
            let to = if from == "/p" { "/q" } else { "/p" };
            host.shell(&name, &format!("mv {from} {to}")).map(|_| Done::Nothing)
        }
        Op::Snapshot(place, wait, to) => {
            let target = format!("{name}:{}", play.dir(client, place));
            let wait = match wait {
                Wait::Sealed => "sealed",
                Wait::Durable => "durable",
            };
            let to = play.name(client, to);
            let taken = host.json(&["snapshot", &target, "--wait", wait, "--name", &to])?;
            id_of(&taken).map(Done::Snapshot)
        }
        Op::Sync => host.inlay(&["sync", "--time", "60s"]).map(|_| Done::Nothing),
        Op::Stop => host.inlay(&["sandbox", "stop", "--time", "0s", &name]).map(|_| Done::Nothing),
        Op::Remove => host.inlay(&["sandbox", "rm", "--force", &name]).map(|_| Done::Nothing),
        Op::Check => verify::own(play, client).map(|()| Done::Nothing),
    }
}

/// The snapshot that a mount picks.
pub(crate) fn picked(play: &Play<'_>, pick: u8) -> Option<String> {
    let all = &play.model.snapshots;
    let at = usize::from(pick).checked_rem(all.len())?;
    all.get(at).map(|one| one.id.clone())
}

pub(crate) fn id_of(answer: &Value) -> Result<String, Failure> {
    let id = answer["id"].as_str().map(str::to_owned);
    id.ok_or_else(|| Failure::Wrong(format!("no id in {answer}")))
}

/// Copies a directory with new files into a directory of a sandbox.
fn copy_in(
    play: &Play<'_>,
    sandbox: &str,
    dir: &str,
    prefix: &str,
    tried: &mut Seen,
) -> Result<Done, Failure> {
    let files: Vec<_> = (0..3).map(|at| (format!("{prefix}{at}"), play.value())).collect();
    tried.extend(files.iter().cloned());
    let from = play.host.directory(&files).map_err(|error| of_the_test(&error))?;
    for (name, _) in &files {
        let from = from.join(name);
        let from = from.display().to_string();
        play.host.inlay(&["cp", &from, &format!("{sandbox}:{dir}/{name}")])?;
    }
    fs::remove_dir_all(from).map_err(|error| of_the_test(&error))?;
    Ok(Done::Files(files.into_iter().collect()))
}

/// The test itself can't go on.
fn of_the_test(error: &io::Error) -> Failure {
    Failure::Wrong(format!("the test: {error}"))
}

fn copy_out(play: &Play<'_>, client: usize, place: Place) -> Result<Done, Failure> {
    let into = play.host.directory(&[]).map_err(|error| of_the_test(&error))?;
    let from = format!("{}:{}", play.sandbox(client), play.dir(client, place));
    let to = into.join("copy");
    play.host.inlay(&["cp", &from, &to.display().to_string()])?;
    let wrong = |what| Failure::Wrong(format!("cp {from} {}: {what}", to.display()));
    let seen = read_below(&to).map_err(|error| wrong(error.to_string()))?;
    fs::remove_dir_all(into).map_err(|error| of_the_test(&error))?;
    // Another client may copy to the same sandbox, but not into this directory.
    play.files(client, place).observe(&seen).map_err(wrong)?;
    Ok(Done::Nothing)
}

/// All files below a directory of this host.
fn read_below(top: &Path) -> io::Result<Seen> {
    let (mut seen, mut dirs) = (Seen::new(), vec![top.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                dirs.push(entry.path());
                continue;
            }
            let text = fs::read_to_string(entry.path())?;
            let name = entry.path().strip_prefix(top).map_err(io::Error::other)?.to_owned();
            verify::insert(&mut seen, &name.to_string_lossy(), &text).map_err(io::Error::other)?;
        }
    }
    Ok(seen)
}
