//! The runtime side of sandboxes with a real runtime on a small Debian. Needs root and cgroups.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test ends at the first surprise"
)]

#[path = "sandbox_runtime_kit/confinement.rs"]
mod confinement;
mod sandbox_runtime_kit;

use std::fs;
use std::io::Write;
use std::time::Duration;

use confinement::{
    a_sandbox_has_files_of_its_own_in_etc, capabilities_and_privileges_are_as_asked,
    images_without_etc_or_with_links_there_get_the_files, information_about_the_host_is_hidden,
    processes_and_shared_memory_have_limits, system_calls_end_as_in_docker,
};
use inlay_sandbox::{
    ExecOptions, ExitCause, FirstProcess, Found, Frame, FrameKind, Limits, LogFrom, LogReader,
    LogStream, Network, RootAccess, SandboxError, SandboxOptions, Secret, Stdin, StopOptions,
    Terminal, WindowSize, recover, remove, stop,
};
use sandbox_runtime_kit::{Box, Output, exec, shell};

fn run(command: &[&str]) -> SandboxOptions {
    let command = command.iter().map(|word| (*word).to_owned()).collect();
    let process = FirstProcess::Image { entrypoint: None, command };
    SandboxOptions { process, ..Default::default() }
}

/// How long freezing a sandbox may take.
const WITHIN: Duration = Duration::from_secs(20);

/// Makes each of these a test with each runtime.
macro_rules! with_each_runtime {
    ($($name:ident),* $(,)?) => {
        mod runc {
            $(#[test] fn $name() { super::$name("runc"); })*
        }
        mod crun {
            $(#[test] fn $name() { super::$name("crun"); })*
        }
    };
}

with_each_runtime!(
    a_sandbox_waits_runs_things_stops_and_leaves_nothing,
    users_variables_and_directories_are_those_that_were_asked_for,
    programs_receive_stdin_and_signals_and_terminals_have_a_size,
    failures_to_start_programs_have_dockers_exit_codes,
    limits_hold,
    secrets_are_seen_inside_and_nowhere_else,
    a_read_only_root_can_not_be_changed_and_the_host_is_reached_only_if_wanted,
    dangerous_system_calls_are_refused,
    system_calls_end_as_in_docker,
    capabilities_and_privileges_are_as_asked,
    information_about_the_host_is_hidden,
    processes_and_shared_memory_have_limits,
    a_sandbox_has_files_of_its_own_in_etc,
    images_without_etc_or_with_links_there_get_the_files,
    a_terminal_is_the_first_processes_too,
    a_frozen_sandbox_stands_still_and_always_runs_on,
    a_sandbox_without_its_monitor_is_ended_and_its_changes_stay,
    output_and_exit_code_are_delivered_despite_immediate_removal,
    slow_readers_get_all_output_without_delaying_others,
);

/// What a host looks like to this process that has the unified hierarchy only, which is mounted anew
/// in a namespace of its own: v1 keeps the controllers, so limits can't be tried there.
const UNIFIED: &str = r#"
for dir in $(grep ' - cgroup' /proc/self/mountinfo | cut -d' ' -f5 | sort -r); do umount "$dir"; done
grep -q ' /sys/fs/cgroup ' /proc/self/mountinfo && umount /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@"
"#;

#[test]
fn hosts_with_the_unified_hierarchy_only_are_as_good() {
    let status = std::process::Command::new("unshare")
        .args(["--mount", "sh", "-c", UNIFIED, "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["runc::", "killed_during", "--skip", "limits_hold", "--skip", "have_limits"])
        .status()
        .unwrap();
    assert!(status.success());
}

fn on(runtime: &str) -> SandboxOptions {
    SandboxOptions { runtime: Some(runtime.to_owned()), ..Default::default() }
}

fn run_on(runtime: &str, command: &[&str]) -> SandboxOptions {
    SandboxOptions { runtime: Some(runtime.to_owned()), ..run(command) }
}

fn logged(sandbox: &Box) -> String {
    let mut reader = LogReader::open(&sandbox.layout, LogFrom::default()).unwrap();
    let mut text = String::new();
    while let Some(entry) = reader.next_entry().unwrap() {
        text.push_str(&String::from_utf8_lossy(&entry.bytes()));
    }
    text
}

fn a_sandbox_waits_runs_things_stops_and_leaves_nothing(runtime: &str) {
    let sandbox = Box::started(on(runtime));
    let Output { stdout, stderr, code } = sandbox.sh("echo out; echo err >&2; exit 7");
    assert_eq!((stdout.as_str(), stderr.as_str(), code), ("out\n", "err\n", 7));
    assert_eq!(sandbox.sh("kill -9 $$").code, 137);
    assert_eq!(sandbox.sh("cat /proc/1/comm").stdout, "inlay-wait\n");
    // Only the loopback interface, and the names of the host itself.
    assert_eq!(sandbox.sh("ls /sys/class/net").stdout, "lo\n");
    let name = sandbox.layout.id().to_string();
    assert_eq!(sandbox.sh("cat /etc/hostname; hostname").stdout, format!("{name}\n{name}\n"));
    let found =
        sandbox.sh("python3 -c 'import socket; print(socket.gethostbyname(\"localhost\"))'");
    assert_eq!(found.stdout, "127.0.0.1\n");
    let status = sandbox.monitor.status().unwrap();
    assert!(status.started && status.exit.is_none() && status.execs == 0, "{status:?}");
    assert!(matches!(recover(&sandbox.layout).unwrap(), Found::Running(_)));
    let exit = stop(&sandbox.layout, StopOptions::default()).unwrap();
    assert_eq!((exit.code, exit.cause, exit.oom_killed), (0, ExitCause::Ended, false));
    assert_eq!(stop(&sandbox.layout, StopOptions::default()).unwrap(), exit);
    assert_eq!(recover(&sandbox.layout).unwrap(), Found::Stopped(exit));
    assert!(matches!(sandbox.monitor.status(), Err(SandboxError::NotRunning(_))));
    // What was only shown in the sandbox is empty in its changes.
    for shown in ["etc/hostname", "etc/hosts"] {
        let meta = fs::symlink_metadata(sandbox.upper().join(shown));
        assert!(meta.map_or(true, |meta| meta.len() == 0), "{shown}");
    }
    assert!(!sandbox.upper().join("dev/inlay-wait").exists());
    sandbox.remove();
}

fn users_variables_and_directories_are_those_that_were_asked_for(runtime: &str) {
    let image = br#"{"config": {"Env": ["FROM=image", "LOST=1"], "User": "daemon",
        "WorkingDir": "/made/by/image", "Entrypoint": ["sh", "-c"], "StopSignal": "SIGINT",
        "Cmd": ["id -un; id -G; pwd; echo $FROM $LOST $HOME $HOSTNAME; trap 'exit 3' INT; sleep 1000 & wait"]}}"#;
    let mut options = run(&[]);
    options.env = vec!["LOST=2".to_owned()];
    options.hostname = Some("named".to_owned());
    let sandbox = Box::started_on(runtime, options, &[], Some(image));
    sandbox.wait_for_log("named\n");
    assert_eq!(logged(&sandbox), "daemon\n1\n/made/by/image\nimage 2 /usr/sbin named\n");
    let mut command = shell("id -u; id -g; id -G; pwd; echo $FROM $LOST $HOME");
    command.user = Some("1234:50".to_owned());
    command.workdir = Some("/tmp".to_owned());
    command.env = vec!["LOST=3".to_owned()];
    let output = exec(&sandbox.monitor, &command, b"");
    assert_eq!(output.stdout, "1234\n50\n50\n/tmp\nimage 3 /\n");
    command.user = Some("nobody-knows".to_owned());
    let error = sandbox.monitor.exec(&command).unwrap_err().to_string();
    assert!(error.contains("nobody-knows") && error.contains("/etc/passwd"), "{error}");
    // Root has docker's capabilities, others none.
    let root = exec(&sandbox.monitor, &with_user("root", "grep CapEff /proc/self/status"), b"");
    assert_eq!(root.stdout, "CapEff:\t00000000a80425fb\n");
    let other = sandbox.sh("grep CapEff /proc/self/status");
    assert_eq!(other.stdout, "CapEff:\t0000000000000000\n");
    let exit = stop(&sandbox.layout, StopOptions::default()).unwrap();
    assert_eq!(exit.code, 3);
    sandbox.remove();
}

fn with_user(user: &str, script: &str) -> ExecOptions {
    ExecOptions { user: Some(user.to_owned()), ..shell(script) }
}

fn programs_receive_stdin_and_signals_and_terminals_have_a_size(runtime: &str) {
    let sandbox = Box::started(on(runtime));
    let mut command = shell("cat; echo end");
    // More than any pipe holds, both ways.
    let much: Vec<u8> = (0..1u32 << 18).flat_map(u32::to_le_bytes).collect();
    let empty = exec(&sandbox.monitor, &command, b"lost");
    assert_eq!(empty.stdout, "end\n");
    command.stdin = Stdin::Open;
    "sha256sum".clone_into(&mut command.command[2]);
    let mine = blake_free_sha(&much);
    assert_eq!(exec(&sandbox.monitor, &command, &much).stdout, format!("{mine}  -\n"));
    // crun's exec sets the size from outside while the program starts already.
    let sized = "n=0; until test \"$(stty size)\" = '31 99'; do
        n=$((n+1)); test $n -lt 2000 || exit 7; done";
    let mut command =
        shell(&format!("{sized}; test -t 0 && test -t 1 && echo terminal $TERM; stty size"));
    command.terminal = Terminal::Pty;
    command.size = Some(WindowSize { rows: 31, columns: 99 });
    let output = exec(&sandbox.monitor, &command, b"");
    assert_eq!(output.stdout, "terminal xterm\r\n31 99\r\n");
    // A new size, and a signal by the terminal's driver. The first size is a change, too.
    command.command[2] = format!("{sized}; trap 'stty size; exit 5' WINCH; echo ready; read x");
    command.stdin = Stdin::Open;
    let mut stream = sandbox.monitor.exec(&command).unwrap();
    let first = Frame::read_from(&mut stream.socket).unwrap().unwrap();
    assert_eq!(first.bytes, b"ready\r\n");
    Frame::resize(WindowSize { rows: 5, columns: 6 }).write_to(&mut stream.socket).unwrap();
    let output = Output::read(&mut stream.socket);
    assert_eq!((output.stdout.as_str(), output.code), ("5 6\r\n", 5));
    // Signals go to the process itself.
    let mut stream = sandbox
        .monitor
        .exec(&shell("trap 'exit 9' USR1; echo ready; while :; do sleep 0.01; done"))
        .unwrap();
    assert_eq!(Frame::read_from(&mut stream.socket).unwrap().unwrap().bytes, b"ready\n");
    Frame::new(FrameKind::Signal, [10]).write_to(&mut stream.socket).unwrap();
    assert_eq!(Output::read(&mut stream.socket).code, 9);
    sandbox.remove();
}

fn blake_free_sha(bytes: &[u8]) -> String {
    let mut child = std::process::Command::new("sha256sum")
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(bytes).unwrap();
    let output = child.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap()[..64].to_owned()
}

fn failures_to_start_programs_have_dockers_exit_codes(runtime: &str) {
    let sandbox = Box::started(on(runtime));
    for (command, code) in [("no-such-program", 127), ("/no/such", 127), ("/etc/passwd", 126)] {
        let options = ExecOptions { command: vec![command.to_owned()], ..shell("") };
        match sandbox.monitor.exec(&options) {
            Err(SandboxError::Exec { message, code: found }) => {
                assert_eq!(found, code, "{message}");
                assert!(message.contains(command), "{message}");
            }
            other => panic!("{command}: {other:?}"),
        }
    }
    let mut options = shell("true");
    options.workdir = Some("/no/such".to_owned());
    assert!(matches!(sandbox.monitor.exec(&options), Err(SandboxError::Exec { code: 126, .. })));
    assert!(matches!(sandbox.monitor.start(), Err(SandboxError::Started(_))));
    sandbox.remove();
    // The first program.
    let sandbox = Box::prepared_on(runtime, run(&["no-such-program"]), &[], None);
    let failed = sandbox.spawn().and_then(|monitor| monitor.start());
    assert!(matches!(failed, Err(SandboxError::Exec { code: 127, .. })), "{failed:?}");
    sandbox.remove();
}

fn limited(limits: Limits) -> SandboxOptions {
    SandboxOptions { limits, ..Default::default() }
}

fn limited_on(runtime: &str, limits: Limits) -> SandboxOptions {
    SandboxOptions { limits, ..on(runtime) }
}

fn limits_hold(runtime: &str) {
    let sandbox = Box::started(limited_on(
        runtime,
        Limits { memory: Some(96 << 20), cpus: Some(0.5), pids: Some(30), ..Limits::default() },
    ));
    let output = sandbox.sh("python3 -c 'x = bytearray(300 << 20)'");
    assert_eq!(output.code, 137, "{output:?}");
    let quota =
        sandbox.sh("cat /sys/fs/cgroup/cpu*/cpu.cfs_quota_us /sys/fs/cgroup/cpu.max 2>/dev/null");
    assert!(quota.stdout.starts_with("50000"), "{quota:?}");
    let script = "for i in $(seq 50); do sleep 100 & done; echo no";
    let output = sandbox.sh(script);
    assert!(output.stderr.to_lowercase().contains("fork"), "{output:?}");
    let exit = stop(&sandbox.layout, StopOptions::default()).unwrap();
    assert!(exit.oom_killed, "{exit:?}");
    sandbox.remove();
}

#[test]
fn the_disk_limit_is_felt_inside_and_the_root_stays_a_root() {
    let sandbox = Box::started(limited(Limits { disk: Some(24 << 20), ..Limits::default() }));
    let output = sandbox.sh("cat /dev/zero > /big; rm /big; echo small > /small && cat /small");
    assert!(output.stderr.contains("No space left on device"), "{output:?}");
    assert_eq!(output.stdout, "small\n");
    // Set-user-id programs and whiteouts work, whatever the host's mount allows.
    let output = sandbox
        .sh("rm /etc/passwd; ls /etc/passwd; cp /usr/bin/id /id && chmod 4755 /id && \
         setpriv --reuid=1000 --clear-groups /id -u");
    assert_eq!(output.stdout, "0\n", "{output:?}");
    sandbox.remove();
}

fn secrets_are_seen_inside_and_nowhere_else(runtime: &str) {
    let secret = Secret { name: "token".parse().unwrap(), bytes: b"hunter2-hunter2".to_vec() };
    let mut options = run(&["sh", "-c", "test -s /run/secrets/token && echo there; sleep 1000"]);
    options.secrets = vec![secret.name.clone()];
    let sandbox = Box::started_on(runtime, options, &[secret], None);
    sandbox.wait_for_log("there\n");
    assert_eq!(sandbox.sh("cat /run/secrets/token").stdout, "hunter2-hunter2");
    let mounts = sandbox.sh("grep /run/secrets /proc/mounts").stdout;
    let options = mounts.split(' ').nth(3).unwrap();
    for wanted in ["ro", "nosuid", "nodev", "noexec"] {
        assert!(options.split(',').any(|option| option == wanted), "{options}");
    }
    assert_ne!(sandbox.sh("echo x > /run/secrets/token").code, 0);
    let everywhere = || {
        std::process::Command::new("grep")
            .args([
                "-rlsa",
                "--devices=skip",
                "--exclude-dir=secrets",
                "--exclude-dir=rootfs",
                "hunter2",
            ])
            .arg(sandbox.layout.root())
            .output()
            .unwrap()
            .stdout
    };
    assert_eq!(String::from_utf8(everywhere()).unwrap(), "");
    assert!(sandbox.layout.secrets().join("token").exists());
    stop(&sandbox.layout, StopOptions::default()).unwrap();
    assert!(!sandbox.layout.secrets().join("token").exists());
    let left = fs::read_dir(sandbox.upper().join("run/secrets"));
    assert_eq!(left.map_or(0, Iterator::count), 0);
    assert_eq!(String::from_utf8(everywhere()).unwrap(), "");
    sandbox.remove();
}

fn a_read_only_root_can_not_be_changed_and_the_host_is_reached_only_if_wanted(runtime: &str) {
    let mut options = SandboxOptions { root: RootAccess::ReadOnly, ..on(runtime) };
    options.network = Network::Host;
    let sandbox = Box::started(options);
    let output = sandbox.sh("touch /x; touch /dev/shm/x && echo shm");
    assert!(output.stderr.contains("Read-only"), "{output:?}");
    assert_eq!(output.stdout, "shm\n");
    let own = fs::read_to_string("/proc/self/net/dev").unwrap();
    assert_eq!(
        sandbox.sh("cat /proc/net/dev | wc -l").stdout,
        format!("{}\n", own.lines().count())
    );
    if let Ok(resolv) = fs::read_to_string("/etc/resolv.conf") {
        assert_eq!(sandbox.sh("cat /etc/resolv.conf").stdout, resolv);
    }
    assert_ne!(sandbox.sh("echo > /etc/hosts").code, 0);
    sandbox.remove();
}

#[test]
fn later_mounts_of_the_host_are_not_visible_in_the_sandbox() {
    let sandbox = Box::started(SandboxOptions::default());
    let mountpoint = sandbox.layout.rootfs().join("mnt");
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "tmpfs"])
        .arg(&mountpoint)
        .status()
        .unwrap();
    assert!(mounted.success());
    fs::write(mountpoint.join("of-the-host"), "x").unwrap();
    assert_eq!(sandbox.sh("ls /mnt").stdout, "");
    // What was forgotten is taken out of the tree with the sandbox.
    sandbox.remove();
}

fn dangerous_system_calls_are_refused(runtime: &str) {
    let sandbox = Box::started(on(runtime));
    for refused in ["unshare -U true", "unshare -m true", "mount -t tmpfs x /mnt"] {
        let output = sandbox.sh(refused);
        assert_ne!(output.code, 0, "{refused}");
        assert!(
            output.stderr.contains("not permitted") || output.stderr.contains("denied"),
            "{output:?}"
        );
    }
    sandbox.remove();
}

#[test]
fn logs_are_kept_followed_and_bounded_and_attaching_misses_nothing() {
    let script = "echo one; echo two >&2; printf '\\377\\n'; read x; echo got $x; printf end";
    let mut options = run(&["sh", "-c", script]);
    options.stdin = Stdin::Open;
    let sandbox = Box::prepared(options, &[], None);
    let monitor = sandbox.spawn().unwrap();
    let mut stream = monitor.attach(Stdin::Open, None, None).unwrap();
    let mut follower = LogReader::open(&sandbox.layout, LogFrom::default()).unwrap();
    monitor.start().unwrap();
    Frame::new(FrameKind::Stdin, *b"this\n").write_to(&mut stream.socket).unwrap();
    let (mut followed, mut said) = (Vec::new(), Vec::new());
    let (mut streams, mut gone) = (Vec::new(), false);
    loop {
        match follower.wait_entry(Duration::from_mins(1)).unwrap() {
            inlay_sandbox::Waited::Entry(entry) => {
                streams.push(entry.stream);
                let printed = entry.stream == LogStream::Stdout;
                let to = if printed { &mut followed } else { &mut said };
                to.extend(entry.bytes());
            }
            inlay_sandbox::Waited::Ended => break,
            inlay_sandbox::Waited::Nothing => panic!("nothing after {followed:?}"),
        }
        if followed.ends_with(b"end") && !gone {
            gone = true;
            // So that the monitor can go.
            let mut bytes = Vec::new();
            while let Some(frame) = Frame::read_from(&mut stream.socket).unwrap() {
                if frame.kind == FrameKind::Exit {
                    assert_eq!(frame.exit_code(), Some(0));
                    break;
                }
                bytes.extend(frame.bytes);
            }
            assert_eq!(bytes.len(), b"one\ntwo\n\xff\ngot this\nend".len());
            stream.socket.shutdown(std::net::Shutdown::Both).unwrap();
        }
    }
    assert!(followed.ends_with(b"got this\nend"), "{followed:?}");
    assert_eq!(streams.iter().filter(|stream| **stream == LogStream::Stderr).count(), 1);
    assert!(followed.contains(&0xff) && said == b"two\n");
    let mut tail =
        LogReader::open(&sandbox.layout, LogFrom { tail: Some(1), since_ns: 0 }).unwrap();
    // Which of the two streams is read last is not said.
    assert!(tail.next_entry().unwrap().is_some());
    assert_eq!(tail.next_entry().unwrap(), None);
    sandbox.remove();
}

fn a_terminal_is_the_first_processes_too(runtime: &str) {
    let mut options = run(&["sh", "-c", "test -t 0 && stty size; read x; echo got $x; stty size"]);
    options.terminal = Terminal::Pty;
    options.stdin = Stdin::Open;
    let sandbox = Box::prepared_on(runtime, options, &[], None);
    let monitor = sandbox.spawn().unwrap();
    let size = WindowSize { rows: 11, columns: 22 };
    let mut stream = monitor.attach(Stdin::Open, Some(size), None).unwrap();
    monitor.start().unwrap();
    assert_eq!(Frame::read_from(&mut stream.socket).unwrap().unwrap().bytes, b"11 22\r\n");
    Frame::resize(WindowSize { rows: 3, columns: 4 }).write_to(&mut stream.socket).unwrap();
    Frame::new(FrameKind::Stdin, *b"it\n").write_to(&mut stream.socket).unwrap();
    let output = Output::read(&mut stream.socket);
    assert_eq!(output.stdout, "it\r\ngot it\r\n3 4\r\n");
    drop(stream);
    sandbox.remove();
}

#[test]
fn many_execs_run_at_once_and_abandoned_ones_get_sighup() {
    let sandbox = Box::started(SandboxOptions::default());
    std::thread::scope(|scope| {
        for number in 0..16 {
            let sandbox = &sandbox;
            scope.spawn(move || {
                let output = sandbox.sh(&format!("echo {number}; exit {number}"));
                assert_eq!((output.stdout, output.code), (format!("{number}\n"), number));
            });
        }
    });
    let mut stream = sandbox
        .monitor
        .exec(&shell("trap 'touch /hung-up; exit' HUP; echo ready; while :; do sleep 0.01; done"))
        .unwrap();
    assert_eq!(Frame::read_from(&mut stream.socket).unwrap().unwrap().bytes, b"ready\n");
    drop(stream);
    inlay_testkit::wait::until("SIGHUP", || sandbox.upper().join("hung-up").exists());
    inlay_testkit::wait::until("the program's end", || {
        sandbox.monitor.status().unwrap().execs == 0
    });
    // On its own from the beginning.
    let mut command = shell("sleep 0.1; touch /alone");
    command.output = inlay_sandbox::Output::Discard;
    drop(sandbox.monitor.exec(&command).unwrap());
    inlay_testkit::wait::until("the program on its own", || sandbox.upper().join("alone").exists());
    sandbox.remove();
}

const COUNT: &str = "i=0; while :; do i=$((i+1)); echo $i > /count; done";

fn count(sandbox: &Box) -> String {
    fs::read_to_string(sandbox.upper().join("count")).unwrap_or_default()
}

fn wait_for_count(sandbox: &Box) {
    let before = count(sandbox);
    inlay_testkit::wait::until("the count to grow", || count(sandbox) != before);
}

fn a_frozen_sandbox_stands_still_and_always_runs_on(runtime: &str) {
    let sandbox = Box::started(run_on(runtime, &["sh", "-c", COUNT]));
    wait_for_count(&sandbox);
    let frozen = sandbox.monitor.freeze(WITHIN, Duration::from_secs(30)).unwrap();
    let before = count(&sandbox);
    assert!(sandbox.monitor.status().unwrap().frozen);
    std::thread::sleep(Duration::from_millis(50));
    assert_eq!(count(&sandbox), before);
    let thawed = frozen.thaw().unwrap();
    assert!(thawed.held && thawed.frozen >= Duration::from_millis(50), "{thawed:?}");
    wait_for_count(&sandbox);
    // Whoever goes lets go.
    drop(sandbox.monitor.freeze(WITHIN, Duration::from_secs(30)).unwrap());
    wait_for_count(&sandbox);
    // Whoever takes too long is told so.
    let frozen = sandbox.monitor.freeze(WITHIN, Duration::from_millis(500)).unwrap();
    wait_for_count(&sandbox);
    assert!(!frozen.thaw().unwrap().held);
    // One of two goes: it stands still for the other.
    let first = sandbox.monitor.freeze(WITHIN, Duration::from_secs(30)).unwrap();
    let second = sandbox.monitor.freeze(WITHIN, Duration::from_secs(30)).unwrap();
    first.thaw().unwrap();
    let before = count(&sandbox);
    std::thread::sleep(Duration::from_millis(20));
    assert_eq!(count(&sandbox), before);
    second.thaw().unwrap();
    wait_for_count(&sandbox);
    // Stopping does not wait for whoever holds it.
    let _frozen = sandbox.monitor.freeze(WITHIN, Duration::from_secs(50)).unwrap();
    let options = StopOptions { signal: None, grace: Duration::from_millis(50) };
    assert_eq!(stop(&sandbox.layout, options).unwrap().code, 137);
    sandbox.remove();
}

fn kill_monitor(sandbox: &Box) {
    let monitor = sandbox.monitor.status().unwrap().monitor;
    let pid = rustix::process::Pid::from_raw(i32::try_from(monitor.pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    assert!(monitor.wait(Duration::from_mins(1)).unwrap());
}

fn a_sandbox_without_its_monitor_is_ended_and_its_changes_stay(runtime: &str) {
    let sandbox = Box::started(run_on(runtime, &["sh", "-c", COUNT]));
    wait_for_count(&sandbox);
    let frozen = sandbox.monitor.freeze(WITHIN, Duration::from_secs(30)).unwrap();
    kill_monitor(&sandbox);
    assert!(frozen.thaw().is_err());
    let Found::Stopped(exit) = recover(&sandbox.layout).unwrap() else { panic!("runs") };
    assert_eq!((exit.code, exit.cause), (137, ExitCause::MonitorLost));
    assert_eq!(stop(&sandbox.layout, StopOptions::default()).unwrap(), exit);
    assert!(sandbox.upper().join("count").exists());
    sandbox.remove();
    // The same, removed at once.
    let sandbox = Box::started(on(runtime));
    kill_monitor(&sandbox);
    assert!(matches!(
        sandbox.monitor.wait(Duration::from_secs(1)),
        Err(SandboxError::NotRunning(_))
    ));
    sandbox.remove();
}

fn output_and_exit_code_are_delivered_despite_immediate_removal(runtime: &str) {
    let sandbox = Box::prepared_on(runtime, run(&["sh", "-c", "echo all; exit 7"]), &[], None);
    let monitor = sandbox.spawn().unwrap();
    let mut stream = monitor.attach(Stdin::Empty, None, None).unwrap();
    monitor.start().unwrap();
    // From here on it counts as stopped, while its monitor still has the container to delete.
    inlay_testkit::wait::until("the end to be recorded", || sandbox.layout.exit().exists());
    remove(&sandbox.layout).unwrap();
    let Output { stdout, code, .. } = Output::read(&mut stream.socket);
    assert_eq!((stdout.as_str(), code), ("all\n", 7));
    drop(stream);
    sandbox.remove();
}

fn slow_readers_get_all_output_without_delaying_others(runtime: &str) {
    let sandbox = Box::prepared_on(runtime, run(&["seq", "1", "100000000"]), &[], None);
    let monitor = sandbox.spawn().unwrap();
    let mut stream = monitor.attach(Stdin::Empty, None, None).unwrap();
    monitor.start().unwrap();
    // It has filled everything that there is between it and its reader, and waits.
    let lines = || {
        let last = LogFrom { tail: Some(1), since_ns: 0 };
        let mut reader = LogReader::open(&sandbox.layout, last).unwrap();
        reader.next_entry().unwrap().map(|entry| entry.bytes())
    };
    let mut before = None;
    inlay_testkit::wait::until("the program to wait for its reader", || {
        std::thread::sleep(Duration::from_millis(200));
        let now = lines();
        let still = now.is_some() && now == before;
        before = now;
        still
    });
    let at_once = StopOptions { signal: None, grace: Duration::ZERO };
    assert_eq!(stop(&sandbox.layout, at_once).unwrap().code, 137);
    let last = lines().unwrap();
    assert_ne!(Some(&last), before.as_ref(), "what was still in its pipe is in the log");
    remove(&sandbox.layout).unwrap();
    let Output { stdout, code, .. } = Output::read(&mut stream.socket);
    assert_eq!(code, 137);
    assert!(stdout.as_bytes().ends_with(&last), "{last:?}");
    // The last line is cut where the program was.
    let whole = &stdout[..=stdout.rfind('\n').unwrap()];
    for (number, line) in (1_u32..).zip(whole.lines()) {
        assert_eq!(line, number.to_string());
    }
    drop(stream);
    sandbox.remove();
}

#[test]
fn signals_to_the_monitor_do_not_end_the_sandbox() {
    use rustix::process::{Pid, Signal, kill_process};
    let sandbox = Box::started(SandboxOptions::default());
    let monitor = sandbox.monitor.status().unwrap().monitor;
    let pid = Pid::from_raw(i32::try_from(monitor.pid).unwrap()).unwrap();
    for signal in [Signal::TERM, Signal::INT, Signal::HUP] {
        kill_process(pid, signal).unwrap();
    }
    assert_eq!(sandbox.sh("echo here").stdout, "here\n");
    sandbox.remove();
}

/// A runtime that does `script` and then, unless that ends it, what runc does.
fn odd_runtime(dir: &std::path::Path, script: &str) -> String {
    let path = dir.join("odd");
    fs::write(&path, format!("#!/bin/sh\n{script}\nexec runc \"$@\"\n")).unwrap();
    fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_monitor_or_runtime_killed_during_creation_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let on = |word: &str, script: &str| format!("case \" $* \" in *\" {word} \"*) {script};; esac");
    for (script, dies) in [
        // The monitor, before, in the middle of, and after the creation.
        (on("create", "kill -9 $PPID"), "monitor"),
        (on("create", "(sleep 0.03; kill -9 $PPID) &"), "monitor or none"),
        (on("create", "runc \"$@\"; kill -9 $PPID; exit 0"), "monitor"),
        // The runtime.
        (on("create", "exit 3"), "runtime"),
        (on("create", "kill -9 $$"), "runtime"),
        (on("create", "runc \"$@\" & sleep 0.03; kill -9 $!; kill -9 $$"), "runtime"),
        (on("start", "kill -9 $$"), "runtime"),
        (on("start", "kill -9 $PPID; kill -9 $$"), "monitor"),
    ] {
        let options = SandboxOptions {
            runtime: Some(odd_runtime(dir.path(), &script)),
            ..Default::default()
        };
        let sandbox = Box::prepared(options, &[], None);
        let outcome = sandbox.spawn().and_then(|monitor| monitor.start());
        assert!(outcome.is_err() || dies.contains("none"), "{script}: {outcome:?}");
        sandbox.remove();
    }
}

#[test]
fn a_runtime_that_hangs_is_ended_with_the_sandbox() {
    let dir = tempfile::tempdir().unwrap();
    let script = "case \" $* \" in *\" create \"*) sleep 1000;; esac";
    let options =
        SandboxOptions { runtime: Some(odd_runtime(dir.path(), script)), ..Default::default() };
    let sandbox = Box::prepared(options, &[], None);
    std::thread::scope(|scope| {
        let spawning = scope.spawn(|| sandbox.spawn());
        inlay_testkit::wait::until("the monitor's socket", || {
            sandbox.layout.monitor_socket().exists()
        });
        remove(&sandbox.layout).unwrap();
        assert!(spawning.join().unwrap().is_err());
    });
    sandbox.assert_gone();
}

#[test]
fn sandboxes_that_ignore_the_stop_signal_or_never_started_are_killed() {
    let sandbox =
        Box::started(run(&["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done"]));
    sandbox.wait_for_log("deaf\n");
    let options = StopOptions { signal: None, grace: Duration::from_millis(50) };
    assert_eq!(stop(&sandbox.layout, options).unwrap().code, 137);
    sandbox.remove();
    let sandbox = Box::prepared(SandboxOptions::default(), &[], None);
    let monitor = sandbox.spawn().unwrap();
    assert!(!monitor.status().unwrap().started);
    assert!(matches!(monitor.exec(&shell("true")), Err(SandboxError::NotRunning(_))));
    assert_eq!(stop(&sandbox.layout, StopOptions::default()).unwrap().code, 137);
    sandbox.remove();
    // Not even a monitor.
    let sandbox = Box::prepared(SandboxOptions::default(), &[], None);
    sandbox.remove();
}
