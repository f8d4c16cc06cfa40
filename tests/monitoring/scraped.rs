//! A real Prometheus scrapes a real daemon, and is asked all that the dashboard asks.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use inlay_testkit::process::free_addresses;
use inlay_testkit::scratch;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::common::{import, local, of};
use crate::{dashboard, expressions, program};

/// Generous: nothing waits for it when all is well.
const WITHIN: Duration = Duration::from_mins(2);

/// A process that ends with this.
struct Ends(Child);

impl Drop for Ends {
    fn drop(&mut self) {
        let _ = kill_process(Pid::from_child(&self.0), Signal::TERM);
        let _ = self.0.wait();
    }
}

/// What Prometheus answers to a query, if it is there.
fn ask(address: SocketAddr, query: &str) -> Option<Value> {
    let mut stream = TcpStream::connect(address).ok()?;
    let mut body = "query=".to_owned();
    for byte in query.bytes() {
        body.push('%');
        body.push_str(&hex::encode([byte]));
    }
    let length = body.len();
    write!(
        stream,
        "POST /api/v1/query HTTP/1.0\r\nContent-Type: application/x-www-form-urlencoded\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    serde_json::from_str(answer.split_once("\r\n\r\n")?.1).ok()
}

fn found(answer: &Value) -> usize {
    answer["data"]["result"].as_array().map_or(0, Vec::len)
}

#[test]
fn prometheus_answers_every_query_of_the_dashboard() {
    let inlay = local();
    let [metrics, server] = free_addresses().unwrap();
    let dir = scratch().unwrap();
    fs::create_dir(dir.path().join("files")).unwrap();
    fs::write(dir.path().join("files/file"), vec![7; 100_000]).unwrap();
    import(&inlay, &of("dir", &dir.path().join("files")), "files");
    let mut daemon = inlay.command();
    daemon.args(["daemon", "--metrics-listen", &metrics.to_string(), "--state"]);
    let daemon = Ends(daemon.arg(inlay.state()).stderr(Stdio::null()).spawn().unwrap());
    inlay.wait_for_daemon().unwrap();

    let config = dir.path().join("prometheus.yml");
    let rules = crate::shipped("prometheus/inlay.rules.yml");
    fs::write(
        &config,
        format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{}']\n\
             scrape_configs: [{{job_name: inlay, static_configs: [{{targets: ['{metrics}']}}]}}]\n",
            rules.display()
        ),
    )
    .unwrap();
    let prometheus = program("prometheus")
        .arg(format!("--config.file={}", config.display()))
        .arg(format!("--storage.tsdb.path={}", dir.path().join("data").display()))
        .arg(format!("--web.listen-address={server}"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let prometheus = Ends(prometheus);

    let mounted = inlay.mount("files", &[]).unwrap();
    fs::read(mounted.path().join("file")).unwrap();
    let deadline = Instant::now() + WITHIN;
    // Rates need two scrapes.
    let scraped = "count_over_time(inlay_mounts[1m]) >= 3";
    while ask(server, scraped).is_none_or(|answer| found(&answer) == 0) {
        assert!(Instant::now() < deadline, "nothing was scraped within {WITHIN:?}");
        thread::sleep(Duration::from_millis(100));
    }
    let mut with_numbers = 0;
    for query in expressions(&dashboard()) {
        let query = query.replace("$__rate_interval", "1m").replace("$__range", "1m");
        let answer = ask(server, &query.replace("$instance", ".*")).unwrap();
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        with_numbers += usize::from(found(&answer) > 0);
    }
    // The link is not measured to a directory, and some series begin with what they count.
    assert!(with_numbers > 40, "{with_numbers} queries find something");
    mounted.unmount().unwrap();
    drop((prometheus, daemon));
    inlay.wait_until_quiet().unwrap();
}
