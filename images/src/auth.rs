//! Registry credentials and the `WWW-Authenticate` challenges that ask for them.
//!
//! Credentials are never printed: `Debug` shows `…`. Nothing here sends anything.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use crate::error::Error;

/// User name that marks the password as an identity token (docker's convention).
const TOKEN_USER: &str = "<token>";

/// Credentials for one registry.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    /// User name and password: sent as Basic to the registry, or to its token server when it asks for Bearer.
    Basic {
        /// User name; without colon.
        username: String,
        /// Password.
        password: String,
    },
    /// A refresh token, exchanged for an access token by OAuth2.
    IdentityToken(String),
    /// A bearer token, sent to the registry as it is.
    RegistryToken(String),
}

impl Auth {
    /// User name and password; `<token>` as user name means an identity token.
    pub fn basic(username: impl Into<String>, password: impl Into<String>) -> Auth {
        let (username, password) = (username.into(), password.into());
        if username == TOKEN_USER {
            Auth::IdentityToken(password)
        } else {
            Auth::Basic { username, password }
        }
    }

    /// The `auth` field of docker and CRI: base64 of `user:password`.
    pub fn from_encoded(text: &str) -> Result<Auth, Error> {
        let bad = |reason| Error::InvalidCredentials { reason };
        let bytes = STANDARD
            .decode(text.trim())
            .map_err(|_| bad("auth is not base64"))?;
        let pair = String::from_utf8(bytes).map_err(|_| bad("auth is not UTF-8"))?;
        let (user, password) = pair.split_once(':').ok_or_else(|| bad("auth has no colon"))?;
        // Old docker clients padded the password with NUL.
        Ok(Auth::basic(user, password.trim_end_matches('\0')))
    }
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Auth::Basic { .. } => "Basic(…)",
            Auth::IdentityToken(_) => "IdentityToken(…)",
            Auth::RegistryToken(_) => "RegistryToken(…)",
        })
    }
}

/// Value of a Basic `Authorization` header.
pub(crate) fn basic_header(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// What a registry asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    Bearer {
        realm: String,
        service: Option<String>,
        scope: Option<String>,
    },
}

impl Challenge {
    /// The challenge to answer out of the values of all `WWW-Authenticate` headers: Bearer before Basic.
    pub(crate) fn choose<'a>(headers: impl Iterator<Item = &'a str>) -> Option<Challenge> {
        let mut best = None;
        for header in headers {
            for (scheme, params) in challenges(header) {
                let get = |key: &str| params.iter().find(|(k, _)| k == key).map(|(_, v)| v.clone());
                if scheme == "bearer"
                    && let Some(realm) = get("realm")
                {
                    return Some(Challenge::Bearer {
                        realm,
                        service: get("service"),
                        scope: get("scope"),
                    });
                }
                if scheme == "basic" {
                    best = Some(Challenge::Basic);
                }
            }
        }
        best
    }
}

type Params = Vec<(String, String)>;

/// Splits a header value into challenges (RFC 9110 section 11.6.1): a scheme, then `key=value` pairs with commas.
fn challenges(header: &str) -> Vec<(String, Params)> {
    let mut out: Vec<(String, Params)> = Vec::new();
    let mut rest = header.trim();
    while !rest.is_empty() {
        rest = rest.trim_start_matches([',', ' ', '\t']);
        let end = rest.find(['=', ' ', '\t', ',']).unwrap_or(rest.len());
        let (word, tail) = rest.split_at(end);
        let tail = tail.trim_start();
        if word.is_empty() {
            // Stray separator or `=`: skip one character.
            rest = rest.get(1..).unwrap_or_default();
        } else if let Some(value) = tail.strip_prefix('=') {
            let (value, after) = param_value(value.trim_start());
            rest = after;
            if let Some((_, params)) = out.last_mut() {
                params.push((word.to_ascii_lowercase(), value));
            }
        } else {
            out.push((word.to_ascii_lowercase(), Vec::new()));
            rest = tail;
        }
    }
    out
}

fn param_value(text: &str) -> (String, &str) {
    let Some(quoted) = text.strip_prefix('"') else {
        let end = text.find([',', ' ', '\t']).unwrap_or(text.len());
        return (text[..end].to_owned(), &text[end..]);
    };
    let mut value = String::new();
    let mut escaped = false;
    for (i, c) in quoted.char_indices() {
        match c {
            _ if escaped => {
                value.push(c);
                escaped = false;
            }
            '\\' => escaped = true,
            '"' => return (value, &quoted[i + 1..]),
            _ => value.push(c),
        }
    }
    (value, "")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_understood() {
        let bearer = |realm: &str, service: Option<&str>, scope: Option<&str>| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.map(Into::into),
                scope: scope.map(Into::into),
            })
        };
        let cases: [(&[&str], _); 9] = [
            (
                &[r#"Bearer realm="https://a/t",service="s",scope="repository:x/y:pull,push""#],
                bearer("https://a/t", Some("s"), Some("repository:x/y:pull,push")),
            ),
            (
                &[r#"bearer REALM=https://a/t , service = "a\"b""#],
                bearer("https://a/t", Some("a\"b"), None),
            ),
            (&[r#"Basic realm="x""#], Some(Challenge::Basic)),
            (&["Basic"], Some(Challenge::Basic)),
            (&[r#"Basic realm="x", Bearer realm="r""#], bearer("r", None, None)),
            (&["Basic", r#"Bearer realm="r""#], bearer("r", None, None)),
            (&["Negotiate abc=="], None),
            (&["Bearer"], None),
            (
                &["=,=\"", "", "Bearer realm=\"unclosed"],
                bearer("unclosed", None, None),
            ),
        ];
        for (headers, want) in cases {
            assert_eq!(Challenge::choose(headers.iter().copied()), want, "{headers:?}");
        }
    }

    #[test]
    fn credentials_do_not_print() {
        for auth in [
            Auth::basic("user", "secret"),
            Auth::basic("<token>", "secret"),
            Auth::RegistryToken("secret".into()),
            Auth::from_encoded("dXNlcjpzZWNyZXQ=").unwrap(),
        ] {
            let text = format!("{auth:?}");
            assert!(!text.contains("secret") && !text.contains("user"), "{text}");
        }
        assert_eq!(
            Auth::from_encoded("dXNlcjpzZWNyZXQ=").unwrap(),
            Auth::basic("user", "secret")
        );
        assert!(Auth::from_encoded("!").is_err() && Auth::from_encoded("dXNlcg==").is_err());
    }
}
