//! Traces of starts that never were: a program reads files, in a small model of a link, a cache and
//! requests ahead of it. The same seed gives the same trace.

use serde_json::{Value, json};

/// What the link and the program of a start are like.
pub(crate) struct Start {
    pub(crate) files: usize,
    /// Until the first byte of an answer, in microseconds.
    pub(crate) latency: u64,
    /// Bytes in a microsecond.
    pub(crate) rate: u64,
    pub(crate) seed: u64,
}

/// How many files `python` reads.
pub(crate) const FILES: usize = 640;

/// `python3 -c 'import …'` over a link of 50 ms.
pub(crate) fn python() -> Value {
    Start { files: FILES, latency: 50_000, rate: 40, seed: 7 }.trace()
}

/// A group: when it will be here, and by which fetch.
type Group = Option<(u64, usize)>;

const FILES_OF_GROUP: usize = 3;
const LANES: usize = 4;

struct Model<'a> {
    start: &'a Start,
    random: fastrand::Rng,
    groups: Vec<Group>,
    /// What is known of earlier starts, and how much of it has been asked for.
    profile: Vec<usize>,
    asked: usize,
    lanes: [u64; LANES],
    link_free: u64,
    fetches: Vec<Value>,
    touches: Vec<Value>,
    path: Vec<Value>,
    now: u64,
}

impl Start {
    pub(crate) fn trace(&self) -> Value {
        let mut model = Model::new(self);
        model.index();
        model.step(62_000, "attach", -1, -1, "the index, and the mount");
        let first_exec = model.now + 78_000;
        model.step(first_exec, "runtime", -1, -1, "runc starts the container");
        for file in 0..self.files {
            model.read(file);
        }
        let end = model.now + 31_000;
        model.step(end, "running", -1, -1, "");
        model.rest();
        model.value(first_exec)
    }
}

impl<'a> Model<'a> {
    fn new(start: &'a Start) -> Self {
        let mut random = fastrand::Rng::with_seed(start.seed);
        let groups = start.files + start.files / FILES_OF_GROUP + 1;
        let profile = (0..start.files / FILES_OF_GROUP).filter(|_| random.u8(..100) < 96).collect();
        Self {
            start,
            random,
            groups: vec![None; groups],
            profile,
            asked: 0,
            lanes: [62_000; LANES],
            link_free: 0,
            fetches: Vec::new(),
            touches: Vec::new(),
            path: Vec::new(),
            now: 0,
        }
    }

    fn index(&mut self) {
        self.now = 6_000;
        self.fetch(5, None, 6_000, 340_000);
        self.now = 0;
    }

    /// Asks for something at `queued`; says when it is here and by which fetch.
    fn fetch(&mut self, class: u8, file: Option<usize>, queued: u64, bytes: u64) -> (u64, usize) {
        let sent = queued + self.random.u64(20..400);
        let first = sent + self.start.latency + self.random.u64(0..=self.start.latency / 10);
        let received = first.max(self.link_free) + bytes / self.start.rate;
        self.link_free = received;
        let ready = received + bytes / 900;
        let file = file.map_or(-1, |file| i64::try_from(file).unwrap());
        self.fetches
            .push(json!([queued, sent, first, received, ready, class, 0, 1, bytes, 0, file]));
        (ready, self.fetches.len() - 1)
    }

    /// Loading ahead, as far as it has come until now.
    fn ahead(&mut self) {
        for lane in 0..LANES {
            while self.lanes[lane] <= self.now && self.asked < self.profile.len() {
                let group = self.profile[self.asked];
                self.asked += 1;
                if self.groups[group].is_none() {
                    let bytes = self.random.u64(60_000..900_000);
                    let queued = self.lanes[lane];
                    let here = self.fetch(3, Some(group * FILES_OF_GROUP), queued, bytes);
                    self.groups[group] = Some(here);
                    self.lanes[lane] = here.0;
                }
            }
        }
    }

    fn read(&mut self, file: usize) {
        let thinking = if self.random.u8(..100) < 14 { 3_000..22_000 } else { 30..420 };
        let until = self.now + self.random.u64(thinking);
        self.step(until, "running", -1, -1, "");
        self.ahead();
        self.touch(file, file / FILES_OF_GROUP, 0);
        if file % 27 == 4 {
            for part in 1..=self.random.u64(1..4) {
                let group = self.start.files / FILES_OF_GROUP + file;
                self.touch(file, group.min(self.groups.len() - 1), part * 131_072);
            }
        }
    }

    fn touch(&mut self, file: usize, group: usize, offset: u64) {
        let at = self.now;
        let (tier, wait, fetch) = match self.groups[group] {
            _ if file % 17 == 3 => (0, self.random.u64(8..30), -1),
            Some((ready, _)) if ready <= at => (1, self.random.u64(25..140), -1),
            Some((ready, fetch)) => (2, ready - at + 40, i64::try_from(fetch).unwrap()),
            None => {
                let bytes = self.random.u64(20_000..500_000);
                let here = self.fetch(u8::from(offset > 0), Some(file), at, bytes);
                self.groups[group] = Some(here);
                (3, here.0 - at + 40, i64::try_from(here.1).unwrap())
            }
        };
        let kind = ["served", "served", "in-flight", "store"][tier];
        let first = i32::from(offset == 0);
        let touch = i64::try_from(self.touches.len()).unwrap();
        self.touches.push(json!([at, wait, file, tier, offset, 131_072, fetch, first]));
        self.step(at + wait, kind, touch, fetch, "");
    }

    fn step(&mut self, to: u64, kind: &str, touch: i64, fetch: i64, what: &str) {
        self.path.push(json!({
            "from": self.now, "to": to, "kind": kind, "touch": touch, "fetch": fetch, "what": what
        }));
        self.now = to;
    }

    /// The rest of the image, after the start and beyond it.
    fn rest(&mut self) {
        let begin = self.now;
        for n in 0..24 {
            let bytes = self.random.u64(1_000_000..4_000_000);
            self.fetch(4, None, begin - 20_000 + n * 9_000, bytes);
        }
        self.now = begin;
    }

    fn value(self, first_exec: u64) -> Value {
        let files: Vec<Value> =
            (0..self.start.files).map(|file| json!([path(file), 0, 4096 + file * 977])).collect();
        let reads = self.touches.len();
        json!({
            "format": "inlay-trace", "version": 1, "title": "python3 -c 'import numpy, pandas, sklearn'",
            "command": ["inlay", "run", "base", "--", "python3", "-c", "import numpy, pandas, sklearn"],
            "recorded": "2026-01-01T00:00:00Z", "host": {"kernel": "6.18.0", "cores": 2}, "inlay": "0.1.0",
            "snapshots": [{"id": "img-3f9c", "name": "base", "store": "s3://images/eu", "groups": 900, "files": 21_412, "size": 812_000_000}],
            "duration": self.now + 300_000, "ready": self.now, "ready_by": "output /^ready/", "dropped": 0,
            "marks": [
                {"at": 0, "name": "begin", "detail": ""},
                {"at": 4_100, "name": "created", "detail": "the sandbox's record"},
                {"at": 62_000, "name": "mounted", "detail": "base"},
                {"at": first_exec, "name": "first-exec", "detail": "/usr/bin/python3"},
                {"at": self.now, "name": "ready", "detail": "output /^ready/"},
            ],
            "files": files,
            "touches": {"columns": ["at", "wait", "file", "tier", "offset", "bytes", "fetch", "first"], "rows": self.touches},
            "fetches": {"columns": ["queued", "sent", "first_byte", "received", "ready", "class", "snapshot", "groups", "bytes", "outcome", "file"], "rows": self.fetches},
            "served": {"requests": reads * 5, "time": reads * 61, "reads": reads},
            "path": self.path, "totals": {},
        })
    }
}

fn path(file: usize) -> String {
    const PACKAGES: [&str; 7] = [
        "numpy/core",
        "numpy/linalg",
        "pandas/io",
        "pandas/core/indexes",
        "sklearn/utils",
        "scipy/sparse",
        "joblib",
    ];
    const WORDS: [&str; 8] = [
        "__init__",
        "_methods",
        "fromnumeric",
        "arrayprint",
        "generic",
        "_base",
        "validation",
        "common",
    ];
    let word = WORDS[file * 5 % WORDS.len()];
    match file % 9 {
        4 => format!("/usr/lib/x86_64-linux-gnu/lib{word}{file}.so.6"),
        0 if file < 40 => format!("/usr/lib/python3.11/{word}{file}.py"),
        _ => format!(
            "/usr/lib/python3/dist-packages/{}/__pycache__/{word}{file}.cpython-311.pyc",
            PACKAGES[file / 11 % PACKAGES.len()]
        ),
    }
}
