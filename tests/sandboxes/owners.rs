//! Mounts that map owners are captured as the sandbox sees them.

use std::fs;
use std::os::unix::fs::lchown;

use crate::common::boxes::Boxes;
use crate::common::local;

#[test]
fn a_mount_with_mapped_owners_is_captured_as_it_is_seen() {
    let boxes = Boxes::new(local());
    let source = boxes.path("owned");
    for (name, owner) in [("root", 0), ("app", 1000), ("other", 7)] {
        fs::create_dir_all(source.join(name)).unwrap();
        fs::write(source.join(name).join("file"), name).unwrap();
        lchown(source.join(name), Some(owner), Some(owner)).unwrap();
        lchown(source.join(name).join("file"), Some(owner), Some(owner)).unwrap();
    }
    boxes.import("owned", "owned", "directory");
    boxes.create("a", &[]);
    boxes.succeed(&["mount", "--chown", "1000:1000", "owned", "a:/p"]);
    // One is written to, of one only the mode changes, all others stay as they are below.
    boxes.sh("a", "echo more >> /p/root/file; chmod 600 /p/other/file; echo n > /p/new");
    let list = "cd /p; find . | while read f; do stat -c '%n %u %g %a %F' $f; done";
    let seen = boxes.sh("a", list);
    assert!(seen.contains("./root/file 1000 1000") && seen.contains("./app 0 0"), "{seen}");
    let taken = boxes.json(&["snapshot", "a:/p"]);
    // What was not written to is not read again.
    assert_eq!(taken["read_files"], 2, "{taken}");
    let taken = taken["id"].as_str().unwrap().to_owned();
    // The same of a sandbox that has ended, whose mount nobody sees any more.
    boxes.succeed(&["sandbox", "stop", "--time", "0s", "a"]);
    assert_eq!(boxes.snapshot("a:/p"), taken);

    boxes.create("b", &["--mount", &format!("{taken}:/p")]);
    let mut wanted: Vec<_> = seen.lines().collect();
    wanted.sort_unstable();
    let found = boxes.sh("b", list);
    let mut found: Vec<_> = found.lines().collect();
    found.sort_unstable();
    assert_eq!(found, wanted);
    assert_eq!(boxes.sh("b", "cat /p/root/file /p/app/file"), "rootmore\napp");
    boxes.assert_clean("owners");
}
