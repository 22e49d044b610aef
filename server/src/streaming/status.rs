//! The last word of an exec or attach, sent on its error stream.

use bytes::Bytes;
use serde_json::{Value, json};

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Status {
    /// As it should.
    Success,
    /// The command's exit code is not 0.
    ExitCode(i32),
    /// Something else; a sentence for people.
    Failure(String),
}

impl Status {
    /// What an exit code means.
    #[must_use]
    pub fn of_code(code: i32) -> Self {
        if code == 0 {
            Self::Success
        } else {
            Self::ExitCode(code)
        }
    }

    /// The bytes for the error stream: a Status object of the Kubernetes API, or text that is empty on success
    /// for the protocols before version 4.
    #[must_use]
    pub fn encode(&self, json: bool) -> Bytes {
        let text = if json {
            self.object().to_string()
        } else {
            self.text()
        };
        text.into()
    }

    fn text(&self) -> String {
        match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => format!("command terminated with exit code {code}"),
            Self::Failure(message) => message.clone(),
        }
    }

    fn object(&self) -> Value {
        match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": self.text(),
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failure(message) => json!({
                "metadata": {},
                "status": "Failure",
                "message": message,
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_found_where_clients_look_for_it() {
        let object: Value = serde_json::from_slice(&Status::of_code(7).encode(true)).unwrap();
        assert_eq!(object["status"], "Failure");
        assert_eq!(object["reason"], "NonZeroExitCode");
        assert_eq!(object["details"]["causes"][0]["reason"], "ExitCode");
        assert_eq!(object["details"]["causes"][0]["message"], "7");
        let object: Value = serde_json::from_slice(&Status::of_code(0).encode(true)).unwrap();
        assert_eq!(object["status"], "Success");
        assert!(Status::Success.encode(false).is_empty());
    }
}
