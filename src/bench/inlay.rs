//! This program as users run it, on hosts that have nothing yet: new states, each with a daemon of its own.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::command::{Program, Running};
use super::error::BenchError;
use super::interrupt::Interrupt;

/// Daemons are ended by the benchmark; this is for those that are left if it is killed.
const IDLE_EXIT: &str = "10m";
const START_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_mins(1);
/// How long a host may take to load everything.
const LOAD_LIMIT: Duration = Duration::from_mins(15);
const PAUSE: Duration = Duration::from_millis(20);

/// The program, and where its states are put.
#[derive(Debug, Clone)]
pub(super) struct Inlay {
    exe: PathBuf,
    work: PathBuf,
}

/// What a mount fetches unasked, and what is noted of it.
#[derive(Debug, Clone)]
pub(super) struct Loading<'a> {
    pub(super) prefetch: &'static str,
    pub(super) label: Option<&'a str>,
    pub(super) record: &'static str,
}

/// A host with a daemon.
#[derive(Debug)]
pub(super) struct InlayHost {
    inlay: Inlay,
    state: PathBuf,
    environment: BTreeMap<String, String>,
    daemon: Option<Running>,
    interrupt: Interrupt,
}

#[derive(Deserialize)]
struct Status {
    snapshots: Vec<Loaded>,
    stores: Vec<Store>,
}

#[derive(Deserialize)]
struct Loaded {
    phase: String,
    given_up: u64,
}

#[derive(Deserialize)]
struct Store {
    round_trip_ms: Option<f64>,
    rate: Option<f64>,
    requests: BTreeMap<String, u64>,
    bytes: BTreeMap<String, u64>,
}

/// What a daemon says of its store and of what it has got from there.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Fetched {
    pub(super) bytes: u64,
    pub(super) requests: u64,
    pub(super) round_trip: Option<f64>,
    pub(super) rate: Option<f64>,
}

impl Inlay {
    pub(super) fn new(exe: PathBuf, work: PathBuf) -> Self {
        Self { exe, work }
    }

    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// A command that needs no daemon, with a state of its own.
    pub(super) fn ask(&self, environment: &BTreeMap<String, String>, words: &[&str]) -> Program {
        let state = self.work.join("asking");
        Program::new(&self.exe, words)
            .variables(environment)
            .variables([("INLAY_STATE", state.as_os_str())])
            .limit(Duration::from_hours(1))
    }

    /// A host that has nothing of any image, its daemon running.
    pub(super) fn host(
        &self,
        number: usize,
        environment: &BTreeMap<String, String>,
        interrupt: &Interrupt,
    ) -> Result<InlayHost, BenchError> {
        let state = self.work.join("hosts").join(number.to_string());
        fs::create_dir_all(&state).map_err(BenchError::path("make", &state))?;
        let mut host = InlayHost {
            inlay: self.clone(),
            state,
            environment: environment.clone(),
            daemon: None,
            interrupt: interrupt.clone(),
        };
        let program = host.program(&["daemon", "--idle-exit", IDLE_EXIT]);
        host.daemon = Some(program.spawn(|command| {
            command.stdout(Stdio::null()).stderr(Stdio::null());
        })?);
        host.wait_until_ready()?;
        Ok(host)
    }
}

impl InlayHost {
    fn program(&self, words: &[&str]) -> Program {
        Program::new(&self.inlay.exe, words)
            .variables(&self.environment)
            .variables([("INLAY_STATE", self.state.as_os_str())])
    }

    fn wait_until_ready(&mut self) -> Result<(), BenchError> {
        let began = Instant::now();
        loop {
            let Err(error) = self.program(&["daemon", "status"]).output(&self.interrupt) else {
                return Ok(());
            };
            if let Some(status) = self.daemon.as_mut().map(Running::ended).transpose()?.flatten() {
                return Err(BenchError::Program {
                    program: "inlay daemon".to_owned(),
                    why: format!("ended with {status}"),
                });
            }
            if matches!(error, BenchError::Interrupted) || began.elapsed() > START_LIMIT {
                return Err(error);
            }
            thread::sleep(PAUSE);
        }
    }

    /// Mounts a snapshot, writable, its changes thrown away at the end.
    pub(super) fn mount(
        &self,
        name: &str,
        point: &Path,
        loading: &Loading<'_>,
        limit: Duration,
    ) -> Result<(), BenchError> {
        let point = point.to_string_lossy();
        let mut words = vec!["mount", "--rw", "--scratch", "--prefetch", loading.prefetch];
        words.extend(["--record-profile", loading.record]);
        if let Some(label) = loading.label {
            words.extend(["--label", label]);
        }
        words.extend([name, &point]);
        self.program(&words).limit(limit).output(&self.interrupt).map(drop)
    }

    /// Clearing up is done even if everything is to end.
    pub(super) fn umount(&self, point: &Path) -> Result<(), BenchError> {
        let words = ["umount", &point.to_string_lossy()];
        self.program(&words).limit(END_LIMIT).output(&Interrupt::default()).map(drop)
    }

    fn status(&self) -> Result<Status, BenchError> {
        self.program(&["--json", "prefetch", "status"]).json(&self.interrupt)
    }

    /// Waits until all that is to be loaded of what is mounted is here.
    pub(super) fn wait_until_loaded(&self) -> Result<(), BenchError> {
        let began = Instant::now();
        loop {
            let status = self.status()?;
            if status.snapshots.iter().any(|snapshot| snapshot.given_up > 0) {
                let why = "groups of an image could not be loaded ahead; its log says why";
                return Err(BenchError::Program {
                    program: "inlay daemon".to_owned(),
                    why: why.to_owned(),
                });
            }
            let over = |snapshot: &Loaded| matches!(snapshot.phase.as_str(), "done" | "off");
            if status.snapshots.iter().all(over) {
                return Ok(());
            }
            if began.elapsed() > LOAD_LIMIT {
                return Err(BenchError::Slow {
                    program: "loading everything".to_owned(),
                    limit: LOAD_LIMIT,
                });
            }
            self.interrupt.check()?;
            thread::sleep(PAUSE * 5);
        }
    }

    /// What came from the store so far, and what its link is taken to be.
    pub(super) fn fetched(&self) -> Result<Fetched, BenchError> {
        let mut all = Fetched::default();
        for store in self.status()?.stores {
            all.bytes += store.bytes.values().sum::<u64>();
            all.requests += store.requests.values().sum::<u64>();
            all.round_trip = all.round_trip.or(store.round_trip_ms.map(|ms| ms / 1e3));
            all.rate = all.rate.or(store.rate);
        }
        Ok(all)
    }

    /// Ends mounts and daemon, and removes the state. What was learned is in the store then.
    pub(super) fn end(mut self) -> Result<(), BenchError> {
        self.clear()
    }

    fn clear(&mut self) -> Result<(), BenchError> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let never = Interrupt::default();
        let stopped = self.program(&["daemon", "stop", "--force"]).limit(END_LIMIT).output(&never);
        let ended = stopped.and_then(|_| daemon.wait(END_LIMIT, &never));
        // What is still mounted would be walked into.
        ended?;
        fs::remove_dir_all(&self.state).map_err(BenchError::path("remove", &self.state))
    }
}

impl Drop for InlayHost {
    fn drop(&mut self) {
        if let Err(error) = self.clear() {
            tracing::warn!(%error, state = %self.state.display(), "a host is not cleared away");
        }
    }
}
