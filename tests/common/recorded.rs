//! `inlay trace record` beside what it records.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Stdio};

use inlay_testkit::cli::Inlay;
use inlay_testkit::scratch;
use inlay_trace::{FetchRow, TouchRow, Trace};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// A recording that goes on until it is ended.
pub(crate) struct Recorded {
    child: Child,
    said: BufReader<std::process::ChildStderr>,
    dir: TempDir,
}

impl Recorded {
    /// Begins to record; what is read from now on is in it.
    pub(crate) fn begin(inlay: &Inlay, options: &[&str]) -> Self {
        let dir = scratch().unwrap();
        let mut command = inlay.command();
        command.args(["trace", "record"]).args(options).arg("--output").arg(dir.path().join("t"));
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.take().unwrap());
        let mut line = String::new();
        said.read_line(&mut line).unwrap();
        let mut recorded = Self { child, said, dir };
        if !line.contains("recording") {
            recorded.said.read_to_string(&mut line).unwrap();
            panic!("{line}");
        }
        recorded
    }

    /// Ends it as Ctrl-C does.
    pub(crate) fn end(mut self) -> Trace {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap();
        kill_process(pid, Signal::INT).unwrap();
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        assert!(self.child.wait().unwrap().success(), "{said}");
        Trace::parse(&std::fs::read(self.dir.path().join("t")).unwrap()).unwrap()
    }

    /// Waits until it has failed by itself. Gives what it said.
    pub(crate) fn ended(mut self) -> String {
        let mut said = String::new();
        self.said.read_to_string(&mut said).unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(1), "{said}");
        said
    }

    /// Ends it without a word.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // A test may have failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The touches of a file, in order.
pub(crate) fn touches(trace: &Trace, path: &str) -> Vec<TouchRow> {
    let file = trace.files.iter().position(|file| file.0 == path);
    let file = file.map_or(-2, |file| i64::try_from(file).unwrap());
    trace.touches.rows.iter().filter(|row| row.file == file).copied().collect()
}

/// The fetch that a touch waited for.
pub(crate) fn fetch_of(trace: &Trace, touch: &TouchRow) -> Option<FetchRow> {
    let place = usize::try_from(touch.fetch).ok()?;
    trace.fetches.rows.get(place).copied()
}
