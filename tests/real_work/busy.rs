//! Snapshots of directories in which programs write at that moment.

use crate::house::{House, Sandbox};

/// Writes numbered transactions and notes each after its commit, outside of what is snapshotted.
const WRITER: &str = r#"
import sqlite3, sys
mode = sys.argv[1]
db = sqlite3.connect(f"/project/{mode}.db", isolation_level=None)
db.execute(f"pragma journal_mode={mode}")
db.execute("create table if not exists t(n integer primary key, half integer, x blob)")
notes = open(f"/tmp/{mode}", "w", buffering=1)
n = 0
while True:
    n += 1
    db.execute("begin")
    db.execute("insert into t(n, half, x) values(?, 1, randomblob(3000))", (2 * n,))
    db.execute("insert into t(n, half, x) values(?, 2, randomblob(3000))", (2 * n + 1,))
    db.execute("commit")
    print(n, file=notes)
"#;

/// Says whether the database is whole, and how many transactions it has; all of them in order.
const READER: &str = r#"
import sqlite3, sys
db = sqlite3.connect(f"/project/{sys.argv[1]}.db")
assert db.execute("pragma integrity_check").fetchall() == [("ok",)]
rows = [n for n, in db.execute("select n from t order by n")]
assert rows == list(range(2, 2 + len(rows))) and len(rows) % 2 == 0, rows[-5:]
print(len(rows) // 2)
"#;

const MODES: [&str; 2] = ["wal", "delete"];

fn committed(sandbox: &Sandbox<'_>, mode: &str) -> u64 {
    sandbox.sh(&format!("tail -n 1 /tmp/{mode}")).trim().parse().unwrap_or(0)
}

fn wait_until(sandbox: &Sandbox<'_>, script: &str) {
    sandbox.sh(&format!("until {script}; do sleep 0.02; done"));
}

#[test]
fn a_database_that_is_written_is_whole_in_every_snapshot() {
    let house = House::shared();
    let source = house.sandbox("base", "sqlite-writer", &[]);
    let other = house.sandbox("base", "sqlite-reader", &[]);
    source.sh("mkdir /project");
    let _writers = MODES.map(|mode| source.start(&format!("exec python3 -c '{WRITER}' {mode}")));
    for mode in MODES {
        wait_until(&source, &format!("[ -s /tmp/{mode} ]"));
    }
    let mut last = [0; 2];
    for _ in 0..5 {
        let before = MODES.map(|mode| committed(&source, mode));
        let taken = source.snapshot("/project", &[]);
        let after = MODES.map(|mode| committed(&source, mode));
        other.mount(taken["id"].as_str().unwrap(), "/project");
        for (n, mode) in MODES.into_iter().enumerate() {
            let found = other.exec(&["python3", "-c", READER, mode]);
            let found: u64 = found.trim().parse().unwrap();
            // A commit is noted just afterwards.
            let possible = before[n]..=after[n] + 1;
            assert!(possible.contains(&found), "{mode}: {found} of {possible:?}");
            assert!(found > last[n], "{mode}: {found} after {}", last[n]);
            last[n] = found;
            wait_until(&source, &format!("[ $(tail -n 1 /tmp/{mode}) -gt {found} ]"));
        }
        other.umount("/project");
    }
}

const SERVER: &str = "
import bottle
@bottle.get('/<name>')
def page(name):
    with open('/project/access.log', 'a') as log:
        print('asked for', name, file=log)
    return bottle.static_file(name, root='/project/pages')
bottle.run(host='127.0.0.1', port=8000, quiet=True)
";

/// Asks again and again, until the sandbox ends.
const CLIENT: &str = "
import itertools, urllib.request
for n in itertools.count():
    page = urllib.request.urlopen('http://127.0.0.1:8000/page%d' % (n % 10)).read()
    assert page == b'page %d\\n' % (n % 10), page
";

const ASK: &str = "
import time, urllib.request
for attempt in range(500):
    try:
        print(urllib.request.urlopen('http://127.0.0.1:8000/page7').read().decode(), end='')
        break
    except OSError:
        time.sleep(0.02)
";

#[test]
fn a_web_server_goes_on_and_its_copy_starts_elsewhere() {
    let house = House::shared();
    let layer = ["-v", "packages:/srv/packages:ro"];
    let source = house.sandbox("base", "web", &layer);
    let other = house.sandbox("base", "web-copy", &[]);
    source.sh("
        mkdir -p /project/pages
        for n in 0 1 2 3 4 5 6 7 8 9; do echo page $n > /project/pages/page$n; done
        python3 -m venv /project/venv
        /project/venv/bin/pip install -q --no-index --find-links /srv/packages/wheels bottle");
    source.exec(&["sh", "-c", "printf %s \"$1\" > /project/server.py", "sh", SERVER]);
    let serve = "exec /project/venv/bin/python3 /project/server.py";
    let _server = source.start(serve);
    assert_eq!(source.exec(&["python3", "-c", ASK]), "page 7\n");
    let _client = source.start(&format!("exec python3 -c \"{CLIENT}\""));
    wait_until(&source, "[ $(wc -l < /project/access.log) -gt 10 ]");
    let taken = source.snapshot("/project", &[]);
    // It has not noticed, and is asked more.
    let lines = source.sh("wc -l < /project/access.log");
    wait_until(&source, &format!("[ $(wc -l < /project/access.log) -gt {} ]", lines.trim()));
    assert_eq!(source.exec(&["python3", "-c", ASK]), "page 7\n");

    other.mount(taken["id"].as_str().unwrap(), "/project");
    let log = other.sh("cat /project/access.log");
    let all = source.sh("cat /project/access.log");
    assert!(log.len() > 100 && all.starts_with(&log), "{log}");
    let _copy = other.start(serve);
    assert_eq!(other.exec(&["python3", "-c", ASK]), "page 7\n");
    assert_eq!(
        other.sh("wc -l < /project/access.log").trim(),
        (log.lines().count() + 1).to_string()
    );
}
