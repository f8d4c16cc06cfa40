//! The command `inlay`.

use std::io::{IsTerminal, Write};
use std::process::ExitCode;

use clap::Parser;
use inlayfs::cli::Cli;
use inlayfs::{config, inject};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = match EnvFilter::try_new(cli.log()) {
        Ok(filter) => filter,
        Err(error) => return fail(&format!("--log {}: {error}", cli.log()), 2),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Err(error) = inject::arm(config::injected_fault().as_deref()) {
        return fail(&format!("INLAY_INJECT: {error}"), 2);
    }
    match cli.run() {
        Ok(()) => ExitCode::SUCCESS,
        // Whoever read the output has had enough: that is not for this program to complain about.
        Err(error) if error.is_broken_pipe() => ExitCode::SUCCESS,
        Err(error) if error.is_silent() => ExitCode::from(error.exit_code()),
        Err(error) => fail(&error.to_string(), error.exit_code()),
    }
}

fn fail(message: &str, code: u8) -> ExitCode {
    // Nothing is left to be done where standard error is gone too.
    writeln!(std::io::stderr(), "inlay: {message}").ok();
    ExitCode::from(code)
}
