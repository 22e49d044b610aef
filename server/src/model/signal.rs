//! Stop signals: the CRI's enumeration, the image's text and the kernel's number of one signal.

use serde::{Deserialize, Serialize};

/// A signal by its Linux number, 1 to 64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StopSignal(pub(super) u8);

impl StopSignal {
    /// What is sent when neither the request nor the image says otherwise.
    pub const TERM: Self = Self(15);

    /// The number that kill(2) takes.
    #[must_use]
    pub fn number(self) -> i32 {
        i32::from(self.0)
    }
}
