//! Parses the arguments of `mount.inlay`, the helper that mount(8) and systemd call for fstab entries
//! of type `inlay` (see "External helpers" in mount(8)).
//!
//! Exit codes as of mount(8): 1 for invalid arguments, 32 for a failed mount.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use inlay_mounts::{MountFlag, MountFlags, Owner};
use inlay_store::profile::ProfileLabel;

use super::mount::owner;

/// Program name used by mount(8).
const PROGRAM: &str = "mount.inlay";
/// Prefix of a source. Without it, mount(8) would take the name for a path.
const PREFIX: &[u8] = b"inlay:";

/// Mount options that have no effect here, or are handled by mount(8) or systemd.
const NO_CONCERN: [&str; 28] = [
    "defaults",
    "rw",
    "async",
    "auto",
    "noauto",
    "nofail",
    "_netdev",
    "user",
    "nouser",
    "users",
    "nousers",
    "owner",
    "noowner",
    "group",
    "nogroup",
    "atime",
    "noatime",
    "diratime",
    "nodiratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "lazytime",
    "nolazytime",
    "silent",
    "loud",
    "noiversion",
];

/// Whether this process was called as `mount.inlay`, by the base name of `program`.
pub fn is_mount_helper(program: &OsStr) -> bool {
    Path::new(program).file_name() == Some(OsStr::new(PROGRAM))
}

/// Handling of unknown options; `-s` ignores them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unknown {
    Refuse,
    Ignore,
}

/// Action of the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Act {
    Mount,
    /// Only check the arguments (`-f`).
    Check,
}

/// Whether to print the mount (`-v`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Nothing,
    Mount,
}

/// Where changes go, if the mount is writable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Writable {
    No,
    /// Changes are kept in the state directory.
    Beside,
    Scratch,
    Upper(PathBuf),
}

/// Options of an fstab entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Options {
    pub(super) writable: Writable,
    pub(super) chown: Option<Owner>,
    pub(super) label: Option<ProfileLabel>,
    pub(super) store: Option<String>,
    /// Plain HTTP may go to other machines.
    pub(super) plain_http: bool,
    pub(super) flags: MountFlags,
}

/// A parsed call of `mount.inlay`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) snapshot: String,
    pub(super) dir: PathBuf,
    pub(super) options: Options,
    pub(super) act: Act,
    pub(super) tell: Tell,
    /// A process in the target mount namespace (`-N`).
    pub(super) pid: Option<u32>,
}

/// Error in the arguments of a call.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{0}; usage: mount.inlay inlay:NAME DIR [-sfnv] [-N PID] [-o OPTIONS]")]
    Words(String),
    #[error("{0}")]
    Option(String),
    #[error("remounting is not supported; unmount {} and mount it again", .0.display())]
    Remount(PathBuf),
}

impl Call {
    /// Parses the arguments after the program name.
    pub(super) fn parse(words: impl IntoIterator<Item = OsString>) -> Result<Self, CallError> {
        let mut words = words.into_iter();
        let (mut places, mut options) = (Vec::new(), Vec::new());
        let (mut unknown, mut act, mut tell, mut pid) =
            (Unknown::Refuse, Act::Mount, Tell::Nothing, None);
        while let Some(word) = words.next() {
            let Some(letters) = word.as_bytes().strip_prefix(b"-").filter(|rest| !rest.is_empty())
            else {
                places.push(word);
                continue;
            };
            for (at, letter) in letters.iter().enumerate() {
                match letter {
                    b's' => unknown = Unknown::Ignore,
                    b'f' => act = Act::Check,
                    b'v' => tell = Tell::Mount,
                    b'n' => {}
                    b'N' | b'o' | b't' => {
                        let rest = letters.get(at + 1..).filter(|rest| !rest.is_empty());
                        let value = match rest {
                            Some(rest) => OsString::from_vec(rest.to_vec()),
                            None => words.next().ok_or_else(|| {
                                CallError::Words(format!("-{} needs a value", char::from(*letter)))
                            })?,
                        };
                        match letter {
                            b'N' => pid = Some(process(&value)?),
                            b'o' => options.push(value),
                            _ => check_type(&value)?,
                        }
                        break;
                    }
                    _ => {
                        let word = word.to_string_lossy();
                        return Err(CallError::Words(format!("unknown word {word:?}")));
                    }
                }
            }
        }
        let Ok([source, dir]) = <[OsString; 2]>::try_from(places) else {
            return Err(CallError::Words("a source and a directory are needed".into()));
        };
        let dir = PathBuf::from(dir);
        let options = Options::parse(&options.join(OsStr::new(",")), unknown, &dir)?;
        Ok(Self { snapshot: snapshot(&source)?, dir, options, act, tell, pid })
    }
}

fn snapshot(source: &OsStr) -> Result<String, CallError> {
    let name = source.as_bytes().strip_prefix(PREFIX).filter(|name| !name.is_empty());
    let name = name.and_then(|name| std::str::from_utf8(name).ok());
    name.map(str::to_owned).ok_or_else(|| {
        CallError::Words(format!(
            "the source {:?} must be inlay: and the name or the id of a snapshot, such as inlay:base",
            source.to_string_lossy()
        ))
    })
}

/// Parses the value of `-N`: a pid, or `/proc/PID/ns/mnt`.
fn process(namespace: &OsStr) -> Result<u32, CallError> {
    let text = namespace.to_str().unwrap_or_default();
    let inner = text.strip_prefix("/proc/").and_then(|rest| rest.strip_suffix("/ns/mnt"));
    inner.unwrap_or(text).parse().map_err(|_| {
        CallError::Words(format!("-N {text:?}: it must be a process number, or /proc/PID/ns/mnt"))
    })
}

fn check_type(kind: &OsStr) -> Result<(), CallError> {
    let text = kind.to_string_lossy();
    if text == "inlay" || text.starts_with("inlay.") {
        return Ok(());
    }
    Err(CallError::Words(format!("the type {text:?} is not inlay")))
}

impl Options {
    fn parse(text: &OsStr, unknown: Unknown, dir: &Path) -> Result<Self, CallError> {
        let mut found = Self {
            writable: Writable::No,
            chown: None,
            label: None,
            store: None,
            plain_http: false,
            flags: MountFlags::default(),
        };
        let mut given: Vec<(&str, &[u8])> = Vec::new();
        let mut read_only = false;
        for option in split(text.as_bytes())? {
            let (key, value) = match option.iter().position(|byte| *byte == b'=') {
                Some(at) => (option.get(..at), option.get(at + 1..)),
                None => (Some(option), None),
            };
            let value = value.map(unquoted);
            let key = std::str::from_utf8(key.unwrap_or_default()).unwrap_or("\u{fffd}");
            if value.is_some() || key == "writable" || key == "scratch" {
                let value = value.unwrap_or_default();
                match given.iter().find(|(other, _)| *other == key) {
                    Some((_, other)) if *other == value => continue,
                    Some(_) => return Err(wrong(key, "it is given twice, with different values")),
                    None => given.push((key, value)),
                }
            }
            match (key, value) {
                ("ro", None) => read_only = true,
                ("rw", None) => read_only = false,
                ("remount", None) => return Err(CallError::Remount(dir.to_owned())),
                (key, None) if found.set_flag(key) || NO_CONCERN.contains(&key) => {}
                (key, _) if key.starts_with("x-") || key.starts_with("X-") => {}
                ("user", Some(_)) => {}
                (key, value) => {
                    if !found.set(key, value)? && unknown == Unknown::Refuse {
                        return Err(wrong(
                            &String::from_utf8_lossy(option),
                            "no such option for inlay",
                        ));
                    }
                }
            }
        }
        if read_only && found.writable != Writable::No {
            return Err(wrong("ro", "it contradicts writable, scratch and upper="));
        }
        Ok(found)
    }

    /// Sets or clears a mount flag. Returns false if `key` is not a flag.
    fn set_flag(&mut self, key: &str) -> bool {
        match key {
            "nosuid" => self.flags.insert(MountFlag::Nosuid),
            "nodev" => self.flags.insert(MountFlag::Nodev),
            "noexec" => self.flags.insert(MountFlag::Noexec),
            "suid" => self.flags.remove(&MountFlag::Nosuid),
            "dev" => self.flags.remove(&MountFlag::Nodev),
            "exec" => self.flags.remove(&MountFlag::Noexec),
            _ => return false,
        };
        true
    }

    /// Sets an option specific to inlay. Returns false if `key` is not such an option.
    fn set(&mut self, key: &str, value: Option<&[u8]>) -> Result<bool, CallError> {
        let text = || {
            let value = value.and_then(|value| std::str::from_utf8(value).ok());
            value.filter(|value| !value.is_empty()).ok_or_else(|| wrong(key, "it needs a value"))
        };
        match (key, value) {
            ("writable", None) => {
                if self.writable == Writable::No {
                    self.writable = Writable::Beside;
                }
            }
            ("plain-http", None) => self.plain_http = true,
            ("scratch", None) => self.set_place(key, Writable::Scratch)?,
            ("upper", Some(path)) => {
                let path = PathBuf::from(OsStr::from_bytes(path));
                if !path.is_absolute() {
                    return Err(wrong(key, "it needs an absolute path"));
                }
                self.set_place(key, Writable::Upper(path))?;
            }
            ("chown", Some(_)) => {
                self.chown = Some(owner(text()?).map_err(|why| wrong(key, &why))?);
            }
            ("label", Some(_)) => {
                let label: Result<ProfileLabel, _> = text()?.parse();
                self.label = Some(label.map_err(|why| wrong(key, &why.to_string()))?);
            }
            ("store", Some(_)) => {
                let store = text()?;
                if !store.starts_with('/') && !store.contains(':') {
                    return Err(wrong(key, "it needs a URL or an absolute path"));
                }
                self.store = Some(store.to_owned());
            }
            ("upper" | "chown" | "label" | "store", None) => {
                return Err(wrong(key, "it needs a value"));
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn set_place(&mut self, key: &str, place: Writable) -> Result<(), CallError> {
        if matches!(self.writable, Writable::Scratch | Writable::Upper(_)) {
            return Err(wrong(key, "scratch and upper= contradict each other"));
        }
        self.writable = place;
        Ok(())
    }
}

fn wrong(option: &str, why: &str) -> CallError {
    CallError::Option(format!("option {option:?}: {why}"))
}

/// Strips the quotes around a value, which libmount passes on.
fn unquoted(value: &[u8]) -> &[u8] {
    let inner = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    inner.unwrap_or(value)
}

/// Splits options at commas outside of quotes, as libmount does.
fn split(text: &[u8]) -> Result<Vec<&[u8]>, CallError> {
    let mut quoted = false;
    let options = text.split(|byte| {
        quoted ^= *byte == b'"';
        *byte == b',' && !quoted
    });
    let options: Vec<&[u8]> = options.filter(|option| !option.is_empty()).collect();
    if quoted {
        return Err(CallError::Option("a quotation mark in the options is not closed".into()));
    }
    Ok(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(words: &[&str]) -> Result<Call, CallError> {
        Call::parse(words.iter().map(OsString::from))
    }

    fn options(text: &str) -> Result<Options, String> {
        let parsed = call(&["inlay:base", "/mnt", "-o", text]);
        parsed.map(|call| call.options).map_err(|error| error.to_string())
    }

    #[test]
    fn words_come_as_mount_gives_them() {
        let found = call(&["inlay:app:1.2", "/mnt/a b", "-sfnv", "-o", "rw,nosuid", "-t", "inlay"]);
        let found = found.unwrap();
        assert_eq!((&*found.snapshot, found.dir), ("app:1.2", PathBuf::from("/mnt/a b")));
        assert_eq!((found.act, found.tell, found.pid), (Act::Check, Tell::Mount, None));
        assert_eq!(found.options.flags, [MountFlag::Nosuid].into());
        let found = call(&["-N", "/proc/7/ns/mnt", "inlay:x", "-oro", "/m", "-orw"]);
        assert_eq!(found.unwrap().pid, Some(7));
    }

    #[test]
    fn wrong_words_are_refused() {
        for words in [
            &[][..],
            &["inlay:base"],
            &["inlay:base", "/a", "/b"],
            &["/dev/base", "/mnt"],
            &["base", "/mnt"],
            &["inlay:", "/mnt"],
            &["inlay:base", "/mnt", "-o"],
            &["inlay:base", "/mnt", "-x"],
            &["inlay:base", "/mnt", "-t", "ext4"],
            &["inlay:base", "/mnt", "-N", "/run/netns/x"],
        ] {
            assert!(matches!(call(words), Err(CallError::Words(_))), "{words:?}");
        }
    }

    #[test]
    fn options_say_how_it_is_shown() {
        let all = "rw,_netdev,nofail,x-systemd.automount,upper=\"/srv/a,b=c\",writable,chown=7:8,\
            label=web,store=s3://b/p,plain-http,nodev,dev,noexec,noatime,,";
        // libmount passes the quotes on.
        let found = options(&all.replace('"', "")).unwrap_err();
        assert!(found.contains("b=c"), "{found}");
        let found = options(all).unwrap();
        assert_eq!(found.writable, Writable::Upper("/srv/a,b=c".into()));
        assert_eq!(found.chown, Some(Owner { uid: 7, gid: 8 }));
        assert_eq!(found.store.as_deref(), Some("s3://b/p"));
        assert!(found.plain_http && !options("ro").unwrap().plain_http);
        assert_eq!(found.flags, [MountFlag::Noexec].into());
        for (text, want) in [
            ("", Writable::No),
            ("rw", Writable::No),
            ("ro", Writable::No),
            ("ro,rw,writable", Writable::Beside),
            ("writable,scratch", Writable::Scratch),
            ("scratch,writable,scratch", Writable::Scratch),
        ] {
            assert_eq!(options(text).unwrap().writable, want, "{text}");
        }
    }

    #[test]
    fn wrong_options_are_named() {
        for (text, named) in [
            ("ro,frob", "frob"),
            ("frob=1", "frob=1"),
            ("writable=yes", "writable=yes"),
            ("plain-http=yes", "plain-http=yes"),
            ("ro=1", "ro=1"),
            ("bind", "bind"),
            ("ro,writable", "ro"),
            ("upper", "upper"),
            ("upper=srv", "upper"),
            ("upper=/a,upper=/b", "upper"),
            ("upper=/a,scratch", "scratch"),
            ("chown=root", "chown"),
            ("chown=1:2,chown=1:3", "chown"),
            ("label=", "label"),
            ("label=a b", "label"),
            ("store=relative", "store"),
            ("upper=\"/a", "quotation"),
            ("\u{1b}[31m", "31m"),
        ] {
            let why = options(text).unwrap_err();
            assert!(why.contains(named), "{text}: {why}");
        }
        let sloppy = call(&["inlay:base", "/mnt", "-s", "-o", "frob,frob=1,ro=1"]).unwrap();
        assert_eq!(sloppy.options.writable, Writable::No);
        // -s does not ignore invalid values of known options.
        assert!(call(&["inlay:base", "/mnt", "-s", "-o", "upper=x"]).is_err());
    }
}
