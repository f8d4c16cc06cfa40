//! Drives adapters: external programs that make an image available on a host by other means.
//!
//! `benches/startup/README.md` documents the protocol for adapter authors.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::command::Program;
use super::error::BenchError;
use super::interrupt::Interrupt;
use super::parts::Part;

/// Exit status of `describe` when a prerequisite is missing on this machine.
const MISSING: i32 = 3;
const PREPARE_LIMIT: Duration = Duration::from_mins(15);
const DOWN_LIMIT: Duration = Duration::from_mins(2);

/// An adapter that answered `describe`.
#[derive(Debug, Clone)]
pub(super) struct Adapter {
    program: PathBuf,
    /// Its answer to `describe`.
    pub(super) described: Described,
    work: PathBuf,
    environment: BTreeMap<String, String>,
}

/// An adapter's answer to `describe`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Described {
    /// Name of the method.
    pub name: String,
    /// One-sentence description.
    pub what: String,
    /// Whether a container can start before the image is complete.
    pub lazy: bool,
    /// Version of the tool that the adapter drives.
    #[serde(default)]
    pub version: String,
}

impl Adapter {
    /// Queries `program` with `describe`. Returns the inner error, a message, if a prerequisite is
    /// missing on this machine.
    pub(super) fn find(
        program: &Path,
        interrupt: &Interrupt,
    ) -> Result<Result<Self, String>, BenchError> {
        let program =
            program.canonicalize().map_err(BenchError::path("find the adapter", program))?;
        let asked = Program::new(&program, &["describe"]).limit(Duration::from_secs(30));
        let said = asked.run(interrupt)?;
        if said.status.code() == Some(MISSING) {
            return Ok(Err(said.reason()));
        }
        let shown = program.display().to_string();
        if !said.status.success() {
            return Err(BenchError::Program { program: shown, why: said.reason() });
        }
        let described: Described = serde_json::from_slice(&said.stdout).map_err(|error| {
            BenchError::Program { program: shown, why: format!("describe: {error}") }
        })?;
        let (work, environment) = (PathBuf::new(), BTreeMap::new());
        Ok(Ok(Self { program, described, work, environment }))
    }

    /// Creates the adapter's work directory and stores the environment that describes the servers.
    pub(super) fn settle(
        &mut self,
        work: &Path,
        environment: &BTreeMap<String, String>,
    ) -> Result<(), BenchError> {
        self.work = work.join("adapters").join(self.file_name());
        fs::create_dir_all(&self.work).map_err(BenchError::path("make", &self.work))?;
        self.environment = environment.clone();
        Ok(())
    }

    fn file_name(&self) -> &Path {
        self.program.file_name().map_or(Path::new("adapter"), Path::new)
    }

    fn call(&self, words: &[&str], host: &Path, part: Option<&Part>) -> Program {
        let mut program = Program::new(&self.program, words)
            .variables(&self.environment)
            .variables([("BENCH_WORK", self.work.as_path()), ("BENCH_HOST", host)]);
        if let Some(part) = part {
            program = program.variables([("BENCH_ROOT", part.directory.as_path())]);
            program = program.variables(part.oci.iter().map(|oci| ("BENCH_OCI", oci.as_path())));
        }
        program
    }

    /// Uploads a part to the adapter's server side, at the far end of the link.
    pub(super) fn prepare(&self, part: &Part, interrupt: &Interrupt) -> Result<(), BenchError> {
        let host = self.host(usize::MAX);
        self.call(&["prepare", &part.name], &host, Some(part))
            .limit(PREPARE_LIMIT)
            .output(interrupt)
            .map(drop)
    }

    /// Mounts a part at `point`.
    pub(super) fn up(
        &self,
        part: &Part,
        point: &Path,
        host: &Path,
        limit: Duration,
        interrupt: &Interrupt,
    ) -> Result<(), BenchError> {
        let words = ["up", &part.name, &point.to_string_lossy()];
        self.call(&words, host, Some(part)).limit(limit).output(interrupt).map(drop)
    }

    /// Unmounts the part. Ignores interrupts, so that cleanup always runs.
    pub(super) fn down(&self, part: &Part, point: &Path, host: &Path) -> Result<(), BenchError> {
        let words = ["down", &part.name, &point.to_string_lossy()];
        self.call(&words, host, Some(part))
            .limit(DOWN_LIMIT)
            .output(&Interrupt::default())
            .map(drop)
    }

    /// Stops everything the adapter started. Ignores interrupts.
    pub(super) fn clean(&self, host: &Path) -> Result<(), BenchError> {
        self.call(&["clean"], host, None).limit(DOWN_LIMIT).output(&Interrupt::default()).map(drop)
    }

    /// Returns the directory of one host; `usize::MAX` stands for the host that prepares images.
    pub(super) fn host(&self, number: usize) -> PathBuf {
        self.work.join(if number == usize::MAX {
            "builder".to_owned()
        } else {
            format!("host-{number}")
        })
    }
}
