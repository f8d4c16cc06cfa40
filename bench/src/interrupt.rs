//! Turns termination signals into a flag, so that the benchmark stops in order and cleans up.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::error::BenchError;

/// Flag set by a signal. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    wanted: Arc<AtomicBool>,
}

impl Interrupt {
    /// Handles SIGINT, SIGTERM and SIGHUP from now on: they set the flag instead of ending the
    /// process.
    ///
    /// The thread that waits for signals runs until the process exits.
    pub fn by_signals() -> io::Result<Self> {
        let this = Self::default();
        let wanted = Arc::clone(&this.wanted);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let guard = runtime.enter();
        let mut int = signal(SignalKind::interrupt())?;
        let mut term = signal(SignalKind::terminate())?;
        let mut hup = signal(SignalKind::hangup())?;
        drop(guard);
        thread::Builder::new().name("signals".into()).spawn(move || {
            runtime.block_on(async {
                loop {
                    tokio::select! {
                        _ = int.recv() => {}
                        _ = term.recv() => {}
                        _ = hup.recv() => {}
                    }
                    wanted.store(true, Ordering::Relaxed);
                }
            });
        })?;
        Ok(this)
    }

    /// Fails with [`BenchError::Interrupted`] if the flag is set.
    pub fn check(&self) -> Result<(), BenchError> {
        if self.wanted.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
    }
}
