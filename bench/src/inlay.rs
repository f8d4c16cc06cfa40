//! Runs inlay as users do, on simulated fresh hosts: each a new state directory with its own
//! daemon.

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

/// The benchmark stops its daemons; this bounds the life of those orphaned when it is killed.
const IDLE_EXIT: &str = "10m";
const START_LIMIT: Duration = Duration::from_secs(20);
const END_LIMIT: Duration = Duration::from_mins(1);
/// Deadline for a host to load everything.
const LOAD_LIMIT: Duration = Duration::from_mins(15);
const PAUSE: Duration = Duration::from_millis(20);
/// Shortest transfer that yields a mean rate; below it only the peak is known.
const MEASURED_OVER: Duration = Duration::from_millis(500);

/// The executable, and the directory that holds the hosts' state directories.
#[derive(Debug, Clone)]
pub(super) struct Inlay {
    exe: PathBuf,
    work: PathBuf,
}

/// Prefetch settings of a mount, and whether it records a profile.
#[derive(Debug, Clone)]
pub(super) struct Loading<'a> {
    pub(super) prefetch: &'static str,
    pub(super) label: Option<&'a str>,
    pub(super) record: &'static str,
}

/// A simulated host with its daemon.
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

/// Store statistics of a daemon: bytes and requests so far, and its estimate of the link (seconds,
/// bytes/s).
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

    /// Returns a command that needs no daemon, with a separate state directory.
    pub(super) fn ask(&self, environment: &BTreeMap<String, String>, words: &[&str]) -> Program {
        let state = self.work.join("asking");
        Program::new(&self.exe, words)
            .variables(environment)
            .variables([("INLAY_STATE", state.as_os_str())])
            .limit(Duration::from_hours(1))
    }

    /// Creates a host with an empty cache and starts its daemon.
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

/// Measures the rate of a transfer from the daemon's periodic statistics.
#[derive(Debug, Default)]
struct Meter {
    /// Time and byte count of the first observation with bytes.
    first: Option<(Instant, u64)>,
    /// Time and byte count of the last observation with more bytes than the one before.
    last: Option<(Instant, u64)>,
    /// Largest rate estimate of the daemon: a peak over a few milliseconds.
    peak: Option<f64>,
}

impl Meter {
    /// Records the statistics of a request sent at `asked` and answered at `answered`.
    fn take(&mut self, stores: &[Store], asked: Instant, answered: Instant) {
        self.peak = stores.iter().filter_map(|store| store.rate).chain(self.peak).reduce(f64::max);
        let bytes = stores.iter().flat_map(|store| store.bytes.values()).sum();
        if bytes == 0 {
            return;
        }
        self.first.get_or_insert((asked, bytes));
        if self.last.is_none_or(|(_, before)| bytes > before) {
            self.last = Some((answered, bytes));
        }
    }

    /// Returns the mean rate in bytes/s. The mean is preferred because bytes arrive in bursts, so
    /// that a peak of a few milliseconds exceeds the capacity of the link. Falls back to the peak
    /// for transfers shorter than `MEASURED_OVER`.
    fn rate(&self) -> Option<f64> {
        let (Some((began, before)), Some((ended, after))) = (self.first, self.last) else {
            return self.peak;
        };
        let took = ended.duration_since(began);
        if took < MEASURED_OVER || after <= before {
            return self.peak;
        }
        // Exact below 8 PiB.
        #[allow(clippy::cast_precision_loss)]
        let bytes = (after - before) as f64;
        Some(bytes / took.as_secs_f64())
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

    /// Mounts a snapshot read-write; unmounting discards the changes.
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

    /// Unmounts. Ignores interrupts, so that cleanup always runs.
    pub(super) fn umount(&self, point: &Path) -> Result<(), BenchError> {
        let words = ["umount", &point.to_string_lossy()];
        self.program(&words).limit(END_LIMIT).output(&Interrupt::default()).map(drop)
    }

    fn status(&self) -> Result<Status, BenchError> {
        self.program(&["--json", "prefetch", "status"]).json(&self.interrupt)
    }

    /// Blocks until prefetch of all mounted snapshots is complete. Returns the transfer rate in
    /// bytes/s.
    pub(super) fn wait_until_loaded(&self) -> Result<Option<f64>, BenchError> {
        let began = Instant::now();
        let mut meter = Meter::default();
        loop {
            let asked = Instant::now();
            let status = self.status()?;
            meter.take(&status.stores, asked, Instant::now());
            if status.snapshots.iter().any(|snapshot| snapshot.given_up > 0) {
                let why = "groups of an image could not be loaded ahead; its log says why";
                return Err(BenchError::Program {
                    program: "inlay daemon".to_owned(),
                    why: why.to_owned(),
                });
            }
            let over = |snapshot: &Loaded| matches!(snapshot.phase.as_str(), "done" | "off");
            if status.snapshots.iter().all(over) {
                return Ok(meter.rate());
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

    /// Returns bytes and requests so far, and the estimate of the link.
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

    /// Unmounts everything, stops the daemon and removes the state directory. The daemon uploads
    /// recorded profiles before it exits.
    pub(super) fn end(mut self) -> Result<(), BenchError> {
        self.clear()
    }

    fn clear(&mut self) -> Result<(), BenchError> {
        let Some(mut daemon) = self.daemon.take() else { return Ok(()) };
        let never = Interrupt::default();
        let stopped = self.program(&["daemon", "stop", "--force"]).limit(END_LIMIT).output(&never);
        let ended = stopped.and_then(|_| daemon.wait(END_LIMIT, &never));
        // Do not remove the state while the daemon may run: removal would descend into live mounts.
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

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(meter: &mut Meter, at: Instant, bytes: u64, rate: Option<f64>) {
        let bytes = BTreeMap::from([("prefetch".to_owned(), bytes)]);
        let store = Store { round_trip_ms: None, rate, requests: BTreeMap::new(), bytes };
        meter.take(&[store], at, at);
    }

    #[test]
    fn a_burst_does_not_raise_the_rate_of_a_long_transfer() {
        let (mut meter, began) = (Meter::default(), Instant::now());
        let after = |ms| began + Duration::from_millis(ms);
        seen(&mut meter, after(0), 0, None);
        seen(&mut meter, after(1000), 1_000_000, Some(9e6));
        seen(&mut meter, after(1100), 3_000_000, Some(9e6));
        seen(&mut meter, after(3000), 5_000_000, Some(2e6));
        // No bytes arrived after that, so the time does not count.
        seen(&mut meter, after(9000), 5_000_000, None);
        assert_eq!(meter.rate(), Some(2e6));
    }

    #[test]
    fn a_short_transfer_has_the_rate_of_its_peak() {
        let (mut meter, began) = (Meter::default(), Instant::now());
        assert_eq!(meter.rate(), None);
        seen(&mut meter, began, 1_000_000, Some(3e6));
        seen(&mut meter, began + Duration::from_millis(100), 2_000_000, Some(4e6));
        assert_eq!(meter.rate(), Some(4e6));
    }
}
