//! Controls the store and the registry behind a shaped link: the test kit's `shaped-store`, which
//! takes commands as lines of text and answers each with a line of JSON.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Stdio};
use std::time::{Duration, Instant};

use inlay_base::bytes::filled;
use rustix::event::{PollFd, PollFlags};
use serde::Deserialize;
use serde_json::Value;

use super::command::{Program, Running, wait_readable};
use super::error::BenchError;
use super::interrupt::Interrupt;
use super::link::LinkSpeed;

/// Deadline of the first answer; the program starts its servers before it.
const START_LIMIT: Duration = Duration::from_mins(1);
/// Deadline of an answer; the slowest command reads all files of the servers into memory.
const ANSWER_LIMIT: Duration = Duration::from_mins(3);
/// Deadline for the program to stop its servers.
const END_LIMIT: Duration = Duration::from_secs(15);
/// Maximum size of an answer, in bytes.
const ANSWER_MAX: usize = 1 << 20;

/// The running program.
pub(super) struct ShapedStore {
    input: Option<ChildStdin>,
    output: ChildStdout,
    running: Running,
    rest: Vec<u8>,
    said: Greeting,
    interrupt: Interrupt,
}

#[derive(Deserialize)]
struct Greeting {
    direct: String,
    bucket: String,
    environment: BTreeMap<String, String>,
    registry: Option<String>,
    registry_direct: Option<String>,
}

/// Traffic over the link since counting began.
#[derive(Debug, Clone, Copy, Deserialize)]
pub(super) struct Passed {
    pub(super) bytes_down: u64,
    pub(super) requests: u64,
}

#[derive(Deserialize)]
struct Shaped {
    latency_s: f64,
    bytes_per_s: Option<f64>,
}

impl ShapedStore {
    pub(super) fn start(
        program: &Path,
        words: &[&str],
        interrupt: &Interrupt,
    ) -> Result<Self, BenchError> {
        let mut running = Program::new(program, words).spawn(|command| {
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
        })?;
        let (Some(input), Some(output)) = (running.child.stdin.take(), running.child.stdout.take())
        else {
            return Err(broken("has no pipes".to_owned()));
        };
        let said = Greeting {
            direct: String::new(),
            bucket: String::new(),
            environment: BTreeMap::new(),
            registry: None,
            registry_direct: None,
        };
        let interrupt = interrupt.clone();
        let mut this =
            Self { input: Some(input), output, running, rest: Vec::new(), said, interrupt };
        this.said = this.answer(START_LIMIT)?;
        Ok(this)
    }

    fn answer<T: serde::de::DeserializeOwned>(&mut self, limit: Duration) -> Result<T, BenchError> {
        let began = Instant::now();
        let line = loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let rest = self.rest.split_off(end + 1);
                break std::mem::replace(&mut self.rest, rest);
            }
            self.interrupt.check()?;
            let left = limit.saturating_sub(began.elapsed());
            if self.rest.len() > ANSWER_MAX {
                return Err(broken(format!("answers with more than {ANSWER_MAX} bytes")));
            }
            if left.is_zero() {
                return Err(broken(format!("sends no complete answer in {limit:?}")));
            }
            let mut piece = [0; 4096];
            if !wait_readable(&[PollFd::new(&self.output.as_fd(), PollFlags::IN)], left) {
                continue;
            }
            match rustix::io::read(&self.output, &mut piece) {
                Ok(0) => return Err(broken("has ended".to_owned())),
                Ok(length) => {
                    let piece =
                        filled(&piece, length).map_err(|error| broken(error.to_string()))?;
                    self.rest.extend(piece);
                }
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(broken(error.to_string())),
            }
        };
        let value: Value =
            serde_json::from_slice(&line).map_err(|error| broken(error.to_string()))?;
        if let Some(error) = value.get("error") {
            return Err(broken(error.to_string()));
        }
        serde_json::from_value(value).map_err(|error| broken(error.to_string()))
    }

    fn ask<T: serde::de::DeserializeOwned>(&mut self, line: &str) -> Result<T, BenchError> {
        let input = self.input.as_mut().ok_or_else(|| broken("has ended".to_owned()))?;
        input
            .write_all(format!("{line}\n").as_bytes())
            .map_err(|error| broken(error.to_string()))?;
        self.answer(ANSWER_LIMIT)
    }

    /// Shapes all further traffic as on this link, with jitter seeded by `seed`. Resets the
    /// counters.
    pub(super) fn shape(&mut self, link: &str, seed: u64) -> Result<LinkSpeed, BenchError> {
        if link.contains(char::is_whitespace) {
            return Err(BenchError::Request(format!("{link:?} is no link")));
        }
        let shaped: Shaped = self.ask(&format!("link {link} {seed}"))?;
        self.forget()?;
        Ok(LinkSpeed { latency: shaped.latency_s, bandwidth: shaped.bytes_per_s })
    }

    /// Resets the counters.
    pub(super) fn forget(&mut self) -> Result<(), BenchError> {
        self.ask::<Value>("forget").map(drop)
    }

    /// Returns the traffic since the last reset.
    pub(super) fn passed(&mut self) -> Result<Passed, BenchError> {
        self.ask("stats")
    }

    /// Reads the servers' files into the page cache. The servers stand for other machines, so
    /// dropping this machine's caches must not slow them down.
    pub(super) fn warm(&mut self) -> Result<(), BenchError> {
        self.ask::<Value>("warm").map(drop)
    }

    /// Returns the environment in which `inlay` uses the store through the link.
    pub(super) fn environment(&self) -> BTreeMap<String, String> {
        let mut environment = self.said.environment.clone();
        environment.insert("INLAY_STORE".to_owned(), format!("s3://{}/bench", self.said.bucket));
        environment
    }

    /// Returns the environment in which `inlay` uses the store past the link, unshaped and
    /// uncounted.
    pub(super) fn environment_direct(&self) -> BTreeMap<String, String> {
        let mut environment = self.environment();
        environment.insert("AWS_ENDPOINT_URL".to_owned(), self.said.direct.clone());
        environment
    }

    /// Returns the environment that describes the servers to adapters.
    pub(super) fn environment_of_adapters(&self) -> BTreeMap<String, String> {
        let mut environment = self.said.environment.clone();
        let mut say =
            |name: &str, value: &str| environment.insert(name.to_owned(), value.to_owned());
        say("BENCH_BUCKET", &self.said.bucket);
        say("BENCH_S3_DIRECT", &self.said.direct);
        say("BENCH_REGISTRY", self.said.registry.as_deref().unwrap_or_default());
        say("BENCH_REGISTRY_DIRECT", self.said.registry_direct.as_deref().unwrap_or_default());
        environment
    }
}

impl Drop for ShapedStore {
    fn drop(&mut self) {
        // At the end of its input the program stops its servers. Past the deadline its process
        // group is killed.
        drop(self.input.take());
        drop(self.running.wait(END_LIMIT, &Interrupt::default()));
    }
}

fn broken(why: String) -> BenchError {
    BenchError::Program { program: "shaped-store".to_owned(), why }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_without_end_is_not_called_silence() {
        // Reads its input to the end, so that it ends with this side.
        let script =
            format!("head -c {} /dev/zero | tr '\\0' x; cat > /dev/null", ANSWER_MAX + 5000);
        let started =
            ShapedStore::start(Path::new("/bin/sh"), &["-c", &script], &Interrupt::default());
        let error = started.err().unwrap().to_string();
        assert!(error.contains("more than 1048576 bytes"), "{error}");
    }
}
