//! Entry point of `inlay`, and of `mount.inlay` when called by that name.

use std::ffi::OsString;
use std::io::Write;
use std::process::ExitCode;

use clap::Parser;
use inlay_base::inject;
use inlay_base::text::Escaped;
use inlay_mounts::features;
use inlayfs::cli::{self, Cli, is_mount_helper, mount_as_helper};
use inlayfs::{config, log};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let without = config::disabled_features().unwrap_or_default();
    if let Err(error) = features::disable(&without) {
        return fail(&format!("INLAY_WITHOUT: {error}"), 2);
    }
    let mut words = std::env::args_os();
    if words.next().is_some_and(|program| is_mount_helper(&program)) {
        return mount_helper(words);
    }
    match cli::complete() {
        Ok(cli::Completed::Nothing) => {}
        Ok(cli::Completed::Words) => return ExitCode::SUCCESS,
        Err(error) => return fail(&error.to_string(), error.exit_code()),
    }
    let cli = Cli::parse();
    let filter = match EnvFilter::try_new(cli.log()) {
        Ok(filter) => filter,
        Err(error) => return fail(&format!("--log {}: {error}", cli.log()), 2),
    };
    log::begin(filter);
    if let Err(error) = inject::arm(config::injected_fault().as_deref()) {
        return fail(&format!("INLAY_INJECT: {error}"), 2);
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        // The reader closed the pipe, e.g. `head`: not an error.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) if error.is_silent() => ExitCode::from(error.exit_code()),
        Err(error) => fail(&error.to_string(), error.exit_code()),
    }
}

/// Runs as the mount(8) helper `mount.inlay`.
fn mount_helper(words: impl Iterator<Item = OsString>) -> ExitCode {
    log::begin(EnvFilter::new("warn"));
    match mount_as_helper(words) {
        Ok(()) => ExitCode::SUCCESS,
        Err((message, code)) => {
            let message = Escaped(shortened(&message));
            writeln!(std::io::stderr(), "mount.inlay: {message}").ok();
            ExitCode::from(code)
        }
    }
}

/// Shortens a message to its first and last 1500 characters: it may contain very long paths.
fn shortened(message: &str) -> String {
    const SHOWN: usize = 1500;
    let (begin, end) = (message.char_indices().nth(SHOWN), message.char_indices().rev().nth(SHOWN));
    match (begin, end) {
        (Some((begin, _)), Some((end, _))) if begin < end => {
            let (head, tail) = (message.get(..begin), message.get(end..));
            format!("{} … {}", head.unwrap_or_default(), tail.unwrap_or_default())
        }
        _ => message.to_owned(),
    }
}

fn fail(message: &str, code: u8) -> ExitCode {
    // One line: `Escaped` escapes line breaks in names. Best effort: standard error may be closed.
    writeln!(std::io::stderr(), "inlay: {}", Escaped(shortened(message))).ok();
    ExitCode::from(code)
}
