//! Mounts that show an owner as another are captured as the sandbox sees them.

use std::fs;
use std::os::unix::fs::lchown;

use inlay_testkit::acl::{self, Entry};
use rustix::fs::{XattrFlags, getxattr, setxattr};

use crate::common::boxes::Boxes;
use crate::common::local;

const ACL: &str = "system.posix_acl_access";

fn list(users: &[Entry]) -> Vec<u8> {
    let last = [Entry::OwningGroup(4), Entry::Mask(6), Entry::Other(0)];
    acl::encode(&[&[Entry::Owner(6)][..], users, &last].concat())
}

#[test]
fn a_mount_for_another_owner_is_captured_as_it_is_seen() {
    let boxes = Boxes::new(local());
    let source = boxes.path("owned");
    for (name, owner) in [("root", 0), ("app", 1000), ("other", 7)] {
        fs::create_dir_all(source.join(name)).unwrap();
        fs::write(source.join(name).join("file"), name).unwrap();
        lchown(source.join(name), Some(owner), Some(owner)).unwrap();
        lchown(source.join(name).join("file"), Some(owner), Some(owner)).unwrap();
    }
    let users = [Entry::User(0, 4), Entry::User(1000, 2)];
    setxattr(source.join("app/file"), ACL, &list(&users), XattrFlags::empty()).unwrap();
    boxes.import("owned", "owned", "directory");
    boxes.create("a", &[]);
    boxes.succeed(&["mount", "--chown", "1000:1000", "owned", "a:/p"]);
    // One is written to, of one only the mode changes, all others stay as they are below.
    boxes.sh("a", "echo more >> /p/root/file; chmod 600 /p/other/file; echo n > /p/new");
    let list_all = "cd /p; find . | while read f; do stat -c '%n %u %g %a %F' $f; done";
    let seen = boxes.sh("a", list_all);
    for line in [". 1000 1000", "./root/file 1000 1000", "./app 1000 1000", "./other/file 7 7"] {
        assert!(seen.lines().any(|seen| seen.starts_with(line)), "{line}: {seen}");
    }
    let taken = boxes.json(&["snapshot", "a:/p"]);
    // What was not written to is not read again.
    assert_eq!(taken["read_files"], 2, "{taken}");
    let taken = taken["id"].as_str().unwrap().to_owned();
    // The changes come back, with the owners that they had, also by another daemon.
    boxes.succeed(&["umount", "a:/p"]);
    boxes.kill_daemon();
    boxes.succeed(&["mount", "--chown", "1000:1000", "owned", "a:/p"]);
    assert_eq!(boxes.sh("a", list_all), seen);
    assert_eq!(boxes.snapshot("a:/p"), taken);
    boxes.kill_daemon();
    assert_eq!(boxes.snapshot("a:/p"), taken);
    // The same of a sandbox that has ended, whose mount nobody sees any more.
    boxes.succeed(&["sandbox", "stop", "--time", "0s", "a"]);
    assert_eq!(boxes.snapshot("a:/p"), taken);

    boxes.create("b", &["--mount", &format!("{taken}:/p")]);
    let mut wanted: Vec<_> = seen.lines().collect();
    wanted.sort_unstable();
    let found = boxes.sh("b", list_all);
    let mut found: Vec<_> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, wanted);
    assert_eq!(boxes.sh("b", "cat /p/root/file /p/app/file"), "rootmore\napp");
    let mounted = boxes.inlay.mount(&taken, &[]).unwrap();
    let mut value = [0; 100];
    let len = getxattr(mounted.path().join("app/file"), ACL, &mut value).unwrap();
    assert_eq!(value[..len], list(&[Entry::User(1000, 6)]));
    mounted.unmount().unwrap();
    boxes.assert_clean("owners");
}
