//! The walk-through "Base upgrades" of the README, run as it stands there.

use inlay_testkit::rootfs::{Fixture, find};

use crate::house::{House, linked_copy, replace};

const README: &str = include_str!("../../README.md");

/// The commands of the section, up to the last, which removes the sandbox.
fn commands() -> (&'static str, &'static str) {
    let section = README.split("\n## Base upgrades\n").nth(1).expect("the section is gone");
    let block = section.split("\n```\n").nth(1).expect("it has no commands");
    let end = block.rfind("\ninlay sandbox rm").expect("it does not clean up");
    block.split_at(end)
}

#[test]
fn a_newer_base_image_has_nothing_to_rebuild() {
    let house = House::shared();
    let scratch = inlay_testkit::scratch().unwrap();
    let newer = scratch.path().join("root-2");
    linked_copy(&find(Fixture::Sandboxes).unwrap(), &newer);
    replace(&newer.join("etc/debian_version"), "12.99\n");
    replace(&newer.join("usr/lib/python3.11/this.py"), "release = 'newer'\n");
    replace(&newer.join("usr/lib/python3/dist-packages/added.py"), "release = 'added'\n");

    let (steps, end) = commands();
    assert!(steps.contains("dir:/srv/root-2"), "{steps}");
    let steps = steps.replace("/srv/root-2", newer.to_str().unwrap());
    let printed = house.shell(&steps);
    let last: Vec<&str> = printed.lines().rev().take(4).collect();
    assert!(printed.contains("'answer.txt' is up to date"), "{printed}");
    assert!(
        last.contains(&"42") && last.contains(&"nothing has changed since that snapshot"),
        "{printed}"
    );

    // It is the newer base indeed, for the project's own python, too.
    let newer = "cat /etc/debian_version; cd /project
        venv/bin/python3 -c 'import this; print(this.release)'; python3 -c 'import added; print(added.release)'";
    let ran = house.inlay.succeed(["exec", "new", "--", "sh", "-c", newer]).unwrap();
    assert_eq!(ran.text(), "12.99\nnewer\nadded\n");
    // And had there been something to build, it would have been built.
    let again = "cd /project; echo 'def answer(): return 43' > app.py; make; cat answer.txt";
    let ran = house.inlay.succeed(["exec", "new", "--", "sh", "-c", again]).unwrap();
    assert!(ran.text().ends_with("43\n"), "{ran:?}");
    house.shell(end);
}
