//! What the runtime is given: a directory with `config.json`, and the small files that are shown in
//! the sandbox.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::process::{Resource, getrlimit};
use serde::{Deserialize, Serialize};

use super::cgroup::{Version, hierarchies};
use super::error::SandboxError;
use super::files;
use super::first;
use super::image::{ImageConfig, has_variable};
use super::layout::Layout;
use super::options::{FirstProcess, Network, SandboxOptions, Terminal};
use super::runtime::Runtime;
use super::spec::{self, FirstRun, HostFacts, Shown};
use super::users;

/// What runs in a sandbox, as the image and the options say together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The first program and its arguments.
    pub args: Vec<String>,
    /// Its working directory.
    pub workdir: String,
    /// As whom it runs: the number of the user.
    pub uid: u32,
    /// The number of the group.
    pub gid: u32,
    /// What is sent to it to stop it.
    pub stop_signal: i32,
    /// The OCI runtime: its path.
    pub runtime: String,
}

/// Writes what the runtime is given. The root must be mounted. `image` is the image's configuration,
/// JSON as OCI has it, if there is one.
pub fn write_bundle(
    layout: &Layout,
    options: &SandboxOptions,
    image: Option<&[u8]>,
) -> Result<Bundle, SandboxError> {
    options.check()?;
    let image = ImageConfig::parse(image.unwrap_or_default())?;
    let args = image.args(&options.process, first::ARGS)?;
    let workdir = image.workdir(options)?;
    let identity = users::resolve(&layout.rootfs(), image.user(options))?;
    let mut always = vec![format!("HOSTNAME={}", spec::hostname(layout, options))];
    if options.terminal == Terminal::Pty {
        always.push("TERM=xterm".to_owned());
    }
    let mut env = image.env(options, &always)?;
    if !has_variable(&env, "HOME") {
        env.push(format!("HOME={}", identity.home));
    }
    let shown = show(layout, options)?;
    let run = FirstRun {
        args: &args,
        env: &env,
        workdir: &workdir,
        identity: &identity,
        stop_signal: image.stop_signal,
    };
    let runtime = Runtime::choose(options.runtime.as_deref())?;
    let config = spec::spec(layout, options, &run, &shown, host_facts()?, &runtime);
    files::make_private_dirs(&layout.bundle())?;
    files::write_json(&layout.config(), &config)?;
    Ok(Bundle {
        args,
        workdir,
        uid: identity.uid,
        gid: identity.gid,
        stop_signal: image.stop_signal,
        runtime: runtime.to_string_lossy().into_owned(),
    })
}

/// Makes the files that are shown in the sandbox.
fn show(layout: &Layout, options: &SandboxOptions) -> Result<Vec<Shown>, SandboxError> {
    let dir = layout.shown();
    files::make_private_dirs(&dir)?;
    let mut shown = Vec::new();
    let mut make = |name: &str, at, bytes: &[u8], mode| {
        let from = dir.join(name);
        files::write(&from, bytes)?;
        fs::set_permissions(&from, Permissions::from_mode(mode))
            .map_err(SandboxError::io("set the mode of", &from))?;
        shown.push(Shown { from, at });
        Ok(())
    };
    if let (FirstProcess::Wait, Some(program)) = (&options.process, first::program()) {
        make("wait", first::SHOWN_AT, &program, 0o755)?;
    }
    let hostname = spec::hostname(layout, options);
    make("hostname", "/etc/hostname", format!("{hostname}\n").as_bytes(), 0o644)?;
    if options.network == Network::None {
        let hosts = format!(
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n127.0.1.1\t{hostname}\n"
        );
        make("hosts", "/etc/hosts", hosts.as_bytes(), 0o644)?;
        return Ok(shown);
    }
    for at in ["/etc/hosts", "/etc/resolv.conf"] {
        // The real file: a link may lead to where the runtime would look in the sandbox.
        if let Ok(from) = fs::canonicalize(at) {
            shown.push(Shown { from, at });
        }
    }
    Ok(shown)
}

fn host_facts() -> Result<HostFacts, SandboxError> {
    let all = hierarchies()?;
    let unified_cgroups = !all.is_empty() && all.iter().all(|of| of.version == Version::V2);
    let bounds_swap = match all.iter().find(|of| of.controls("memory")) {
        Some(memory) => memory.mountpoint.join("memory.memsw.limit_in_bytes").exists(),
        None => unified_cgroups && Path::new("/proc/swaps").exists(),
    };
    let open_files = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
    Ok(HostFacts { unified_cgroups, bounds_swap, open_files })
}
