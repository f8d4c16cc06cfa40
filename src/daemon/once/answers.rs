//! Answers that were given, in files that the next daemon reads: `STATE/answers/<digest of key>.json`.
//!
//! They are not synced: after a crash of the host, what they tell of has to be looked at anyway. What
//! is not as this program writes it is removed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::http::StatusCode;
use inlay_store::ids::Digest;
use serde::{Deserialize, Serialize};

use crate::mount::{make_private_dirs, write_whole};

/// How many answers are kept; the oldest go first.
const ANSWERS_MAX: usize = 4096;
/// How long an answer is kept.
const KEEP: Duration = Duration::from_hours(24);
/// The longest answer that is kept, in bytes.
pub(super) const BODY_LEN_MAX: usize = 256 << 10;
/// The longest file that is read, in bytes: each byte of an answer may take six in JSON.
const FILE_LEN_MAX: u64 = 6 * (256 << 10) + 4096;

/// An answer as it was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Given {
    /// Digest of the key.
    key: Digest,
    /// Digest of the request.
    pub(super) request: Digest,
    pub(super) status: u16,
    /// JSON.
    pub(super) body: String,
    /// When, in seconds since 1970.
    at: u64,
}

#[derive(Debug, Clone, Copy)]
struct Kept {
    request: Digest,
    at: u64,
}

/// The answers of one state directory. The bodies stay on disk.
#[derive(Debug)]
pub(super) struct Answers {
    dir: PathBuf,
    kept: HashMap<Digest, Kept>,
}

/// What is known of a key.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    /// It was for another request.
    Other,
    Answer(Given),
}

impl Answers {
    /// Those in `state`.
    pub(super) fn open(state: &Path) -> io::Result<Self> {
        let dir = state.join("answers");
        make_private_dirs(&dir).map_err(io::Error::other)?;
        let mut answers = Self { dir, kept: HashMap::new() };
        let now = now();
        for entry in fs::read_dir(&answers.dir)? {
            let path = entry?.path();
            match read(&path) {
                Some(given) if path == answers.path(&given.key) && is_fresh(given.at, now) => {
                    answers.kept.insert(given.key, Kept { request: given.request, at: given.at });
                }
                _ => remove(&path),
            }
        }
        answers.make_room(ANSWERS_MAX);
        Ok(answers)
    }

    /// What was answered to the request with this key.
    pub(super) fn find(&mut self, key: &Digest, request: &Digest) -> Found {
        let Some(kept) = self.kept.get(key).copied() else { return Found::Nothing };
        if !is_fresh(kept.at, now()) {
            self.forget(key);
            return Found::Nothing;
        }
        if kept.request != *request {
            return Found::Other;
        }
        let given = read(&self.path(key));
        if let Some(given) = given.filter(|given| given.key == *key && given.request == *request) {
            return Found::Answer(given);
        }
        // Somebody has meddled with it.
        self.forget(key);
        Found::Nothing
    }

    /// Keeps an answer.
    pub(super) fn keep(
        &mut self,
        key: Digest,
        request: Digest,
        status: StatusCode,
        body: &str,
    ) -> io::Result<()> {
        let at = now();
        let given = Given { key, request, status: status.as_u16(), body: body.to_owned(), at };
        let json = serde_json::to_vec(&given).map_err(io::Error::other)?;
        self.make_room(ANSWERS_MAX - 1);
        write_whole(&self.dir, &self.path(&key), &json)?;
        self.kept.insert(key, Kept { request, at });
        Ok(())
    }

    fn make_room(&mut self, keep: usize) {
        while self.kept.len() > keep {
            let Some(oldest) = self.kept.iter().min_by_key(|(_, kept)| kept.at) else { return };
            let key = *oldest.0;
            self.forget(&key);
        }
    }

    fn forget(&mut self, key: &Digest) {
        self.kept.remove(key);
        remove(&self.path(key));
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.dir.join(format!("{}.json", key.to_hex()))
    }
}

fn is_fresh(at: u64, now: u64) -> bool {
    // One from the future is of a clock that was wrong.
    at <= now && now - at < KEEP.as_secs()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

fn read(path: &Path) -> Option<Given> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = flags | rustix::fs::OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty()).ok()?;
    let file = File::from(file);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(FILE_LEN_MAX).read_to_end(&mut bytes).ok()?;
    let given: Given = serde_json::from_slice(&bytes).ok()?;
    StatusCode::from_u16(given.status).ok().map(|_| given)
}

fn remove(path: &Path) {
    if let Err(error) = fs::remove_file(path)
        && error.kind() != io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "an old answer stays behind");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(text: &str) -> Digest {
        Digest::of(text.as_bytes())
    }

    fn keep(answers: &mut Answers, key: &str) {
        answers.keep(digest(key), digest("r"), StatusCode::CONFLICT, "{\"a\":1}").unwrap();
    }

    #[test]
    fn answers_outlive_a_daemon() {
        let state = tempfile::tempdir().unwrap();
        let mut answers = Answers::open(state.path()).unwrap();
        keep(&mut answers, "k");
        let mut next = Answers::open(state.path()).unwrap();
        let Found::Answer(given) = next.find(&digest("k"), &digest("r")) else { panic!() };
        assert_eq!((given.status, &*given.body), (409, "{\"a\":1}"));
        assert_eq!(next.find(&digest("k"), &digest("other")), Found::Other);
        assert_eq!(next.find(&digest("l"), &digest("r")), Found::Nothing);
    }

    #[test]
    fn files_that_are_none_of_its_own_are_removed() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("answers");
        let mut answers = Answers::open(state.path()).unwrap();
        keep(&mut answers, "good");
        keep(&mut answers, "cut");
        let cut = answers.path(&digest("cut"));
        let text = fs::read_to_string(&cut).unwrap();
        fs::write(&cut, &text[..text.len() / 2]).unwrap();
        // Under another's name, in another time, without a status, no file at all.
        fs::write(dir.join("x.json"), &text).unwrap();
        let at = now();
        for (name, from, to) in [
            ("old", format!("\"at\":{at}"), "\"at\":5".to_owned()),
            ("new", format!("\"at\":{at}"), format!("\"at\":{}", at + 9999)),
            ("odd", "409".into(), "9".into()),
        ] {
            keep(&mut answers, name);
            let path = answers.path(&digest(name));
            let text = fs::read_to_string(&path).unwrap();
            fs::write(path, text.replace(&from, &to)).unwrap();
        }
        std::os::unix::fs::symlink("/dev/zero", dir.join("link.json")).unwrap();
        let mut next = Answers::open(state.path()).unwrap();
        assert_eq!(next.kept.len(), 1);
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 1);
        // One that is damaged while it is known.
        fs::write(next.path(&digest("good")), "{").unwrap();
        assert_eq!(next.find(&digest("good"), &digest("r")), Found::Nothing);
        assert!(next.kept.is_empty());
    }

    #[test]
    fn there_are_only_so_many_and_the_oldest_go() {
        let state = tempfile::tempdir().unwrap();
        let mut answers = Answers::open(state.path()).unwrap();
        for number in 0..5 {
            keep(&mut answers, &number.to_string());
        }
        answers.kept.get_mut(&digest("3")).unwrap().at -= 7;
        answers.make_room(4);
        assert!(!answers.kept.contains_key(&digest("3")));
        assert_eq!(fs::read_dir(&answers.dir).unwrap().count(), 4);
    }
}
