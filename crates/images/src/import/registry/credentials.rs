//! Reads docker's credentials, from its `config.json` or the helper program it names.

use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

use docker_credential::{CredentialRetrievalError, DockerCredential};
use oci_client::secrets::RegistryAuth;

use super::RegistryError;

/// Maximum bytes of docker's `config.json` that are read.
const CONFIG_LEN_MAX: u64 = 4 << 20;
/// Key under which docker stores the credentials of Docker Hub.
const DOCKER_HUB: &str = "https://index.docker.io/v1/";

/// Returns the credentials for `registry` (a host, with its port unless it is the default) from
/// docker's configuration directory `dir`; anonymous if it has none.
pub(super) fn find(dir: Option<&Path>, registry: &str) -> Result<RegistryAuth, RegistryError> {
    let wrong = |why: String| RegistryError::Credentials { registry: registry.to_owned(), why };
    let Some(path) = dir.map(|dir| dir.join("config.json")) else {
        return Ok(RegistryAuth::Anonymous);
    };
    let file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Ok(RegistryAuth::Anonymous);
        }
        Err(error) => return Err(wrong(format!("{}: {error}", path.display()))),
    };
    let key = match registry {
        "docker.io" | "index.docker.io" => DOCKER_HUB,
        other => other,
    };
    match docker_credential::get_credential_from_reader(file.take(CONFIG_LEN_MAX), key) {
        Ok(DockerCredential::UsernamePassword(user, password)) => {
            Ok(RegistryAuth::Basic(user, password))
        }
        Ok(DockerCredential::IdentityToken(_)) => Err(wrong(
            "an identity token is kept for it, which can't be used here: a user with a password \
             or an access token is needed"
                .to_owned(),
        )),
        Err(CredentialRetrievalError::NoCredentialConfigured) => Ok(RegistryAuth::Anonymous),
        // A helper without credentials for this registry fails; docker continues anonymously, too.
        Err(CredentialRetrievalError::HelperFailure { stdout, stderr, .. })
            if stdout.contains("credentials not found")
                || stderr.contains("credentials not found") =>
        {
            Ok(RegistryAuth::Anonymous)
        }
        // A helper's output may contain a secret.
        Err(CredentialRetrievalError::HelperFailure { helper, .. }) => {
            Err(wrong(format!("the program {helper} failed")))
        }
        Err(error) => Err(wrong(format!("{}: {error}", path.display()))),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn find_in(config: &str, registry: &str) -> Result<RegistryAuth, RegistryError> {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("config.json"), config).unwrap();
        find(Some(dir.path()), registry)
    }

    #[test]
    fn credentials_are_those_of_the_registry() {
        // "user:secret" and "hub:word".
        let config = r#"{"auths":{
            "example.org:5000":{"auth":"dXNlcjpzZWNyZXQ="},
            "token.example.org":{"identitytoken":"t"},
            "https://index.docker.io/v1/":{"auth":"aHViOndvcmQ="}}}"#;
        let basic = |user: &str, password: &str| RegistryAuth::Basic(user.into(), password.into());
        assert_eq!(find_in(config, "example.org:5000").unwrap(), basic("user", "secret"));
        assert_eq!(find_in(config, "docker.io").unwrap(), basic("hub", "word"));
        assert_eq!(find_in(config, "index.docker.io").unwrap(), basic("hub", "word"));
        assert_eq!(find_in(config, "example.org").unwrap(), RegistryAuth::Anonymous);
        let error = find_in(config, "token.example.org").unwrap_err().to_string();
        assert!(error.contains("docker login token.example.org"), "{error}");
    }

    #[test]
    fn no_credentials_is_anonymous_and_a_broken_file_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(find(Some(dir.path()), "example.org").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(find(None, "example.org").unwrap(), RegistryAuth::Anonymous);
        assert_eq!(find_in("{}", "example.org").unwrap(), RegistryAuth::Anonymous);
        assert!(find_in("{", "example.org").is_err());
        let helper = r#"{"credHelpers":{"example.org":"inlay-no-such-helper"}}"#;
        assert!(find_in(helper, "example.org").is_err());
    }
}
