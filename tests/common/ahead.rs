//! Snapshots in an S3 store behind a proxy, and what is asked of them in which order.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::collections::BTreeMap;
use std::fs;
use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use inlay_store::format::{FileData, GroupIdx, Index, InodeIdx};
use inlay_testkit::cli::Inlay;
use inlay_testkit::link::{Bandwidth, LinkProfile};
use inlay_testkit::proxy::{Proxy, Seen};
use inlay_testkit::weed::{BUCKET, Weed};
use inlay_testkit::{Comparison, content, scratch};
use serde_json::Value;
use tempfile::TempDir;

/// Each file is a group of its own: longer than the size at which a group is closed, and it does not
/// compress.
const FILE_LEN: usize = 60_000;
const GROUP_SIZE: &str = "32K";

/// Everything is loaded, and nothing is remembered.
pub(crate) const ALL: &[&str] = &["--prefetch", "all"];

/// A store behind a proxy.
pub(crate) struct Remote {
    pub(crate) proxy: Proxy,
    pub(crate) weed: Weed,
}

/// A snapshot of it, and where its groups are.
pub(crate) struct Snapshot {
    pub(crate) name: String,
    pub(crate) id: String,
    tree: TempDir,
    groups: Vec<(String, Range<u64>)>,
    files: BTreeMap<String, Vec<u32>>,
}

/// A request for a range of a blob, in the order of their arrival.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    blob: String,
    range: Range<u64>,
    pub(crate) status: Option<u16>,
    pub(crate) down: u64,
    at: Duration,
    end: Option<Duration>,
}

impl Remote {
    pub(crate) fn start() -> Self {
        let weed = Weed::start().unwrap();
        Self { proxy: Proxy::start(weed.address()).unwrap(), weed }
    }

    /// A host that has nothing yet. Its daemon writes down what is fetched and why.
    pub(crate) fn host(&self) -> Inlay {
        Inlay::new(env!("CARGO_BIN_EXE_inlay"))
            .unwrap()
            .with_environment(Weed::environment(self.proxy.address()))
            .with_environment([
                ("INLAY_STORE", format!("s3://{BUCKET}/p")),
                ("INLAY_LOG", "warn,inlay_prefetch::decisions=debug".to_owned()),
            ])
    }

    /// Imports so many files as a snapshot of this kind.
    pub(crate) fn import(&self, name: &str, kind: &str, files: usize) -> Snapshot {
        let tree = scratch().unwrap();
        for number in 0..files {
            let bytes = content::random(&format!("{name} {number}"), FILE_LEN);
            fs::write(tree.path().join(file(number)), bytes).unwrap();
        }
        // With a state of its own, so that its index is the only one there.
        let host = self.host();
        let source = format!("dir:{}", tree.path().display());
        let options = ["--name", name, "--kind", kind, "--group-size", GROUP_SIZE, "--json"];
        let ran = host.succeed([&["import", source.as_str()], &options[..]].concat()).unwrap();
        let answer: Value = serde_json::from_slice(&ran.stdout).unwrap();
        let id = answer["id"].as_str().unwrap().to_owned();
        Snapshot::of(name, id, tree, host.state())
    }

    /// From now on the link is so slow that loading takes seconds.
    pub(crate) fn slow_down(&self) {
        let bandwidth = Bandwidth::megabits_per_second(32);
        self.proxy.shape(LinkProfile::new(Duration::from_millis(20), Some(bandwidth)));
    }

    /// Requests for groups since the proxy was told to forget.
    pub(crate) fn asked(&self) -> Vec<Asked> {
        self.proxy.requests("GET", "/blobs/").iter().map(Asked::of).collect()
    }

    /// Waits until nothing is under way.
    pub(crate) fn wait_until_quiet(&self) {
        wait_for("the end of all requests", || self.asked().iter().all(Asked::has_ended));
    }
}

/// The name of the file with this number.
pub(crate) fn file(number: usize) -> String {
    format!("file-{number:04}")
}

impl Asked {
    /// Whether its answer has come, or was given up.
    pub(crate) fn has_ended(&self) -> bool {
        self.end.is_some()
    }

    /// Whether it was still under way when another was made.
    pub(crate) fn was_under_way_at(&self, other: &Self) -> bool {
        self.at <= other.at && self.end.is_none_or(|end| end > other.at)
    }

    /// How many bytes it is about.
    pub(crate) fn len(&self) -> u64 {
        self.range.end - self.range.start
    }

    fn of(seen: &Seen) -> Self {
        let (start, last) =
            seen.range.as_deref().unwrap().strip_prefix("bytes=").unwrap().split_once('-').unwrap();
        Self {
            blob: seen.path.rsplit('/').next().unwrap().to_owned(),
            range: start.parse().unwrap()..last.parse::<u64>().unwrap() + 1,
            status: seen.status,
            down: seen.down,
            at: seen.at,
            end: seen.end,
        }
    }
}

impl Snapshot {
    fn of(name: &str, id: String, tree: TempDir, state: &Path) -> Self {
        let mut files = vec![state.join("indexes")];
        while let Some(dir) = files.last().filter(|path| path.is_dir()).cloned() {
            files.pop();
            files.extend(fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()));
        }
        assert_eq!(files.len(), 1, "{files:?}");
        let index = Index::open(&files[0]).unwrap();
        let groups = (0..index.group_count()).map(|number| {
            let group = index.group(GroupIdx(number)).unwrap();
            let blob = index.blob(group.blob).unwrap().id.to_string();
            (blob, group.offset..group.offset + u64::from(group.stored_len))
        });
        let mut found = BTreeMap::new();
        for entry in index.dir(InodeIdx::ROOT).unwrap().iter() {
            let entry = entry.unwrap();
            let FileData::Extents(extents) = index.data(entry.inode).unwrap() else { panic!() };
            let groups: Vec<u32> = extents.iter().map(|extent| extent.unwrap().group.0).collect();
            found.insert(String::from_utf8(entry.name.to_vec()).unwrap(), groups);
        }
        let groups = groups.collect();
        Self { name: name.to_owned(), id, tree, groups, files: found }
    }

    /// How many groups it has.
    pub(crate) fn len(&self) -> usize {
        self.groups.len()
    }

    /// The groups of it that a request brings.
    pub(crate) fn groups_in(&self, asked: &Asked) -> Vec<u32> {
        self.groups_within(&asked.blob, &asked.range)
    }

    fn groups_within(&self, blob: &str, range: &Range<u64>) -> Vec<u32> {
        let within = |(of, group): &(String, Range<u64>)| {
            of == blob && range.start <= group.start && group.end <= range.end
        };
        let all = (0..).zip(&self.groups);
        all.filter(|(_, group)| within(group)).map(|(number, _)| number).collect()
    }

    /// The groups that these requests bring, request by request.
    pub(crate) fn order(&self, asked: &[Asked]) -> Vec<u32> {
        asked.iter().flat_map(|asked| self.groups_in(asked)).collect()
    }

    /// The one group of a file.
    pub(crate) fn group_of(&self, number: usize) -> u32 {
        let groups = &self.files[&file(number)];
        assert_eq!(groups.len(), 1);
        groups[0]
    }

    /// The name of its one blob.
    pub(crate) fn blob(&self) -> String {
        assert!(self.groups.iter().all(|(blob, _)| *blob == self.groups[0].0));
        self.groups[0].0.clone()
    }

    /// Reads a file of a mount of it, which must be right.
    pub(crate) fn read(&self, mounted: &Path, number: usize) {
        let bytes = fs::read(mounted.join(file(number))).unwrap();
        assert!(bytes == content::random(&format!("{} {number}", self.name), FILE_LEN), "{number}");
    }

    /// Every byte of a mount of it must be right.
    pub(crate) fn compare(&self, mounted: &Path) {
        Comparison::default().run(self.tree.path(), mounted).unwrap();
    }

    /// How far its loading is, by the daemon.
    pub(crate) fn status(&self, host: &Inlay) -> Option<Value> {
        let status = prefetch_status(host);
        let mut found = status["snapshots"].as_array().unwrap().iter();
        found.find(|shown| shown["snapshot"] == self.id.as_str()).cloned()
    }

    /// Waits until the loading of it is in this phase.
    pub(crate) fn wait_for_phase(&self, host: &Inlay, phase: &str) -> Value {
        let mut last = None;
        wait_for(&format!("'{phase}' of {}", self.name), || {
            last = self.status(host);
            last.as_ref().is_some_and(|shown| shown["phase"] == phase)
        });
        last.unwrap()
    }

    /// What was fetched of it, in the order of the daemon's decisions: class and group.
    pub(crate) fn decisions(&self, host: &Inlay) -> Vec<(String, u32)> {
        let field = |line: &str, name: &str| {
            let value = line.split_once(&format!(" {name}="))?.1;
            Some(value.split(' ').next().unwrap().to_owned())
        };
        let log = host.daemon_log();
        // Several threads log what they were given to do: the numbers have the order of the decisions.
        let mut lines: Vec<(u64, &str)> = log
            .lines()
            .filter(|line| field(line, "blob").is_some())
            .filter_map(|line| Some((field(line, "request")?.parse().ok()?, line)))
            .collect();
        lines.sort_by_key(|(request, _)| *request);
        let mut decisions = Vec::new();
        for (_, line) in lines {
            let (Some(class), Some(blob)) = (field(line, "class"), field(line, "blob")) else {
                continue;
            };
            let start: u64 = field(line, "from").unwrap().parse().unwrap();
            let bytes: u64 = field(line, "bytes").unwrap().parse().unwrap();
            let range = start..start + bytes;
            let groups = self.groups_within(&blob, &range);
            decisions.extend(groups.into_iter().map(|group| (class.clone(), group)));
        }
        decisions
    }
}

/// What the daemon says of loading ahead.
pub(crate) fn prefetch_status(host: &Inlay) -> Value {
    let ran = host.succeed(["prefetch", "status", "--json"]).unwrap();
    serde_json::from_slice(&ran.stdout).unwrap()
}

/// No byte of any blob is asked for twice.
pub(crate) fn assert_nothing_twice(asked: &[Asked]) {
    let mut ranges: Vec<_> =
        asked.iter().map(|asked| (&asked.blob, asked.range.start, asked.range.end)).collect();
    ranges.sort();
    for pair in ranges.windows(2) {
        let apart = pair[0].0 != pair[1].0 || pair[0].2 <= pair[1].1;
        assert!(apart, "asked for twice: {pair:?}");
    }
}

/// Waits until it is so.
pub(crate) fn wait_for(what: &str, is_so: impl FnMut() -> bool) {
    inlay_testkit::wait::until(what, is_so);
}
