//! The time that a client gives an RPC, by the header `grpc-timeout` (gRPC over HTTP/2, "Requests").
//!
//! Owns the answer to it. tonic has a timer of its own for the header, and answers `Canceled` where gRPC means
//! `DeadlineExceeded`; this one is a millisecond earlier, and the only one that a client sees.

use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::codegen::http::HeaderMap;

/// What a timer of tokio is rounded to.
const EARLIER: Duration = Duration::from_millis(1);

/// When a client stops waiting.
#[derive(Debug, Clone, Copy)]
pub struct Deadline {
    at: Instant,
    patience: Duration,
}

impl Deadline {
    /// The deadline of a request that has just come, none where it sets none that can be read.
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let patience = parse(headers.get("grpc-timeout")?.to_str().ok()?)?;
        let at = Instant::now().checked_add(patience.saturating_sub(EARLIER))?;
        Some(Self { at, patience })
    }

    /// Waits for `answer`.
    ///
    /// # Errors
    /// The time that the client gave, when that is over.
    pub async fn within<T>(deadline: Option<Self>, answer: impl Future<Output = T>) -> Result<T, Duration> {
        match deadline {
            Some(Self { at, patience }) => timeout_at(at, answer).await.map_err(|_| patience),
            None => Ok(answer.await),
        }
    }
}

/// At most eight digits and a unit.
fn parse(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return None;
    }
    let value = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(value * 60 * 60)),
        "M" => Some(Duration::from_secs(value * 60)),
        "S" => Some(Duration::from_secs(value)),
        "m" => Some(Duration::from_millis(value)),
        "u" => Some(Duration::from_micros(value)),
        "n" => Some(Duration::from_nanos(value)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_as_grpc_writes_them() {
        for (text, time) in [
            ("2H", Some(Duration::from_secs(7200))),
            ("3M", Some(Duration::from_secs(180))),
            ("120S", Some(Duration::from_secs(120))),
            ("1999970m", Some(Duration::from_millis(1_999_970))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("7n", Some(Duration::from_nanos(7))),
            ("123456789S", None),
            ("+1S", None),
            ("1s", None),
            ("1", None),
            ("S", None),
            ("", None),
            ("1é", None),
        ] {
            assert_eq!(parse(text), time, "{text:?}");
        }
    }
}
