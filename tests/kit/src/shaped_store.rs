//! A real S3 server, and a registry if wanted, behind a shaped link, for programs in any language:
//! they are told where it is, say by lines of text what the link is to be like, and ask what has
//! passed.

mod command;
mod measure;

use std::io::{self, BufRead as _, Read as _, Write};
use std::thread;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::link::{Bandwidth, LinkProfile};
use crate::proxy::{Proxy, Seen, Summary};
use crate::registry::{Access, Registry};
use crate::weed::{BUCKET, Weed};

pub use measure::{Measured, measure};

use command::Command;

/// Bytes of a line of input; what is longer is taken for several lines.
const LONGEST_LINE: u64 = 4096;

/// Which servers are behind the link.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Servers {
    /// An S3 server.
    S3,
    /// The same, and a container registry that everybody may use.
    S3AndRegistry,
}

/// Servers and the link in front of them. Dropping it ends all and leaves nothing behind.
pub struct ShapedStore {
    // Proxies are dropped before the servers that they are in front of.
    proxy: Proxy,
    weed: Weed,
    registry: Option<LinkedRegistry>,
}

/// A registry with a proxy of its own, on the link of the store's.
struct LinkedRegistry {
    proxy: Proxy,
    server: Registry,
}

impl LinkedRegistry {
    fn start(beside: &Proxy) -> io::Result<Self> {
        let server = Registry::start(Access::Open)?;
        Ok(Self { proxy: beside.start_beside(server.address())?, server })
    }
}

/// Whether there is to be a next line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Line,
    End,
}

impl ShapedStore {
    /// Starts all, and waits until the servers take requests.
    pub fn start(profile: LinkProfile, servers: Servers) -> io::Result<Self> {
        let weed = Weed::start()?;
        let proxy = Proxy::start(weed.address())?;
        let registry = match servers {
            Servers::S3 => None,
            Servers::S3AndRegistry => Some(LinkedRegistry::start(&proxy)?),
        };
        proxy.shape(profile);
        Ok(Self { proxy, weed, registry })
    }

    /// Writes where the servers are, then answers each line of the standard input by one line of
    /// JSON, until one is `quit`, the input ends, or the process is asked to end.
    pub fn serve(&self, mut output: impl Write) -> io::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut interrupted = signal(SignalKind::interrupt())?;
            let mut terminated = signal(SignalKind::terminate())?;
            let mut lines = lines_of_input()?;
            write_line(&mut output, &self.greeting())?;
            loop {
                let line = tokio::select! {
                    line = lines.recv() => line,
                    _ = interrupted.recv() => None,
                    _ = terminated.recv() => None,
                };
                let Some(line) = line else { return Ok(()) };
                let (answer, next) = self.answer(&line);
                write_line(&mut output, &answer)?;
                if next == Next::End {
                    return Ok(());
                }
            }
        })
    }

    fn greeting(&self) -> Value {
        let address = self.proxy.address();
        let environment: serde_json::Map<_, _> = Weed::environment(address)
            .into_iter()
            .map(|(name, value)| (name.to_owned(), Value::from(value)))
            .collect();
        let mut greeting = json!({
            "endpoint": format!("http://{address}"),
            "direct": format!("http://{}", self.weed.address()),
            "bucket": BUCKET,
            "environment": environment,
            "link": self.proxy.link().to_string(),
        });
        if let (Some(registry), Some(fields)) = (&self.registry, greeting.as_object_mut()) {
            fields.insert("registry".into(), registry.proxy.address().to_string().into());
            fields.insert("registry_direct".into(), registry.server.address().to_string().into());
        }
        greeting
    }

    fn proxies(&self) -> impl Iterator<Item = &Proxy> {
        std::iter::once(&self.proxy).chain(self.registry.as_ref().map(|registry| &registry.proxy))
    }

    /// What has passed the link, in the order of arrival, whichever server it was for.
    fn seen(&self) -> Vec<Seen> {
        let mut seen: Vec<_> = self.proxies().flat_map(Proxy::seen).collect();
        seen.sort_by_key(|request| request.at);
        seen
    }

    fn warm(&self) -> io::Result<u64> {
        let registry = self.registry.as_ref().map_or(Ok(0), |registry| registry.server.warm())?;
        Ok(self.weed.warm()? + registry)
    }

    fn answer(&self, line: &str) -> (Value, Next) {
        let answer = match line.parse() {
            Ok(Command::Link(profile)) => {
                self.proxy.shape(profile);
                json!({
                    "link": profile.to_string(),
                    "seed": profile.seed(),
                    "latency_s": profile.latency().as_secs_f64(),
                    "bytes_per_s": profile.bandwidth().map(Bandwidth::get),
                })
            }
            Ok(Command::Forget) => {
                let forgotten = self.seen().len();
                self.proxies().for_each(Proxy::forget);
                json!({ "forgotten": forgotten })
            }
            Ok(Command::Stats) => command::stats(&Summary::of(&self.seen())),
            Ok(Command::Requests) => command::requests(&self.seen()),
            Ok(Command::Warm) => match self.warm() {
                Ok(bytes) => json!({ "warmed_bytes": bytes }),
                Err(error) => json!({ "error": format!("the servers' files: {error}") }),
            },
            Ok(Command::Quit) => return (json!({ "quit": true }), Next::End),
            Err(error) => json!({ "error": error.to_string() }),
        };
        (answer, Next::Line)
    }
}

fn write_line(output: &mut impl Write, answer: &Value) -> io::Result<()> {
    writeln!(output, "{answer}")?;
    output.flush()
}

/// The lines of the standard input. They are read by a thread, which can't be woken from its
/// waiting: it ends with the input or with the process, whichever comes first.
fn lines_of_input() -> io::Result<mpsc::Receiver<String>> {
    let (sender, receiver) = mpsc::channel(1);
    thread::Builder::new().name("input".into()).spawn(move || {
        let mut input = io::stdin().lock();
        loop {
            let mut line = Vec::new();
            // What can't be read is the end; what is no text is answered as an unknown command.
            let read = (&mut input).take(LONGEST_LINE).read_until(b'\n', &mut line);
            if !matches!(read, Ok(1..)) {
                return;
            }
            if sender.blocking_send(String::from_utf8_lossy(&line).into_owned()).is_err() {
                return;
            }
        }
    })?;
    Ok(receiver)
}
