//! Writes log events to standard error, one line each.
//!
//! Fields carry untrusted text: file names, errors, and messages from sandboxes, images and stores.
//! Line breaks and terminal control sequences are escaped here, for every field.

use std::fmt::{self, Debug};
use std::io::IsTerminal;

use inlay_base::text::Escaped;
use tracing::field::Field;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Installs the global subscriber: events that pass `filter` go to standard error. Call once.
pub fn begin(filter: EnvFilter) {
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would report that an event can't be written with `eprintln`, which panics if that
        // can't be written either: the log is on the disk that is full.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal())
        .fmt_fields(fields())
        .init();
}

fn fields() -> impl for<'w> FormatFields<'w> + 'static {
    debug_fn(field).delimited(" ")
}

fn field(out: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    let value = Escaped(format_args!("{value:?}")).to_string();
    match field.name() {
        "message" => out.write_str(&value),
        name => write!(out, "{}={value}", name.strip_prefix("r#").unwrap_or(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_is_in_it() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_ansi(false)
            .with_writer(move || writer.clone())
            .fmt_fields(fields())
            .finish();
        let evil = "a\n2026-01-01T00:00:00Z ERROR forged\x1b[2J\u{202e}\u{9b}m";
        tracing::subscriber::with_default(subscriber, || {
            let span = tracing::info_span!("of", sandbox = %evil);
            let _entered = span.enter();
            let error = io::Error::other(evil);
            tracing::warn!(path = %evil, name = evil, %error, source = ?error, "it is {evil}");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.ends_with('\n') && text.matches("forged").count() == 6, "{text}");
        let acts = |c: char| c != '\n' && inlay_base::text::is_unsafe(c);
        assert!(!text.contains(acts), "{text}");
        assert!(text.contains("it is a\\n2026") && text.contains(" path=a\\n2026"), "{text}");
    }
}
