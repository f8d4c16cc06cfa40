//! Runs the live view: handles keys, signals and restarts of the daemon, and restores the terminal on
//! every exit.

use std::io::{self, Stdout, stdout};
use std::path::Path;
use std::pin::Pin;
use std::time::{Duration, Instant};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::event::{self, Event};
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::timeout;

use super::super::error::CliError;
use super::draw::draw;
use super::sample::Sample;
use super::state::{Link, Then, ViewState};
use super::view::View;
use crate::daemon::{Client, ClientError};

/// Poll interval for keys.
const KEYS_WITHIN: Duration = Duration::from_millis(50);

type Sampling<'c> = Pin<Box<dyn Future<Output = Result<Sample, ClientError>> + 'c>>;

/// The terminal in raw mode on the alternate screen; restored on drop and on panic.
struct Screen(Terminal<CrosstermBackend<Stdout>>);

impl Screen {
    fn new() -> io::Result<Self> {
        // Restore before the panic message, which would be lost with the alternate screen.
        let said = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            restore();
            said(panic);
        }));
        enable_raw_mode()?;
        let made = execute!(stdout(), EnterAlternateScreen)
            .and_then(|()| Terminal::new(CrosstermBackend::new(stdout())));
        made.map(Self).inspect_err(|_| restore())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        restore();
    }
}

/// Restores the terminal. Best effort: on failure the terminal is gone.
fn restore() {
    let _ = execute!(stdout(), LeaveAlternateScreen, Show);
    let _ = disable_raw_mode();
}

/// Signals that end the live view.
struct Signals(Vec<Signal>);

impl Signals {
    /// Must be called within [`Client::wait`]: signals need a runtime.
    fn new() -> io::Result<Self> {
        let kinds = [
            SignalKind::terminate(),
            SignalKind::interrupt(),
            SignalKind::hangup(),
            SignalKind::quit(),
        ];
        Ok(Self(kinds.into_iter().map(signal).collect::<io::Result<_>>()?))
    }

    async fn any(&mut self) {
        let all = self.0.iter_mut().map(|signal| Box::pin(signal.recv()));
        futures::future::select_all(all).await;
    }
}

/// Event that ended one wait between key polls.
enum Woken {
    Signal,
    Sampled(Box<Result<Sample, ClientError>>),
    Nothing,
}

/// Shows the daemon of `state_dir` until the user quits or a signal arrives, starting with the sample
/// `first`.
pub(super) fn live(
    client: &Client,
    state_dir: &Path,
    interval: Duration,
    first: Sample,
) -> Result<(), CliError> {
    let mut signals = client.wait(async { Signals::new() })?;
    let mut screen = Screen::new()?;
    let mut state = ViewState::default();
    let mut view = View::of(&first, None);
    let mut before = first;
    let mut due = Instant::now() + interval.min(Duration::from_secs(1));
    let mut sampling: Option<Sampling<'_>> = None;
    loop {
        screen.0.draw(|frame| draw(&view, &state, frame.area(), frame.buffer_mut()))?;
        if sampling.is_none() && Instant::now() >= due && !state.paused {
            sampling = Some(Box::pin(Sample::take(client, state_dir.to_owned())));
        }
        let woken = client.wait(wake(&mut signals, sampling.as_mut()));
        match woken {
            Woken::Signal => return Ok(()),
            Woken::Nothing => {}
            Woken::Sampled(sampled) => {
                sampling = None;
                due = Instant::now() + interval;
                match *sampled {
                    Ok(sample) => {
                        state.link = Link::Up;
                        view = View::of(&sample, Some(&before));
                        before = sample;
                    }
                    Err(error) => state.link = Link::Gone(error.to_string()),
                }
            }
        }
        while event::poll(Duration::ZERO)? {
            // A resize takes effect with the next draw.
            if let Event::Key(key) = event::read()?
                && state.key(key, &view) == Then::Quit
            {
                return Ok(());
            }
        }
    }
}

/// Waits for a signal, a sample, or [`KEYS_WITHIN`], whichever is first.
async fn wake(signals: &mut Signals, sampling: Option<&mut Sampling<'_>>) -> Woken {
    let sampled = async {
        match sampling {
            Some(sampling) => sampling.await,
            None => std::future::pending().await,
        }
    };
    let wait = async {
        tokio::select! {
            () = signals.any() => Woken::Signal,
            sampled = sampled => Woken::Sampled(Box::new(sampled)),
        }
    };
    timeout(KEYS_WITHIN, wait).await.unwrap_or(Woken::Nothing)
}
