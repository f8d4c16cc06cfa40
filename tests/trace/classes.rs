//! What was fetched, as which class, and that it is what went over the link.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

use inlay_testkit::{content, scratch};
use inlay_trace::{FetchClass, FetchRow, Trace};
use rustix::fs::{Advice, fadvise};

use crate::ahead::{ALL, Asked, Remote, file};
use crate::recorded::{Recorded, fetch_of};

fn of_class(trace: &Trace, class: FetchClass) -> Vec<FetchRow> {
    trace.fetches.rows.iter().filter(|row| row.class == class).copied().collect()
}

/// Groups that were fetched: the requests and bytes are those that the proxy saw.
fn assert_seen(trace: &Trace, asked: &[Asked]) {
    let groups = trace.fetches.rows.iter();
    let groups = groups.filter(|row| row.class.code() <= FetchClass::Rest.code());
    let rows: Vec<_> = groups.collect();
    assert_eq!(rows.len(), asked.len());
    let bytes: i64 = rows.iter().map(|row| row.bytes).sum();
    let seen: u64 = asked.iter().map(|asked| asked.down).sum();
    assert_eq!(u64::try_from(bytes).unwrap(), seen);
    assert!(rows.iter().all(|row| row.groups > 0 && row.snapshot == 0 && row.file >= 0));
}

/// What is mounted here from the beginning of the recording until all of it is loaded.
fn loaded(
    remote: &Remote,
    image: &crate::ahead::Snapshot,
    options: &[&str],
    read: &[usize],
) -> Trace {
    let host = remote.host();
    let recorded = Recorded::begin(&host, &[]);
    remote.proxy.forget();
    let mounted = host.mount(&image.name, options).unwrap();
    for number in read {
        image.read(mounted.path(), *number);
    }
    image.wait_for_phase(&host, "done");
    remote.wait_until_quiet();
    let trace = recorded.end();
    mounted.unmount().unwrap();
    assert_seen(&trace, &remote.asked());
    trace
}

fn paths(trace: &Trace, rows: &[FetchRow]) -> Vec<String> {
    let path = |row: &FetchRow| trace.files[usize::try_from(row.file).unwrap()].0.clone();
    rows.iter().map(path).collect()
}

#[test]
fn a_directory_is_fetched_as_one_and_its_index_before_it() {
    let remote = Remote::start();
    let dir = remote.import("dir", "directory", 20);
    let trace = loaded(&remote, &dir, ALL, &[]);
    let index = of_class(&trace, FetchClass::Index);
    let rows = of_class(&trace, FetchClass::Directory);
    assert_eq!((index.len(), index[0].snapshot), (1, 0));
    let seen = remote.proxy.requests("GET", "/indexes/");
    assert_eq!(u64::try_from(index[0].bytes).unwrap(), seen[0].down);
    assert!(index[0].sent >= 0 && index[0].first_byte <= index[0].received);
    assert_eq!(of_class(&trace, FetchClass::ProfileRecord).len(), 1);
    assert!(rows.iter().all(|row| row.sent >= index[0].received));
    assert_eq!(rows.iter().map(|row| row.groups).sum::<i64>(), 20);
    let names: Vec<_> = trace.marks.iter().map(|mark| mark.name.as_str()).collect();
    assert_eq!(names, ["begin", "resolved", "attached", "mounted"]);
    let attached = |name: &str| trace.marks.iter().find(|mark| mark.name == name).unwrap().at;
    assert!(attached("resolved") <= attached("attached"));
}

#[test]
fn groups_of_earlier_starts_are_fetched_as_profile_before_the_rest() {
    const START: [usize; 6] = [41, 7, 30, 3, 44, 20];
    let remote = Remote::start();
    let image = remote.import("image", "image", 48);
    {
        let host = remote.host();
        let words = ["--prefetch", "off", "--record-profile", "on"];
        let mounted = host.mount("image", &words).unwrap();
        for number in &START {
            image.read(mounted.path(), *number);
        }
        mounted.unmount().unwrap();
        host.wait_until_quiet().unwrap();
    }
    let trace = loaded(&remote, &image, ALL, &[]);
    let (profile, rest) =
        (of_class(&trace, FetchClass::Profile), of_class(&trace, FetchClass::Rest));
    let sum = |rows: &[FetchRow]| rows.iter().map(|row| row.groups).sum::<i64>();
    assert_eq!((sum(&profile), sum(&rest)), (6, 42));
    let start = START.map(|number| format!("/{}", file(number)));
    assert!(paths(&trace, &profile).iter().all(|path| start.contains(path)));
    assert!(profile.iter().all(|one| rest.iter().all(|other| one.sent <= other.sent)));
}

#[test]
fn a_reader_waits_for_demand_and_read_ahead_comes_before_it() {
    const LEN: usize = 8 << 20;
    let remote = Remote::start();
    let tree = scratch().unwrap();
    fs::write(tree.path().join("large"), content::random("large", LEN)).unwrap();
    let source = format!("dir:{}", tree.path().display());
    remote.host().succeed(["import", &source, "--name", "image"]).unwrap();
    let host = remote.host();
    // Nothing comes unless it is near to what is read.
    let mounted = host.mount("image", &["--prefetch", "profile"]).unwrap();
    remote.slow_down();
    let recorded = Recorded::begin(&host, &[]);
    remote.proxy.forget();
    // In small pieces, and without the kernel's own reading ahead: that asks for much at once.
    let large = File::open(mounted.path().join("large")).unwrap();
    fadvise(&large, 0, None, Advice::Random).unwrap();
    let mut piece = vec![0; 64 << 10];
    for offset in (0..LEN).step_by(piece.len()) {
        large.read_exact_at(&mut piece, offset as u64).unwrap();
    }
    remote.wait_until_quiet();
    let trace = recorded.end();
    assert_seen(&trace, &remote.asked());
    let first = trace.touches.rows[0];
    assert_eq!(fetch_of(&trace, &first).unwrap().class, FetchClass::Demand);
    let ahead = of_class(&trace, FetchClass::ReadAhead);
    assert!(!ahead.is_empty());
    assert!(ahead.iter().all(|row| row.queued >= 0 && row.queued <= row.sent), "{ahead:?}");
    let waited = trace.touches.rows.iter().filter_map(|row| fetch_of(&trace, row));
    assert!(waited.into_iter().any(|row| row.class == FetchClass::ReadAhead));
}
