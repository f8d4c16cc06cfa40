//! What README says is supported, and what scripts/demo and scripts/test check first.

use std::fs;
use std::process::{Command, Output};
use std::time::Duration;

use inlay_testkit::output::output;
use inlay_testkit::scratch;
use inlay_testkit::scratch::source_root;

use crate::section;

const BOOKWORM: &str =
    "PRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\nVERSION_ID=\"12\"\nID=debian\n";
const TRIXIE: &str = "PRETTY_NAME=\"Debian GNU/Linux 13 (trixie)\"\nVERSION_ID=\"13\"\nID=debian\n";
const UBUNTU: &str = "PRETTY_NAME=\"Ubuntu 24.04.3 LTS\"\nVERSION_ID=\"24.04\"\nID=ubuntu\n";

/// What the scripts say of a host with this kernel and this /etc/os-release.
fn check(kernel: &str, release: &str) -> Output {
    let dir = scratch().unwrap();
    let file = dir.path().join("os-release");
    fs::write(&file, release).unwrap();
    let script = ". scripts/lib.sh && need_supported_host \"$@\" && echo goes on";
    let mut bash = Command::new("bash");
    bash.current_dir(source_root()).args(["-c", script, "demo", kernel]).arg(file);
    output(&mut bash, Duration::from_mins(1)).unwrap()
}

#[test]
fn unsupported_hosts_are_refused_in_one_line() {
    for kernel in ["5.15", "5.15.0-91-generic", "6.1.0-40-amd64", "10.0.1"] {
        let ran = check(kernel, BOOKWORM);
        assert!(ran.status.success() && ran.stdout == b"goes on\n", "{kernel}: {ran:?}");
    }
    for (kernel, release, why) in [
        ("5.14.21", BOOKWORM, "Linux 5.14.21 is not supported: Linux 5.15 or later is needed"),
        ("4.19.0-27-amd64", BOOKWORM, "Linux 4.19.0-27-amd64 is not supported"),
        ("6.12.1", TRIXIE, "Debian GNU/Linux 13 (trixie) is not supported: Debian 12 is needed"),
        ("6.8.0", UBUNTU, "Ubuntu 24.04.3 LTS is not supported: Debian 12 is needed"),
        ("6.8.0", "", "this distribution is not supported"),
    ] {
        let ran = check(kernel, release);
        let said = String::from_utf8_lossy(&ran.stderr);
        assert_eq!(ran.status.code(), Some(1), "{ran:?}");
        assert!(ran.stdout.is_empty() && said.lines().count() == 1, "{said}");
        assert!(said.starts_with(&format!("demo: {why}")), "{said}");
    }
}

/// Nothing is installed or built before.
#[test]
fn both_commands_check_the_supported_systems_first() {
    let section = section("Two commands");
    for supported in ["Linux 5.15 and later", "Debian 12 (bookworm)", "Debian 13 (trixie)"] {
        assert!(section.contains(supported), "{supported} is not in README");
    }
    for name in ["demo", "test"] {
        let script = fs::read_to_string(source_root().join("scripts").join(name)).unwrap();
        let mut steps = script.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        assert_eq!(steps.next(), Some(". \"$(dirname \"$0\")/lib.sh\""), "{name}");
        assert_eq!(steps.next(), Some("need_supported_host"), "{name}");
    }
}
