//! Operations that outlive the request that asked for them, and that a retry joins.
//!
//! Owns the table of what is running, by key. A finished operation leaves no trace here: what it made is found in
//! the store, so no name can stay taken by something that does not exist.
//!
//! The kubelet gives up on a slow request and asks again. The work goes on in a task of its own; the same request
//! joins it and gets its result, a different request under the same key is told that it is in the way.

use std::collections::HashMap;
use std::fmt;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use tracing::Instrument;

use crate::trace::context::inherit;

/// What tells one request from another: a hash of its canonical bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint(pub [u8; 32]);

impl Fingerprint {
    /// The fingerprint of a request in canonical encoding.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why joining an operation brought no result.
#[derive(Debug)]
pub enum JoinError<E> {
    /// The operation failed; all who joined it get the same error.
    Failed(Arc<E>),
    /// A different request runs under the same key.
    Conflict,
    /// The operation's task panicked; its key is free again.
    Panicked,
}

impl<E> Clone for JoinError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Failed(e) => Self::Failed(Arc::clone(e)),
            Self::Conflict => Self::Conflict,
            Self::Panicked => Self::Panicked,
        }
    }
}

type Outcome<T, E> = Result<T, JoinError<E>>;

struct Running<T, E> {
    fingerprint: Fingerprint,
    outcome: Shared<BoxFuture<'static, Outcome<T, E>>>,
}

type Table<K, T, E> = Arc<Mutex<HashMap<K, Running<T, E>>>>;

/// The operations that are running, by key.
pub struct Inflight<K, T, E> {
    table: Table<K, T, E>,
}

impl<K, T, E> fmt::Debug for Inflight<K, T, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inflight")
            .field("running", &lock(&self.table).len())
            .finish()
    }
}

impl<K, T, E> Default for Inflight<K, T, E> {
    fn default() -> Self {
        Self {
            table: Arc::default(),
        }
    }
}

/// A table is whole between any two statements that hold its lock, so a panic elsewhere leaves it usable.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Frees a key when its operation is over, however that comes about.
struct Release<K: Eq + Hash, T, E> {
    table: Table<K, T, E>,
    key: K,
}

impl<K: Eq + Hash, T, E> Drop for Release<K, T, E> {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.key);
    }
}

impl<K, T, E> Inflight<K, T, E>
where
    K: Eq + Hash + Clone + Send + 'static,
    T: Clone + Send + Sync + 'static,
    E: Send + Sync + 'static,
{
    /// Joins the operation that runs under `key`, of which `joined` is told, or starts `operation` in a task of its own.
    ///
    /// The key is free again before the result is seen. Dropping the returned future stops nothing.
    ///
    /// # Errors
    /// What the operation answered, or that another request holds the key.
    pub async fn join(
        &self,
        key: K,
        fingerprint: Fingerprint,
        operation: impl Future<Output = Result<T, E>> + Send + 'static,
        joined: impl FnOnce(),
    ) -> Outcome<T, E> {
        let outcome = {
            let mut table = lock(&self.table);
            match table.get(&key) {
                Some(running) if running.fingerprint == fingerprint => {
                    joined();
                    running.outcome.clone()
                }
                Some(_) => return Err(JoinError::Conflict),
                None => {
                    let release = Release {
                        table: Arc::clone(&self.table),
                        key: key.clone(),
                    };
                    let work = async move {
                        let result = operation.await;
                        drop(release);
                        result
                    };
                    let task = tokio::spawn(inherit(work).in_current_span());
                    let outcome = async move {
                        match task.await {
                            Ok(result) => result.map_err(|e| JoinError::Failed(Arc::new(e))),
                            Err(_) => Err(JoinError::Panicked),
                        }
                    };
                    let outcome = outcome.boxed().shared();
                    table.insert(
                        key,
                        Running {
                            fingerprint,
                            outcome: outcome.clone(),
                        },
                    );
                    outcome
                }
            }
        };
        outcome.await
    }

    /// Number of operations that are running.
    #[must_use]
    pub fn len(&self) -> usize {
        lock(&self.table).len()
    }

    /// Whether nothing is running.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;
    use tokio::sync::oneshot;

    type Ops = Inflight<&'static str, usize, String>;

    fn print(request: &str) -> Fingerprint {
        Fingerprint::of(request.as_bytes())
    }

    #[tokio::test]
    async fn a_retry_joins_the_running_operation() {
        let ops = Arc::new(Ops::default());
        let (go, gate) = oneshot::channel::<()>();
        let runs = Arc::new(AtomicUsize::new(0));
        let (ops1, runs1) = (Arc::clone(&ops), Arc::clone(&runs));
        let first = tokio::spawn(async move {
            let body = async move {
                gate.await.unwrap();
                Ok(runs1.fetch_add(1, Ordering::SeqCst) + 1)
            };
            ops1.join("pod", print("a"), body, || panic!("it is the first"))
                .await
        });
        tokio::task::yield_now().await;
        let joins = Arc::new(AtomicUsize::new(0));
        let (ops2, runs2, joins2) = (Arc::clone(&ops), Arc::clone(&runs), Arc::clone(&joins));
        let second = tokio::spawn(async move {
            let body = async move { Ok(runs2.fetch_add(1, Ordering::SeqCst) + 100) };
            let joined = || {
                joins2.fetch_add(1, Ordering::SeqCst);
            };
            ops2.join("pod", print("a"), body, joined).await
        });
        tokio::task::yield_now().await;
        assert!(matches!(
            ops.join("pod", print("b"), async { Ok(0) }, || {}).await,
            Err(JoinError::Conflict)
        ));
        assert_eq!(
            ops.join("other", print("b"), async { Ok(7) }, || {})
                .await
                .unwrap(),
            7
        );
        go.send(()).unwrap();
        assert_eq!(first.await.unwrap().unwrap(), 1);
        assert_eq!(second.await.unwrap().unwrap(), 1);
        assert!(ops.is_empty());
        assert_eq!(
            (runs.load(Ordering::SeqCst), joins.load(Ordering::SeqCst)),
            (1, 1)
        );
    }

    #[tokio::test]
    async fn a_client_that_gives_up_stops_nothing() {
        let ops = Ops::default();
        let (go, gate) = oneshot::channel::<()>();
        let (done, finished) = oneshot::channel::<()>();
        let body = async move {
            gate.await.unwrap();
            done.send(()).unwrap();
            Ok(1)
        };
        let gave_up =
            tokio::time::timeout(Duration::from_millis(5), ops.join("pod", print("a"), body, || {})).await;
        assert!(gave_up.is_err());
        assert_eq!(ops.len(), 1);
        go.send(()).unwrap();
        finished.await.unwrap();
        while !ops.is_empty() {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_failure_reaches_all_and_frees_the_key() {
        let ops = Ops::default();
        let (a, b) = tokio::join!(
            ops.join(
                "pod",
                print("a"),
                async {
                    tokio::task::yield_now().await;
                    Err("no".to_owned())
                },
                || {}
            ),
            ops.join("pod", print("a"), async { Ok(1) }, || {}),
        );
        for outcome in [a, b] {
            assert!(matches!(outcome, Err(JoinError::Failed(e)) if *e == "no"));
        }
        assert_eq!(
            ops.join("pod", print("changed"), async { Ok(2) }, || {})
                .await
                .unwrap(),
            2
        );
    }

    #[tokio::test]
    async fn a_panic_frees_the_key() {
        let ops = Ops::default();
        let outcome = ops
            .join("pod", print("a"), async { panic!("defect") }, || {})
            .await;
        assert!(matches!(outcome, Err(JoinError::Panicked)));
        assert_eq!(
            ops.join("pod", print("b"), async { Ok(2) }, || {}).await.unwrap(),
            2
        );
    }
}
