//! `Debug` of the messages that hold secrets: it says whether a secret is there, never what it is.
//!
//! Requests are logged as a whole, and these messages sit inside them. `build.rs` lists the same
//! messages, so that prost derives no `Debug` for them.

use std::fmt::{Debug, Formatter, Result};

use crate::v1::{AuthConfig, KeyValue};

/// Stands for a secret: empty quotes when there is none, `…` otherwise.
struct Secret<'a>(&'a [u8]);

impl Debug for Secret<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.write_str(if self.0.is_empty() { "\"\"" } else { "…" })
    }
}

impl Debug for AuthConfig {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("AuthConfig")
            .field("username", &self.username)
            .field("password", &Secret(self.password.as_bytes()))
            .field("auth", &Secret(self.auth.as_bytes()))
            .field("server_address", &self.server_address)
            .field("identity_token", &Secret(self.identity_token.as_bytes()))
            .field("registry_token", &Secret(self.registry_token.as_bytes()))
            .finish()
    }
}

impl Debug for KeyValue {
    fn fmt(&self, f: &mut Formatter<'_>) -> Result {
        f.debug_struct("KeyValue")
            .field("key", &self.key)
            .field("value", &Secret(&self.value))
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::v1::{ContainerConfig, PullImageRequest};

    #[test]
    fn secrets_do_not_print() {
        let auth = AuthConfig {
            username: "user".into(),
            password: "hunter2".into(),
            auth: "hunter3".into(),
            server_address: "registry.test".into(),
            identity_token: "hunter4".into(),
            registry_token: String::new(),
        };
        let printed = format!(
            "{:?}",
            PullImageRequest {
                auth: Some(auth),
                ..Default::default()
            }
        );
        assert!(!printed.contains("hunter"), "{printed}");
        assert!(
            printed.contains(r#"username: "user", password: …, auth: …"#),
            "{printed}"
        );
        assert!(
            printed.contains(r#"identity_token: …, registry_token: """#),
            "{printed}"
        );
    }

    #[test]
    fn environment_values_do_not_print() {
        let envs = vec![KeyValue {
            key: "TOKEN".into(),
            value: b"hunter2".to_vec(),
        }];
        let printed = format!(
            "{:?}",
            ContainerConfig {
                envs,
                ..Default::default()
            }
        );
        assert!(
            printed.contains(r#"KeyValue { key: "TOKEN", value: … }"#),
            "{printed}"
        );
    }
}
