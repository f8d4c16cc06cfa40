//! Logs in to a registry: finds its token server and obtains a token to pull one image.
//!
//! Implements docker's token authentication. A registry with basic authentication needs no token:
//! each request carries the password.

use http_auth::parser::ChallengeParser;
use inlay_store::remote::Redirects;
use oci_client::secrets::RegistryAuth;
use reqwest::header::WWW_AUTHENTICATE;
use reqwest::{Response, StatusCode, Url};
use serde::Deserialize;

use super::JSON_LEN_MAX;
use super::client::Registry;
use super::error::{AttemptFailure, RegistryError};

/// Returns a token to pull the image, or `None` if the registry needs none.
pub(super) async fn token(registry: &Registry) -> Result<Option<String>, AttemptFailure> {
    let Registry { http, scheme, reference: image, auth, .. } = registry;
    if let RegistryAuth::Bearer(token) = auth {
        return Ok(Some(token.clone()));
    }
    let response = http.get(format!("{scheme}://{}/v2/", image.resolve_registry())).send().await?;
    let status = response.status();
    // Any other status is valid without a challenge; the request itself tells.
    if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        return Err(AttemptFailure::of_status(status.as_u16(), ""));
    }
    let Some(server) = token_server(&response) else { return Ok(None) };
    let mut url = server?;
    // The password is sent there: a registry must not have it sent in the clear.
    Redirects::AnyServer
        .check(response.url(), &url, registry.plain)
        .map_err(|refused| AttemptFailure::Final(RegistryError::Redirect(refused.to_string())))?;
    url.query_pairs_mut().append_pair("scope", &format!("repository:{}:pull", image.repository()));
    let request = match auth {
        RegistryAuth::Basic(user, password) => http.get(url).basic_auth(user, Some(password)),
        _ => http.get(url),
    };
    let mut response = request.send().await?;
    let status = response.status();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await? {
        body.extend_from_slice(&piece);
        if body.len() as u64 > JSON_LEN_MAX {
            return Err(AttemptFailure::Transient(
                "the token server's answer is too long".to_owned(),
            ));
        }
    }
    if !status.is_success() {
        return Err(AttemptFailure::of_login(status.as_u16(), &String::from_utf8_lossy(&body)));
    }
    match serde_json::from_slice(&body) {
        Ok(Issued { token: Some(token), .. } | Issued { access_token: Some(token), .. }) => {
            Ok(Some(token))
        }
        Ok(_) => {
            Err(AttemptFailure::Transient("the token server's answer has no token".to_owned()))
        }
        Err(error) => Err(AttemptFailure::Transient(format!("the token server's answer: {error}"))),
    }
}

/// A token server's answer: `access_token` is the name of OAuth 2.0.
#[derive(Deserialize)]
struct Issued {
    token: Option<String>,
    access_token: Option<String>,
}

/// Returns the URL of the token server in a registry's challenge, with the service's name as query.
/// `None` if the registry has no token server.
fn token_server(response: &Response) -> Option<Result<Url, AttemptFailure>> {
    let texts = response.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|v| v.to_str().ok());
    let challenge = texts
        .flat_map(|text| ChallengeParser::new(text).map_while(Result::ok))
        .find(|challenge| challenge.scheme.eq_ignore_ascii_case("Bearer"))?;
    let parameter = |wanted: &str| {
        let named = |(name, _): &&(&str, _)| name.eq_ignore_ascii_case(wanted);
        challenge.params.iter().find(named).map(|(_, value)| value.to_unescaped())
    };
    let realm = parameter("realm")?;
    let Ok(mut url) = Url::parse(&realm) else {
        let why = format!("the registry's token server has no valid URL: {}", realm.escape_debug());
        return Some(Err(AttemptFailure::Transient(why)));
    };
    if let Some(service) = parameter("service") {
        url.query_pairs_mut().append_pair("service", &service);
    }
    Some(Ok(url))
}
