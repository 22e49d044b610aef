//! One-time tokens: what a URL of the streaming server stands for, until it is used or grows old.

use std::collections::HashMap;
use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustix::rand::{GetRandomFlags, getrandom};

/// How long a token may wait for its client; what the kubelet's own server grants.
const LIFETIME: Duration = Duration::from_secs(60);

/// Most tokens that wait at a time.
pub const MOST: usize = 1000;

/// 128 bits: the token is all that a client has to show.
const RANDOM_BYTES: usize = 16;

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// As many as allowed wait already.
    #[error("{MOST} streaming sessions wait for their clients: try again within a minute")]
    Full,
    /// The kernel gave no random bytes.
    #[error("cannot make a token")]
    Random(#[source] io::Error),
}

/// Tokens that wait, each with what it stands for.
#[derive(Debug)]
pub struct Tokens<T>(Mutex<HashMap<String, (T, Instant)>>);

impl<T> Default for Tokens<T> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T> Tokens<T> {
    /// A token for `value`, good for one use within a minute.
    ///
    /// # Errors
    /// Too many wait already.
    pub fn issue(&self, value: T, now: Instant) -> Result<String, TokenError> {
        let token = random().map_err(TokenError::Random)?;
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (_, issued)| now.duration_since(*issued) < LIFETIME);
        if waiting.len() >= MOST {
            return Err(TokenError::Full);
        }
        waiting.insert(token.clone(), (value, now));
        Ok(token)
    }

    /// What a token stands for; it is of no use after this.
    pub fn redeem(&self, token: &str, now: Instant) -> Option<T> {
        let mut waiting = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (value, issued) = waiting.remove(token)?;
        (now.duration_since(issued) < LIFETIME).then_some(value)
    }
}

fn random() -> io::Result<String> {
    let mut bytes = [0u8; RANDOM_BYTES];
    // The kernel gives up to 256 bytes whole once it is seeded (getrandom(2)).
    match getrandom(&mut bytes[..], GetRandomFlags::empty())? {
        RANDOM_BYTES => Ok(URL_SAFE_NO_PAD.encode(bytes)),
        _ => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_once_and_for_a_minute() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let (used, late) = (tokens.issue(1, now).unwrap(), tokens.issue(2, now).unwrap());
        assert_ne!(used, late);
        assert_eq!(tokens.redeem(&used, now + LIFETIME / 2), Some(1));
        assert_eq!(tokens.redeem(&used, now + LIFETIME / 2), None);
        assert_eq!(tokens.redeem(&late, now + LIFETIME), None);
        assert_eq!(tokens.redeem("", now), None);
    }

    #[test]
    fn tokens_are_counted_until_they_are_old() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        for n in 0..MOST {
            tokens.issue(n, now).unwrap();
        }
        assert!(matches!(tokens.issue(0, now), Err(TokenError::Full)));
        tokens.issue(0, now + LIFETIME).unwrap();
    }
}
