//! The log, written and read.

use std::fs;
use std::io::Write;

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
    fn what_was_written_is_read_whatever_it_is(
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
    // A reader that keeps up loses nothing by rotation.
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
fn a_line_without_end_is_cut_and_what_a_killed_writer_left_is_left_out() {
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
    // The next needs a new file, and there can be none.
    fs::remove_dir_all(layout.log()).unwrap();
    writer.take(LogStream::Stdout, b"lost\nlost\n");
    fs::create_dir_all(layout.log()).unwrap();
    writer.take(LogStream::Stdout, b"last\n");
    let all: Vec<u8> = read(&layout, LogFrom::default()).iter().flat_map(LogEntry::bytes).collect();
    let text = String::from_utf8(all).unwrap();
    assert!(text.contains("2 lines of output were lost") && text.ends_with("last\n"), "{text}");
}
