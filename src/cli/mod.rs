//! The command line: what users type, and the exit codes they get.
//!
//! 0: done. 1: failed, with one line on standard error that says what, on what, and what to do.
//! 2: the words of the command are wrong.

mod bench;
mod cache;
mod client;
mod cp;
mod daemon;
mod error;
mod exec;
mod export;
mod import;
mod inside;
mod list;
mod logs;
mod look;
mod monitor;
mod mount;
mod mount_into;
mod output;
mod path;
mod prefetch;
mod profile;
mod progress;
mod reader;
mod run;
mod sandbox;
mod sandbox_options;
mod snapshot;
mod stream;
mod terminal;
mod top;
mod trace;
mod verify;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use inlay_store::remote::PlainHttp;

pub use error::CliError;
use output::Format;

use crate::config::STATE_DEFAULT;
use crate::duration;
use crate::host::Host;

/// Lazy-loading container images and snapshots.
///
/// A snapshot is imported once into a store and then mounted anywhere in milliseconds; its files
/// are fetched when they are read.
#[derive(Debug, Parser)]
#[command(
    name = "inlay",
    version,
    max_term_width = 100,
    after_help = "\
Examples:
  inlay import dir:/srv/root --name base           a directory, into the store inside the state
  inlay import docker://localhost:5000/app --name app
  inlay mount base /mnt/base                       at once; files come when they are read
  inlay mount --rw base /mnt/work                  writable, changes kept beside
  inlay --store s3://bucket/prefix snapshots       another store"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// The store: a directory, s3://BUCKET/PREFIX, gs://…, az://…, http(s)://… (read-only)
    /// [default: a directory inside the state]
    #[arg(long, global = true, env = "INLAY_STORE", value_name = "URL")]
    store: Option<String>,
    /// The state directory: cache, indexes, upper directories, and the default store
    #[arg(long, global = true, env = "INLAY_STATE", value_name = "DIR", default_value = STATE_DEFAULT)]
    state: PathBuf,
    /// Print one JSON value instead of text. What 'cat', 'export … tar:-' and 'profile export … -'
    /// print stays as it is, and errors are one line of text on standard error
    #[arg(long, global = true)]
    json: bool,
    /// Show no progress
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Let plain HTTP go to other machines too, for stores and registries
    #[arg(long, global = true)]
    plain_http: bool,
    /// What is logged: error, warn, info, debug, or filters such as inlay_store=debug. It goes to
    /// standard error, and for a daemon in the background to log/daemon.log in the state
    #[arg(long, global = true, env = "INLAY_LOG", value_name = "FILTER", default_value = "warn")]
    log: String,
    /// How long a daemon that a command starts stays without a mount
    #[arg(long, global = true, hide = true, env = "INLAY_IDLE_EXIT", value_name = "DURATION",
        default_value = "5s", value_parser = duration::parse)]
    idle_exit_of_started: Duration,
}

// What help says of each is at its arguments: a remark here would hide all but the first line.
#[derive(Debug, Subcommand)]
enum Command {
    Import(import::ImportArgs),
    Export(export::ExportArgs),
    Run(run::RunArgs),
    Sandbox(sandbox::SandboxArgs),
    Exec(exec::ExecArgs),
    Logs(logs::LogsArgs),
    Cp(cp::CpArgs),
    Snapshot(snapshot::SnapshotArgs),
    Sync(snapshot::SyncArgs),
    Mount(mount::MountArgs),
    #[command(alias = "unmount")]
    Umount(mount::UmountArgs),
    Mounts(mount::MountsArgs),
    Daemon(daemon::DaemonArgs),
    #[command(hide = true)]
    Keeper(daemon::KeeperArgs),
    #[command(hide = true)]
    Monitor(monitor::MonitorArgs),
    Ls(look::LsArgs),
    Cat(look::CatArgs),
    Stat(look::StatArgs),
    Tree(look::TreeArgs),
    #[command(alias = "images")]
    Snapshots(list::SnapshotsArgs),
    #[command(alias = "inspect")]
    Show(list::ShowArgs),
    Tag(list::TagArgs),
    Untag(list::UntagArgs),
    Verify(verify::VerifyArgs),
    Profile(profile::ProfileArgs),
    Cache(cache::CacheArgs),
    Prefetch(prefetch::PrefetchArgs),
    Bench(bench::BenchArgs),
    Top(top::TopArgs),
    Trace(trace::TraceArgs),
}

impl Global {
    fn format(&self) -> Format {
        if self.json { Format::Json } else { Format::Text }
    }

    fn plain_http(&self) -> PlainHttp {
        if self.plain_http { PlainHttp::Allowed } else { PlainHttp::LoopbackOnly }
    }

    /// What a reference that begins with an option's dash can't be is left to clap.
    fn host(&self) -> Result<Host, CliError> {
        Ok(Host::open(self.store.as_deref(), &self.state, self.plain_http())?)
    }

    fn progress(&self) -> progress::Bar {
        progress::Bar::new(if self.quiet {
            progress::Show::Never
        } else {
            progress::Show::Terminal
        })
    }
}

impl Cli {
    /// The log filter that was asked for.
    pub fn log(&self) -> &str {
        &self.global.log
    }

    /// Does what was asked for.
    pub fn run(self) -> Result<(), CliError> {
        let global = &self.global;
        match self.command {
            Command::Import(args) => import::import(global, args),
            Command::Export(args) => export::export(global, &args),
            Command::Run(args) => run::run(global, &args),
            Command::Sandbox(args) => sandbox::sandbox(global, &args),
            Command::Exec(args) => exec::exec(global, &args),
            Command::Logs(args) => logs::logs(global, &args),
            Command::Cp(args) => cp::cp(global, &args),
            Command::Snapshot(args) => snapshot::snapshot(global, &args),
            Command::Sync(args) => snapshot::sync(global, &args),
            Command::Mount(args) => mount::mount(global, &args),
            Command::Umount(args) => mount::umount(global, &args),
            Command::Mounts(args) => mount::mounts(global, &args),
            Command::Daemon(args) => daemon::daemon(global, &args),
            Command::Keeper(args) => daemon::keeper(global, &args),
            Command::Monitor(args) => monitor::monitor(global, &args),
            Command::Ls(args) => look::ls(global, &args),
            Command::Cat(args) => look::cat(global, &args),
            Command::Stat(args) => look::stat(global, &args),
            Command::Tree(args) => look::tree(global, &args),
            Command::Snapshots(args) => list::snapshots(global, &args),
            Command::Show(args) => list::show(global, &args),
            Command::Tag(args) => list::tag(global, &args),
            Command::Untag(args) => list::untag(global, &args),
            Command::Verify(args) => verify::verify(global, &args),
            Command::Profile(args) => profile::profile(global, &args),
            Command::Cache(args) => cache::cache(global, &args),
            Command::Prefetch(args) => prefetch::prefetch(global, &args),
            Command::Bench(args) => bench::bench(global, &args),
            Command::Top(args) => top::top(global, &args),
            Command::Trace(args) => trace::trace(global, &args),
        }
    }
}
