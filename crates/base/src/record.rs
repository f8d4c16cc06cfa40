//! Reads and writes JSON records on disk that outlive the version that wrote them.
//!
//! Reading distinguishes four cases: no record, a readable one, one written by a newer version, and
//! a damaged one. The last two are errors, so no caller can mistake them for "no record" and delete
//! the object that the record describes. Unknown fields are preserved: a record type carries
//! [`Unknown`], or [`Extra`] flattened, and writes them back.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

use crate::durable::{self, Volatile};

/// Fields of a record unknown to this version, flattened into the record that carries them.
pub type Extra = Map<String, Value>;

/// Name of the version field.
const VERSION: &str = "version";

/// Default maximum size of a record, in bytes.
pub const LEN_MAX: u64 = 4 << 20;

/// The reason a record could not be read. The file is unchanged.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The file could not be opened or read.
    #[error("can't read the record {path}: {source}")]
    Io {
        /// Path of the record.
        path: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// A newer version wrote the record.
    #[error(
        "the record {path} has version {found}, this program reads versions up to {known}; \
         run the version that wrote it"
    )]
    Newer {
        /// Path of the record.
        path: PathBuf,
        /// Its version.
        found: u64,
        /// The newest version this program reads.
        known: u32,
    },
    /// The record is empty, torn, too long, not a regular file, or of another type.
    #[error("the record {path} is damaged: {why}; it was left where it is")]
    Damaged {
        /// Path of the record.
        path: PathBuf,
        /// The damage.
        why: String,
    },
}

impl RecordError {
    /// Path of the record.
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. } | Self::Newer { path, .. } | Self::Damaged { path, .. } => path,
        }
    }
}

/// A type of record.
pub trait Record: Serialize + DeserializeOwned {
    /// Version this program writes, in the field `version`. Records without the field count as
    /// version 1.
    const VERSION: u32;
    /// Maximum size, in bytes.
    const LEN_MAX: u64 = LEN_MAX;

    /// Returns the unknown fields that the record was read with, to be written back.
    fn unknown(&self) -> Option<&Unknown> {
        None
    }

    /// Stores the unknown fields that the record was read with. The default discards them.
    fn keep_unknown(&mut self, unknown: Unknown) {
        drop(unknown);
    }
}

/// Fields of a record unknown to this version, at any depth of nested objects. Unknown fields of
/// array elements are not included: they are lost when the record is rewritten.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unknown(Map<String, Value>);

impl Unknown {
    /// Returns the fields of `text` that are missing from `known`, which was parsed from it.
    pub fn between(text: &Value, known: &Value) -> Self {
        match (text, known) {
            (Value::Object(text), Value::Object(known)) => Self(missing(text, known)),
            _ => Self::default(),
        }
    }

    /// Returns the names, each qualified by its enclosing fields: `options.new`.
    pub fn names(&self) -> Vec<String> {
        let mut names = Vec::new();
        let mut left: Vec<(String, &Value)> =
            self.0.iter().map(|(name, value)| (name.clone(), value)).collect();
        while let Some((name, value)) = left.pop() {
            match value {
                Value::Object(fields) if !fields.is_empty() => {
                    left.extend(
                        fields.iter().map(|(field, value)| (format!("{name}.{field}"), value)),
                    );
                }
                _ => names.push(name),
            }
        }
        names.sort();
        names
    }
}

/// Returns the fields of `text` that `known` lacks. The recursion is bounded by the nesting of
/// parsed JSON, which `serde_json` limits to 128.
fn missing(text: &Map<String, Value>, known: &Map<String, Value>) -> Map<String, Value> {
    let mut found = Map::new();
    for (name, value) in text {
        match (value, known.get(name)) {
            (_, None) => {
                found.insert(name.clone(), value.clone());
            }
            (Value::Object(value), Some(Value::Object(known))) => {
                let nested = missing(value, known);
                if !nested.is_empty() {
                    found.insert(name.clone(), Value::Object(nested));
                }
            }
            _ => {}
        }
    }
    found
}

/// Adds the fields of `unknown` that `to` lacks. On conflict `to` wins.
fn add_missing(to: &mut Map<String, Value>, unknown: &Map<String, Value>) {
    for (name, value) in unknown {
        match (to.get_mut(name), value) {
            (None, value) => {
                to.insert(name.clone(), value.clone());
            }
            (Some(Value::Object(to)), Value::Object(value)) => add_missing(to, value),
            (Some(_), _) => {}
        }
    }
}

/// Reads the record at `path`; `None` if the file does not exist.
///
/// The file is opened without following a symbolic link and without blocking, so a link cannot
/// redirect the read and a FIFO cannot hang it.
///
/// # Errors
///
/// [`RecordError`]; the file is never changed.
pub fn read<T: Record>(path: &Path) -> Result<Option<T>, RecordError> {
    match read_bytes(path, T::LEN_MAX)? {
        Some(bytes) => parse(path, &bytes).map(Some),
        None => Ok(None),
    }
}

/// Parses the bytes of a record read from `path`.
///
/// # Errors
///
/// [`RecordError::Newer`] or [`RecordError::Damaged`].
pub fn parse<T: Record>(path: &Path, bytes: &[u8]) -> Result<T, RecordError> {
    if bytes.is_empty() {
        return Err(damaged(path, "it is empty"));
    }
    let value: Value =
        serde_json::from_slice(bytes).map_err(|error| damaged(path, &error.to_string()))?;
    let found = match value.get(VERSION) {
        None => 1,
        Some(version) => {
            version.as_u64().ok_or_else(|| damaged(path, "its version is no number"))?
        }
    };
    if found > u64::from(T::VERSION) {
        return Err(RecordError::Newer { path: path.to_owned(), found, known: T::VERSION });
    }
    let not_this_kind = |error: serde_json::Error| damaged(path, &error.to_string());
    let mut record: T = serde_json::from_value(value.clone()).map_err(not_this_kind)?;
    let mut unknown =
        Unknown::between(&value, &serde_json::to_value(&record).map_err(not_this_kind)?);
    // Every record has a version; not every type has a field for it.
    unknown.0.remove(VERSION);
    record.keep_unknown(unknown);
    Ok(record)
}

/// Writes the record durably; see [`durable::write`].
///
/// # Errors
///
/// As for [`durable::write`], and `InvalidData` if the record cannot be serialized.
pub fn write<T: Record>(path: &Path, record: &T) -> io::Result<()> {
    durable::write(path, &to_json(record)?)
}

/// Writes a record that a power cut may destroy; see [`durable::write_volatile`].
///
/// # Errors
///
/// As for [`write`].
pub fn write_volatile<T: Record>(path: &Path, record: &T, reason: Volatile) -> io::Result<()> {
    durable::write_volatile(path, &to_json(record)?, reason)
}

/// Renames the object at `path` durably to a name that no record uses: `NAME.damaged-NUMBER`.
///
/// Returns the new path. Works on any object, including directories and links.
///
/// # Errors
///
/// As for [`durable::rename`].
pub fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let name = path.file_name().unwrap_or_default();
    for number in 1u32.. {
        let mut aside = name.to_owned();
        aside.push(format!(".damaged-{number}"));
        let aside = path.with_file_name(aside);
        // A name in use belongs to earlier damage and is kept.
        if std::fs::symlink_metadata(&aside).is_err() {
            durable::rename(path, &aside)?;
            return Ok(aside);
        }
    }
    Err(io::ErrorKind::AlreadyExists.into())
}

/// Reads the regular file at `path`, at most `limit` bytes; `None` if it does not exist.
///
/// # Errors
///
/// [`RecordError::Io`], or [`RecordError::Damaged`] if it is longer or not a regular file.
pub fn read_bytes(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, RecordError> {
    let failed = |source| RecordError::Io { path: path.to_owned(), source };
    let Some(file) = open(path)? else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(failed)?;
    if u64::try_from(bytes.len()).unwrap_or(u64::MAX) > limit {
        return Err(damaged(path, &format!("it is longer than {limit} bytes")));
    }
    Ok(Some(bytes))
}

/// Opens the regular file at `path` for reading, without following a symbolic link and without
/// blocking; `None` if it does not exist.
///
/// # Errors
///
/// [`RecordError::Io`], or [`RecordError::Damaged`] if it is not a regular file.
pub fn open(path: &Path) -> Result<Option<File>, RecordError> {
    let failed = |source| RecordError::Io { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(file) => File::from(file),
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        Err(rustix::io::Errno::LOOP) => return Err(damaged(path, "it is a symbolic link")),
        // A socket.
        Err(rustix::io::Errno::NXIO) => return Err(damaged(path, "it is not a regular file")),
        Err(error) => return Err(failed(error.into())),
    };
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(damaged(path, "it is not a regular file"));
    }
    Ok(Some(file))
}

fn to_json<T: Record>(record: &T) -> io::Result<Vec<u8>> {
    let mut value = serde_json::to_value(record).map_err(io::Error::other)?;
    if let Value::Object(fields) = &mut value {
        fields.entry(VERSION).or_insert_with(|| T::VERSION.into());
        if let Some(Unknown(unknown)) = record.unknown() {
            add_missing(fields, unknown);
        }
    }
    serde_json::to_vec_pretty(&value).map_err(io::Error::other)
}

fn damaged(path: &Path, why: &str) -> RecordError {
    RecordError::Damaged { path: path.to_owned(), why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Deserialize;
    use std::fs;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Sample {
        version: u32,
        name: String,
        #[serde(flatten)]
        extra: Extra,
    }

    impl Record for Sample {
        const VERSION: u32 = 1;
        const LEN_MAX: u64 = 256;
    }

    fn read_text(text: &str) -> Result<Option<Sample>, RecordError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.json");
        fs::write(&path, text).unwrap();
        let read = read(&path);
        assert_eq!(fs::read_to_string(&path).unwrap(), text, "reading changed the file");
        read
    }

    #[test]
    fn unknown_fields_are_written_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.json");
        fs::write(&path, r#"{"version":1,"name":"a","later":{"x":[1]}}"#).unwrap();
        let mut sample: Sample = read(&path).unwrap().unwrap();
        sample.name = "b".into();
        write(&path, &sample).unwrap();
        let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(value, serde_json::json!({"version":1,"name":"b","later":{"x":[1]}}));
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Keeping {
        name: String,
        inner: Inner,
        #[serde(skip)]
        unknown: Unknown,
    }

    #[derive(Debug, Serialize, Deserialize)]
    struct Inner {
        known: u32,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        maybe: Option<u32>,
    }

    impl Record for Keeping {
        const VERSION: u32 = 3;

        fn unknown(&self) -> Option<&Unknown> {
            Some(&self.unknown)
        }

        fn keep_unknown(&mut self, unknown: Unknown) {
            self.unknown = unknown;
        }
    }

    #[test]
    fn unknown_fields_are_written_back_at_any_depth_and_known_ones_win() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeping.json");
        let text = r#"{"name":"a","inner":{"known":1,"maybe":2,"new":[{"x":1}],"deep":{"y":0}},
            "later":{"z":true},"empty":{},"version":2}"#;
        fs::write(&path, text).unwrap();
        let mut keeping: Keeping = read(&path).unwrap().unwrap();
        assert_eq!(keeping.unknown.names(), ["empty", "inner.deep.y", "inner.new", "later.z"]);
        (keeping.inner.known, keeping.inner.maybe) = (5, None);
        write(&path, &keeping).unwrap();
        let value: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let wanted = serde_json::json!({
            "name": "a", "inner": {"known": 5, "new": [{"x": 1}], "deep": {"y": 0}},
            "later": {"z": true}, "empty": {}, "version": 3,
        });
        assert_eq!(value, wanted);
        // Once a newer version knows a field, it alone sets it.
        let unknown =
            Unknown(serde_json::from_str(r#"{"name":"old","inner":{"known":7}}"#).unwrap());
        keeping.keep_unknown(unknown);
        write(&path, &keeping).unwrap();
        let again: Keeping = read(&path).unwrap().unwrap();
        assert_eq!((again.name.as_str(), again.inner.known), ("a", 5));
        assert_eq!(again.unknown, Unknown::default());
    }

    #[test]
    fn every_record_has_a_version_and_the_newest_known_one_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("keeping.json");
        let record = |version: &str| format!(r#"{{"name":"","inner":{{"known":1}}{version}}}"#);
        for (version, fits) in [
            ("", true),
            (r#","version":1"#, true),
            (r#","version":3"#, true),
            (r#","version":4"#, false),
            (r#","version":-1"#, false),
            (r#","version":"3""#, false),
            (r#","version":null"#, false),
        ] {
            fs::write(&path, record(version)).unwrap();
            assert_eq!(read::<Keeping>(&path).is_ok(), fits, "{version}");
        }
        fs::write(&path, record("")).unwrap();
        let keeping: Keeping = read(&path).unwrap().unwrap();
        write_volatile(&path, &keeping, Volatile("a test")).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(r#""version": 3"#), "{text}");
    }

    #[test]
    fn a_record_may_be_as_long_as_its_limit_and_no_longer() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("bytes");
        assert_eq!(read_bytes(&path, 4).unwrap(), None);
        fs::write(&path, "1234").unwrap();
        assert_eq!(read_bytes(&path, 4).unwrap(), Some(b"1234".to_vec()));
        let long = read_bytes(&path, 3).unwrap_err();
        assert!(matches!(&long, RecordError::Damaged { .. }) && long.path() == path, "{long}");
        // Neither absent nor damaged: the state is unknown.
        let below = read_bytes(&path.join("below"), 4).unwrap_err();
        assert!(matches!(below, RecordError::Io { .. }), "{below}");
    }

    #[test]
    fn absent_newer_and_damaged_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        assert!(read::<Sample>(&dir.path().join("none")).unwrap().is_none());
        assert!(matches!(
            read_text(r#"{"version":2,"entirely":"other"}"#),
            Err(RecordError::Newer { found: 2, known: 1, .. })
        ));
        let long = format!(r#"{{"version":1,"name":"{}"}}"#, "x".repeat(300));
        for text in ["", "{", r#"{"version":1}"#, r#"{"version":"x","name":""}"#, "\0\0\0\0", &long]
        {
            assert!(matches!(read_text(text), Err(RecordError::Damaged { .. })), "{text:?}");
        }
    }

    #[test]
    fn damage_is_set_aside_under_names_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("1.json");
        for number in 1..3 {
            fs::write(&path, number.to_string()).unwrap();
            let aside = set_aside(&path).unwrap();
            assert_eq!(aside, dir.path().join(format!("1.json.damaged-{number}")));
            assert_eq!(fs::read_to_string(aside).unwrap(), number.to_string());
            assert!(!path.exists());
        }
        assert!(set_aside(&path).is_err());
    }

    #[test]
    fn only_regular_files_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("sample.json");
        std::os::unix::fs::symlink("/dev/zero", &path).unwrap();
        assert!(matches!(read::<Sample>(&path), Err(RecordError::Damaged { .. })));
        assert!(matches!(read::<Sample>(dir.path()), Err(RecordError::Damaged { .. })));
        fs::remove_file(&path).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &path, rustix::fs::FileType::Fifo, 0o600.into(), 0)
            .unwrap();
        assert!(matches!(read::<Sample>(&path), Err(RecordError::Damaged { .. })));
        fs::remove_file(&path).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert!(matches!(read::<Sample>(&path), Err(RecordError::Damaged { .. })));
    }
}
