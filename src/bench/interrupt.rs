//! Notices that the user or the system wants the benchmark to end, so that it ends by itself and clears
//! away what it has made.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tokio::signal::unix::{SignalKind, signal};

use super::error::BenchError;

/// Whether it is wanted. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct Interrupt {
    wanted: Arc<AtomicBool>,
}

impl Interrupt {
    /// From now on SIGINT, SIGTERM and SIGHUP no longer end this process, but are noticed.
    ///
    /// The thread that waits for them ends with the process.
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

    /// Fails if it is wanted.
    pub fn check(&self) -> Result<(), BenchError> {
        if self.wanted.load(Ordering::Relaxed) { Err(BenchError::Interrupted) } else { Ok(()) }
    }
}
