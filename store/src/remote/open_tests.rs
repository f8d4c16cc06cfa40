//! Tests of opening stores: URLs, options and plain HTTP.

use super::*;

fn config(url: &str, options: &[(&str, &str)]) -> StoreConfig {
    let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
    StoreConfig { options: options.iter().map(own).collect(), ..StoreConfig::new(url) }
}

const KEYS: [(&str, &str); 2] = [("AWS_ACCESS_KEY_ID", "a"), ("AWS_SECRET_ACCESS_KEY", "s3cr3t")];

fn open_s3(options: &[(&str, &str)]) -> Result<Opened, StoreError> {
    open(&config("s3://bucket/some/prefix/", &[&KEYS[..], options].concat()))
}

#[test]
fn a_url_gives_the_root_and_the_description() {
    let opened = open_s3(&[]).unwrap();
    assert_eq!(opened.root.as_ref(), "some/prefix");
    assert_eq!(opened.description, "s3://bucket/some/prefix");
    assert_eq!(opened.access, Access::ReadWrite);
    let opened = open(&config("https://images.example/x", &[])).unwrap();
    assert_eq!(opened.access, Access::ReadOnly);
    open(&config("gs://bucket/x", &[("google_skip_signature", "true")])).unwrap();
    let azure = [("azure_storage_account_name", "name"), ("azure_skip_signature", "true")];
    open(&config("az://container/x", &azure)).unwrap();
}

#[test]
fn the_bucket_is_in_the_host_name_only_at_the_service_itself() {
    for (options, in_host) in [
        (&[][..], true),
        (&[("aws_endpoint_url", "https://s3.example")][..], false),
        (&[("aws_virtual_hosted_style_request", "false")][..], false),
    ] {
        let shown = format!("{:?}", open_s3(options).unwrap());
        assert_eq!(shown.contains("https://bucket.s3"), in_host, "{options:?}");
    }
    let dotted = open(&config("s3://my.bucket/x", &KEYS)).unwrap();
    assert!(format!("{dotted:?}").contains("amazonaws.com/my.bucket"));
}

#[test]
fn plain_http_is_only_for_this_machine_unless_it_is_allowed() {
    for endpoint in ["http://127.0.0.1:9000", "http://localhost:9000", "http://[::1]:9000"] {
        open_s3(&[("AWS_ENDPOINT_URL", endpoint)]).unwrap();
        open(&config(endpoint, &[])).unwrap();
    }
    for endpoint in ["http://10.0.0.1:9000", "http://localhost.example", "http://127.0.0.1.example"]
    {
        // Not even if the options, which come from the environment, allow it.
        for error in [
            open_s3(&[("AWS_ENDPOINT_URL", endpoint), ("AWS_ALLOW_HTTP", "true")]).unwrap_err(),
            open_s3(&[("AWS_ENDPOINT_URL_S3", endpoint)]).unwrap_err(),
            open(&config(endpoint, &[])).unwrap_err(),
        ] {
            assert!(matches!(&error, StoreError::PlainHttp { .. }), "{error}");
        }
        let allowed = StoreConfig { plain_http: PlainHttp::Allowed, ..config(endpoint, &[]) };
        open(&allowed).unwrap();
    }
}

/// For every service: the library's defaults override none of them.
#[test]
fn the_clients_settings_are_used_or_refused() {
    let open_with = |name: &str, value: &str| {
        let azure = [("azure_storage_account_name", "name"), ("azure_skip_signature", "true")];
        let google = [("google_skip_signature", "true")];
        let option = [(name, value)];
        [
            open_s3(&option),
            open(&config("gs://bucket/x", &[&google[..], &option].concat())),
            open(&config("az://container/x", &[&azure[..], &option].concat())),
        ]
    };
    for (name, value) in [
        ("connect_timeout", "3 seconds"),
        ("timeout", "10m"),
        ("read_timeout", "1m"),
        ("pool_idle_timeout", "90s"),
        ("pool_max_idle_per_host", "7"),
        ("http2_max_frame_size", "65536"),
    ] {
        for opened in open_with(name, value) {
            opened.unwrap();
        }
    }
    for name in ["connect_timeout", "timeout", "pool_idle_timeout", "pool_max_idle_per_host"] {
        for refused in open_with(name, "never") {
            let error = refused.unwrap_err().to_string();
            assert!(error.contains("never"), "{name}: {error}");
        }
    }
}

#[test]
fn urls_that_name_no_store_are_refused() {
    for url in
        ["ftp://host/x", "s3://", "file://host/x", "memory:///x", "s3://a:b@bucket/x", "s3://b/x?y"]
    {
        let error = open(&config(url, &KEYS)).unwrap_err();
        assert!(
            matches!(&error, StoreError::Url { .. } | StoreError::Open { .. }),
            "{url}: {error}"
        );
        assert!(!error.to_string().contains("a:b@"), "{error}");
    }
}

#[test]
fn a_directory_is_made_and_one_that_cannot_be_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let inside = dir.path().join("a/b");
    open(&config(inside.to_str().unwrap(), &[])).unwrap();
    assert!(inside.is_dir());
    let url = format!("file://{}", dir.path().join("c d").display());
    open(&config(&url, &[])).unwrap();
    assert!(dir.path().join("c d").is_dir());
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let error = open(&config(file.join("x").to_str().unwrap(), &[])).unwrap_err();
    assert!(error.to_string().contains("file/x"), "{error}");
}

#[test]
fn secrets_are_not_shown() {
    assert!(!format!("{:?}", config("s3://b", &KEYS)).contains("s3cr3t"));
    assert!(!format!("{:?}", open_s3(&[]).unwrap()).contains("s3cr3t"));
}
