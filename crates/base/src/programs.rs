//! Finds executables of the host, and filters the environment passed to them.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

/// Variables that a service manager sets for the process it starts and for no other: e.g., a
/// runtime that inherits `NOTIFY_SOCKET` waits for its container to report readiness.
pub const SERVICE_VARIABLES: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID", "FDSTORE"];

/// Prefixes of variables that configure object stores and hold their credentials.
pub const STORE_VARIABLE_PREFIXES: [&str; 3] = ["AWS_", "GOOGLE_", "AZURE_"];

/// Directories of system programs, which a user's `PATH` may lack.
const SYSTEM: [&str; 6] =
    ["/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin"];

/// Finds the executable `name` in the absolute directories of `PATH`, then in the system
/// directories.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let is_program = |path: &PathBuf| {
        fs::metadata(path)
            .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
    };
    env::split_paths(&path)
        .filter(|dir| dir.is_absolute())
        .chain(SYSTEM.map(PathBuf::from))
        .map(|dir| dir.join(name))
        .find(is_program)
}

/// Returns the environment of this process without the variables that configure stores or inlay,
/// for programs whose behaviour must not depend on them.
pub fn unrelated_variables() -> Vec<(OsString, OsString)> {
    let ours = |name: &OsString| {
        let name = name.to_string_lossy();
        name.starts_with("INLAY_")
            || STORE_VARIABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
    };
    env::vars_os().filter(|(name, _)| !ours(name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_are_found_and_other_files_are_not() {
        assert!(find("sh").is_some_and(|path| path.is_absolute()));
        assert_eq!(find("no-such-program"), None);
        // A file of /etc that is not executable, through a path that leaves the directories.
        assert_eq!(find("../../etc/passwd"), None);
    }
}
