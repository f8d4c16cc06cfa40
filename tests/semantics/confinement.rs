//! What programs in a sandbox may do to the host, and what is theirs alone.

use std::fs;

use inlay_testkit::cli::Inlay;

use crate::boxes::Boxes;

fn boxes() -> Boxes {
    Boxes::new(Inlay::new(env!("CARGO_BIN_EXE_inlay")).unwrap())
}

#[test]
fn a_sandbox_is_confined_as_a_container_of_docker() {
    let boxes = boxes();
    boxes.create("a", &[]);
    for refused in ["unshare -U true", "mount -t tmpfs x /etc", "chroot / mount -t proc x /etc"] {
        let ran = boxes.run(&["exec", "a", "--", "busybox", "sh", "-c", refused]);
        let said = &ran.stderr;
        let refused = said.contains("not permitted") || said.contains("permission denied");
        assert!(!ran.status.success() && refused, "{ran:?}");
    }
    let status = "while read key value rest; do case $key in \
        CapEff:|CapBnd:|NoNewPrivs:|Seccomp:) echo $key $value;; esac; done < /proc/self/status";
    let wanted = "CapEff: 00000000a80425fb\nCapBnd: 00000000a80425fb\nNoNewPrivs: 0\nSeccomp: 2\n";
    let mut shown: Vec<String> = boxes.sh("a", status).lines().map(str::to_owned).collect();
    let mut expected: Vec<&str> = wanted.lines().collect();
    shown.sort_unstable();
    expected.sort_unstable();
    assert_eq!(shown, expected);
    // What it was given in the end can be looked up.
    let confinement = &boxes.json(&["sandbox", "inspect", "a"])["confinement"];
    assert_eq!(confinement["seccomp"], "default");
    assert_eq!(confinement["capabilities"].as_array().unwrap().len(), 14);
    assert!(confinement["apparmor"].is_string() || confinement["notes"][0].is_string());

    let options =
        ["--cap-drop", "ALL", "--cap-add", "chown", "--security-opt", "no-new-privileges"];
    boxes.create("b", &options);
    let shown = boxes.sh("b", status);
    assert!(shown.contains("CapEff: 0000000000000001\n"), "{shown}");
    assert!(shown.contains("NoNewPrivs: 1\n"), "{shown}");
    for wrong in [
        &["--cap-add", "fly"][..],
        &["--security-opt", "seccomp=x"],
        &["--security-opt", "apparmor=no-such-profile"],
    ] {
        let words = [&["sandbox", "create", "base"], wrong].concat();
        let ran = boxes.run(&words);
        assert!(!ran.status.success() && ran.stderr.contains(wrong[0]), "{ran:?}");
    }
    boxes.assert_clean("confinement");
}

#[test]
fn a_sandbox_has_a_limit_of_processes() {
    let boxes = boxes();
    let max = "cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max";
    for (options, limit) in [
        (&[][..], "2048\n"),
        (&["--pids-limit", "-1"], "max\n"),
        (&["--pids-limit", "0"], "max\n"),
        (&["--pids", "77"], "77\n"),
    ] {
        let made = boxes.create("a", options);
        assert_eq!(boxes.sh("a", max), limit, "{made}");
        boxes.succeed(&["sandbox", "rm", "--force", "a"]);
    }
    boxes.assert_clean("limits of processes");
}

#[test]
fn the_names_in_etc_are_the_sandboxs_own() {
    let boxes = boxes();
    let host = fs::read_to_string("/etc/hosts").unwrap_or_default();
    for network in ["none", "host"] {
        let options = ["--network", network, "--hostname", "box", "--add-host", "db:10.1.2.3"];
        boxes.create("a", &[&options[..], &["--dns", "9.9.9.9"]].concat());
        let seen = boxes.sh("a", "cat /etc/hosts /etc/hostname /etc/resolv.conf");
        for line in ["127.0.1.1\tbox\n", "10.1.2.3\tdb\n", "\nbox\n", "nameserver 9.9.9.9\n"] {
            assert!(seen.contains(line), "{network}: {seen}");
        }
        boxes.sh("a", "for f in hosts hostname resolv.conf; do echo changed >> /etc/$f; done");
        assert!(boxes.sh("a", "cat /etc/hosts").ends_with("changed\n"));
        assert_eq!(fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
        // A snapshot has the files of the root, which are empty or the image's.
        let taken = boxes.snapshot("a");
        for file in ["hosts", "hostname", "resolv.conf"] {
            assert_eq!(boxes.cat(&format!("{taken}:/etc/{file}")), "", "{file}");
        }
        boxes.succeed(&["sandbox", "rm", "--force", "a"]);
    }
    // With a root that can't be changed, neither can these.
    boxes.create("b", &["--read-only"]);
    assert!(!boxes.run(&["exec", "b", "--", "sh", "-c", "echo x >> /etc/hosts"]).status.success());
    boxes.assert_clean("names");
}

#[test]
fn a_limit_of_the_disk_holds_for_all_that_a_sandbox_writes() {
    let boxes = boxes();
    boxes.create("a", &["--disk", "32M"]);
    boxes.succeed(&["mount", "data", "a:/work"]);
    // As much as there is, in a live mount and in /etc: both are on that disk.
    for file in ["/work/big", "/etc/hosts"] {
        let ran = boxes.run(&["exec", "a", "--", "sh", "-c", &format!("cat /dev/zero >> {file}")]);
        assert!(ran.stderr.contains("No space left"), "{ran:?}");
        let size = boxes.sh("a", &format!("stat -c %s {file}"));
        assert!(size.trim().parse::<u64>().unwrap() < 32 << 20, "{file}: {size}");
    }
    boxes.sh("a", "rm /work/big; echo small > /work/small");
    // What was changed is there again, also for the next daemon, and goes when it is thrown away.
    boxes.succeed(&["umount", "a:/work"]);
    boxes.kill_daemon();
    boxes.succeed(&["mount", "data", "a:/work"]);
    assert_eq!(boxes.sh("a", "cat /work/small /work/file"), "small\nx");
    let taken = boxes.snapshot("a:/work");
    assert_eq!(boxes.cat(&format!("{taken}:/small")), "small\n");
    boxes.succeed(&["umount", "--discard", "a:/work"]);
    boxes.succeed(&["mount", "data", "a:/work"]);
    assert_eq!(boxes.sh("a", "ls /work"), "file\n");
    boxes.assert_clean("a limited disk");
}

#[test]
fn shared_memory_has_the_size_that_was_asked_for() {
    let boxes = boxes();
    let size = "busybox df -k /dev/shm | while read a kib rest; do echo $kib; done";
    boxes.create("a", &[]);
    assert!(boxes.sh("a", size).ends_with("\n65536\n"));
    boxes.create("b", &["--shm-size", "1.5g"]);
    assert!(boxes.sh("b", size).ends_with("\n1572864\n"));
    boxes.assert_clean("shared memory");
}
