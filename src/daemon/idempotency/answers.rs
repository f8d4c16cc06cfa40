//! Persists answers of mutating requests, in `STATE/answers/<digest of key>.json`.
//!
//! An answer is on disk before it is returned, so that no request runs twice; it is durable unless
//! the effect of its request ends with the boot. Ages are measured on a monotonic clock, so setting
//! the wall clock neither discards an answer nor revives one. A damaged file is left in place, and
//! requests with its key are refused.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::http::StatusCode;
use inlay_base::durable::{self, Volatile};
use inlay_base::record::{self, Extra, Record};
use inlay_store::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::daemon::timestamp::Moment;

/// Maximum number of answers kept; the oldest are evicted first.
const ANSWERS_MAX: usize = 4096;
/// Maximum total length of their files, in bytes.
const BYTES_MAX: u64 = 256 << 20;
/// How long an answer is kept.
const KEEP: Duration = Duration::from_hours(24);
/// Longest answer body that is kept, in bytes. A longer answer is recorded without its body.
pub(super) const BODY_LEN_MAX: usize = 4 << 20;
/// Number of answers in memory, because they could not be written, at which new requests are
/// refused. Requests in flight at that moment may exceed it.
pub(super) const UNWRITTEN_MAX: usize = 64;

const SUFFIX: &str = ".json";

/// How long the effect of a request lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Lasts {
    /// Across reboots, so the answer must survive them.
    Forever,
    /// Until the host reboots; after that the same request must run again.
    UntilBoot,
}

/// A stored answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct GivenAnswer {
    #[serde(default = "first_version")]
    version: u32,
    /// Digest of the key.
    key: Digest,
    /// Digest of the request.
    request: Digest,
    pub(super) status: u16,
    /// JSON.
    pub(super) body: String,
    /// Set if the answer was too long; `body` is empty then.
    #[serde(default)]
    pub(super) cut: bool,
    /// Time of the answer in seconds since 1970, for people and older versions.
    at: u64,
    #[serde(default)]
    stamp: Option<Stamp>,
    #[serde(default = "forever")]
    lasts: Lasts,
    #[serde(flatten)]
    extra: Extra,
}

fn first_version() -> u32 {
    1
}

fn forever() -> Lasts {
    Lasts::Forever
}

impl Record for GivenAnswer {
    const VERSION: u32 = 1;
    /// JSON may need six bytes for each byte of an answer.
    const LEN_MAX: u64 = 6 * (BODY_LEN_MAX as u64) + 4096;
}

/// A timestamp on the monotonic clock of answers, which counts across daemons and reboots.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    /// Milliseconds since this clock was started.
    counted_ms: u64,
    moment: Moment,
}

impl Stamp {
    /// Returns the clock's reading at `now`.
    fn later(&self, now: &Moment) -> Self {
        let counted_ms = self.counted_ms.saturating_add(now.millis_since(&self.moment));
        Self { counted_ms, moment: now.clone() }
    }
}

#[derive(Debug, Clone)]
struct StoredAnswer {
    request: Digest,
    counted_ms: u64,
    bytes: u64,
}

/// What becomes of an answer that can't be written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unwritten {
    /// It is kept in memory.
    Kept,
    /// It is kept in memory while fewer than [`UNWRITTEN_MAX`] are: its request may run twice.
    KeptWithRoom,
}

/// A completed request to keep.
#[derive(Debug, Clone, Copy)]
pub(super) struct Done<'a> {
    pub(super) key: Digest,
    pub(super) request: Digest,
    pub(super) status: StatusCode,
    /// `None` if it is too long.
    pub(super) body: Option<&'a str>,
    pub(super) lasts: Lasts,
    pub(super) unwritten: Unwritten,
}

/// Answers of one state directory. Bodies stay on disk.
#[derive(Debug)]
pub(super) struct Answers {
    dir: PathBuf,
    kept: HashMap<Digest, StoredAnswer>,
    bytes: u64,
    /// Unreadable answers, with reasons.
    damaged: HashMap<Digest, String>,
    /// Answers that could not be written, kept in memory.
    unwritten: HashMap<Digest, GivenAnswer>,
    clock: Stamp,
}

/// Result of looking up a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// Nothing, and there is no room for an answer: the request must not run.
    NoRoom,
    /// The key was used for a different request.
    Other,
    Answer(GivenAnswer),
    /// An answer was stored, and is unreadable.
    Damaged(String),
}

impl Answers {
    /// Opens the answers in `state`, evicting expired ones and those over the limits.
    pub(super) fn open(state: &Path, now: &Moment) -> io::Result<Self> {
        let dir = state.join("answers");
        durable::create_dirs(&dir)?;
        let mut answers = Self {
            dir,
            kept: HashMap::new(),
            bytes: 0,
            damaged: HashMap::new(),
            unwritten: HashMap::new(),
            clock: Stamp { counted_ms: 0, moment: now.clone() },
        };
        let found = answers.read_all()?;
        let last = found.iter().filter_map(|(given, _)| given.stamp.as_ref());
        if let Some(last) = last.max_by_key(|stamp| stamp.counted_ms) {
            answers.clock = last.later(now);
        }
        for (given, bytes) in found {
            answers.load(&given, bytes, now);
        }
        answers.expire();
        answers.make_room(ANSWERS_MAX, BYTES_MAX);
        Ok(answers)
    }

    fn read_all(&mut self) -> io::Result<Vec<(GivenAnswer, u64)>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.dir)? {
            let path = entry?.path();
            let name = path.file_name().unwrap_or_default();
            if durable::is_unfinished(name) {
                durable::remove(&path)?;
                continue;
            }
            let name = name.to_string_lossy();
            let Some(key) = name.strip_suffix(SUFFIX).and_then(|hex| hex.parse().ok()) else {
                let path = path.display();
                tracing::warn!(%path, "ignoring an unknown file among the answers");
                continue;
            };
            match read(&path, &key) {
                Ok(None) => {}
                Ok(Some(given)) => {
                    let bytes = fs::symlink_metadata(&path)?.len();
                    // Bodies are read again on demand.
                    found.push((GivenAnswer { body: String::new(), ..given }, bytes));
                }
                Err(why) => {
                    tracing::error!(
                        why,
                        "can't read a stored answer; requests with its key are refused"
                    );
                    self.damaged.insert(key, why);
                }
            }
        }
        Ok(found)
    }

    fn load(&mut self, given: &GivenAnswer, bytes: u64, now: &Moment) {
        if given.lasts == Lasts::UntilBoot
            && given.stamp.as_ref().is_none_or(|stamp| stamp.moment.boot != now.boot)
        {
            self.remove_file(&given.key);
            return;
        }
        // Written by a version without the clock: its age starts now.
        let counted_ms =
            given.stamp.as_ref().map_or(self.clock.counted_ms, |stamp| stamp.counted_ms);
        self.kept.insert(given.key, StoredAnswer { request: given.request, counted_ms, bytes });
        self.bytes += bytes;
    }

    /// Looks up the answer to the request with this key.
    pub(super) fn find(&mut self, key: &Digest, request: &Digest, now: &Moment) -> Found {
        self.clock = self.clock.later(now);
        self.expire();
        if let Some(why) = self.damaged.get(key) {
            return Found::Damaged(why.clone());
        }
        if let Some(given) = self.unwritten.get(key) {
            let same = given.request == *request;
            return if same { Found::Answer(given.clone()) } else { Found::Other };
        }
        let Some(kept) = self.kept.get(key) else { return self.room() };
        if kept.request != *request {
            return Found::Other;
        }
        let why = match read(&self.path(key), key) {
            Ok(Some(given)) if given.request == *request => return Found::Answer(given),
            Ok(Some(_)) => "it is about another request now".to_owned(),
            Ok(None) => "its file has been removed".to_owned(),
            Err(why) => why,
        };
        tracing::error!(why, "can't read a stored answer; requests with its key are refused");
        self.damaged.insert(*key, why.clone());
        Found::Damaged(why)
    }

    /// Whether a new request may run: its answer must be kept even if the disk is still full.
    fn room(&mut self) -> Found {
        if self.unwritten.len() >= UNWRITTEN_MAX {
            self.write_rest();
        }
        if self.unwritten.len() < UNWRITTEN_MAX { Found::Nothing } else { Found::NoRoom }
    }

    /// Stores an answer. If writing fails, it is kept in memory, and the error is returned.
    pub(super) fn keep(&mut self, done: Done<'_>, now: &Moment) -> io::Result<()> {
        self.clock = self.clock.later(now);
        let Done { key, request, status, body, lasts, unwritten } = done;
        let given = GivenAnswer {
            version: GivenAnswer::VERSION,
            key,
            request,
            status: status.as_u16(),
            body: body.unwrap_or_default().to_owned(),
            cut: body.is_none(),
            at: now.unix_s,
            stamp: Some(self.clock.clone()),
            lasts,
            extra: Extra::new(),
        };
        let written = self.write(&given);
        match &written {
            Ok(()) => self.write_rest(),
            Err(_)
                if unwritten == Unwritten::KeptWithRoom
                    && self.unwritten.len() >= UNWRITTEN_MAX => {}
            Err(_) => {
                self.unwritten.insert(key, given);
            }
        }
        written
    }

    /// Writes the answers that could not be written before, until one fails again.
    fn write_rest(&mut self) {
        let keys: Vec<Digest> = self.unwritten.keys().copied().collect();
        for key in keys {
            let Some(given) = self.unwritten.remove(&key) else { continue };
            if let Err(error) = self.write(&given) {
                tracing::debug!(%error, "answers still can't be written");
                self.unwritten.insert(key, given);
                return;
            }
        }
    }

    fn write(&mut self, given: &GivenAnswer) -> io::Result<()> {
        let json = serde_json::to_vec(given).map_err(io::Error::other)?;
        let bytes = json.len() as u64;
        self.make_room(ANSWERS_MAX - 1, BYTES_MAX.saturating_sub(bytes));
        let path = self.path(&given.key);
        match given.lasts {
            Lasts::Forever => durable::write(&path, &json)?,
            Lasts::UntilBoot => {
                let reason = Volatile("after a power cut, the effect is gone, too");
                durable::write_volatile(&path, &json, reason)?;
            }
        }
        let counted_ms =
            given.stamp.as_ref().map_or(self.clock.counted_ms, |stamp| stamp.counted_ms);
        let kept = StoredAnswer { request: given.request, counted_ms, bytes };
        self.bytes += bytes;
        if let Some(before) = self.kept.insert(given.key, kept) {
            self.bytes = self.bytes.saturating_sub(before.bytes);
        }
        Ok(())
    }

    /// Forgets expired answers.
    fn expire(&mut self) {
        let keep_ms = u64::try_from(KEEP.as_millis()).unwrap_or(u64::MAX);
        let Some(limit) = self.clock.counted_ms.checked_sub(keep_ms) else { return };
        let old: Vec<Digest> = self
            .kept
            .iter()
            .filter(|(_, kept)| kept.counted_ms <= limit)
            .map(|(key, _)| *key)
            .collect();
        for key in old {
            self.forget(&key);
        }
        self.unwritten
            .retain(|_, given| given.stamp.as_ref().is_some_and(|stamp| stamp.counted_ms > limit));
    }

    /// Evicts the oldest answers until at most `count` files with `bytes` bytes remain.
    fn make_room(&mut self, count: usize, bytes: u64) {
        let mut oldest: Vec<(u64, Digest)> = Vec::new();
        if self.kept.len() > count || self.bytes > bytes {
            oldest.extend(self.kept.iter().map(|(key, kept)| (kept.counted_ms, *key)));
            oldest.sort_unstable_by_key(|(counted_ms, key)| {
                (std::cmp::Reverse(*counted_ms), key.to_hex())
            });
        }
        while self.kept.len() > count || self.bytes > bytes {
            let Some((_, key)) = oldest.pop() else { return };
            self.forget(&key);
        }
    }

    fn forget(&mut self, key: &Digest) {
        if let Some(kept) = self.kept.remove(key) {
            self.bytes = self.bytes.saturating_sub(kept.bytes);
        }
        // A damaged file stays.
        if !self.damaged.contains_key(key) {
            self.remove_file(key);
        }
    }

    fn remove_file(&self, key: &Digest) {
        let path = self.path(key);
        if let Err(error) = fs::remove_file(&path)
            && error.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!(%error, path = %path.display(), "can't remove an expired answer");
        }
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.dir.join(format!("{}{SUFFIX}", key.to_hex()))
    }
}

/// Reads the answer at `path`, which must be that of `key`.
fn read(path: &Path, key: &Digest) -> Result<Option<GivenAnswer>, String> {
    let given = record::read::<GivenAnswer>(path).map_err(|error| error.to_string())?;
    let Some(given) = given else { return Ok(None) };
    let damaged = |why: &str| format!("the record {} is damaged: {why}", path.display());
    if given.key != *key {
        return Err(damaged("its name does not match its contents"));
    }
    if StatusCode::from_u16(given.status).is_err() {
        return Err(damaged("its status is none"));
    }
    Ok(Some(given))
}

#[cfg(test)]
#[path = "answers_tests.rs"]
mod tests;
