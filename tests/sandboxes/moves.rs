//! Random histories of live mounts, renames around them and snapshots, compared with a model, at last of the
//! sandbox that has ended.

use std::collections::BTreeMap;

use crate::common::boxes::Boxes;
use crate::common::local;

/// Projects beside one another in one live mount, each with a place for another mount.
const NAMES: [&str; 3] = ["a", "b", "c"];
const STEPS: usize = 14;

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % limit as u64).unwrap()
    }
}

/// Which project has each name, and the number of what is mounted in each.
struct Model {
    names: [usize; 3],
    mounts: [Option<usize>; 3],
}

impl Model {
    /// The files below `/w`, and what they hold.
    fn files(&self) -> BTreeMap<String, String> {
        let mut files = BTreeMap::new();
        for (name, project) in NAMES.iter().zip(self.names) {
            files.insert(format!("{name}/id"), format!("project {project}\n"));
            if let Some(mount) = self.mounts[project] {
                files.insert(format!("{name}/m/n"), format!("mount {mount}\n"));
            }
        }
        files
    }
}

/// A snapshot of `dir` below `/w` holds what the model has there, and nothing else.
fn check(host: &Boxes, model: &Model, dir: &str, when: &str) {
    let place = format!("a:/w/{dir}");
    let id = host.snapshot(place.trim_end_matches('/'));
    let tree = host.json(&["tree", &id]).to_string();
    let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
    let mut wanted = 0;
    for (path, text) in model.files() {
        if let Some(path) = path.strip_prefix(&prefix) {
            assert_eq!(host.cat(&format!("{id}:/{path}")), text, "{when}: {place}: {path}");
            wanted += 1;
        }
    }
    let found = tree.matches("\"id\"").count() + tree.matches("\"n\"").count();
    assert_eq!(found, wanted, "{when}: {place}: {tree}");
}

fn play(seed: u64) {
    let host = Boxes::new(local());
    let mut numbers = Numbers(seed);
    host.create("a", &[]);
    host.succeed(&["mount", "empty", "a:/w"]);
    let fill = "cd /w; for p in 0:a 1:b 2:c; do mkdir -p ${p#*:}/m; echo project ${p%:*} > ${p#*:}/id; done";
    host.sh("a", fill);
    let mut model = Model { names: [0, 1, 2], mounts: [None; 3] };
    for step in 0..STEPS {
        let when = format!("seed {seed}, step {step}");
        let (one, other) = (numbers.below(3), numbers.below(3));
        let (project, place) = (model.names[one], format!("a:/w/{}/m", NAMES[one]));
        match (numbers.below(6), model.mounts[project]) {
            (0 | 1, _) if one != other => {
                let (from, to) = (NAMES[one], NAMES[other]);
                host.sh("a", &format!("cd /w; mv {from} t; mv {to} {from}; mv t {to}"));
                model.names.swap(one, other);
            }
            (0..=3, None) => {
                host.succeed(&["mount", "empty", &place]);
                host.sh("a", &format!("echo mount {step} > /w/{}/m/n", NAMES[one]));
                model.mounts[project] = Some(step);
            }
            (4, Some(_)) => {
                host.succeed(&["umount", "--discard", &place]);
                model.mounts[project] = None;
            }
            (_, Some(_)) => check(&host, &model, &format!("{}/m", NAMES[one]), &when),
            (_, None) => check(&host, &model, NAMES[one], &when),
        }
        if numbers.below(8) == 0 {
            host.kill_daemon();
        }
    }
    check(&host, &model, "", "at last");
    host.succeed(&["sandbox", "stop", "--time", "1s", "a"]);
    check(&host, &model, "", "after the end");
    for name in NAMES {
        check(&host, &model, name, "after the end");
    }
    host.assert_clean("moves");
}

#[test]
fn snapshots_have_each_mount_where_it_is_whatever_is_renamed() {
    for seed in [0x9e37_79b9, 0x7f4a_7c15] {
        play(seed);
    }
}
