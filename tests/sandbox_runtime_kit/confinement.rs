//! What programs in a sandbox may do, with docker's documented behaviour as the measure; and the files
//! that are theirs alone.

use std::fs;
use std::os::unix::fs::symlink;

use inlay_sandbox::{
    FirstProcess, Limits, Network, Privileges, SandboxOptions, Seccomp, Security, Stdin,
};

use super::sandbox_runtime_kit::{Box, exec, shell};

fn on(runtime: &str) -> SandboxOptions {
    SandboxOptions { runtime: Some(runtime.to_owned()), ..Default::default() }
}

fn secured(runtime: &str, security: Security) -> SandboxOptions {
    SandboxOptions { security, ..on(runtime) }
}

/// Makes system calls, each in a process of its own: a line of `NUMBER ARGUMENT…` in, a line with the
/// error's name, or `ok`, out.
const CALLS: &str = r#"
import ctypes, errno, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def attempt(words):
    number, *arguments = [int(word, 0) for word in words]
    result = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(a) for a in arguments])
    return "ok" if result >= 0 else errno.errorcode[ctypes.get_errno()]
for line in LINES.splitlines():
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        parent = os.getpid()
        answer = attempt(line.split())
        # A clone that went through is a second process here.
        if os.getpid() == parent:
            os.write(into, answer.encode())
        os._exit(0)
    os.close(into)
    print(os.read(out, 100).decode(), flush=True)
    os.close(out)
    os.waitpid(child, 0)
"#;

/// What x86-64 system calls give in a container of docker with its default profile and capabilities.
/// Where it can be told apart, the arguments would give something else without the profile.
const TABLE: [(&str, &str, &str); 63] = [
    // Keyrings.
    ("keyctl", "250 0 -1", "EPERM"),
    ("add_key", "248 0 0 0 0 0", "EPERM"),
    ("request_key", "249 0 0 0 0", "EPERM"),
    // What opens much of the kernel.
    ("bpf", "321 999 0 0", "EPERM"),
    ("io_uring_setup", "425 0 0", "EPERM"),
    ("io_uring_enter", "426 -1 0 0 0 0 0", "EPERM"),
    ("io_uring_register", "427 -1 0 0 0", "EPERM"),
    ("userfaultfd", "323 0xffff", "EPERM"),
    ("perf_event_open", "298 0 0 -1 -1 0", "EPERM"),
    ("kexec_load", "246 0 0 0 0", "EPERM"),
    ("init_module", "175 0 0 0", "EPERM"),
    ("finit_module", "313 -1 0 0", "EPERM"),
    ("delete_module", "176 0 0", "EPERM"),
    ("iopl", "172 0", "EPERM"),
    ("ioperm", "173 0 0 0", "EPERM"),
    ("lookup_dcookie", "212 0 0 0", "EPERM"),
    ("fanotify_init", "300 0 0", "EPERM"),
    // Mounts and namespaces.
    ("mount", "165 0 0 0 0 0", "EPERM"),
    ("umount2", "166 0 0xffff", "EPERM"),
    ("fsopen", "430 0 0", "EPERM"),
    ("fsconfig", "431 -1 0 0 0 0", "EPERM"),
    ("fsmount", "432 -1 0 0", "EPERM"),
    ("fspick", "433 -1 0 0", "EPERM"),
    ("open_tree", "428 -1 0 0", "EPERM"),
    ("move_mount", "429 -1 0 -1 0 0", "EPERM"),
    ("mount_setattr", "442 -1 0 0 0 0", "EPERM"),
    ("pivot_root", "155 0 0", "EPERM"),
    ("unshare of nothing", "272 0", "EPERM"),
    ("unshare(CLONE_NEWUSER)", "272 0x10000000", "EPERM"),
    ("setns", "308 -1 0", "EPERM"),
    ("clone(CLONE_NEWUSER)", "56 0x10000011 0 0 0 0", "EPERM"),
    ("clone(CLONE_NEWNET)", "56 0x40000011 0 0 0 0", "EPERM"),
    ("clone(CLONE_NEWNS)", "56 0x00020011 0 0 0 0", "EPERM"),
    ("clone(SIGCHLD)", "56 0x11 0 0 0 0", "ok"),
    ("clone3", "435 0 0", "ENOSYS"),
    ("open_by_handle_at", "304 -1 0 0", "EPERM"),
    ("name_to_handle_at", "303 -1 0 0 0 0", "EFAULT"),
    // Other processes.
    ("ptrace(PTRACE_TRACEME)", "101 0 0 0 0", "ok"),
    ("process_vm_readv", "310 -1 0 0 0 0 0", "ok"),
    ("process_vm_writev", "311 -1 0 0 0 0 0", "ok"),
    ("kcmp", "312 -1 -1 0 0 0", "EPERM"),
    ("pidfd_open", "434 -1 0", "EINVAL"),
    ("pidfd_getfd", "438 -1 -1 0", "EPERM"),
    ("process_madvise", "440 -1 0 0 0 0", "EPERM"),
    // The host's clock, memory and machine.
    ("settimeofday", "164 0 0", "EPERM"),
    ("clock_settime", "227 99 0", "EPERM"),
    ("set_mempolicy", "238 0 0 0", "EPERM"),
    ("get_mempolicy", "239 0 0 0 0 0", "EPERM"),
    ("mbind", "237 0 0 0 0 0 0", "EPERM"),
    ("move_pages", "279 0 0 0 0 0 0", "EPERM"),
    ("syslog", "103 10 0 0", "EPERM"),
    ("swapon", "167 0 0", "EPERM"),
    ("reboot", "169 0 0 0 0", "EPERM"),
    ("acct", "163 0", "EPERM"),
    ("quotactl", "179 0 0 0 0", "EPERM"),
    ("vhangup", "153", "EPERM"),
    ("sysfs", "139 3 0 0", "EPERM"),
    // What programs need.
    ("personality as it is", "135 0xffffffff", "ok"),
    ("personality(PER_LINUX32)", "135 0x8", "ok"),
    ("memfd_create", "319 0 0xffff", "EINVAL"),
    ("statx", "332 -1 0 0 0 0", "EFAULT"),
    ("chroot", "161 0", "EFAULT"),
    // Newer than every profile: C libraries do without it.
    ("a call of a later kernel", "600", "ENOSYS"),
];

/// `socket` of an address family, and what it gives; `None`: whatever the kernel says but EPERM.
const SOCKETS: [(&str, u64, Option<&str>); 8] = [
    ("AF_UNIX", 1, Some("ok")),
    ("AF_INET", 2, Some("ok")),
    ("AF_NETLINK", 16, None),
    ("AF_ALG", 38, Some("EPERM")),
    ("AF_NFC", 39, None),
    ("AF_VSOCK", 40, Some("EPERM")),
    // The kernel takes the low half of the register.
    ("AF_ALG below other bits", 0x1_0000_0026, Some("EPERM")),
    ("AF_VSOCK below other bits", 0x1_0000_0028, Some("EPERM")),
];

fn answers(sandbox: &Box, calls: &[&str]) -> Vec<String> {
    let mut command = shell("");
    command.command = vec!["python3".to_owned(), "-".to_owned()];
    command.stdin = Stdin::Open;
    let program = format!("LINES = {:?}\n{CALLS}", calls.join("\n"));
    let output = exec(&sandbox.monitor, &command, program.as_bytes());
    assert_eq!((output.code, &*output.stderr), (0, ""), "{output:?}");
    let answers: Vec<String> = output.stdout.lines().map(str::to_owned).collect();
    assert_eq!(answers.len(), calls.len(), "{output:?}");
    answers
}

pub(crate) fn system_calls_end_as_in_docker(runtime: &str) {
    let sandbox = Box::started(on(runtime));
    let calls: Vec<&str> = TABLE.iter().map(|(_, call, _)| *call).collect();
    let answers = answers(&sandbox, &calls);
    let wrong: Vec<_> = TABLE
        .iter()
        .zip(&answers)
        .filter(|((_, _, wanted), answer)| *answer != wanted)
        .map(|((name, _, wanted), answer)| format!("{name}: {answer} instead of {wanted}"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
    let calls: Vec<_> = SOCKETS.iter().map(|(_, family, _)| format!("41 {family} 2 0")).collect();
    let calls: Vec<_> = calls.iter().map(String::as_str).collect();
    for ((name, _, wanted), answer) in SOCKETS.iter().zip(self::answers(&sandbox, &calls)) {
        match wanted {
            Some(wanted) => assert_eq!(answer, *wanted, "{name}"),
            None => assert_ne!(answer, "EPERM", "{name}"),
        }
    }
    // Not all but some: the address space as it is without randomization. crun can't tell it from
    // what is newer.
    let odd = answers_of(&sandbox, "135 0x40000");
    assert_eq!(odd, if runtime == "crun" { "ENOSYS" } else { "EPERM" });
    // Set-user-id programs, threads and subprocesses are as usual.
    let script = "import subprocess, threading\n\
        t = threading.Thread(target=lambda: print('thread')); t.start(); t.join()\n\
        print(subprocess.run(['id', '-u'], capture_output=True, text=True).stdout)";
    assert_eq!(sandbox.sh(&format!("python3 -c \"{script}\"")).stdout, "thread\n0\n\n");
    sandbox.remove();
}

fn answers_of(sandbox: &Box, call: &str) -> String {
    answers(sandbox, &[call]).remove(0)
}

pub(crate) fn capabilities_and_privileges_are_as_asked(runtime: &str) {
    let words = |of: &[&str]| of.iter().map(|word| (*word).to_owned()).collect();
    let show = "grep -E 'CapEff|CapBnd|NoNewPrivs|^Seccomp:' /proc/self/status | cut -f2 | xargs";
    let sandbox = Box::started(secured(
        runtime,
        Security {
            cap_drop: words(&["ALL"]),
            cap_add: words(&["sys_admin", "CAP_CHOWN"]),
            privileges: Privileges::Fixed,
            ..Security::default()
        },
    ));
    assert_eq!(sandbox.sh(show).stdout, "0000000000200001 0000000000200001 1 2\n");
    // The capability lifts what the profile says of its calls, and of no others.
    assert_eq!(answers_of(&sandbox, "272 0"), "ok");
    assert_eq!(answers_of(&sandbox, "250 0 -1"), "EPERM");
    assert_eq!(sandbox.sh("mount -t tmpfs tmpfs /mnt && echo mounted").stdout, "mounted\n");
    let denied = sandbox.sh("cp /usr/bin/id /id && chmod 4755 /id");
    assert_eq!(denied.code, 0, "{denied:?}");
    sandbox.remove();

    // With no_new_privs, a set-user-id program stays who its caller is; without, it does not.
    for (privileges, id) in [(Privileges::Fixed, "1000\n"), (Privileges::Gained, "0\n")] {
        let sandbox =
            Box::started(secured(runtime, Security { privileges, ..Security::default() }));
        let script = "cp /usr/bin/id /id && chmod 4755 /id && \
            setpriv --reuid=1000 --clear-groups /id -u";
        assert_eq!(sandbox.sh(script).stdout, id, "{privileges:?}");
        sandbox.remove();
    }

    let sandbox = Box::started(secured(
        runtime,
        Security { seccomp: Seccomp::Unconfined, ..Security::default() },
    ));
    assert_eq!(sandbox.sh(show).stdout, "00000000a80425fb 00000000a80425fb 0 0\n");
    assert_eq!(answers_of(&sandbox, "272 0"), "ok");
    sandbox.remove();
}

pub(crate) fn information_about_the_host_is_hidden(runtime: &str) {
    let sandbox = Box::started(on(runtime));
    for path in ["/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/timer_list"] {
        if fs::exists(path).unwrap() {
            assert_eq!(sandbox.sh(&format!("wc -c < {path}")).stdout.trim(), "0", "{path}");
        }
    }
    for path in ["/sys/firmware", "/sys/devices/virtual/powercap"] {
        let listed = sandbox.sh(&format!("ls -A {path} 2>/dev/null"));
        assert_eq!(listed.stdout, "", "{path}");
    }
    for path in ["/proc/sys/kernel/domainname", "/proc/sysrq-trigger", "/sys/kernel/mm/ksm/run"] {
        let written = sandbox.sh(&format!("test ! -e {path} || echo x > {path}"));
        assert!(written.code == 0 || written.stderr.contains("Read-only"), "{path}: {written:?}");
        assert!(!fs::exists(path).unwrap() || written.code != 0, "{path}");
    }
    // Its own network: every port, and ping, for everybody.
    let script = "setpriv --reuid=1000 --clear-groups python3 -c \
        'import socket; socket.socket().bind((\"127.0.0.1\", 80)); print(80)'";
    assert_eq!(sandbox.sh(script).stdout, "80\n");
    let pts = sandbox.sh("grep /dev/pts /proc/mounts; stat -c '%F %t:%T %a' /dev/null /dev/fuse");
    assert!(pts.stdout.contains("gid=5,mode=620,ptmxmode=666"), "{pts:?}");
    assert!(pts.stdout.contains("character special file 1:3 666"), "{pts:?}");
    assert!(!pts.stdout.contains("a:e5"), "{pts:?}");
    sandbox.remove();
}

pub(crate) fn processes_and_shared_memory_have_limits(runtime: &str) {
    let limits = Limits { pids: Some(0), shm: Some(3 << 20), ..Limits::default() };
    let sandbox = Box::started(SandboxOptions { limits, ..on(runtime) });
    let max = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null";
    assert_eq!(sandbox.sh(max).stdout, "max\n");
    let much = sandbox.sh("cat /dev/zero > /dev/shm/x; stat -c %s /dev/shm/x");
    assert_eq!(much.stdout, format!("{}\n", 3 << 20), "{much:?}");
    sandbox.remove();
}

pub(crate) fn a_sandbox_has_files_of_its_own_in_etc(runtime: &str) {
    let options = SandboxOptions {
        hostname: Some("box-1".to_owned()),
        hosts: vec!["db:10.1.2.3".parse().unwrap()],
        dns: vec!["9.9.9.9".parse().unwrap()],
        dns_search: vec!["example.org".to_owned()],
        ..on(runtime)
    };
    let sandbox = Box::started(options.clone());
    let resolve = "import socket; print(*[socket.gethostbyname(n) for n in \
        (socket.gethostname(), 'localhost', 'db')])";
    assert_eq!(
        sandbox.sh(&format!("python3 -c \"{resolve}\"")).stdout,
        "127.0.1.1 127.0.0.1 10.1.2.3\n"
    );
    assert_eq!(
        sandbox.sh("cat /etc/resolv.conf /etc/hostname").stdout,
        "search example.org\nnameserver 9.9.9.9\nbox-1\n"
    );
    let added = sandbox.sh("echo '10.9.9.9 kafka' >> /etc/hosts && getent hosts kafka");
    assert!(added.stdout.starts_with("10.9.9.9"), "{added:?}");
    for (name, text) in [("resolv.conf", "nameserver 127.0.0.1\n"), ("hostname", "mine\n")] {
        let written = sandbox.sh(&format!("printf '{text}' > /etc/{name}; cat /etc/{name}"));
        assert_eq!(written.stdout, text);
    }
    // They are no changes of the root.
    for name in ["hosts", "hostname", "resolv.conf"] {
        let meta = fs::symlink_metadata(sandbox.upper().join("etc").join(name));
        assert!(meta.map_or(true, |meta| meta.len() == 0), "{name}");
    }
    sandbox.remove();

    // The host's network brings the host's names, as a copy.
    let host = fs::read_to_string("/etc/hosts").unwrap_or_default();
    let sandbox = Box::started(SandboxOptions { network: Network::Host, ..options });
    let seen = sandbox.sh("cat /etc/hosts").stdout;
    assert!(seen.starts_with(&host) && seen.contains("127.0.1.1\tbox-1\n"), "{seen}");
    sandbox.sh("echo overwritten > /etc/hosts");
    assert_eq!(fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    sandbox.remove();
}

/// Changes that an image may have, and what is then at `/etc/hosts`.
pub(crate) fn images_without_etc_or_with_links_there_get_the_files(runtime: &str) {
    for image in ["missing", "absolute", "upwards", "dangling"] {
        let command = ["/bin/cat", "/etc/hosts"].map(str::to_owned).to_vec();
        let process = FirstProcess::Image { entrypoint: None, command };
        let sandbox = Box::prepared(SandboxOptions { process, ..on(runtime) }, &[], None);
        let etc = sandbox.layout.rootfs().join("etc");
        match image {
            "missing" => fs::remove_dir_all(&etc).unwrap(),
            "absolute" => {
                fs::write(sandbox.layout.rootfs().join("hosts-of-image"), "image").unwrap();
                let _ = fs::remove_file(etc.join("hosts"));
                symlink("/hosts-of-image", etc.join("hosts")).unwrap();
            }
            "upwards" => {
                let _ = fs::remove_file(etc.join("resolv.conf"));
                let up = "../../../../run/systemd/resolve/stub-resolv.conf";
                symlink(up, etc.join("resolv.conf")).unwrap();
            }
            _ => {
                let _ = fs::remove_file(etc.join("hosts"));
                symlink("/no/such/hosts", etc.join("hosts")).unwrap();
            }
        }
        sandbox.spawn().unwrap().start().unwrap();
        sandbox.wait_for_log(sandbox.layout.id().as_str());
        assert!(!fs::exists("/hosts-of-image").unwrap() && !fs::exists("/no/such").unwrap());
        sandbox.remove();
    }
}
