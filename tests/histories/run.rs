//! Plays a history on a host: operations at the same time, a fault among them, and what they left.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::failure::Failure;
use crate::host::Host;
use crate::model::{Files, Life, Model, Mount, Sandbox};
use crate::outcome::{self, Outcome};
use crate::plan::{Fault, History, Op, Place, Round};
use crate::{action, verify};

/// How long a host may take to be usable after a fault.
const RECOVERED_WITHIN: Duration = Duration::from_mins(2);

/// A history under way.
pub(crate) struct Play<'a> {
    pub(crate) host: &'a Host,
    pub(crate) model: Model,
    /// Begins the names of this history: a host plays several.
    pub(crate) tag: String,
    pub(crate) next_value: AtomicU32,
}

/// Plays a history from its beginning to its end, and removes what it made.
///
/// # Errors
///
/// What was found: something is lost, mixed up, refused without a reason, or left behind.
pub(crate) fn play(host: &Host, history: &History, number: u32) -> Result<(), String> {
    let mut play = Play {
        host,
        model: Model::default(),
        tag: format!("h{}x{number}", history.seed),
        next_value: AtomicU32::new(1),
    };
    for (at, round) in history.rounds.iter().enumerate() {
        play.round(round).map_err(|what| format!("round {at}: {what}"))?;
    }
    verify::all(&mut play).map_err(|what| format!("at the end: {what}"))
}

impl Play<'_> {
    /// The name of a client's sandbox.
    pub(crate) fn sandbox(&self, client: usize) -> String {
        format!("{}c{client}", self.tag)
    }

    pub(crate) fn value(&self) -> u32 {
        self.next_value.fetch_add(1, Ordering::Relaxed)
    }

    fn round(&mut self, round: &Round) -> Result<(), String> {
        self.host.power_is_gone.store(false, Ordering::SeqCst);
        let planned =
            round.ops.iter().enumerate().filter_map(|(client, op)| Some((client, (*op)?)));
        let mut planned: Vec<(usize, Op)> =
            planned.filter(|(client, op)| self.is_possible(*client, *op)).collect();
        // A copy to a sandbox that is removed or stopped meanwhile may fail.
        if planned.iter().any(|(client, op)| *client == 0 && matches!(op, Op::Remove | Op::Stop)) {
            planned.retain(|(_, op)| !matches!(op, Op::CopyShared));
        }
        let (outcomes, fault) = thread::scope(|scope| {
            let running: Vec<_> = planned
                .iter()
                .map(|(client, op)| {
                    let play = &*self;
                    scope.spawn(move || action::act(play, *client, *op))
                })
                .collect();
            let fault = round.fault.map(|(fault, after)| {
                thread::sleep(Duration::from_millis(after));
                (fault, self.begin(fault))
            });
            let outcomes: Vec<_> = running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Outcome::panicked()))
                .collect();
            (outcomes, fault)
        });
        let Some((fault, begun)) = fault else {
            for ((client, op), outcome) in planned.iter().zip(outcomes) {
                let failed = |failure: Failure| failure.of(&format!("client {client}, {op:?}"));
                let done = outcome.result.map_err(failed)?;
                outcome::apply(self, *client, *op, &done);
            }
            return Ok(());
        };
        let healed = begun.map_err(|error| format!("{fault:?} could not be made: {error}"))?;
        let killed = match &healed {
            Healing::Monitor(id) => Some(id.clone()),
            _ => None,
        };
        self.end(healed)?;
        self.repeat(fault, &planned, &outcomes);
        let listed = self.settled(killed.as_deref())?;
        self.after(fault, &listed, &planned, outcomes)
    }

    /// Repeats removals and stops whose clients were killed: the daemon may carry them out at any
    /// time from now on, and nothing reports when. Repeats mounts, too: the daemon may undo them,
    /// and another mount at the same place waits for that.
    fn repeat(&self, fault: Fault, planned: &[(usize, Op)], outcomes: &[Outcome]) {
        if fault != Fault::KillClients {
            return;
        }
        for ((client, op), outcome) in planned.iter().zip(outcomes) {
            if matches!(op, Op::Remove | Op::Stop | Op::Mount(..)) && outcome.result.is_err() {
                // Fails if it has happened; what is there is looked up next.
                drop(action::act(self, *client, *op));
            }
        }
    }

    fn is_possible(&self, client: usize, op: Op) -> bool {
        let sandbox = self.model.sandboxes.get(&client);
        let runs = sandbox.is_some_and(|sandbox| sandbox.life == Life::Running);
        let has = |place: Place| match (place, sandbox) {
            (_, None) => false,
            (Place::Work | Place::Above, Some(_)) => true,
            (Place::Slot(slot), Some(sandbox)) => sandbox.mounts.contains_key(&slot),
        };
        // Where a stopped sandbox's mounts are after renames is looked at by other tests.
        let moved = sandbox.is_some_and(|sandbox| sandbox.moved);
        match op {
            Op::Create => !runs,
            Op::Write(place, ..)
            | Op::Delete(place, _)
            | Op::CopyIn(place)
            | Op::CopyOut(place) => runs && has(place),
            Op::CopyShared => {
                self.model.sandboxes.get(&0).is_some_and(|first| first.life == Life::Running)
            }
            Op::Mount(slot, _) => {
                runs && !has(Place::Slot(slot)) && !self.model.snapshots.is_empty()
            }
            Op::Umount(slot, _) => runs && has(Place::Slot(slot)),
            Op::RenameAbove | Op::Check | Op::Stop => runs,
            Op::Snapshot(place, _, _) => {
                has(place) && (runs || place == Place::Work || (place != Place::Above && !moved))
            }
            Op::Sync => true,
            Op::Remove => sandbox.is_some(),
        }
    }

    /// Makes a fault. What is returned ends it.
    fn begin(&self, fault: Fault) -> Result<Healing, String> {
        let host = self.host;
        let store = host.path("mnt/store");
        let fail = |error: std::io::Error| error.to_string();
        match fault {
            Fault::KillDaemon => host.kill("daemon"),
            Fault::KillKeeperAndDaemon => {
                // Twice: a command may start another at this moment.
                for _ in 0..2 {
                    host.kill("keeper");
                    host.kill("daemon");
                    thread::sleep(Duration::from_millis(20));
                }
            }
            Fault::KillMonitor(client) => {
                let listed = host.json(&["sandbox", "inspect", &self.sandbox(client)]);
                if let Some(id) = listed.ok().as_ref().and_then(|listed| listed["id"].as_str())
                    && host.kill_monitor(id) > 0
                {
                    return Ok(Healing::Monitor(id.to_owned()));
                }
            }
            Fault::KillClients => host.kill_commands(),
            Fault::PowerCut => host.cut_power().map_err(fail)?,
            Fault::StoreDown => {
                fs::rename(&store, host.path("mnt/away")).map_err(fail)?;
                fs::write(&store, "").map_err(fail)?;
                thread::sleep(Duration::from_millis(300));
                return Ok(Healing::Store);
            }
            Fault::DiskFull => {
                let filler = host.fill_disk().map_err(fail)?;
                thread::sleep(Duration::from_millis(300));
                return Ok(Healing::Disk(filler));
            }
            Fault::CacheLost => {
                host.kill("daemon");
                for entry in
                    fs::read_dir(host.state().join("cache")).into_iter().flatten().flatten()
                {
                    let path = entry.path();
                    let _ = fs::remove_dir_all(&path).or_else(|_| fs::remove_file(&path));
                }
            }
            Fault::Upgrade | Fault::Downgrade => {
                if fault == Fault::Downgrade {
                    host.add_fields();
                }
                host.replace_daemon()?;
            }
        }
        Ok(Healing::Nothing)
    }

    fn end(&self, healing: Healing) -> Result<(), String> {
        let store = self.host.path("mnt/store");
        let healed = match healing {
            Healing::Nothing | Healing::Monitor(_) => Ok(()),
            Healing::Store => fs::remove_file(&store)
                .and_then(|()| fs::rename(self.host.path("mnt/away"), &store))
                // A later power cut must not bring this fault back.
                .and_then(|()| fs::File::open(self.host.path("mnt"))?.sync_all()),
            // A power cut before the removal is on disk would bring the file back.
            Healing::Disk(filler) => inlay_base::durable::remove(&filler),
        };
        healed.map_err(|error| format!("a fault could not be ended: {error}"))
    }

    /// After a fault: the host is usable, and each operation has happened or not.
    fn after(
        &mut self,
        fault: Fault,
        listed: &Value,
        planned: &[(usize, Op)],
        outcomes: Vec<Outcome>,
    ) -> Result<(), String> {
        for ((client, op), outcome) in planned.iter().zip(outcomes) {
            match outcome.result {
                Ok(done) if !outcome.may_be_lost => outcome::apply(self, *client, *op, &done),
                Err(wrong @ Failure::Wrong(_)) => {
                    return Err(wrong.of(&format!("client {client}, {op:?} in {fault:?}")).into());
                }
                _ => {
                    let tried = &outcome.tried;
                    outcome::apply_maybe(self, *client, *op, tried, listed, fault)?;
                }
            }
        }
        if fault == Fault::PowerCut {
            let sandboxes = self.model.sandboxes.values_mut();
            sandboxes.for_each(|sandbox| sandbox.all_files().for_each(Files::cut));
        }
        let may_stop = |client: usize| match fault {
            Fault::PowerCut | Fault::KillKeeperAndDaemon => true,
            Fault::KillMonitor(other) => other == client,
            _ => false,
        };
        for client in self.model.sandboxes.keys().copied().collect::<Vec<_>>() {
            let name = self.sandbox(client);
            let shown = find(listed, &name)
                .ok_or_else(|| format!("{fault:?}: sandbox {name} is gone: {listed}"))?;
            let life = life_of(shown).ok_or_else(|| format!("{fault:?}: {name} is {shown}"))?;
            let Some(sandbox) = self.model.sandboxes.get_mut(&client) else { continue };
            if sandbox.life == Life::Running && life == Life::Stopped && !may_stop(client) {
                return Err(format!("{fault:?}: sandbox {name} was stopped"));
            }
            sandbox.life = life;
            if fault == Fault::PowerCut && life == Life::Running {
                return Err(format!("{name} survived a power cut: {shown}"));
            }
        }
        verify::sandboxes(self).map_err(|what| format!("after {fault:?}: {what}"))
    }

    /// The sandboxes, when none is being made or removed any more and the end of a monitor was seen.
    fn settled(&self, killed: Option<&str>) -> Result<Value, String> {
        let deadline = Instant::now() + RECOVERED_WITHIN;
        loop {
            let listed = self.host.json(&["sandbox", "ls"]);
            let is_settled = |listed: &Value| {
                let all = listed.as_array().map(Vec::as_slice).unwrap_or_default();
                all.iter().all(|one| {
                    let life = life_of(one);
                    let was_killed = killed.is_some_and(|id| one["id"] == *id);
                    life.is_some() && !(was_killed && life == Some(Life::Running))
                })
            };
            match listed {
                Ok(listed) if is_settled(&listed) => return Ok(listed),
                Ok(listed) if Instant::now() > deadline => {
                    return Err(format!("sandboxes do not settle: {listed}"));
                }
                Err(wrong @ Failure::Wrong(_)) => return Err(wrong.into()),
                Err(error) if Instant::now() > deadline => {
                    return Err(format!("the host does not recover: {error}"));
                }
                _ => thread::sleep(Duration::from_millis(20)),
            }
        }
    }

    /// The files of a place, as the model has them.
    pub(crate) fn files(&self, client: usize, place: Place) -> Files {
        let Some(sandbox) = self.model.sandboxes.get(&client) else { return Files::default() };
        match place {
            Place::Work => sandbox.work.clone(),
            Place::Slot(slot) => {
                sandbox.mounts.get(&slot).map(|mount| mount.files.clone()).unwrap_or_default()
            }
            Place::Above => {
                let mut files = Files::default();
                for (slot, mount) in &sandbox.mounts {
                    files.put_below(&slot.to_string(), &mount.files);
                }
                files
            }
        }
    }

    /// The path of a slot, mounted or not.
    pub(crate) fn dir_of_slot(&self, client: usize, slot: u8) -> String {
        self.dir(client, Place::Slot(slot))
    }

    /// The name that a client gives to snapshots.
    pub(crate) fn name(&self, client: usize, number: u8) -> String {
        format!("{}n{client}-{number}", self.tag)
    }

    /// The files of a snapshot.
    pub(crate) fn original(&self, id: &str) -> Files {
        let found = self.model.snapshots.iter().find(|one| one.id == *id);
        found.map(|one| one.files.clone()).unwrap_or_default()
    }

    /// Those that an operation changes.
    pub(crate) fn files_mut(&mut self, client: usize, place: Place) -> Option<&mut Files> {
        let sandbox = self.model.sandboxes.get_mut(&client)?;
        match place {
            Place::Work => Some(&mut sandbox.work),
            Place::Slot(slot) => sandbox.mounts.get_mut(&slot).map(|mount| &mut mount.files),
            Place::Above => None,
        }
    }

    /// The path of a place.
    pub(crate) fn dir(&self, client: usize, place: Place) -> String {
        match (place, self.model.sandboxes.get(&client)) {
            (Place::Slot(slot), Some(sandbox)) => sandbox.slot(slot),
            (Place::Above, Some(sandbox)) => format!("/{}", sandbox.above),
            _ => "/w".into(),
        }
    }
}

/// What ends a fault.
enum Healing {
    Nothing,
    /// The monitor of the sandbox with this id was killed.
    Monitor(String),
    Store,
    Disk(std::path::PathBuf),
}

/// A sandbox in a list.
pub(crate) fn find<'a>(listed: &'a Value, name: &str) -> Option<&'a Value> {
    listed.as_array()?.iter().find(|one| one["name"] == *name)
}

pub(crate) fn life_of(shown: &Value) -> Option<Life> {
    match shown["state"].as_str()? {
        "running" => Some(Life::Running),
        "stopped" => Some(Life::Stopped),
        _ => None,
    }
}

/// A mount as it is right after it was made.
pub(crate) fn mounted(sandbox: &mut Sandbox, slot: u8, snapshot: &str, original: &Files) {
    let key = (snapshot.to_owned(), slot, sandbox.above.clone());
    let mut files = sandbox.kept.get(&key).cloned().unwrap_or_else(|| original.clone());
    // Whether changes are kept by the path at the mount or at the unmount is not promised.
    for (other, kept) in &sandbox.kept {
        if other.0 == key.0 && *other != key && sandbox.moved {
            files.maybe_all(kept);
            files.maybe_all(original);
        }
    }
    let above = sandbox.above.clone();
    let mount = Mount { snapshot: snapshot.to_owned(), original: original.clone(), files, above };
    sandbox.mounts.insert(slot, mount);
}
