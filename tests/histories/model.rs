//! What must exist: the files of sandboxes, mounts and snapshots, as sets of possible values.
//!
//! An operation that a fault interrupted has happened or not; the model then holds both values until
//! the next look collapses them to one.

use std::collections::{BTreeMap, BTreeSet};

/// The contents of a file; `None`: there is no such file.
pub(crate) type Value = Option<u32>;

/// The files that were seen in a directory.
pub(crate) type Seen = BTreeMap<String, u32>;

/// The contents of a file that was being written, unsynced, when the power was cut.
pub(crate) const TORN: u32 = u32::MAX;

/// A directory: which values each file may have. A file that is not listed does not exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Files {
    values: BTreeMap<String, BTreeSet<Value>>,
    /// Files that were changed and not synced since.
    unsynced: BTreeSet<String>,
}

impl Files {
    /// `name` was changed to this value, which is not on disk yet.
    pub(crate) fn write(&mut self, name: &str, value: Value) {
        self.set(name, value);
        self.unsynced.insert(name.to_owned());
    }

    /// All changes are on disk.
    pub(crate) fn sync(&mut self) {
        self.unsynced.clear();
    }

    /// The power was cut: what was not synced may be anything.
    pub(crate) fn cut(&mut self) {
        for name in std::mem::take(&mut self.unsynced) {
            self.maybe(&name, Some(TORN));
            self.maybe(".new", Some(TORN));
        }
    }

    /// `name` has this value.
    fn set(&mut self, name: &str, value: Value) {
        self.values.insert(name.to_owned(), BTreeSet::from([value]));
    }

    /// `name` may have got this value.
    pub(crate) fn maybe(&mut self, name: &str, value: Value) {
        self.values.entry(name.to_owned()).or_insert_with(|| BTreeSet::from([None])).insert(value);
    }

    /// `name` may have got this value, which is not on disk yet.
    pub(crate) fn write_maybe(&mut self, name: &str, value: Value) {
        self.maybe(name, value);
        self.unsynced.insert(name.to_owned());
    }

    /// Each file may be as it is in `other`.
    pub(crate) fn maybe_all(&mut self, other: &Self) {
        let names: Vec<_> = self.values.keys().chain(other.values.keys()).cloned().collect();
        for name in names {
            for value in other.values.get(&name).cloned().unwrap_or_else(|| BTreeSet::from([None]))
            {
                self.maybe(&name, value);
            }
        }
    }

    /// Adds `other` below the directory `dir`.
    pub(crate) fn put_below(&mut self, dir: &str, other: &Self) {
        for (name, values) in &other.values {
            self.values.insert(format!("{dir}/{name}"), values.clone());
        }
        self.unsynced.extend(other.unsynced.iter().map(|name| format!("{dir}/{name}")));
    }

    /// Collapses the model to what was seen.
    ///
    /// # Errors
    ///
    /// What was seen is not possible.
    pub(crate) fn observe(&mut self, seen: &Seen) -> Result<(), String> {
        let names: BTreeSet<_> = self.values.keys().chain(seen.keys()).cloned().collect();
        for name in names {
            let value = seen.get(&name).copied();
            let possible =
                self.values.get(&name).cloned().unwrap_or_else(|| BTreeSet::from([None]));
            if !possible.contains(&value) && !possible.contains(&Some(TORN)) {
                return Err(format!("{name} is {value:?}, expected one of {possible:?}"));
            }
            self.set(&name, value);
        }
        Ok(())
    }
}

/// A snapshot that was acknowledged.
#[derive(Debug, Clone)]
pub(crate) struct Snapshot {
    pub(crate) id: String,
    pub(crate) files: Files,
}

/// A live mount of a sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Mount {
    pub(crate) snapshot: String,
    /// The files of the snapshot, before any change.
    pub(crate) original: Files,
    pub(crate) files: Files,
    /// The name of the directory above when it was mounted.
    pub(crate) above: String,
}

/// Whether a sandbox runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    Running,
    Stopped,
}

/// One client's sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Sandbox {
    pub(crate) life: Life,
    pub(crate) work: Files,
    /// What several clients copy to.
    pub(crate) shared: Files,
    pub(crate) mounts: BTreeMap<u8, Mount>,
    /// Changes of mounts that were unmounted: by snapshot, slot and directory above.
    pub(crate) kept: BTreeMap<(String, u8, String), Files>,
    /// The name of the directory above the mount points.
    pub(crate) above: String,
    /// Mounts were renamed with the directory above them since they were made.
    pub(crate) moved: bool,
}

impl Sandbox {
    pub(crate) fn new() -> Self {
        Self {
            life: Life::Running,
            work: Files::default(),
            shared: Files::default(),
            mounts: BTreeMap::new(),
            kept: BTreeMap::new(),
            above: "p".into(),
            moved: false,
        }
    }

    /// All that can be written in it.
    pub(crate) fn all_files(&mut self) -> impl Iterator<Item = &mut Files> {
        let mounts = self.mounts.values_mut().map(|mount| &mut mount.files);
        [&mut self.work, &mut self.shared].into_iter().chain(mounts).chain(self.kept.values_mut())
    }

    /// The path of a slot.
    pub(crate) fn slot(&self, slot: u8) -> String {
        format!("/{}/{slot}", self.above)
    }
}

/// All that must exist.
#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) sandboxes: BTreeMap<usize, Sandbox>,
    pub(crate) snapshots: Vec<Snapshot>,
    /// The ids that a name may stand for; none: it may stand for nothing.
    pub(crate) names: BTreeMap<String, BTreeSet<Option<String>>>,
}

impl Model {
    /// Remembers a snapshot. One that was known has the same files.
    pub(crate) fn add(&mut self, id: &str, files: Files) {
        if !self.snapshots.iter().any(|one| one.id == id) {
            let mut files = files;
            files.sync();
            self.snapshots.push(Snapshot { id: id.to_owned(), files });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn observations_narrow_the_possible_states_and_refuse_impossible_ones() {
        let mut files = Files::default();
        files.set("a", Some(1));
        files.maybe("a", Some(2));
        files.maybe("b", Some(3));
        let mut other = files.clone();
        assert!(other.observe(&Seen::from([("a".into(), 3)])).is_err());
        assert!(other.observe(&Seen::from([("a".into(), 1), ("c".into(), 9)])).is_err());
        files.observe(&Seen::from([("a".into(), 2)])).unwrap();
        assert!(files.observe(&Seen::from([("a".into(), 1)])).is_err());
        assert!(files.observe(&Seen::from([("a".into(), 2), ("b".into(), 3)])).is_err());
        files.write("t", Some(5));
        assert!(files.clone().observe(&Seen::from([("a".into(), 2)])).is_err());
        files.cut();
        files.observe(&Seen::from([("a".into(), 2)])).unwrap();
    }

    #[test]
    fn an_interrupted_write_is_old_or_new_until_the_power_is_cut() {
        let mut files = Files::default();
        files.write("a", Some(1));
        files.sync();
        files.write_maybe("a", Some(2));
        let torn = Seen::from([("a".into(), 0)]);
        for value in [1, 2] {
            files.clone().observe(&Seen::from([("a".into(), value)])).unwrap();
        }
        assert!(files.clone().observe(&Seen::new()).is_err());
        assert!(files.clone().observe(&torn).is_err());
        // Also after a look has found the new one: it is not on disk for that.
        files.observe(&Seen::from([("a".into(), 2)])).unwrap();
        assert!(files.clone().observe(&Seen::from([("a".into(), 1)])).is_err());
        files.cut();
        files.clone().observe(&Seen::from([("a".into(), 1)])).unwrap();
        files.observe(&torn).unwrap();
    }
}
