//! Tests the log writer and reader together.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::super::id::SandboxId;
use super::super::layout::Layout;
use super::*;

fn layout(dir: &std::path::Path) -> Layout {
    Layout::of(dir, &SandboxId::random().unwrap())
}

fn read(layout: &Layout, from: LogFrom) -> Vec<LogEntry> {
    let mut reader = LogReader::open(layout, from).unwrap();
    std::iter::from_fn(|| reader.next_entry().unwrap()).collect()
}

fn bytes(entries: &[LogEntry], stream: LogStream) -> Vec<u8> {
    entries.iter().filter(|entry| entry.stream == stream).flat_map(LogEntry::bytes).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn arbitrary_output_round_trips_through_the_log(
        pieces in prop::collection::vec(
            (any::<bool>(), prop::collection::vec(prop_oneof![any::<u8>(), Just(b'\n')], 0..200)),
            0..20,
        )
    ) {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let mut writer = LogWriter::open(&layout, LogLimits::default()).unwrap();
        let mut wanted: [Vec<u8>; 2] = [Vec::new(), Vec::new()];
        for (is_err, piece) in &pieces {
            let stream = if *is_err { LogStream::Stderr } else { LogStream::Stdout };
            writer.take(stream, piece);
            wanted[usize::from(*is_err)].extend(piece);
        }
        writer.finish();
        let entries = read(&layout, LogFrom::default());
        prop_assert_eq!(bytes(&entries, LogStream::Stdout), wanted[0].clone());
        prop_assert_eq!(bytes(&entries, LogStream::Stderr), wanted[1].clone());
        let tail = read(&layout, LogFrom { tail: Some(3), since_ns: 0 });
        prop_assert_eq!(&tail[..], &entries[entries.len().saturating_sub(3)..]);
    }
}

#[test]
fn the_log_is_bounded_and_the_last_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let limits = LogLimits { file: 1000, files: 3 };
    let mut writer = LogWriter::open(&layout, limits).unwrap();
    let mut follower = LogReader::open(&layout, LogFrom::default()).unwrap();
    let mut followed = 0;
    for number in 0..1000 {
        writer.take(LogStream::Stdout, format!("line {number}\n").as_bytes());
        if let Some(entry) = follower.next_entry().unwrap() {
            assert_eq!(entry.bytes(), format!("line {followed}\n").as_bytes());
            followed += 1;
        }
    }
    // A reader that keeps up loses nothing in a rotation.
    assert_eq!(followed, 1000);
    let files: Vec<_> = fs::read_dir(layout.log()).unwrap().flatten().collect();
    assert_eq!(files.len(), 3);
    assert!(files.iter().all(|file| file.metadata().unwrap().len() < 1200));
    let entries = read(&layout, LogFrom::default());
    assert_eq!(entries.last().unwrap().bytes(), b"line 999\n");
    let since = entries[entries.len() - 5].time_ns;
    assert!(read(&layout, LogFrom { tail: None, since_ns: since }).len() >= 5);
    assert!(read(&layout, LogFrom { tail: None, since_ns: u64::MAX }).is_empty());
}

#[test]
fn endless_lines_are_cut_and_partial_records_skipped() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let mut writer = LogWriter::open(&layout, LogLimits::default()).unwrap();
    writer.take(LogStream::Stdout, &vec![1; 3 * LINE_MAX]);
    let entries = read(&layout, LogFrom::default());
    assert_eq!(entries.iter().map(|entry| entry.bytes().len()).collect::<Vec<_>>(), [LINE_MAX; 3]);
    drop(writer);
    let file = layout.log().join("output.json");
    fs::OpenOptions::new()
        .append(true)
        .open(&file)
        .unwrap()
        .write_all(b"{\"time_ns\":1,\"str")
        .unwrap();
    let mut writer = LogWriter::open(&layout, LogLimits::default()).unwrap();
    writer.take(LogStream::Stdout, b"next\n");
    let entries = read(&layout, LogFrom::default());
    assert_eq!(entries.len(), 4);
    assert_eq!(entries[3].bytes(), b"next\n");
}

#[test]
fn a_log_that_can_not_be_written_loses_lines_and_says_so_later() {
    let dir = tempfile::tempdir().unwrap();
    let layout = layout(dir.path());
    let mut writer = LogWriter::open(&layout, LogLimits { file: 1, files: 2 }).unwrap();
    writer.take(LogStream::Stdout, b"first\n");
    // The next write needs a new file, which can't be created.
    fs::remove_dir_all(layout.log()).unwrap();
    writer.take(LogStream::Stdout, b"lost\nlost\n");
    fs::create_dir_all(layout.log()).unwrap();
    writer.take(LogStream::Stdout, b"last\n");
    let all: Vec<u8> = read(&layout, LogFrom::default()).iter().flat_map(LogEntry::bytes).collect();
    let text = String::from_utf8(all).unwrap();
    assert!(text.contains("2 lines of output were lost") && text.ends_with("last\n"), "{text}");
}

/// A log of small files, to which lines with ascending numbers are written.
struct Numbered {
    layout: Layout,
    writer: LogWriter,
    written: usize,
    _dir: tempfile::TempDir,
}

impl Numbered {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = layout(dir.path());
        let limits = LogLimits { file: 1000, ..LogLimits::default() };
        let writer = LogWriter::open(&layout, limits).unwrap();
        Self { layout, writer, written: 0, _dir: dir }
    }

    fn write(&mut self, lines: usize) {
        for number in self.written..self.written + lines {
            self.writer.take(LogStream::Stdout, format!("{number}\n").as_bytes());
        }
        self.written += lines;
    }

    /// Writes until the current file has just been rotated `times` times.
    fn rotate(&mut self, times: usize) {
        for _ in 0..times {
            let before = fs::metadata(path(&self.layout, 0)).unwrap().ino();
            while fs::metadata(path(&self.layout, 0)).unwrap().ino() == before {
                self.write(1);
            }
        }
    }

    fn open(&self, tail: Option<usize>) -> LogReader {
        LogReader::open(&self.layout, LogFrom { tail, since_ns: 0 }).unwrap()
    }
}

fn number(entry: &LogEntry) -> usize {
    String::from_utf8(entry.bytes()).unwrap().trim().parse().unwrap()
}

/// Returns the numbers of all entries that `reader` still has.
fn rest(reader: &mut LogReader) -> Vec<usize> {
    std::iter::from_fn(|| reader.next_entry().unwrap()).map(|entry| number(&entry)).collect()
}

/// Returns all numbers in the log, as its files have them: oldest file first.
fn on_disk(layout: &Layout) -> Vec<usize> {
    let files = (0..LogLimits::default().files).rev().map(|age| path(layout, age));
    let text: String = files.map(|path| fs::read_to_string(path).unwrap_or_default()).collect();
    text.lines().map(|line| number(&serde_json::from_str(line).unwrap())).collect()
}

#[test]
fn entries_of_all_files_come_once_and_in_order() {
    let mut log = Numbered::new();
    for _ in 0..5 {
        log.rotate(1);
        log.write(3);
        let wanted = on_disk(&log.layout);
        let last = *wanted.last().unwrap();
        assert!(wanted.iter().copied().eq(last + 1 - wanted.len()..=last), "{wanted:?}");
        assert_eq!(rest(&mut log.open(None)), wanted);
        for tail in 0..=wanted.len() + 1 {
            let from = wanted.len().saturating_sub(tail);
            assert_eq!(rest(&mut log.open(Some(tail))), wanted[from..], "the last {tail}");
        }
        let entries = read(&log.layout, LogFrom::default());
        for from in [0, entries.len() / 3, entries.len() - 1] {
            let since_ns = entries[from].time_ns;
            let since = read(&log.layout, LogFrom { tail: None, since_ns });
            assert_eq!(since, entries[from..]);
            let both = read(&log.layout, LogFrom { tail: Some(1), since_ns });
            assert_eq!(both, entries[entries.len() - 1..]);
        }
    }
}

#[test]
fn a_reader_loses_nothing_that_is_rotated_while_it_reads() {
    // A file that a reader has open stays readable; of the later ones, only those on disk do.
    let files = usize::try_from(LogLimits::default().files).unwrap();
    for before in 0..=files {
        for rotations in 0..=files {
            for begun in [0, 1, 20] {
                let mut log = Numbered::new();
                log.rotate(before);
                log.write(2);
                let mut wanted = on_disk(&log.layout);
                let mut reader = log.open(None);
                let mut found: Vec<_> = (0..begun.min(wanted.len()))
                    .map(|_| number(&reader.next_entry().unwrap().unwrap()))
                    .collect();
                log.rotate(rotations);
                log.write(1);
                wanted.extend(wanted.last().unwrap() + 1..log.written);
                found.extend(rest(&mut reader));
                assert_eq!(found, wanted, "{rotations} after {before}, {begun} read before");
            }
        }
    }
}

#[test]
fn a_reader_that_is_too_slow_continues_with_the_oldest_file_that_is_left() {
    let mut log = Numbered::new();
    log.write(1);
    let mut reader = log.open(None);
    assert_eq!(rest(&mut reader), [0]);
    log.rotate(7);
    let found = rest(&mut reader);
    let left = on_disk(&log.layout);
    assert!(found.ends_with(&left), "{found:?} {left:?}");
    assert!(found.is_sorted_by(|one, next| one < next), "{found:?}");
}

#[test]
fn the_last_entries_are_counted_in_the_files_that_are_read() {
    let mut log = Numbered::new();
    log.rotate(3);
    log.write(1);
    let wanted = on_disk(&log.layout);
    let mut reader = log.open(Some(2));
    // The files that were counted are no longer there.
    log.rotate(3);
    let found = rest(&mut reader);
    assert_eq!(found[..2], wanted[wanted.len() - 2..]);
    assert!(found.is_sorted_by(|one, next| one < next), "{found:?}");
}

#[test]
fn a_reader_of_a_torn_write_continues_after_it_is_truncated() {
    let mut log = Numbered::new();
    let file = fs::OpenOptions::new().append(true).open(path(&log.layout, 0)).unwrap();
    let mut reader = log.open(None);
    for torn in [1, 30, 300] {
        log.write(1);
        assert_eq!(rest(&mut reader).len(), 1);
        let len = file.metadata().unwrap().len();
        (&file).write_all(&vec![b'{'; torn]).unwrap();
        assert_eq!(rest(&mut reader).len(), 0);
        file.set_len(len).unwrap();
        log.write(1);
        assert_eq!(rest(&mut reader), [log.written - 1], "{torn}");
    }
}

#[test]
fn readers_see_entries_in_order_while_files_are_rotated() {
    let mut log = Numbered::new();
    log.write(1);
    let (layout, total) = (log.layout.clone(), 10_000);
    let deadline = Instant::now() + Duration::from_mins(1);
    thread::scope(|scope| {
        scope.spawn(|| {
            while log.written < total {
                log.write(1);
            }
        });
        for tail in [None, Some(1), Some(10), Some(40)] {
            let layout = &layout;
            scope.spawn(move || {
                let from = LogFrom { tail, since_ns: 0 };
                let mut last = None;
                while last < Some(total - 1) && Instant::now() < deadline {
                    let mut reader = LogReader::open(layout, from).unwrap();
                    let found: Vec<_> = (0..3).flat_map(|_| rest(&mut reader)).collect();
                    assert!(found.is_sorted_by(|one, next| one < next), "{found:?}");
                    last = last.max(found.last().copied());
                }
                assert_eq!(last, Some(total - 1));
            });
        }
    });
}
