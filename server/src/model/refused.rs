//! Why a request is refused: the errors of the model, with the path of the field at fault.

use thiserror::Error;

/// A field holds something that it may not hold. The caller has to change the request.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Path of the field in the message, such as `linux.security_context.run_as_user`.
    pub field: String,
    /// What is wrong with it, and what would be right.
    pub reason: String,
}

/// A field asks for something that is legal and that podd does not do. It is never silently ignored.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error("{field}: {what} is not supported yet")]
pub struct Unsupported {
    /// Path of the field in the message.
    pub field: String,
    /// What was asked for.
    pub what: String,
}

/// Why no value could be made from a message.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum Refused {
    /// The request is wrong.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The request is right, podd lacks the feature.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
}

impl Refused {
    /// Path of the field at fault.
    #[must_use]
    pub fn field(&self) -> &str {
        match self {
            Self::Invalid(invalid) => &invalid.field,
            Self::Unsupported(unsupported) => &unsupported.field,
        }
    }
}
