//! Restricts the redirects that an HTTP client follows, so that bytes and credentials do not go
//! where the user has not sent them.

use std::net::IpAddr;

use reqwest::redirect::{Attempt, Policy};
use url::{Host, Position, Url};

use super::config::PlainHttp;

/// The maximum number of consecutive redirects.
const HOPS_MAX: usize = 10;

/// The allowed targets of redirects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Redirects {
    /// Only the same server, because requests carry credentials for it.
    SameServer,
    /// Any server over HTTPS, and over plain HTTP where that is allowed.
    AnyServer,
}

/// A redirect that was not followed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the server sends the client to {to}, which is refused: {why}")]
pub struct RefusedRedirect {
    to: String,
    why: &'static str,
}

impl Redirects {
    /// Returns the redirect policy of a client with this `plain` HTTP setting.
    pub fn policy(self, plain: PlainHttp) -> Policy {
        Policy::custom(move |attempt: Attempt<'_>| {
            let refused = match attempt.previous().last() {
                Some(from) => self.refuses(from, attempt.url(), attempt.previous().len(), plain),
                None => None,
            };
            match refused {
                Some(refused) => attempt.error(refused),
                None => attempt.follow(),
            }
        })
    }

    /// Checks whether a server at `from` may send the client to `to` by other means than a redirect, e.g.
    /// to its token server.
    ///
    /// # Errors
    ///
    /// Names the server and the reason.
    pub fn check(self, from: &Url, to: &Url, plain: PlainHttp) -> Result<(), RefusedRedirect> {
        self.refuses(from, to, 0, plain).map_or(Ok(()), Err)
    }

    /// Returns why a redirect must not be followed; `None` if it may. `hops` counts the requests
    /// before it.
    fn refuses(
        self,
        from: &Url,
        to: &Url,
        hops: usize,
        plain: PlainHttp,
    ) -> Option<RefusedRedirect> {
        let server = |url: &Url| {
            (
                url.scheme().to_owned(),
                url.host_str().map(str::to_owned),
                url.port_or_known_default(),
            )
        };
        let why = if hops > HOPS_MAX {
            "there were too many before"
        } else if self == Self::SameServer && server(from) != server(to) {
            "it is another server"
        } else if to.scheme() == "https" {
            return None;
        } else if from.scheme() != "http" {
            "it leaves HTTPS"
        } else if plain == PlainHttp::LoopbackOnly && !is_loopback(to) {
            "it is plain HTTP to another machine"
        } else {
            return None;
        };
        // Omit the path and query, which may contain secrets.
        let to = to[..Position::BeforePath].to_owned();
        Some(RefusedRedirect { to, why })
    }
}

/// Returns whether a URL refers to this machine.
pub(super) fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(ip)) => IpAddr::from(ip).is_loopback(),
        Some(Host::Ipv6(ip)) => IpAddr::from(ip).is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(redirects: Redirects, plain: PlainHttp, from: &str, to: &str) -> bool {
        let url = |text: &str| Url::parse(text).unwrap();
        redirects.refuses(&url(from), &url(to), 1, plain).is_some()
    }

    #[test]
    fn bytes_stay_where_the_user_has_sent_them() {
        use PlainHttp::{Allowed, LoopbackOnly};
        let http = "http://127.0.0.1:9000/a";
        for (plain, from, to, any, same) in [
            (LoopbackOnly, http, "http://127.0.0.1:9000/b", true, true),
            (LoopbackOnly, http, "http://127.0.0.1:9001/b", true, false),
            (LoopbackOnly, http, "http://localhost:9000/b", true, false),
            (LoopbackOnly, http, "http://[::1]:9000/b", true, false),
            (LoopbackOnly, http, "http://10.0.0.1:9000/b", false, false),
            (LoopbackOnly, http, "http://127.0.0.1.example/b", false, false),
            (LoopbackOnly, http, "https://other.example/b", true, false),
            (Allowed, http, "http://10.0.0.1:9000/b", true, false),
            (Allowed, "http://one.example/", "http://one.example:80/b", true, true),
            (LoopbackOnly, "https://one.example/", "https://one.example/b", true, true),
            (LoopbackOnly, "https://one.example/", "https://two.example/b", true, false),
            (LoopbackOnly, "https://one.example/", "http://one.example/b", false, false),
            (Allowed, "https://one.example/", "http://one.example/b", false, false),
            (LoopbackOnly, "https://one.example/", "http://127.0.0.1/b", false, false),
        ] {
            assert_eq!(!refused(Redirects::AnyServer, plain, from, to), any, "{from} {to}");
            assert_eq!(!refused(Redirects::SameServer, plain, from, to), same, "{from} {to}");
        }
    }

    #[test]
    fn chains_end_and_secrets_are_not_told() {
        let from = Url::parse("https://one.example/").unwrap();
        let to = Url::parse("http://one.example/path?signature=s3cr3t").unwrap();
        let refuse =
            |to: &Url, hops| Redirects::AnyServer.refuses(&from, to, hops, PlainHttp::LoopbackOnly);
        let text = refuse(&to, 1).unwrap().to_string();
        assert!(text.contains("http://one.example") && !text.contains("s3cr3t"), "{text}");
        assert_eq!(refuse(&from, HOPS_MAX), None);
        assert!(refuse(&from, HOPS_MAX + 1).is_some());
    }
}
