//! Remembers which endpoints could not be reached, so that a dead mirror is waited for once and not once per layer.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Origins (`scheme://host:port`) that failed, until when they are tried last.
#[derive(Debug, Default)]
pub(super) struct Breaker {
    open: Mutex<HashMap<String, Instant>>,
}

impl Breaker {
    pub(super) fn trip(&self, origin: &str, period: Duration) {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        open.retain(|_, until| *until > now);
        open.insert(origin.to_owned(), now + period);
    }

    pub(super) fn reset(&self, origin: &str) {
        self.open
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(origin);
    }

    pub(super) fn is_open(&self, origin: &str) -> bool {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.get(origin).is_some_and(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_for_a_while() {
        let b = Breaker::default();
        assert!(!b.is_open("a"));
        b.trip("a", Duration::from_secs(60));
        b.trip("b", Duration::ZERO);
        assert!(b.is_open("a") && !b.is_open("b"));
        b.reset("a");
        assert!(!b.is_open("a"));
    }
}
