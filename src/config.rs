//! Reads environment variables and the shared credential files.
//!
//! Apart from clap's `env` attributes and the mount helper, only this module reads them.

use std::collections::BTreeMap;
use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use inlay_base::programs::STORE_VARIABLE_PREFIXES;
use inlay_store::remote::{OptionsRefresh, PlainHttp, StoreConfig};

/// Default state directory.
pub const STATE_DEFAULT: &str = "/var/lib/inlay";

/// Upper bound on the number of descriptors accepted from a service manager.
const GIVEN_MAX: u32 = 1024;

/// Returns the configuration of the store at `url`, including options from the environment.
///
/// For `s3://`, environment variables take precedence over the shared AWS files: `~/.aws/credentials`
/// and `~/.aws/config`, or the paths in `AWS_SHARED_CREDENTIALS_FILE` and `AWS_CONFIG_FILE`, with the
/// profile `AWS_PROFILE` or `default`. Both are read again when the store rejects the credentials.
pub fn store_config(url: &str, plain_http: PlainHttp) -> StoreConfig {
    let mut config = StoreConfig::new(url);
    config.plain_http = plain_http;
    let gather: Arc<dyn Fn() -> Vec<(String, String)> + Send + Sync> = if url.starts_with("s3:") {
        Arc::new(|| aws_options(&variables(), |path| fs::read_to_string(path).ok()))
    } else {
        Arc::new(|| plain_options(&variables()))
    };
    config.options = gather();
    config.refresh = Some(OptionsRefresh(gather));
    config
}

/// Returns the environment variables that configure stores or hold their credentials, sorted by name.
pub fn store_variables() -> Vec<(String, String)> {
    plain_options(&variables())
}

/// Returns the directory of docker's `config.json`: `$DOCKER_CONFIG`, or `~/.docker`.
pub fn docker_config_dir() -> Option<PathBuf> {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".docker"));
    env::var_os("DOCKER_CONFIG").map(PathBuf::from).or_else(home)
}

/// Returns the environment variable `name` as `NAME=VALUE`; `None` if it is unset or not UTF-8.
pub fn variable(name: &str) -> Option<String> {
    Some(format!("{name}={}", env::var(name).ok()?))
}

/// Returns the sd_notify(3) socket of the service manager.
pub fn notify_socket() -> Option<OsString> {
    env::var_os("NOTIFY_SOCKET")
}

/// Returns the fault to inject into this process, for tests (see [`inlay_base::inject`]).
pub fn injected_fault() -> Option<String> {
    env::var("INLAY_INJECT").ok()
}

/// Returns the kernel features that this process must not use (see [`inlay_mounts::features`]).
pub fn disabled_features() -> Option<String> {
    env::var("INLAY_WITHOUT").ok()
}

/// Returns the size of the service manager's descriptor store for this service, if it is known
/// (systemd 254 and later).
pub fn descriptor_store_size() -> Option<usize> {
    env::var("FDSTORE").ok()?.parse().ok()
}

/// Returns the names of the descriptors passed by the service manager, in order, starting with
/// descriptor 3 (sd_listen_fds(3)).
pub fn given_descriptors() -> Vec<String> {
    given(std::process::id(), |name| env::var(name).ok())
}

fn given(process: u32, variable: impl Fn(&str) -> Option<String>) -> Vec<String> {
    let number = |name| variable(name)?.parse::<u32>().ok();
    // Inherited variables may be addressed to the parent process.
    if number("LISTEN_PID") != Some(process) {
        return Vec::new();
    }
    let count = number("LISTEN_FDS").unwrap_or(0).min(GIVEN_MAX);
    let names = variable("LISTEN_FDNAMES").unwrap_or_default();
    let mut names = names.split(':').map(str::to_owned);
    (0..count).map(|_| names.next().unwrap_or_default()).collect()
}

type Variables = BTreeMap<String, String>;

/// Returns all variables that are UTF-8; others are never options of a store.
fn variables() -> Variables {
    env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect()
}

fn plain_options(variables: &Variables) -> Vec<(String, String)> {
    variables
        .iter()
        .filter(|(name, _)| STORE_VARIABLE_PREFIXES.iter().any(|prefix| name.starts_with(prefix)))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn aws_options(
    variables: &Variables,
    read: impl Fn(&Path) -> Option<String>,
) -> Vec<(String, String)> {
    let mut options: BTreeMap<String, String> = plain_options(variables).into_iter().collect();
    let profile = variables.get("AWS_PROFILE").map_or("default", String::as_str);
    let home = variables.get("HOME").map(PathBuf::from).unwrap_or_default();
    let file = |variable: &str, name: &str| {
        variables.get(variable).map_or_else(|| home.join(".aws").join(name), PathBuf::from)
    };
    // Never combine a key from the environment with a secret from a file.
    let has_keys = options.contains_key("AWS_ACCESS_KEY_ID");
    let sources = [
        (file("AWS_SHARED_CREDENTIALS_FILE", "credentials"), profile.to_owned()),
        (
            file("AWS_CONFIG_FILE", "config"),
            if profile == "default" { profile.to_owned() } else { format!("profile {profile}") },
        ),
    ];
    for (path, section) in sources {
        let Some(text) = read(&path) else { continue };
        for (key, value) in ini_section(&text, &section) {
            let name = match key {
                "aws_access_key_id" | "aws_secret_access_key" | "aws_session_token" if has_keys => {
                    continue;
                }
                "aws_access_key_id" => "AWS_ACCESS_KEY_ID",
                "aws_secret_access_key" => "AWS_SECRET_ACCESS_KEY",
                "aws_session_token" => "AWS_SESSION_TOKEN",
                "region" => "AWS_REGION",
                "endpoint_url" => "AWS_ENDPOINT_URL",
                _ => continue,
            };
            let given = name == "AWS_REGION" && options.contains_key("AWS_DEFAULT_REGION");
            if !given {
                options.entry(name.to_owned()).or_insert_with(|| value.to_owned());
            }
        }
    }
    options.into_iter().collect()
}

/// Returns the `key = value` pairs of one `[section]`.
fn ini_section<'t>(text: &'t str, section: &str) -> Vec<(&'t str, &'t str)> {
    let mut inside = false;
    let mut found = Vec::new();
    for line in text.lines().map(str::trim) {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            inside = name.trim() == section;
        } else if inside
            && !line.starts_with(['#', ';'])
            && let Some((key, value)) = line.split_once('=')
        {
            found.push((key.trim(), value.trim()));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(of: &[(&str, &str)]) -> Variables {
        of.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn descriptors_have_names_if_they_are_for_this_process() {
        let given = |of: &[(&str, &str)]| {
            let variables = variables(of);
            given(7, |name| variables.get(name).cloned())
        };
        let pid = ("LISTEN_PID", "7");
        let names = ("LISTEN_FDNAMES", "a:b");
        assert_eq!(given(&[pid, ("LISTEN_FDS", "2"), names]), ["a", "b"]);
        assert_eq!(given(&[pid, ("LISTEN_FDS", "3"), names]), ["a", "b", ""]);
        assert_eq!(given(&[pid, ("LISTEN_FDS", "1"), names]), ["a"]);
        assert_eq!(given(&[pid, ("LISTEN_FDS", "4000000000")]).len(), 1024);
        for nothing in [("LISTEN_FDS", "-1"), ("LISTEN_FDS", "x"), ("PATH", "")] {
            assert!(given(&[pid, nothing, names]).is_empty());
        }
        assert!(given(&[("LISTEN_PID", "8"), ("LISTEN_FDS", "2"), names]).is_empty());
    }

    const CREDENTIALS: &str = "[default]\naws_access_key_id = file-key\n\
        aws_secret_access_key=file-secret\n[other]\n# a remark\naws_access_key_id=other-key\n\
        aws_secret_access_key = other-secret\naws_session_token=t\n";
    const CONFIG: &str = "[default]\nregion = eu-1\n[profile other]\nregion=eu-2\n";

    fn gathered(of: &[(&str, &str)]) -> Variables {
        let read = |path: &Path| match path.to_str() {
            Some("/home/a/.aws/credentials") => Some(CREDENTIALS.to_owned()),
            Some("/home/a/.aws/config") => Some(CONFIG.to_owned()),
            _ => None,
        };
        aws_options(&variables(of), read).into_iter().collect()
    }

    #[test]
    fn the_file_supplies_options_without_a_variable() {
        let options = gathered(&[("HOME", "/home/a"), ("PATH", "/bin")]);
        assert_eq!(options["AWS_ACCESS_KEY_ID"], "file-key");
        assert_eq!(options["AWS_SECRET_ACCESS_KEY"], "file-secret");
        assert_eq!(options["AWS_REGION"], "eu-1");
        assert!(!options.contains_key("PATH"));
    }

    #[test]
    fn variables_win_and_halves_are_not_mixed() {
        let options = gathered(&[
            ("HOME", "/home/a"),
            ("AWS_PROFILE", "other"),
            ("AWS_ACCESS_KEY_ID", "k"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_DEFAULT_REGION", "us-1"),
        ]);
        assert_eq!(options["AWS_ACCESS_KEY_ID"], "k");
        assert_eq!(options["AWS_SECRET_ACCESS_KEY"], "s");
        assert!(!options.contains_key("AWS_SESSION_TOKEN"));
        assert!(!options.contains_key("AWS_REGION"));
    }

    #[test]
    fn a_profile_picks_its_sections() {
        let options = gathered(&[("HOME", "/home/a"), ("AWS_PROFILE", "other")]);
        assert_eq!(options["AWS_ACCESS_KEY_ID"], "other-key");
        assert_eq!(options["AWS_SESSION_TOKEN"], "t");
        assert_eq!(options["AWS_REGION"], "eu-2");
    }
}
