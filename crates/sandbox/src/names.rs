//! Creates the sandbox's own `/etc/hostname`, `/etc/hosts` and `/etc/resolv.conf`.
//!
//! They are private files of the sandbox, bind-mounted over those of its root, as in docker:
//! programs can write to them, the host's files stay unchanged, and snapshots do not contain them.
//! They are stored beside the root's upper directory, so that the disk limit covers them.

use std::fmt::Write;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::error::SandboxError;
use super::files;
use super::options::{Network, SandboxOptions};

/// The maximum size of a host file that is copied, in bytes.
const COPIED_MAX: u64 = 1 << 20;
const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// The start of every /etc/hosts that is not copied from the host.
const LOCALHOST: &str = "127.0.0.1\tlocalhost\n\
    ::1\tlocalhost ip6-localhost ip6-loopback\n\
    fe00::0\tip6-localnet\n\
    ff00::0\tip6-mcastprefix\n\
    ff02::1\tip6-allnodes\n\
    ff02::2\tip6-allrouters\n";

/// A file of the sandbox: its path on the host and its path in the sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) from: PathBuf,
    pub(super) at: &'static str,
}

/// Creates the files in `dir` unless they exist: what programs have written to them is kept.
pub(super) fn make(
    dir: &Path,
    options: &SandboxOptions,
    hostname: &str,
) -> Result<Vec<Own>, SandboxError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.map_err(SandboxError::io("make the directory", dir))?;
    let texts = [
        ("hostname", "/etc/hostname", format!("{hostname}\n")),
        ("hosts", HOSTS, hosts(options, hostname, &copied(options, HOSTS)?)),
        ("resolv.conf", RESOLV_CONF, resolv_conf(options, &copied(options, RESOLV_CONF)?)),
    ];
    let mut own = Vec::new();
    for (name, at, text) in texts {
        let from = dir.join(name);
        if !from.exists() {
            files::write(&from, text.as_bytes())?;
            fs::set_permissions(&from, Permissions::from_mode(0o644))
                .map_err(SandboxError::io("set the mode of", &from))?;
        }
        own.push(Own { from, at });
    }
    Ok(own)
}

/// Returns the content of the host's file if the sandbox shares the host's network; otherwise, or
/// if the file does not exist, returns an empty string.
fn copied(options: &SandboxOptions, path: &str) -> Result<String, SandboxError> {
    if options.network != Network::Host {
        return Ok(String::new());
    }
    let path = Path::new(path);
    // Opening anything but a regular file, e.g. a FIFO, might block.
    if !fs::metadata(path).is_ok_and(|meta| meta.is_file()) {
        return Ok(String::new());
    }
    let failed = || SandboxError::io("read", path);
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(failed())?;
    file.take(COPIED_MAX + 1).read_to_end(&mut bytes).map_err(failed())?;
    if bytes.len() as u64 > COPIED_MAX {
        let why = format!("{} of this host is longer than {COPIED_MAX} bytes", path.display());
        return Err(SandboxError::option("--network host", why));
    }
    let mut text = String::from_utf8_lossy(&bytes).into_owned();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    Ok(text)
}

/// Builds `/etc/hosts`: the host's entries, or localhost; the sandbox's own name; the options'
/// entries.
fn hosts(options: &SandboxOptions, hostname: &str, copied: &str) -> String {
    let mut text = if copied.is_empty() { LOCALHOST } else { copied }.to_owned();
    let mut line = |address: &str, name: &str| {
        // Writing to a String never fails.
        let _ = writeln!(text, "{address}\t{name}");
    };
    if !names(copied).any(|name| name.eq_ignore_ascii_case(hostname)) {
        // For a fully qualified name, the first label resolves, too. The address is a loopback
        // address that no other name uses, following Debian's installer.
        let short =
            hostname.split_once('.').map(|(short, _)| short).filter(|name| !name.is_empty());
        match short {
            Some(short) => line("127.0.1.1", &format!("{hostname} {short}")),
            None => line("127.0.1.1", hostname),
        }
    }
    for entry in &options.hosts {
        line(&entry.address.to_string(), &entry.name);
    }
    text
}

/// Returns the names in a file in the format of hosts(5).
fn names(text: &str) -> impl Iterator<Item = &str> {
    text.lines().flat_map(|line| {
        let line = line.split('#').next().unwrap_or_default();
        line.split_ascii_whitespace().skip(1)
    })
}

/// Builds `/etc/resolv.conf`: the host's, with each kind of line that the options set replaced.
fn resolv_conf(options: &SandboxOptions, copied: &str) -> String {
    let replaced = |line: &&str| {
        let keyword = line.split_ascii_whitespace().next().unwrap_or_default();
        match keyword {
            "nameserver" => !options.dns.is_empty(),
            "search" | "domain" => !options.dns_search.is_empty(),
            _ => false,
        }
    };
    let kept = copied.lines().filter(|line| !replaced(line)).map(str::to_owned);
    let servers = options.dns.iter().map(|address| format!("nameserver {address}"));
    let search = (!options.dns_search.is_empty())
        .then(|| format!("search {}", options.dns_search.join(" ")));
    kept.chain(search).chain(servers).fold(String::new(), |text, line| text + &line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_own_name_is_added_unless_it_is_there() {
        let options = SandboxOptions {
            hosts: vec!["db:10.0.0.7".parse().unwrap()],
            ..SandboxOptions::default()
        };
        let text = hosts(&options, "box", "");
        assert!(text.starts_with("127.0.0.1\tlocalhost\n"), "{text}");
        assert!(text.ends_with("127.0.1.1\tbox\n10.0.0.7\tdb\n"), "{text}");
        let text = hosts(&SandboxOptions::default(), "box.example.org", "");
        assert!(text.ends_with("127.0.1.1\tbox.example.org box\n"), "{text}");
        let host = "127.0.0.1 localhost # box\n10.0.0.1 other\n";
        assert_eq!(hosts(&options, "box", host), format!("{host}127.0.1.1\tbox\n10.0.0.7\tdb\n"));
        let host = "10.0.0.1 other BOX\n";
        assert_eq!(hosts(&options, "box", host), format!("{host}10.0.0.7\tdb\n"));
    }

    #[test]
    fn given_name_servers_replace_the_hosts() {
        let host = "# made by something\nnameserver 127.0.0.53\noptions edns0\nsearch a b\n";
        let none = SandboxOptions::default();
        assert_eq!(resolv_conf(&none, host), host);
        assert_eq!(resolv_conf(&none, ""), "");
        let given = SandboxOptions {
            dns: vec!["9.9.9.9".parse().unwrap(), "::1".parse().unwrap()],
            dns_search: vec!["c".to_owned(), "d".to_owned()],
            ..SandboxOptions::default()
        };
        let wanted =
            "# made by something\noptions edns0\nsearch c d\nnameserver 9.9.9.9\nnameserver ::1\n";
        assert_eq!(resolv_conf(&given, host), wanted);
    }

    #[test]
    fn files_changed_by_programs_are_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let own = make(&dir.path().join("etc"), &SandboxOptions::default(), "box").unwrap();
        assert_eq!(
            own.iter().map(|own| own.at).collect::<Vec<_>>(),
            ["/etc/hostname", "/etc/hosts", "/etc/resolv.conf"]
        );
        fs::write(&own[1].from, "mine").unwrap();
        assert_eq!(make(&dir.path().join("etc"), &SandboxOptions::default(), "box").unwrap(), own);
        assert_eq!(fs::read_to_string(&own[1].from).unwrap(), "mine");
        let mode = fs::metadata(&own[0].from).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o644);
    }
}
