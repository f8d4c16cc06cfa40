//! Shows a progress bar if standard error is a terminal.

use std::io::IsTerminal;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use inlay_base::text::Escaped;

use inlay_images::import::{Phase, Progress};

/// Whether progress is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Show {
    Never,
    Terminal,
}

/// Progress bar of the current phase.
#[derive(Debug)]
pub(super) struct Bar {
    bar: ProgressBar,
    objects: AtomicU64,
}

const OPEN: &str = "{spinner} {prefix} {wide_msg} {bytes} {bytes_per_sec}";
const CLOSED: &str = "{spinner} {prefix} {wide_msg} {bytes}/{total_bytes} {bytes_per_sec} {eta}";

impl Bar {
    pub(super) fn new(show: Show) -> Self {
        let visible = show == Show::Terminal && std::io::stderr().is_terminal();
        let target = if visible {
            ProgressDrawTarget::stderr_with_hz(10)
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(None, target);
        if visible {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        style(&bar, OPEN);
        Self { bar, objects: AtomicU64::new(0) }
    }

    /// Starts a phase of a command other than import and export, with `bytes` to process.
    pub(super) fn begin(&self, prefix: &'static str, bytes: u64) {
        self.bar.reset();
        self.bar.set_prefix(prefix);
        self.bar.set_message("");
        self.expect(bytes);
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}

impl Progress for Bar {
    fn phase(&self, phase: Phase, what: &str) {
        self.bar.reset();
        self.bar.unset_length();
        style(&self.bar, OPEN);
        self.bar.set_prefix(match phase {
            Phase::Resolving => "resolving",
            Phase::Downloading => "downloading",
            Phase::Reading => "reading",
            Phase::Revisiting => "revisiting",
            Phase::Exporting => "exporting",
        });
        self.bar.set_message(Escaped(what).to_string());
    }

    fn advance(&self, objects: u64, bytes: u64) {
        self.objects.fetch_add(objects, Ordering::Relaxed);
        self.bar.inc(bytes);
    }

    fn expect(&self, bytes: u64) {
        if bytes > 0 {
            style(&self.bar, CLOSED);
            self.bar.inc_length(bytes);
        }
    }
}
