//! Runs a real S3 server, and a registry if wanted, behind a shaped link, and takes commands from the standard input.

use std::io;
use std::process::ExitCode;

use clap::Parser;
use inlay_testkit::link::LinkProfile;
use inlay_testkit::shaped_store::{Servers, ShapedStore, measure};

/// Runs a real S3 server behind a link with a latency and a bandwidth.
///
/// Prints one line of JSON that says where it is, then answers each line of its input by one:
/// `link PROFILE [SEED]`, `forget`, `stats`, `requests`, `warm`, `quit`. Ends with its input.
#[derive(Parser)]
struct Arguments {
    /// The link at first: none, zone, region, wan, or `LATENCY,BANDWIDTH[,JITTER]` such as
    /// 30ms,500mbit
    #[arg(long, default_value = "none")]
    link: LinkProfile,
    /// Where the jitter begins
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Run a container registry, too, on the same link
    #[arg(long)]
    registry: bool,
    /// Measure every named link, print the times and end
    #[arg(long)]
    self_test: bool,
}

fn run(arguments: &Arguments) -> io::Result<()> {
    let servers = if arguments.registry { Servers::S3AndRegistry } else { Servers::S3 };
    let store = ShapedStore::start(arguments.link.with_seed(arguments.seed), servers)?;
    if !arguments.self_test {
        return store.serve(io::stdout());
    }
    for (_, profile) in LinkProfile::NAMED {
        println!("{}", measure(&store, profile.with_seed(arguments.seed))?);
    }
    Ok(())
}

fn main() -> ExitCode {
    match run(&Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("shaped-store: {error}");
            ExitCode::FAILURE
        }
    }
}
