//! Servers of a test: found, started, waited for, and ended whatever happens to the test.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::scratch::source_root;

/// How long a server may take until it answers. Generous: the machine may be busy with a build.
const START_TIMEOUT: Duration = Duration::from_mins(1);

/// A child process that is killed when this is dropped, and when the test's process dies.
#[derive(Debug)]
pub struct Server {
    child: Child,
    log: PathBuf,
    /// Ends the thread that started the child, when it is dropped.
    stop: Option<mpsc::Sender<()>>,
    parent: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts a program with its output going to the file `log`.
    pub fn start(program: &Path, arguments: &[String], log: &Path) -> io::Result<Self> {
        Self::start_with(program, arguments, log, [] as [(&str, &str); 0])
    }

    /// The same with additional variables.
    pub fn start_with<K: AsRef<OsStr>, V: AsRef<OsStr>>(
        program: &Path,
        arguments: &[String],
        log: &Path,
        variables: impl IntoIterator<Item = (K, V)>,
    ) -> io::Result<Self> {
        let output = File::create(log)?;
        // setpriv (of util-linux) asks for the signal and becomes the program: the process id stays.
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "KILL"])
            .arg(program)
            .args(arguments)
            .envs(variables)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let (stop, stopped) = mpsc::channel::<()>();
        let (started, start) = mpsc::sync_channel(1);
        // The signal is sent when the thread that made the child ends, and a test's thread may
        // end before its server is dropped: so the child gets a thread of its own as a parent.
        let parent = thread::Builder::new().name("server-parent".into()).spawn(move || {
            let _ = started.send(command.spawn());
            // Nothing is ever sent: this returns when the other end is dropped.
            let _ = stopped.recv();
        })?;
        let child = start.recv().map_err(io::Error::other)??;
        Ok(Self { child, log: log.to_path_buf(), stop: Some(stop), parent: Some(parent) })
    }

    /// Waits until `ready` says so. Fails with the end of the server's log if the server ends
    /// or takes too long.
    pub fn wait_until(&mut self, mut ready: impl FnMut() -> bool) -> io::Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        while !ready() {
            if let Some(status) = self.child.try_wait()? {
                return Err(self.failure(&format!("ended with {status}")));
            }
            if Instant::now() > deadline {
                return Err(self.failure("does not answer"));
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    fn failure(&self, what: &str) -> io::Error {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = log.lines().collect();
        let end = lines.get(lines.len().saturating_sub(20)..).unwrap_or_default().join("\n");
        io::Error::other(format!("the server {what}; its log ends with:\n{end}"))
    }

    /// The process's id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nothing can be done about a failure here; an ended child is not an error.
        let _ = self.child.kill();
        let _ = self.child.wait();
        drop(self.stop.take());
        if let Some(parent) = self.parent.take() {
            let _ = parent.join();
        }
    }
}

/// Directories below `target/tools` with programs that `scripts/setup` installs.
const TOOLS: [&str; 4] = ["bin", "venv/bin", "debian/usr/bin", "debian/usr/sbin"];

/// Finds a program among those that `scripts/setup` has installed, then on the path.
pub fn find_program(name: &str) -> io::Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let tools = source_root().join("target/tools");
    TOOLS
        .iter()
        .map(|dir| tools.join(dir))
        .chain(std::env::split_paths(&path))
        .map(|dir| dir.join(name))
        .find(|program| program.is_file())
        .ok_or_else(|| io::Error::other(format!("{name} is not installed: run scripts/setup")))
}

/// Addresses on loopback that nothing listens on, all different. Somebody else may take one
/// before it is used: whoever starts a server tries again with others.
pub fn free_addresses<const N: usize>() -> io::Result<[SocketAddr; N]> {
    let mut addresses = [SocketAddr::from((Ipv4Addr::LOCALHOST, 0)); N];
    let mut listeners = Vec::with_capacity(N);
    for address in &mut addresses {
        let listener = TcpListener::bind(*address)?;
        *address = listener.local_addr()?;
        listeners.push(listener);
    }
    Ok(addresses)
}

/// Calls `start` until it succeeds, three times at most.
pub(crate) fn with_retries<T>(mut start: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    for _ in 0..2 {
        if let Ok(server) = start() {
            return Ok(server);
        }
    }
    start()
}
