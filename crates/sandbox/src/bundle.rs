//! Writes the OCI bundle: a directory with `config.json` and the small files bind-mounted into the
//! sandbox.

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
use super::names;
use super::options::{FirstProcess, RootAccess, SandboxOptions, Terminal};
use super::runtime::Runtime;
use super::security::Confinement;
use super::spec::{self, Access, FirstRun, HostFacts, HostFile};
use super::users;

/// The files of the sysctls that are set in a sandbox with its own network namespace.
const NETWORK_PARAMETERS: [&str; 2] =
    ["/proc/sys/net/ipv4/ip_unprivileged_port_start", "/proc/sys/net/ipv4/ping_group_range"];

/// The resolved configuration of a sandbox: the image configuration merged with the options.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bundle {
    /// The first process's program and arguments.
    pub args: Vec<String>,
    /// Its working directory.
    pub workdir: String,
    /// Its user id.
    pub uid: u32,
    /// Its group id.
    pub gid: u32,
    /// The signal that stops it.
    pub stop_signal: i32,
    /// The path of the OCI runtime.
    pub runtime: String,
    /// The confinement. `None` in records written by earlier versions.
    #[serde(default)]
    pub confinement: Option<Confinement>,
}

/// Writes the OCI bundle and returns the resolved configuration. The root must be mounted, because
/// the user is looked up in its `/etc/passwd`. `image` is the image's OCI configuration (JSON), if
/// any.
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
    let confinement = options.security.confinement()?;
    let run = FirstRun {
        args: &args,
        env: &env,
        workdir: &workdir,
        identity: &identity,
        stop_signal: image.stop_signal,
        confinement: &confinement,
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
        confinement: Some(confinement),
    })
}

/// Creates the files to bind-mount into the sandbox.
fn show(layout: &Layout, options: &SandboxOptions) -> Result<Vec<HostFile>, SandboxError> {
    let hostname = spec::hostname(layout, options);
    let own = names::make(&layout.names(), options, &hostname)?;
    let access = match options.root {
        RootAccess::Writable => Access::Write,
        RootAccess::ReadOnly => Access::Read,
    };
    let mut shown: Vec<HostFile> =
        own.into_iter().map(|own| HostFile { from: own.from, at: own.at, access }).collect();
    if let (FirstProcess::Wait, Some(program)) = (&options.process, first::program()) {
        let dir = layout.dev_files();
        files::make_private_dirs(&dir)?;
        let from = dir.join("wait");
        files::write(&from, &program)?;
        fs::set_permissions(&from, Permissions::from_mode(0o755))
            .map_err(SandboxError::io("set the mode of", &from))?;
        shown.push(HostFile { from, at: first::SHOWN_AT, access: Access::Read });
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
    let path = Path::new("/proc/self/oom_score_adj");
    let text = fs::read_to_string(path).map_err(SandboxError::io("read", path))?;
    Ok(HostFacts {
        unified_cgroups,
        bounds_swap,
        open_files,
        oom_score_adj: text.trim().parse().unwrap_or_default(),
        network_parameters: NETWORK_PARAMETERS.iter().all(|path| Path::new(path).exists()),
    })
}
