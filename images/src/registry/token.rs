//! Bearer tokens: asks the token server that a registry names in its challenge.
//!
//! The distribution project's token specification (GET with Basic) and its OAuth2 variant (POST with a refresh token).
//! The realm is chosen by the registry the credentials belong to; it is refused where it would send them in the clear
//! although the registry itself uses TLS.

use reqwest::header::{AUTHORIZATION, CONTENT_TYPE};
use reqwest::{Client, Url};
use serde::Deserialize;

use super::http;
use crate::auth::{Auth, basic_header};
use crate::config::Timeouts;
use crate::error::Error;

/// Bytes of a token answer; tokens of a few KiB are common.
const TOKEN_MAX: u64 = 256 << 10;

/// What is asked for.
#[derive(Debug)]
pub(super) struct Wanted<'a> {
    pub realm: &'a str,
    pub service: Option<&'a str>,
    pub scope: &'a str,
    /// Whether the registry is reached by TLS.
    pub secure: bool,
    pub host: &'a str,
    pub repository: &'a str,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(default)]
    token: Option<String>,
    #[serde(default)]
    access_token: Option<String>,
}

/// Fetches a token for `wanted`, anonymously without `auth`.
pub(super) async fn fetch(
    client: &Client,
    timeouts: &Timeouts,
    wanted: &Wanted<'_>,
    auth: Option<&Auth>,
) -> Result<String, Error> {
    let protocol = |reason: &str| Error::Protocol {
        host: wanted.host.to_owned(),
        reason: reason.to_owned(),
    };
    let mut url = Url::parse(wanted.realm).map_err(|_| protocol("the token realm is not a URL"))?;
    match url.scheme() {
        "https" => {}
        "http" if !wanted.secure => {}
        _ => return Err(protocol("the token realm is not https")),
    }
    let mut pairs = vec![("scope", wanted.scope)];
    if let Some(service) = wanted.service {
        pairs.push(("service", service));
    }
    let request = match auth {
        Some(Auth::IdentityToken(token)) => {
            pairs.extend([
                ("grant_type", "refresh_token"),
                ("client_id", "podd"),
                ("refresh_token", token),
            ]);
            client
                .post(url.clone())
                .header(CONTENT_TYPE, "application/x-www-form-urlencoded")
                .body(form(&pairs))
        }
        _ => {
            url.query_pairs_mut().extend_pairs(&pairs);
            let request = client.get(url.clone());
            match auth {
                Some(Auth::Basic { username, password }) => {
                    request.header(AUTHORIZATION, basic_header(username, password))
                }
                _ => request,
            }
        }
    };
    let response = http::answer(request, timeouts, &url)
        .await
        .map_err(|no| no.error)?;
    let status = response.status();
    match status.as_u16() {
        200 => {}
        400 | 401 | 403 => {
            let (host, repository) = (wanted.host.to_owned(), wanted.repository.to_owned());
            return Err(Error::Unauthorized { host, repository });
        }
        429 => {
            return Err(Error::RateLimited {
                host: http::host(&url),
            });
        }
        _ => {
            let reason = format!("token server answered {status}");
            return Err(Error::Unreachable {
                host: http::host(&url),
                reason,
            });
        }
    }
    let bytes = http::body(response, timeouts, "bytes of a token", TOKEN_MAX).await?;
    // Not the parser's message: it could quote the token.
    let answer: Answer = serde_json::from_slice(&bytes).map_err(|_| protocol("malformed token answer"))?;
    answer
        .token
        .filter(|t| !t.is_empty())
        .or(answer.access_token)
        .ok_or_else(|| protocol("the token answer has no token"))
}

fn form(pairs: &[(&str, &str)]) -> String {
    // The query syntax of a URL is the form encoding.
    let Ok(mut url) = Url::parse("http://form/") else {
        return String::new();
    };
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}
