//! Tests of encoding and decoding records.

use proptest::prelude::*;

use super::*;
use crate::ids::{Digest, IndexDigest, Kind};

pub(crate) fn id(number: u8) -> SnapshotId {
    SnapshotId { kind: Kind::Image, index: IndexDigest(Digest::of(&[number])) }
}

pub(crate) fn record(number: u8) -> SnapshotRecord {
    SnapshotRecord {
        id: id(number),
        created: 1_700_000_000 + u64::from(number),
        source: "tar:root.tar".to_owned(),
        parent: Some(id(number.wrapping_add(1))),
        counts: TreeCounts { files: 3, directories: 2, others: 1 },
        content_bytes: 12_345,
        stored_bytes_new: 678,
        index_bytes: 900,
        index_packed_bytes: 400,
        blobs: 1,
        tool: "inlay 0.1.0".to_owned(),
        labels: BTreeMap::from([("team".to_owned(), "data".to_owned())]),
        ttl_s: Some(2_592_000),
    }
}

pub(crate) fn name_record(name: &str, number: u8) -> NameRecord {
    NameRecord {
        name: name.parse().unwrap(),
        id: id(number),
        updated: 1_700_000_000,
        updated_ns: 0,
    }
}

/// Returns the JSON of a record after `change`.
fn changed(change: impl FnOnce(&mut serde_json::Value)) -> Vec<u8> {
    let mut json = serde_json::from_slice(&record(1).encode().unwrap()).unwrap();
    change(&mut json);
    serde_json::to_vec(&json).unwrap()
}

#[test]
fn records_survive_being_written_and_read() {
    let whole = record(1);
    assert_eq!(SnapshotRecord::decode(&whole.encode().unwrap(), &id(1)).unwrap(), whole);
    let bare = SnapshotRecord { parent: None, labels: BTreeMap::new(), ttl_s: None, ..whole };
    assert_eq!(SnapshotRecord::decode(&bare.encode().unwrap(), &id(1)).unwrap(), bare);
    let name = name_record("team/app:1", 2);
    assert_eq!(NameRecord::decode(&name.encode().unwrap(), &name.name).unwrap(), name);
}

#[test]
fn fields_of_later_programs_are_passed_over() {
    let json = changed(|json| json["mood"] = serde_json::json!({ "good": [1, 2, 3] }));
    assert_eq!(SnapshotRecord::decode(&json, &id(1)).unwrap(), record(1));
}

#[test]
fn other_versions_are_refused_by_number() {
    for found in [0, 2, u64::MAX] {
        let json = changed(|json| json["version"] = found.into());
        let refused = SnapshotRecord::decode(&json, &id(1)).unwrap_err();
        assert_eq!(refused, RecordError::Version { found });
    }
    // For another version, no other field is read.
    let refused = SnapshotRecord::decode(br#"{"version":7}"#, &id(1)).unwrap_err();
    assert_eq!(refused, RecordError::Version { found: 7 });
}

#[test]
fn a_record_in_anothers_place_is_refused() {
    let refused = SnapshotRecord::decode(&record(1).encode().unwrap(), &id(2)).unwrap_err();
    assert_eq!(refused, RecordError::Misplaced { found: id(1).to_string() });
}

#[test]
fn hostile_records_are_refused() {
    let deep = format!(r#"{{"version":1,"x":{}1{}}}"#, "[".repeat(30_000), "]".repeat(30_000));
    let cases: [&[u8]; 8] = [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"\xff\xfe",
        br#"{"version":-1}"#,
        br#"{"version":1,"id":"img-xyz"}"#,
        deep.as_bytes(),
    ];
    for json in cases {
        let refused = SnapshotRecord::decode(json, &id(1)).unwrap_err();
        assert!(matches!(refused, RecordError::Malformed(_)), "{refused}");
    }
    let json = changed(|json| json["created"] = (-5).into());
    assert!(SnapshotRecord::decode(&json, &id(1)).is_err());
}

#[test]
fn a_record_too_long_to_be_read_is_not_written() {
    let source = "x".repeat(70_000);
    let refused = SnapshotRecord { source, ..record(1) }.encode().unwrap_err();
    assert!(matches!(refused, RecordError::TooLong { len } if len > LEN_MAX), "{refused}");
}

proptest! {
    #[test]
    fn no_bytes_make_the_decoder_panic(at in 0usize..600, byte: u8, len in 0usize..700) {
        let mut json = record(1).encode().unwrap().to_vec();
        json.truncate(len);
        if let Some(place) = json.get_mut(at) {
            *place = byte;
        }
        let _ = SnapshotRecord::decode(&json, &id(1));
    }
}
