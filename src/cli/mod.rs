//! The command line: options, subcommands and exit codes.
//!
//! Exit codes: 0, success. 1, failure, with one line on standard error that names the operation, the
//! object and the remedy. 2, invalid arguments.

mod bench;
mod cache;
mod client;
mod complete;
mod cp;
mod daemon;
mod doctor;
mod error;
mod exec;
mod export;
mod import;
mod inspect;
mod list;
mod logs;
mod man;
mod monitor;
mod mount;
mod mount_for_host;
mod mount_helper;
mod mount_into;
mod output;
mod path;
mod prefetch;
mod printer;
mod profile;
mod progress;
mod reader;
mod run;
mod sandbox;
mod sandbox_options;
mod sandbox_path;
mod snapshot;
mod stream;
mod terminal;
mod top;
mod trace;
mod verify;
mod version;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use inlay_store::remote::{PlainHttp, StoreConfig};

pub use complete::{Completed, complete};
pub use error::CliError;
use inlay_base::duration;
use inlay_snapshots::host::{Host, HostError};
use inlay_snapshots::state::State;
pub use mount_for_host::mount_as_helper;
pub use mount_helper::is_mount_helper;
use output::OutputFormat;

use crate::config::{self, STATE_DEFAULT};

/// Lazy-loading container images and snapshots.
///
/// A snapshot is imported once into a store and then mounted anywhere in milliseconds; files are
/// fetched when they are read.
#[derive(Debug, Parser)]
#[command(
    name = "inlay",
    version,
    long_version = crate::version::text(),
    max_term_width = 100,
    after_help = "\
Examples:
  inlay import dir:/srv/root --name base           a directory, into the default store
  inlay import docker://localhost:5000/app --name app
  inlay mount base /mnt/base                       at once; files are fetched on first read
  inlay mount --rw base /mnt/work                  writable; changes go to an upper directory
  inlay --store s3://bucket/prefix snapshots       another store"
)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Options of every command.
#[derive(Debug, Args)]
#[command(next_help_heading = "Global options")]
pub struct Global {
    /// Store: a directory, s3://BUCKET/PREFIX, gs://…, az://… or http(s)://… (read-only)
    /// [default: 'store' in the state directory]
    #[arg(long, global = true, env = "INLAY_STORE", value_name = "URL")]
    store: Option<String>,
    /// State directory: cache, indexes, upper directories and the default store
    #[arg(long, global = true, env = "INLAY_STATE", value_name = "DIR", default_value = STATE_DEFAULT)]
    state: PathBuf,
    /// Print one JSON value instead of text. Does not change the output of 'cat', 'export … tar:-' and
    /// 'profile export … -'. Errors remain one line of text on standard error
    #[arg(long, global = true)]
    json: bool,
    /// Suppress progress output
    #[arg(long, short, global = true)]
    quiet: bool,
    /// Allow plain HTTP to other hosts, for stores and registries
    #[arg(long, global = true)]
    plain_http: bool,
    /// Log level (error, warn, info, debug) or filter, e.g. inlay_store=debug. Logs go to standard
    /// error; a background daemon logs to log/daemon.log in the state directory
    #[arg(long, global = true, env = "INLAY_LOG", value_name = "FILTER", default_value = "warn")]
    log: String,
    /// Idle time without a mount after which a daemon started by a command exits
    #[arg(long, global = true, hide = true, env = "INLAY_IDLE_EXIT", value_name = "DURATION",
        default_value = "5s", value_parser = duration::parse)]
    idle_exit_of_started: Duration,
}

// Help texts are on the argument structs: a doc comment on a variant would hide the
// struct's long help.
#[derive(Debug, Subcommand)]
enum Command {
    Import(import::ImportArgs),
    Export(export::ExportArgs),
    Run(Box<run::RunArgs>),
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
    Ls(inspect::LsArgs),
    Cat(inspect::CatArgs),
    Stat(inspect::StatArgs),
    Tree(inspect::TreeArgs),
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
    Doctor(doctor::DoctorArgs),
    Completion(complete::CompletionArgs),
    #[command(hide = true)]
    Man(man::ManArgs),
    Version(version::VersionArgs),
}

impl Global {
    fn format(&self) -> OutputFormat {
        if self.json { OutputFormat::Json } else { OutputFormat::Text }
    }

    fn plain_http(&self) -> PlainHttp {
        if self.plain_http { PlainHttp::Allowed } else { PlainHttp::LoopbackOnly }
    }

    /// Opens the state and the store, including snapshots sealed on this host.
    fn host(&self) -> Result<Host, CliError> {
        let named = self.store_ref()?.url;
        let (state, store) = self.state_and_store()?;
        Ok(Host::open_with_sealed(state, store, named.as_deref())?)
    }

    /// Opens the state and the store, without snapshots sealed on this host.
    fn host_of_store(&self) -> Result<Host, CliError> {
        let (state, store) = self.state_and_store()?;
        Ok(Host::open(state, &store)?)
    }

    /// Opens the state; without `--store`, the store is the embedded one in the state directory.
    fn state_and_store(&self) -> Result<(State, StoreConfig), CliError> {
        let state = State::open(&self.state).map_err(HostError::from)?;
        let url = state.store_url(self.store.as_deref());
        Ok((state, config::store_config(&url, self.plain_http())))
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
    /// Returns the value of `--log`.
    pub fn log(&self) -> &str {
        &self.global.log
    }

    /// Runs the command.
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
            Command::Ls(args) => inspect::ls(global, &args),
            Command::Cat(args) => inspect::cat(global, &args),
            Command::Stat(args) => inspect::stat(global, &args),
            Command::Tree(args) => inspect::tree(global, &args),
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
            Command::Doctor(args) => doctor::doctor(global, &args),
            Command::Completion(args) => complete::completion(&args),
            Command::Man(args) => man::man(&args),
            Command::Version(args) => version::version(global, &args),
        }
    }
}
