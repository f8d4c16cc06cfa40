//! Checks the store: reachability, credentials and clock skew.

use std::path::Path;
use std::time::{Duration, SystemTime};

use inlay_snapshots::host::{Host, HostError};
use inlay_snapshots::state::State;
use inlay_store::remote::PlainHttp;

use super::Check;
use crate::config;

/// Timeout of each request to the store.
const WITHIN: Duration = Duration::from_secs(10);
/// Maximum clock skew. Services reject signatures that are 15 minutes off.
const SKEW_MAX: Duration = Duration::from_mins(5);

pub(super) fn checks(url: Option<&str>, plain: PlainHttp) -> Vec<Check> {
    let Some(url) = url else {
        return vec![Check::ok("store", "the one inside the state; choose another with --store")];
    };
    let dir = url.strip_prefix("file://").unwrap_or(url);
    if !dir.contains("://") && !Path::new(dir).is_dir() {
        // Opening a store creates the directory.
        let fix = "correct --store, or import something: that makes the directory";
        return vec![Check::missing("store", format!("{url}: there is no such directory"), fix)];
    }
    // Opening a state directory creates files, so use a temporary one.
    let state = match tempfile::tempdir() {
        Ok(state) => state,
        Err(error) => {
            let found = format!("no directory to try it from: {error}");
            return vec![Check::missing("store", found, "set TMPDIR")];
        }
    };
    let opened = State::open(state.path()).map_err(HostError::from);
    let host = match opened.and_then(|state| Host::open(state, &config::store_config(url, plain))) {
        Ok(host) => host,
        Err(error) => {
            let fix = "correct --store and the variables of its service (docs/OPERATIONS.md)";
            return vec![Check::missing("store", format!("{url}: {error}"), fix)];
        }
    };
    let mut checks = vec![host.wait(answers(&host, url))];
    if let Some(endpoint) = endpoint(url) {
        checks.extend(host.wait(skew(&endpoint)));
    }
    checks
}

async fn answers(host: &Host, url: &str) -> Check {
    use futures::StreamExt;
    let asked = async {
        let mut listed = host.remote().snapshots().await?;
        match listed.next().await {
            Some((_, first)) => first.map(drop),
            None => Ok(()),
        }
    };
    match tokio::time::timeout(WITHIN, asked).await {
        Ok(Ok(())) => Check::ok("store", format!("{url} answers")),
        Ok(Err(error)) => Check::missing(
            "store",
            format!("{url}: {error}"),
            "correct the credentials and the address (docs/OPERATIONS.md)",
        ),
        Err(_) => Check::missing(
            "store",
            format!("{url} did not answer within {} s", WITHIN.as_secs()),
            "look at the network, proxies and firewalls between this host and the store",
        ),
    }
}

/// Returns the HTTP endpoint of a store; `None` for directories and unknown schemes.
fn endpoint(url: &str) -> Option<String> {
    let (scheme, _) = url.split_once("://")?;
    match scheme {
        "http" | "https" => Some(url.to_owned()),
        "s3" | "s3a" => {
            let named = config::store_variables().into_iter().find(|(name, _)| {
                ["aws_endpoint_url_s3", "aws_endpoint_url", "aws_endpoint"]
                    .contains(&name.to_ascii_lowercase().as_str())
            });
            Some(named.map_or_else(|| "https://s3.amazonaws.com".to_owned(), |(_, url)| url))
        }
        "gs" => Some("https://storage.googleapis.com".to_owned()),
        _ => None,
    }
}

async fn skew(endpoint: &str) -> Option<Check> {
    let client = reqwest::Client::builder()
        .timeout(WITHIN)
        .redirect(reqwest::redirect::Policy::none())
        .build()
        .ok()?;
    let answer = client.head(endpoint).send().await.ok()?;
    let theirs = answer.headers().get("date")?.to_str().ok()?;
    let theirs = httpdate::parse_http_date(theirs).ok()?;
    Some(compare(SystemTime::now(), theirs))
}

fn compare(ours: SystemTime, theirs: SystemTime) -> Check {
    let apart = match ours.duration_since(theirs) {
        Ok(ahead) => ahead,
        Err(behind) => behind.duration(),
    };
    let found = format!("{} s apart from the store's clock", apart.as_secs());
    if apart <= SKEW_MAX {
        Check::ok("clock-skew", found)
    } else {
        Check::missing("clock-skew", found, "set this host's clock: the store refuses requests")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Health;

    #[test]
    fn clocks_may_be_minutes_apart() {
        let now = SystemTime::now();
        assert_eq!(compare(now, now - Duration::from_secs(200)).health, Health::Ok);
        assert_eq!(compare(now, now + Duration::from_secs(200)).health, Health::Ok);
        assert_eq!(compare(now, now + Duration::from_hours(1)).health, Health::Missing);
    }

    #[test]
    fn a_store_that_is_not_there_is_missing_and_is_not_made() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let checks = checks(Some(store.to_str().unwrap()), PlainHttp::LoopbackOnly);
        assert_eq!(checks.iter().map(|check| check.health).collect::<Vec<_>>(), [Health::Missing]);
        assert!(!store.exists());
    }

    #[test]
    fn a_store_of_this_host_has_its_clock() {
        assert_eq!(endpoint("/srv/store"), None);
        assert_eq!(endpoint("http://[::1]:80/a").as_deref(), Some("http://[::1]:80/a"));
    }
}
