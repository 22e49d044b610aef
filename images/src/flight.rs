//! Single flight: one task per key, joined by all who want its result, cancelled when the last of them leaves.

use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::error::Error;

/// Running work by key.
#[derive(Debug)]
pub(crate) struct Flights<K, T> {
    running: Mutex<HashMap<K, Weak<Flight<T>>>>,
}

type Outcome<T> = Option<Result<T, Error>>;

/// One piece of running work. Dropping the last handle aborts it.
#[derive(Debug)]
pub(crate) struct Flight<T> {
    outcome: watch::Receiver<Outcome<T>>,
    task: AbortHandle,
}

impl<K, T> Default for Flights<K, T> {
    fn default() -> Self {
        Flights {
            running: Mutex::default(),
        }
    }
}

impl<K: Eq + Hash, T: Clone + Send + Sync + 'static> Flights<K, T> {
    /// Joins the flight of `key`, or starts `work`. True if it was started here. Needs a tokio runtime.
    pub(crate) fn join<F>(&self, key: K, work: impl FnOnce() -> F) -> (Arc<Flight<T>>, bool)
    where
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        let mut running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(&key).and_then(Weak::upgrade)
            && flight.outcome.borrow().is_none()
            && flight.outcome.has_changed().is_ok()
        {
            return (flight, false);
        }
        running.retain(|_, flight| flight.strong_count() > 0);
        let (sender, outcome) = watch::channel(None);
        let work = work();
        let task = tokio::spawn(async move {
            let result = work.await;
            // Nobody may be left to hear it.
            let _ = sender.send(Some(result));
        });
        let flight = Arc::new(Flight {
            outcome,
            task: task.abort_handle(),
        });
        running.insert(key, Arc::downgrade(&flight));
        (flight, true)
    }

    /// Result of `work`, shared with everybody who asks for `key` meanwhile. Where another's flight failed, this one's
    /// own attempt decides: the other may have been cancelled, or had other endpoints.
    pub(crate) async fn run<F>(&self, key: K, work: impl Fn() -> F) -> Result<T, Error>
    where
        K: Clone,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        loop {
            let (flight, started) = self.join(key.clone(), &work);
            let result = flight.wait().await;
            if started || result.is_ok() {
                return result;
            }
        }
    }
}

impl<T: Clone> Flight<T> {
    async fn wait(&self) -> Result<T, Error> {
        let mut outcome = self.outcome.clone();
        match outcome.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or(Err(Error::Cancelled)),
            // The task ended without a result: it panicked or the runtime stops.
            Err(_) => Err(Error::Cancelled),
        }
    }
}

impl<T> Drop for Flight<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
    }

    #[test]
    fn many_callers_share_one_run() {
        runtime().block_on(async {
            let flights = Arc::new(Flights::<u8, usize>::default());
            let runs = Arc::new(AtomicUsize::new(0));
            let tasks: Vec<_> = (0..20)
                .map(|_| {
                    let (flights, runs) = (flights.clone(), runs.clone());
                    tokio::spawn(async move {
                        flights
                            .run(1, || {
                                let runs = runs.clone();
                                async move {
                                    tokio::time::sleep(Duration::from_millis(20)).await;
                                    Ok(runs.fetch_add(1, Ordering::SeqCst))
                                }
                            })
                            .await
                    })
                })
                .collect();
            for task in tasks {
                assert_eq!(task.await.unwrap().unwrap(), 0);
            }
            assert_eq!(runs.load(Ordering::SeqCst), 1);
            assert_eq!(flights.run(1, || async { Ok(7) }).await.unwrap(), 7);
        });
    }

    #[test]
    fn the_last_to_leave_cancels() {
        struct Guard(Arc<AtomicUsize>);
        impl Drop for Guard {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::SeqCst);
            }
        }
        runtime().block_on(async {
            let flights = Arc::new(Flights::<u8, ()>::default());
            let dropped = Arc::new(AtomicUsize::new(0));
            let start = || {
                let (flights, dropped) = (flights.clone(), dropped.clone());
                tokio::spawn(async move {
                    flights
                        .run(1, || {
                            let guard = Guard(dropped.clone());
                            async move {
                                let _guard = guard;
                                std::future::pending().await
                            }
                        })
                        .await
                })
            };
            let (a, b) = (start(), start());
            tokio::time::sleep(Duration::from_millis(10)).await;
            a.abort();
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(dropped.load(Ordering::SeqCst), 0);
            b.abort();
            tokio::time::sleep(Duration::from_millis(10)).await;
            assert_eq!(dropped.load(Ordering::SeqCst), 1);
        });
    }

    #[test]
    fn a_foreign_failure_is_tried_again() {
        runtime().block_on(async {
            let flights = Arc::new(Flights::<u8, u8>::default());
            let other = flights.clone();
            let first = tokio::spawn(async move {
                other
                    .run(1, || async {
                        tokio::time::sleep(Duration::from_millis(10)).await;
                        Err(Error::Cancelled)
                    })
                    .await
            });
            tokio::time::sleep(Duration::from_millis(2)).await;
            assert_eq!(flights.run(1, || async { Ok(3) }).await.unwrap(), 3);
            assert!(first.await.unwrap().is_err());
        });
    }
}
