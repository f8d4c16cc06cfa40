//! Strips secrets from store URLs, for metrics and traces, which leave this host.

/// Returns `url` without credentials, query, fragment and trailing slashes. A path is returned
/// unchanged: `?` and `#` are ordinary characters there.
pub(super) fn redacted(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return url.to_owned() };
    let rest = rest.split(['?', '#']).next().unwrap_or_default();
    let (host, path) = match rest.find('/') {
        Some(slash) => rest.split_at(slash),
        None => (rest, ""),
    };
    let host = host.rsplit('@').next().unwrap_or_default();
    format!("{scheme}://{host}{}", path.trim_end_matches('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_have_no_secrets() {
        for (url, shown) in [
            ("s3://bucket/prefix", "s3://bucket/prefix"),
            ("s3://bucket/a/b/", "s3://bucket/a/b"),
            ("https://user:pass@host:9/p@th?sig=x#y", "https://host:9/p@th"),
            ("https://user:p@ss@host", "https://host"),
            ("https://host?token=x", "https://host"),
            ("/srv/images?x", "/srv/images?x"),
        ] {
            assert_eq!(redacted(url), shown);
        }
    }
}
