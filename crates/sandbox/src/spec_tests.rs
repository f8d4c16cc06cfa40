//! Tests the runtime's configuration by facts and against the specification's own types.

use std::path::Path;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use serde_json::{Value, json};

use super::id::SandboxId;
use super::layout::Layout;
use super::options::{Limits, Network, RootAccess, SandboxOptions, SecretName, Terminal};
use super::security::{Confinement, Privileges, Seccomp, Security};
use super::spec::*;
use super::users::Identity;

const HYBRID: HostFacts = HostFacts {
    unified_cgroups: false,
    bounds_swap: true,
    open_files: 20_000,
    oom_score_adj: 0,
    network_parameters: true,
};

fn layout() -> Layout {
    Layout::of(Path::new("/state"), &"sb-0123456789ab".parse::<SandboxId>().unwrap())
}

fn made(options: &SandboxOptions, uid: u32, host: HostFacts) -> Value {
    let identity = Identity { uid, gid: 7, groups: vec![8, 9], home: "/".to_owned() };
    let (args, env) = (["id".to_owned()], ["A=1".to_owned()]);
    let confinement = Confinement {
        capabilities: vec!["CAP_CHOWN".to_owned(), "CAP_SYS_CHROOT".to_owned()],
        seccomp: options.security.seccomp,
        apparmor: options.security.apparmor.clone(),
        notes: Vec::new(),
    };
    let run = FirstRun {
        args: &args,
        env: &env,
        workdir: "/w",
        identity: &identity,
        stop_signal: 3,
        confinement: &confinement,
    };
    let shown = [
        HostFile { from: "/state/hosts".into(), at: "/etc/hosts", access: Access::Write },
        HostFile { from: "/state/wait".into(), at: "/dev/wait", access: Access::Read },
    ];
    let value = spec(&layout(), options, &run, &shown, host, Path::new("/usr/bin/runc"));
    // The specification's own types must accept every configuration.
    let typed: Spec = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(typed.process().as_ref().unwrap().user().uid(), uid);
    value
}

fn mount<'a>(spec: &'a Value, at: &str) -> Option<&'a Value> {
    spec["mounts"].as_array().unwrap().iter().find(|mount| mount["destination"] == at)
}

fn kinds(spec: &Value) -> Vec<&str> {
    let all = spec["linux"]["namespaces"].as_array().unwrap();
    all.iter().map(|namespace| namespace["type"].as_str().unwrap()).collect()
}

#[test]
fn a_sandbox_is_confined_as_docker_confines_it() {
    let spec = made(&SandboxOptions::default(), 0, HYBRID);
    assert_eq!(kinds(&spec), ["pid", "ipc", "uts", "mount", "network"]);
    assert_eq!(
        spec["root"],
        json!({"path": "/state/sandboxes/sb-0123456789ab/rootfs", "readonly": false})
    );
    assert_eq!(spec["hostname"], "sb-0123456789ab");
    let linux = &spec["linux"];
    assert_eq!(linux["cgroupsPath"], "/inlay/sb-0123456789ab");
    assert_eq!(linux["rootfsPropagation"], "rprivate");
    assert_eq!(linux["resources"], json!({"devices": [{"allow": false, "access": "rwm"}]}));
    for path in ["/proc/kcore", "/proc/interrupts", "/sys/devices/virtual/powercap"] {
        assert!(linux["maskedPaths"].as_array().unwrap().contains(&json!(path)), "{path}");
    }
    assert_eq!(linux["seccomp"]["defaultAction"], "SCMP_ACT_ERRNO");
    assert_eq!(linux["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
    assert!(linux["readonlyPaths"].as_array().unwrap().contains(&json!("/proc/sys")));
    let process = &spec["process"];
    assert_eq!(process["user"], json!({"uid": 0, "gid": 7, "additionalGids": [8, 9]}));
    assert_eq!(process["capabilities"]["effective"], json!(["CAP_CHOWN", "CAP_SYS_CHROOT"]));
    assert_eq!(process["terminal"], false);
    assert_eq!(process["noNewPrivileges"], false);
    assert!(process.get("apparmorProfile").is_none() && process.get("oomScoreAdj").is_none());
    assert_eq!(process["rlimits"][0]["soft"], 20_000);
    assert_eq!(spec["annotations"][STOP_SIGNAL], "3");
    assert_eq!(spec["annotations"][RUNTIME], "/usr/bin/runc");
    let hosts = &mount(&spec, "/etc/hosts").unwrap()["options"];
    assert_eq!(hosts, &json!(["rbind", "rprivate", "rw", "nosuid", "nodev"]));
    let wait = &mount(&spec, "/dev/wait").unwrap()["options"];
    assert_eq!(wait, &json!(["rbind", "rprivate", "ro", "nosuid", "nodev"]));
    let shm = mount(&spec, "/dev/shm").unwrap()["options"].as_array().unwrap();
    assert!(shm.contains(&json!("size=67108864")), "{shm:?}");
    assert!(mount(&spec, "/run/secrets").is_none());
    for at in ["/sys", "/sys/fs/cgroup"] {
        assert!(mount(&spec, at).unwrap()["options"].as_array().unwrap().contains(&json!("ro")));
    }
}

#[test]
fn each_option_changes_its_own_part_of_the_spec() {
    let options = SandboxOptions {
        terminal: Terminal::Pty,
        network: Network::Host,
        root: RootAccess::ReadOnly,
        hostname: Some("h".to_owned()),
        secrets: vec!["token".parse::<SecretName>().unwrap()],
        limits: Limits {
            memory: Some(64 << 20),
            cpus: Some(1.5),
            pids: Some(9),
            disk: None,
            shm: Some(1 << 30),
        },
        security: Security {
            privileges: Privileges::Fixed,
            seccomp: Seccomp::Unconfined,
            apparmor: Some("mine".to_owned()),
            ..Security::default()
        },
        ..SandboxOptions::default()
    };
    let host = HostFacts {
        unified_cgroups: true,
        bounds_swap: true,
        open_files: u64::MAX,
        oom_score_adj: -500,
        network_parameters: true,
    };
    let spec = made(&options, 1000, host);
    assert_eq!(kinds(&spec), ["pid", "ipc", "uts", "mount", "cgroup"]);
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["hostname"], "h");
    assert_eq!(spec["process"]["terminal"], true);
    assert_eq!(spec["process"]["capabilities"]["effective"], json!([]));
    assert_eq!(spec["process"]["capabilities"]["bounding"].as_array().unwrap().len(), 2);
    assert_eq!(spec["process"]["noNewPrivileges"], true);
    assert_eq!(spec["process"]["apparmorProfile"], "mine");
    assert_eq!(spec["process"]["oomScoreAdj"], 0);
    assert!(spec["linux"].get("seccomp").is_none());
    assert!(spec["linux"].get("sysctl").is_none(), "the network is the host's");
    let shm = mount(&spec, "/dev/shm").unwrap()["options"].as_array().unwrap();
    assert!(shm.contains(&json!("size=1073741824")), "{shm:?}");
    let resources = &spec["linux"]["resources"];
    assert_eq!(resources["memory"], json!({"limit": 67_108_864, "swap": 67_108_864}));
    assert_eq!(resources["cpu"], json!({"quota": 150_000, "period": 100_000}));
    assert_eq!(resources["pids"], json!({"limit": 9}));
    let secrets = mount(&spec, "/run/secrets").unwrap();
    assert_eq!(secrets["source"], "/state/sandboxes/sb-0123456789ab/secrets");
    assert_eq!(secrets["options"], json!(["rbind", "rprivate", "ro", "nosuid", "nodev", "noexec"]));
    let plain = made(&options, 0, HostFacts { bounds_swap: false, ..host });
    assert_eq!(plain["linux"]["resources"]["memory"], json!({"limit": 67_108_864}));
}

#[test]
fn no_namespace_can_be_made_inside() {
    let spec = made(&SandboxOptions::default(), 0, HYBRID);
    let typed: Spec = serde_json::from_value(spec).unwrap();
    let linux = typed.linux().as_ref().unwrap();
    let namespaces = linux.namespaces().as_ref().unwrap();
    assert!(namespaces.iter().all(|one| one.typ() != LinuxNamespaceType::User));
    let rules = linux.seccomp().as_ref().unwrap().syscalls().as_ref().unwrap();
    let named =
        |name: &str| rules.iter().filter(|rule| rule.names().iter().any(|n| n == name)).count();
    assert_eq!((named("unshare"), named("setns"), named("clone3"), named("clone")), (0, 0, 1, 1));
    assert_eq!((named("execve"), named("ptrace")), (1, 1));
}

#[test]
fn no_bound_of_processes_is_none() {
    for pids in [None, Some(0)] {
        let options = SandboxOptions {
            limits: Limits { pids, ..Limits::default() },
            ..SandboxOptions::default()
        };
        assert!(made(&options, 0, HYBRID)["linux"]["resources"].get("pids").is_none(), "{pids:?}");
    }
}
