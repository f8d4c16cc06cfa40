//! Prints the effect of the scheduler's rules on modelled links: starts under several policies,
//! reads concurrent with prefetching, and the cost per event.
//!
//! `policies [TRACE]...` reads recorded starts, as `.trace` or as the `.json` of `inlay profile
//! export`; the default is `prefetch/sim/traces`. `policies --convert FILE.json` prints one as a
//! `.trace`, `policies --cost` only the cost per event.

use std::path::{Path, PathBuf};

use inlay_prefetch_sim::{Trace, print_cost, print_policies, synthetic};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    if let [convert, path] = &args[..]
        && convert == "--convert"
    {
        print!("{}", read(Path::new(path))?.to_text());
        return Ok(());
    }
    if args == ["--cost"] {
        print_cost();
        return Ok(());
    }
    let mut paths: Vec<PathBuf> = args.iter().map(PathBuf::from).collect();
    if paths.is_empty() {
        for entry in std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("traces"))? {
            paths.push(entry?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "trace"));
        paths.sort();
    }
    let mut traces = Vec::new();
    for path in &paths {
        let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        traces.push((name, read(path)?));
    }
    traces.push(("synthetic".into(), synthetic(1)));
    print_policies(&traces);
    print_cost();
    Ok(())
}

fn read(path: &Path) -> Result<Trace, Box<dyn std::error::Error>> {
    let text = std::fs::read_to_string(path)?;
    let json = path.extension().is_some_and(|extension| extension == "json");
    Ok(if json { Trace::from_json(&text)? } else { Trace::parse(&text)? })
}
