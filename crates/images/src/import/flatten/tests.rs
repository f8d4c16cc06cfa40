//! Compares flattening with a reference model that unpacks from the bottom up.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io::{self, Read};

use inlay_store::tree::NodeKind;
use proptest::prelude::*;
use tar::EntryType;

use super::*;
use crate::import::testing::{ArchiveWriter, Listing, MemorySink, TestObject, file, list};
use crate::import::{BytesLayer, NoProgress};

/// Flattens layers, the topmost first.
fn flatten(layers: Vec<Vec<u8>>) -> Result<Listing, ImportError> {
    let options = ImportOptions::default();
    let mut sink = MemorySink::default();
    let mut flattener = Flattener::new(&options, Markers::Apply, &mut sink, &NoProgress);
    for (at, layer) in layers.into_iter().enumerate() {
        flattener.layer(&mut BytesLayer::new(format!("#{at}"), layer))?;
    }
    let tree = flattener.finish();
    Ok(list(&tree, &sink))
}

/// Builds a layer from lines: `d NAME`, `f NAME`, `h NAME TARGET`, `s NAME TARGET`. A file contains
/// its name.
fn layer(lines: &[&str]) -> Vec<u8> {
    let mut writer = ArchiveWriter::new();
    for line in lines {
        let words: Vec<&str> = line.split(' ').collect();
        let (name, link) = (words[1], words.get(2).copied().unwrap_or(""));
        match words[0] {
            "d" => writer.add_with(EntryType::Directory, name, "", b"", 0o700, 7),
            "f" => writer.add(EntryType::Regular, name, "", name.as_bytes()),
            "h" => writer.add(EntryType::Link, name, link, b""),
            "s" => writer.add(EntryType::Symlink, name, link, b""),
            other => panic!("{other}"),
        }
    }
    writer.finish()
}

fn names(listing: &Listing) -> Vec<&str> {
    listing.keys().map(|path| std::str::from_utf8(path).unwrap()).collect()
}

fn flatten_error(layers: &[&[&str]]) -> String {
    flatten(layers.iter().map(|lines| layer(lines)).collect()).unwrap_err().to_string()
}

#[test]
fn whiteouts_and_opaque_directories_hide_lower_layers_only() {
    let top = layer(&["f .wh.a", "f b/.wh..wh..opq", "f b/new", "f c/.wh.x", "f c/x"]);
    let low = layer(&["f a", "d b", "f b/old", "d c", "f c/x", "f c/y", "f .wh..wh.aufs"]);
    let listing = flatten(vec![top, low]).unwrap();
    assert_eq!(names(&listing), ["", "b", "b/new", "c", "c/x", "c/y"]);
    assert_eq!(listing[&b"b"[..]].meta.perm, 0o700, "the lower layer's entry gives it");
}

#[test]
fn a_hidden_file_with_a_visible_link_is_read_in_a_second_pass() {
    let top = layer(&["f .wh.a", "f b"]);
    let low = layer(&["f a", "h b a", "h c a", "h d c", "h e b", "f f"]);
    let listing = flatten(vec![top, low]).unwrap();
    assert_eq!(names(&listing), ["", "b", "c", "d", "e", "f"]);
    assert_eq!(listing[&b"b"[..]].object, file(b"b"));
    for name in [b"c", b"d", b"e"] {
        assert_eq!(listing[&name[..]].object, file(b"a"));
        assert_eq!(listing[&name[..]].first_name, b"c");
    }
}

#[test]
fn hidden_files_are_not_packed() {
    let options = ImportOptions::default();
    let mut sink = MemorySink::default();
    let mut flattener = Flattener::new(&options, Markers::Apply, &mut sink, &NoProgress);
    for lines in [&["f a", "f .wh.d"][..], &["f a", "f d/x", "f d/y", "f e"]] {
        flattener.layer(&mut BytesLayer::new("layer", layer(lines))).unwrap();
    }
    drop(flattener);
    assert_eq!(sink.files.len(), 2);
}

#[test]
fn a_file_hides_directories_of_lower_layers() {
    let listing = flatten(vec![
        layer(&["f a/top"]),
        layer(&["f a", "f b", "d b"]),
        layer(&["d a", "f a/low", "d b", "f b/low"]),
    ])
    .unwrap();
    assert_eq!(names(&listing), ["", "a", "a/top", "b"]);
    assert_eq!(listing[&b"a"[..]].meta.perm, 0o755);
}

#[test]
fn links_of_the_same_layer_are_followed_inside_the_tree() {
    let listing = flatten(vec![layer(&[
        "s lib usr/lib",
        "f lib/a",
        "s up ../../..",
        "f up/etc/b",
        "s abs /usr/./lib/../share",
        "f abs/c",
    ])])
    .unwrap();
    let expected =
        ["", "abs", "etc", "etc/b", "lib", "up", "usr", "usr/lib", "usr/lib/a", "usr/share"];
    assert_eq!(names(&listing)[..10], expected);
    assert!(listing.contains_key(&b"usr/share/c"[..]));
    // The directory above hides a symbolic link of a lower layer.
    let listing = flatten(vec![layer(&["f lib/a"]), layer(&["s lib usr/lib"])]).unwrap();
    assert_eq!(names(&listing), ["", "lib", "lib/a"]);
    assert!(flatten_error(&[&["s a b", "s b a", "f a/x"]]).contains("more than 40 symbolic links"));
}

#[test]
fn senseless_entries_are_errors_that_name_them() {
    for (lines, message) in [
        (&["f a/../b"][..], "entry 'a/../b': its name has a '..'"),
        (&["f .."], "entry '..': its name has a '..'"),
        (&["f x/.wh."], "a whiteout of nothing"),
        (&["f x/.wh..."], "a whiteout of nothing, of '.' or of '..'"),
        (&["f x/.wh.y/z"], "below a whiteout"),
        (&["f a", "f a/b"], "below 'a', which is no directory"),
        (&["h a b"], "it links to 'b', which no entry of the layer before it is"),
        (&["h a b", "f b"], "it links to 'b', which no entry"),
        (&["d a", "h b a"], "it links to 'a', which is a directory"),
        (&["f b", "h a ../b"], "its name has a '..'"),
        (&["f a/b", "f a"], "takes the place of a directory"),
        (&["f ."], "the root is no directory"),
    ] {
        let error = flatten_error(&[lines]);
        assert!(error.contains(message), "{error}");
    }
    let error = flatten_error(&[&["h b a"], &["f a"]]);
    assert!(error.contains("which no entry of the layer"), "{error}");
}

#[test]
fn later_entries_win_over_earlier_ones() {
    let listing =
        flatten(vec![layer(&["f a", "d a", "d b", "f b", "f c", "s c x", "f d", "h e d", "f d"])]);
    let listing = listing.unwrap();
    assert_eq!(listing[&b"a"[..]].object, TestObject::Other(NodeKind::Directory));
    assert_eq!(listing[&b"b"[..]].object, file(b"b"));
    assert_eq!(listing[&b"c"[..]].object, TestObject::Other(NodeKind::Symlink(b"x"[..].into())));
    assert_eq!(listing[&b"e"[..]].first_name, b"e");
}

#[test]
fn aufs_leftovers_are_hidden_but_can_be_linked_to() {
    let lines = ["d .wh..wh.plnk", "f .wh..wh.plnk/1.2", "h a .wh..wh.plnk/1.2"];
    let listing = flatten(vec![layer(&lines)]).unwrap();
    assert_eq!(names(&listing), ["", "a"]);
    assert_eq!(listing[&b"a"[..]].object, file(b".wh..wh.plnk/1.2"));
}

#[test]
fn without_markers_such_names_are_names() {
    let mut sink = MemorySink::default();
    let options = ImportOptions::default();
    let mut flattener = Flattener::new(&options, Markers::Literal, &mut sink, &NoProgress);
    let lines = ["f .wh.a", "f d/.wh..wh..opq"];
    flattener.layer(&mut BytesLayer::new("layer", layer(&lines))).unwrap();
    let tree = flattener.finish();
    assert_eq!(names(&list(&tree, &sink)), ["", ".wh.a", "d", "d/.wh..wh..opq"]);
}

#[test]
fn remembered_paths_are_bounded() {
    let mut options = ImportOptions::default();
    options.tree.heap_bytes = 1000;
    let mut sink = MemorySink::default();
    let mut flattener = Flattener::new(&options, Markers::Apply, &mut sink, &NoProgress);
    let whiteouts: Vec<String> = (0..20).map(|at| format!("f .wh.{at}")).collect();
    let lines: Vec<&str> = whiteouts.iter().map(String::as_str).collect();
    let error = flattener.layer(&mut BytesLayer::new("layer", layer(&lines))).unwrap_err();
    assert!(matches!(error, ImportError::Limit { limit: 1000, .. }), "{error}");
}

#[test]
fn a_layer_that_changes_between_passes_is_an_error() {
    struct Fickle(Cell<u32>);
    impl Layer for Fickle {
        fn name(&self) -> String {
            "fickle".into()
        }
        fn open(&mut self) -> io::Result<Box<dyn Read + Send>> {
            self.0.set(self.0.get() + 1);
            let lines =
                if self.0.get() == 1 { ["f a", "h b a"] } else { ["f longer", "h b longer"] };
            Ok(Box::new(io::Cursor::new(layer(&lines))))
        }
    }
    let mut sink = MemorySink::default();
    let options = ImportOptions::default();
    let mut flattener = Flattener::new(&options, Markers::Apply, &mut sink, &NoProgress);
    flattener.layer(&mut BytesLayer::new("top", layer(&["f .wh.a"]))).unwrap();
    let error = flattener.layer(&mut Fickle(Cell::new(0))).unwrap_err().to_string();
    assert!(error.contains("not the same when it is read again"), "{error}");
}

/// An entry of a generated layer. Names are `a`, `b` and `c`, up to three levels deep.
#[derive(Debug, Clone)]
enum Op {
    Dir(String),
    File(String),
    Empty(String),
    Symlink(String, String),
    Link(String, String),
    Whiteout(String),
    Opaque(String),
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec("[abc]", 1..4).prop_map(|parts| parts.join("/"))
}

fn op() -> impl Strategy<Value = Op> {
    let target = prop_oneof![path(), path().prop_map(|p| format!("/{p}")), Just("../b".to_owned())];
    prop_oneof![
        3 => path().prop_map(Op::Dir),
        1 => Just(Op::Dir(String::new())),
        4 => path().prop_map(Op::File),
        1 => path().prop_map(Op::Empty),
        1 => (path(), target).prop_map(|(path, target)| Op::Symlink(path, target)),
        3 => (path(), path()).prop_map(|(path, target)| Op::Link(path, target)),
        2 => path().prop_map(Op::Whiteout),
        1 => path().prop_map(Op::Opaque),
    ]
}

/// State of a path in the model.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Model {
    /// With the time of its entry, if it has one.
    Dir(Option<i64>),
    /// With the time of its inode's entry, which identifies the inode.
    Leaf(i64, TestObject),
}

type Paths = BTreeMap<String, Model>;

/// One layer, unpacked.
#[derive(Debug, Clone, Default)]
struct Unpacked {
    paths: Paths,
    cuts: Vec<String>,
    opaques: Vec<String>,
}

fn model_join(dir: &str, name: &str) -> String {
    if dir.is_empty() { name.into() } else { format!("{dir}/{name}") }
}

fn model_split(path: &str) -> (&str, &str) {
    path.rsplit_once('/').unwrap_or(("", path))
}

fn remove_below(paths: &mut Paths, dir: &str) {
    paths.retain(|path, _| {
        !(dir.is_empty() && !path.is_empty() || path.starts_with(&format!("{dir}/")))
    });
}

impl Unpacked {
    fn resolve(&mut self, dir: &str, make: bool) -> Option<String> {
        let mut at = String::new();
        let split = |path: &str| -> Vec<String> {
            path.split('/').filter(|p| !p.is_empty()).rev().map(str::to_owned).collect()
        };
        let mut todo = split(dir);
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == ".." {
                at = model_split(&at).0.to_owned();
                continue;
            }
            let path = model_join(&at, &name);
            match self.paths.get(&path) {
                Some(Model::Dir(_)) => at = path,
                Some(Model::Leaf(_, TestObject::Other(NodeKind::Symlink(target)))) => {
                    links += 1;
                    let target = std::str::from_utf8(target).unwrap();
                    if target.starts_with('/') {
                        at = String::new();
                    }
                    todo.extend(split(target));
                    if links > 40 {
                        return None;
                    }
                }
                Some(Model::Leaf(..)) => return None,
                None => {
                    if make {
                        self.paths.insert(path.clone(), Model::Dir(None));
                    }
                    at = path;
                }
            }
        }
        Some(at)
    }

    /// Applies an entry; `None` if an unpacking tool would reject it.
    fn take(&mut self, op: &Op, time: i64) -> Option<()> {
        let leaf = |object| Some(Model::Leaf(time, object));
        let (path, model) = match op {
            Op::Whiteout(path) => {
                let (dir, name) = model_split(path);
                let dir = self.resolve(dir, false)?;
                self.cuts.push(model_join(&dir, name));
                return Some(());
            }
            Op::Opaque(dir) => {
                let dir = self.resolve(dir, false)?;
                self.opaques.push(dir);
                return Some(());
            }
            Op::Dir(path) => (path, Some(Model::Dir(Some(time)))),
            Op::File(path) => (path, leaf(file(time.to_string().as_bytes()))),
            Op::Empty(path) => (path, leaf(file(b""))),
            Op::Symlink(path, target) => {
                (path, leaf(TestObject::Other(NodeKind::Symlink(target.as_bytes().into()))))
            }
            Op::Link(path, _) => (path, None),
        };
        if path.is_empty() {
            self.paths.insert(String::new(), model?);
            return Some(());
        }
        let (dir, name) = model_split(path);
        let path = model_join(&self.resolve(dir, true)?, name);
        let model = match (model, op) {
            (Some(model), _) => model,
            (None, Op::Link(_, target)) => {
                let (dir, name) = model_split(target);
                let target = model_join(&self.resolve(dir, false)?, name);
                match self.paths.get(&target)? {
                    Model::Dir(_) => return None,
                    _ if target == path => return Some(()),
                    leaf @ Model::Leaf(..) => leaf.clone(),
                }
            }
            (None, _) => return None,
        };
        match (self.paths.get(&path), &model) {
            (Some(Model::Dir(_)), Model::Leaf(..)) => return None,
            (Some(Model::Leaf(..)), Model::Dir(_)) => self.cuts.push(path.clone()),
            _ => {}
        }
        self.paths.insert(path, model);
        Some(())
    }

    fn put_onto(self, state: &mut Paths) {
        for cut in &self.cuts {
            state.remove(cut);
            remove_below(state, cut);
        }
        for opaque in &self.opaques {
            if matches!(state.get(opaque), Some(Model::Dir(_))) {
                remove_below(state, opaque);
            }
        }
        for (path, model) in self.paths {
            match (state.get_mut(&path), model) {
                (Some(Model::Dir(time)), Model::Dir(newer)) => *time = newer.or(*time),
                (_, model) => {
                    if matches!(model, Model::Leaf(..)) {
                        remove_below(state, &path);
                    }
                    state.insert(path, model);
                }
            }
        }
    }
}

/// Returns the archive of the valid operations, and the layer they unpack to.
fn build(ops: &[Op], clock: &mut i64) -> (Vec<u8>, Unpacked) {
    let mut writer = ArchiveWriter::new();
    let mut unpacked = Unpacked::default();
    for op in ops {
        *clock += 1;
        let mut next = unpacked.clone();
        if next.take(op, *clock).is_none() {
            continue;
        }
        unpacked = next;
        let mut add = |kind, name: &str, link: &str, data: &[u8]| {
            writer.add_with(kind, name, link, data, 0o755, u64::try_from(*clock).unwrap());
        };
        match op {
            Op::Dir(path) => add(EntryType::Directory, &format!("./{path}"), "", b""),
            Op::File(path) => add(EntryType::Regular, path, "", clock.to_string().as_bytes()),
            Op::Empty(path) => add(EntryType::Regular, path, "", b""),
            Op::Symlink(path, target) => add(EntryType::Symlink, path, target, b""),
            Op::Link(path, target) => add(EntryType::Link, path, target, b""),
            Op::Whiteout(path) => {
                let (dir, name) = model_split(path);
                add(EntryType::Regular, &model_join(dir, &format!(".wh.{name}")), "", b"");
            }
            Op::Opaque(dir) => {
                add(EntryType::Regular, &format!("{dir}/.wh..wh..opq"), "", b"");
            }
        }
    }
    (writer.finish(), unpacked)
}

/// Path, time, object, and the first name of the same inode.
type Row = (String, i64, TestObject, String);

fn expected(state: &Paths) -> Vec<Row> {
    let first_name = |time: i64| {
        let same = |model: &Model| matches!(model, Model::Leaf(other, _) if *other == time);
        state.iter().find(|(_, model)| same(model)).map(|(path, _)| path.clone()).unwrap()
    };
    let mut rows: Vec<Row> = Vec::new();
    for (path, model) in state {
        rows.push(match model {
            Model::Dir(time) => {
                let time = time.unwrap_or_default();
                (path.clone(), time, TestObject::Other(NodeKind::Directory), path.clone())
            }
            Model::Leaf(time, object) => (path.clone(), *time, object.clone(), first_name(*time)),
        });
    }
    rows
}

fn found(listing: Listing) -> Vec<Row> {
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let row = |(path, seen): (Vec<u8>, crate::import::testing::Seen)| {
        (text(path), seen.meta.mtime.secs, seen.object, text(seen.first_name))
    };
    listing.into_iter().map(row).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn flattening_is_unpacking_from_the_bottom_up(
        stack in prop::collection::vec(prop::collection::vec(op(), 0..12), 1..5),
    ) {
        let mut state = Paths::from([(String::new(), Model::Dir(None))]);
        let mut clock = 0;
        let mut archives = Vec::new();
        for ops in &stack {
            let (archive, unpacked) = build(ops, &mut clock);
            archives.push(archive);
            unpacked.put_onto(&mut state);
        }
        archives.reverse();
        let listing = flatten(archives).map_err(|e| TestCaseError::fail(e.to_string()))?;
        prop_assert_eq!(found(listing), expected(&state));
    }
}
