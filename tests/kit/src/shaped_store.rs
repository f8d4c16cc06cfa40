//! A real S3 server behind a shaped link, for programs in any language: they are told where it is
//! and say by lines of text what the link is to be like, and ask what has passed.

mod command;
mod measure;

use std::io::{self, BufRead as _, Read as _, Write};
use std::thread;

use serde_json::{Value, json};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::link::LinkProfile;
use crate::proxy::Proxy;
use crate::weed::{BUCKET, Weed};

pub use measure::{Measured, measure};

use command::Command;

/// Bytes of a line of input; what is longer is taken for several lines.
const LONGEST_LINE: u64 = 4096;

/// A server and the link in front of it. Dropping it ends both and leaves nothing behind.
pub struct ShapedStore {
    // Dropped before the server that it is in front of.
    proxy: Proxy,
    weed: Weed,
}

/// Whether there is to be a next line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Next {
    Line,
    End,
}

impl ShapedStore {
    /// Starts both, and waits until the server takes requests.
    pub fn start(profile: LinkProfile) -> io::Result<Self> {
        let weed = Weed::start()?;
        let proxy = Proxy::start(weed.address())?;
        proxy.shape(profile);
        Ok(Self { proxy, weed })
    }

    /// Writes where the server is, then answers each line of the standard input by one line of
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
        json!({
            "endpoint": format!("http://{address}"),
            "direct": format!("http://{}", self.weed.address()),
            "bucket": BUCKET,
            "environment": environment,
            "link": self.proxy.link().to_string(),
        })
    }

    fn answer(&self, line: &str) -> (Value, Next) {
        let answer = match line.parse() {
            Ok(Command::Link(profile)) => {
                self.proxy.shape(profile);
                json!({ "link": profile.to_string(), "seed": profile.seed() })
            }
            Ok(Command::Forget) => {
                let forgotten = self.proxy.seen().len();
                self.proxy.forget();
                json!({ "forgotten": forgotten })
            }
            Ok(Command::Stats) => command::stats(&self.proxy.summary()),
            Ok(Command::Requests) => command::requests(&self.proxy.seen()),
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
