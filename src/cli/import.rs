//! `inlay import`: creates a snapshot from a directory, an archive or an image.

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use inlay_images::import::{ImportOptions, Mounts, PlainHttp, Platform, RegistryOptions, Source};
use inlay_snapshots::host::Host;
use inlay_snapshots::{CreateOptions, Created, Parent, create};
use inlay_store::ids::Kind;
use inlay_store::pack::PackOptions;
use inlay_store::remote::{Existing, Name};
use inlay_store::units::ByteSize;
use serde::Serialize;

use super::Global;
use super::error::CliError;
use super::output;

/// Create a snapshot from a directory, an archive or an image.
///
/// The snapshot becomes visible in the store only when it is complete. An interrupted import can be
/// repeated and does not upload the same data again. Repeating an import also repairs the snapshot's
/// objects in the store: missing objects, wrong lengths and, in a directory or where entity tags
/// contain the MD5, wrong contents. --repair reads and verifies all of them.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  inlay import dir:/srv/root --name base
  inlay import tar:root.tar.zst --name base
  zcat root.tar.gz | inlay import tar:- --name base
  inlay import oci:./layout:v1 --name app --platform linux/arm64
  inlay import docker-archive:saved.tar --name app
  inlay import docker://registry.example:5000/team/app:1.2 --name app")]
pub(super) struct ImportArgs {
    /// Source: dir:PATH, tar:FILE (tar:- for standard input), oci:DIR[:TAG],
    /// docker-archive:FILE[:REF] or docker://REF
    source: Source,
    /// Assign a name. If another snapshot has it, it is moved
    #[arg(long, short)]
    name: Option<Name>,
    /// Kind of the snapshot
    #[arg(long, value_enum, default_value_t = KindArg::Image)]
    kind: KindArg,
    /// Parent snapshot, whose contents are not stored again; 'none' for none [default: the snapshot
    /// that --name referred to before]
    #[arg(long, value_name = "SNAPSHOT")]
    parent: Option<String>,
    /// Deduplicate against this snapshot, too. Can be repeated
    #[arg(long, value_name = "SNAPSHOT")]
    dedup: Vec<String>,
    /// Read all objects of the snapshot that exist in the store, and rewrite damaged ones
    #[arg(long)]
    repair: bool,
    /// Set a label (KEY=VALUE). Can be repeated
    #[arg(long, value_name = "KEY=VALUE", value_parser = label)]
    label: Vec<(String, String)>,
    /// Platform of a multi-platform image: OS/ARCH[/VARIANT] [default: this host's]
    #[arg(long, value_parser = platform)]
    platform: Option<Platform>,
    /// Include filesystems mounted inside an imported directory
    #[arg(long)]
    follow_mounts: bool,
    /// Maximum decompressed size of the source
    #[arg(long, value_name = "SIZE", default_value = "1T")]
    size_max: ByteSize,
    /// Compression level of zstd, 1 to 19
    #[arg(long, default_value_t = PackOptions::default().level, value_parser = clap::value_parser!(i32).range(1..=19))]
    level: i32,
    /// Size of a group, the unit of compression, fetching and verification; 4K to 2M
    #[arg(long, value_name = "SIZE", default_value = "512K")]
    group_size: ByteSize,
}

/// Kinds of snapshots that an import can create.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum KindArg {
    Image,
    Filesystem,
    Directory,
}

fn label(text: &str) -> Result<(String, String), String> {
    text.split_once('=')
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .ok_or_else(|| "a label is KEY=VALUE".to_owned())
}

fn platform(text: &str) -> Result<Platform, String> {
    let mut parts = text.split('/');
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(os), Some(architecture), variant, None)
            if !os.is_empty() && !architecture.is_empty() =>
        {
            Ok(Platform {
                os: os.to_owned(),
                architecture: architecture.to_owned(),
                variant: variant.map(str::to_owned),
            })
        }
        _ => Err("a platform is OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64".to_owned()),
    }
}

#[derive(Serialize)]
struct ImportAnswer<'a> {
    #[serde(flatten)]
    record: &'a inlay_store::remote::SnapshotRecord,
    name: Option<&'a Name>,
    known_bytes: u64,
    blobs_uploaded: usize,
    blobs_already_there: usize,
    /// Number of damaged blobs in the store that were rewritten.
    blobs_repaired: usize,
}

pub(super) fn import(global: &Global, args: ImportArgs) -> Result<(), CliError> {
    let host = global.host()?;
    let progress = global.progress();
    let group_len = usize::try_from(args.group_size.0).unwrap_or(usize::MAX);
    if !(4096..=2 << 20).contains(&group_len) {
        return Err(CliError::Usage("--group-size is between 4K and 2M".to_owned()));
    }
    let options = CreateOptions {
        kind: match args.kind {
            KindArg::Image => Kind::Image,
            KindArg::Filesystem => Kind::Filesystem,
            KindArg::Directory => Kind::Directory,
        },
        name: args.name,
        parent: match args.parent.as_deref() {
            None => Parent::Automatic,
            Some("none") => Parent::None,
            Some(reference) => Parent::Given(reference.to_owned()),
        },
        dedup: args.dedup,
        labels: args.label.into_iter().collect::<BTreeMap<_, _>>(),
        import: ImportOptions {
            decoded_bytes_max: args.size_max.0,
            platform: args.platform.unwrap_or_default(),
            mounts: if args.follow_mounts { Mounts::Follow } else { Mounts::Skip },
            left_empty: own_directories(global, &host),
            registry: RegistryOptions {
                plain_http: if global.plain_http { PlainHttp::Always } else { PlainHttp::Loopback },
                docker_config: crate::config::docker_config_dir(),
                ..RegistryOptions::default()
            },
            scratch: host.state().scratch().to_owned(),
            ..ImportOptions::default()
        },
        pack: PackOptions { level: args.level, group_len, ..PackOptions::default() },
        existing: if args.repair { Existing::Read } else { Existing::Compared },
    };
    let created = create(&host, &args.source, &options, &progress)?;
    progress.finish();
    print(global, &created, options.name.as_ref())
}

/// Returns the state directory and a store directory: they change during an import, so an import of a
/// parent directory records them as empty.
fn own_directories(global: &Global, host: &Host) -> Vec<PathBuf> {
    let store = global.store.as_deref().map(|url| url.strip_prefix("file://").unwrap_or(url));
    let store = store.map(PathBuf::from).filter(|path| path.is_dir());
    [host.state().root().to_owned()].into_iter().chain(store).collect()
}

fn print(global: &Global, created: &Created, name: Option<&Name>) -> Result<(), CliError> {
    let Created { record, stats, uploaded, already_there, repaired } = created;
    let answer = ImportAnswer {
        record,
        name,
        known_bytes: stats.known_bytes,
        blobs_uploaded: *uploaded,
        blobs_already_there: *already_there,
        blobs_repaired: *repaired,
    };
    output::print(global.format(), &answer, |out| {
        writeln!(out, "{}", record.id)?;
        if !global.quiet {
            let counts = record.counts;
            output::note(format_args!(
                "{} files, {} directories, {} others; {} of content, {} stored, {} known before; \
                 index {}",
                counts.files,
                counts.directories,
                counts.others,
                output::bytes(stats.content_bytes),
                output::bytes(stats.stored_bytes),
                output::bytes(stats.known_bytes),
                output::bytes(record.index_packed_bytes),
            ));
            if *repaired > 0 {
                output::note(format_args!(
                    "{repaired} damaged blobs in the store have been repaired"
                ));
            }
        }
        Ok(())
    })?;
    Ok(())
}
