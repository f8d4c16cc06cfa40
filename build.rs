//! Tells the program which commit it was built from.
//!
//! `INLAY_COMMIT` says it where there is no checkout. Without either the commit is "unknown". Nothing
//! else of the machine or the moment goes into the build, so the same commit gives the same program.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

const OVERRIDE: &str = "INLAY_COMMIT";
const UNKNOWN: &str = "unknown";
/// Room for a SHA-256 and for a packager's remark.
const LEN_MAX: usize = 80;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={OVERRIDE}");
    let commit = match env::var(OVERRIDE) {
        Ok(given) if is_plain(&given) => given,
        Ok(given) if !given.is_empty() => {
            println!(
                "cargo::error={OVERRIDE} is {given:?}: it must be at most {LEN_MAX} letters, digits and .+-_"
            );
            return;
        }
        _ => from_checkout().unwrap_or_else(|| UNKNOWN.to_owned()),
    };
    println!("cargo::rustc-env=INLAY_BUILD_COMMIT={commit}");
}

fn is_plain(text: &str) -> bool {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_".contains(&byte);
    !text.is_empty() && text.len() <= LEN_MAX && text.bytes().all(is_plain)
}

/// The commit that is checked out here. A checkout of something else around this source is not meant.
fn from_checkout() -> Option<String> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR")?);
    let top = git(&root, &["rev-parse", "--show-toplevel"])?;
    if Path::new(&top).canonicalize().ok()? != root.canonicalize().ok()? {
        return None;
    }
    let commit = git(&root, &["rev-parse", "--verify", "HEAD"])?;
    // Other branches are checked out by writing HEAD; commits are added to its log, or where there is
    // none, to the branch's file.
    let branch = git(&root, &["symbolic-ref", "-q", "HEAD"]);
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()).chain(["packed-refs"]) {
        if let Some(path) = git(&root, &["rev-parse", "--git-path", name]) {
            let path = root.join(path);
            // A file that is missing would have this run at every build.
            if path.exists() {
                println!("cargo::rerun-if-changed={}", path.display());
            }
        }
    }
    is_plain(&commit).then_some(commit)
}

fn git(root: &Path, arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").current_dir(root).args(arguments).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim_end_matches('\n').to_owned())
}
