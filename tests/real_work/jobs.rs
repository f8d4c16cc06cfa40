//! Kinds of work: what is done in a sandbox, and what is done with it where it is mounted later.

/// One kind of work in /project.
#[derive(Clone, Copy)]
pub(crate) struct Job {
    pub(crate) name: &'static str,
    /// Makes it.
    pub(crate) make: &'static str,
    /// Uses it in another sandbox, and fails if anything has to be done again.
    pub(crate) check: &'static str,
}

pub(crate) const GIT: Job = Job {
    name: "git clone",
    make: "
        git clone -q /srv/upstream.git /project && cd /project
        echo changed >> src/m3/f3.py && echo new > new
        git -c user.email=a@b.c -c user.name=a commit -qam mine",
    check: "
        cd /project
        git fsck --no-progress
        [ \"$(git status --porcelain)\" = '?? new' ]
        [ \"$(git rev-list --count HEAD)\" = 4 ]
        git checkout -q HEAD~2 && git checkout -q main && git pull -q --rebase",
};

pub(crate) const NPM: Job = Job {
    name: "npm install",
    make: r#"
        mkdir -p /project && cd /project
        echo '{"name": "app", "version": "1.0.0"}' > package.json
        npm install --offline --no-audit --no-fund /srv/packages/npm/*.tgz"#,
    check: r#"
        cd /project
        [ "$(node -p 'require("ms")("2 days")')" = 172800000 ]
        [ "$(node_modules/.bin/semver 1.2.3)" = 1.2.3 ]
        npm install --offline --no-audit --no-fund | grep 'up to date'"#,
};

pub(crate) const PIP: Job = Job {
    name: "pip install",
    make: "
        python3 -m venv /project/venv
        /project/venv/bin/pip install -q --no-index --find-links /srv/packages/wheels click bottle",
    check: "
        cd /project
        find . -name '*.pyc' -printf '%p %T@ %C@\\n' | sort > /tmp/before
        venv/bin/python3 -c 'import bottle, click; print(bottle.__version__)'
        venv/bin/bottle.py --version
        venv/bin/pip install --no-index click bottle | grep -c 'already satisfied' | grep 2
        find . -name '*.pyc' -printf '%p %T@ %C@\\n' | sort | cmp - /tmp/before",
};

pub(crate) const MAKE: Job = Job {
    name: "make",
    make: r#"
        mkdir -p /project && cd /project
        for n in $(seq 20); do echo "int f$n(void) { return $n; }" > f$n.c; done
        echo 'int f7(void); int main(void) { return f7(); }' > main.c
        printf 'program: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\t$(CC) -o $@ $^\n' > Makefile
        make -s"#,
    check: "
        cd /project
        make | grep 'up to date'
        code=0; ./program || code=$?
        [ $code = 7 ]
        touch f3.c && make | grep -c -- '-c -o' | grep '^1$'",
};

/// Needs the toolchain's `bin` and `lib` at /opt/rust.
pub(crate) const CARGO: Job = Job {
    name: "cargo build",
    make: r#"
        export PATH=/opt/rust/bin:$PATH CARGO_HOME=/tmp/cargo CARGO_NET_OFFLINE=true
        cargo init -q --vcs none --name app /project && cd /project
        cargo new -q --vcs none --lib part
        echo 'part = { path = "part" }' >> Cargo.toml
        echo 'fn main() { println!("{}", part::add(40, 2)); }' > src/main.rs
        cargo build -q"#,
    check: r#"
        export PATH=/opt/rust/bin:$PATH CARGO_HOME=/tmp/cargo CARGO_NET_OFFLINE=true
        cd /project
        cargo build -v 2>&1 | tee /tmp/built | grep Fresh
        if grep -E 'Compiling|Dirty|Running' /tmp/built; then exit 1; fi
        [ "$(target/debug/app)" = 42 ]
        touch part/src/lib.rs && cargo build 2>&1 | grep 'Compiling part'"#,
};

pub(crate) const SQLITE: Job = Job {
    name: "sqlite",
    make: "
        mkdir -p /project && cd /project
        sqlite3 data.db 'pragma journal_mode=wal;
            create table t(n integer primary key, x blob);
            with recursive c(n) as (select 1 union all select n + 1 from c where n < 2000)
            insert into t select n, randomblob(500) from c;'",
    check: r#"
        cd /project
        [ "$(sqlite3 data.db 'pragma integrity_check; select count(*) from t')" = "ok
2000" ]
        sqlite3 data.db 'delete from t where n % 2; vacuum; pragma integrity_check' | grep ok"#,
};
