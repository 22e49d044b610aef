//! Which trace a piece of work belongs to: from the client's `traceparent` to the task that does the work.
//!
//! Source of the header's form: W3C Trace Context, level 1, section 3.2.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};

use tonic::codegen::http::HeaderMap;
use tonic::{Code, Status};

use super::{Clock, Ended, Root, Tracer, Value};

/// Longest `tracestate` that is passed on, in bytes: what the specification demands at least.
const STATE: usize = 512;

tokio::task_local! {
    /// The span that is open in this task.
    static CURRENT: Current;
}

/// A span that is open, and where it goes when it ends.
#[derive(Debug, Clone)]
struct Current {
    tracer: Tracer,
    trace: TraceId,
    span: SpanId,
    /// Attributes of the RPC's span.
    notes: Arc<Mutex<Vec<(&'static str, Value)>>>,
}

/// The id of a trace, never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

/// The id of a span, never all zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Random bytes; none where the kernel has none, in which case nothing is traced.
fn random<const N: usize>() -> Option<[u8; N]> {
    let mut bytes = [0; N];
    let got = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
    (got == Ok(N) && bytes != [0; N]).then_some(bytes)
}

impl TraceId {
    /// A new id, in `per_million` of a million cases.
    pub(super) fn random_below(per_million: u32) -> Option<Self> {
        thread_local! {
            /// Random enough to choose by, and no call of the kernel for what is not chosen.
            static DICE: Cell<u64> = Cell::new(random().map_or(1, u64::from_ne_bytes));
        }
        let thrown = DICE.with(|dice| {
            // xorshift64 (Marsaglia 2003), which never comes to zero from anything else.
            let mut x = dice.get();
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            dice.set(x);
            (x >> 11) % 1_000_000
        });
        if thrown >= u64::from(per_million) {
            return None;
        }
        random().map(Self)
    }
}

impl SpanId {
    pub(super) fn random() -> Option<Self> {
        random().map(Self)
    }
}

/// What a client says of the trace that its request belongs to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parent {
    /// The trace.
    pub trace: TraceId,
    /// The client's span.
    pub span: SpanId,
    /// Whether the client records it.
    pub sampled: bool,
    /// What other tracing systems have to say, passed on unread.
    pub state: String,
}

impl Parent {
    /// Reads the headers of a request; what is malformed counts as not there, as the specification demands.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let text = |name| headers.get(name)?.to_str().ok();
        let state = text("tracestate")
            .filter(|state| state.len() <= STATE)
            .unwrap_or_default();
        Self::parse(text("traceparent")?, state)
    }

    fn parse(header: &str, state: &str) -> Option<Self> {
        let mut parts = header.split('-');
        let version: [u8; 1] = hex(parts.next()?)?;
        let (trace, span, flags): ([u8; 16], [u8; 8], [u8; 1]) =
            (hex(parts.next()?)?, hex(parts.next()?)?, hex(parts.next()?)?);
        // Later versions may say more; 255 is forbidden.
        let whole = match version[0] {
            0 => parts.next().is_none(),
            255 => false,
            _ => true,
        };
        (whole && trace != [0; 16] && span != [0; 8]).then(|| Self {
            trace: TraceId(trace),
            span: SpanId(span),
            sampled: flags[0] & 1 == 1,
            state: state.to_owned(),
        })
    }
}

/// Exactly `N` bytes in lower-case hexadecimal.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let lower = |digit: &u8| matches!(digit, b'0'..=b'9' | b'a'..=b'f');
    if digits.len() != 2 * N || !digits.iter().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl Root {
    /// Begins the span of an RPC, where it is to be traced.
    #[must_use]
    pub fn begin(tracer: Option<&Tracer>, headers: &HeaderMap) -> Option<Self> {
        let tracer = tracer?;
        tracer.begin(Parent::of(headers))
    }

    /// The trace, for the log.
    #[must_use]
    pub fn trace(&self) -> TraceId {
        self.trace
    }

    /// Does the work of the RPC `method`, and ends the span with what the client is told. A client that goes away ends it
    /// as well.
    pub async fn around<T>(
        self,
        method: String,
        work: impl Future<Output = T>,
        told: impl Fn(&T) -> Option<Status>,
    ) -> T {
        let notes = Arc::default();
        let current = Current {
            tracer: self.tracer.clone(),
            trace: self.trace,
            span: self.id,
            notes: Arc::clone(&notes),
        };
        let mut open = Open {
            span: Some(self),
            method,
            notes,
            told: (Code::Cancelled, "the client has gone".to_owned()),
        };
        let answer = CURRENT.scope(current, work).await;
        open.told = match told(&answer) {
            Some(status) => (status.code(), status.message().to_owned()),
            None => (Code::Ok, String::new()),
        };
        answer
    }
}

/// Ends the span of an RPC, however that comes about.
struct Open {
    span: Option<Root>,
    method: String,
    notes: Arc<Mutex<Vec<(&'static str, Value)>>>,
    told: (Code, String),
}

impl Drop for Open {
    fn drop(&mut self) {
        let Some(root) = self.span.take() else { return };
        let (code, message) = std::mem::replace(&mut self.told, (Code::Ok, String::new()));
        let mut attributes = std::mem::take(&mut *self.notes.lock().unwrap_or_else(PoisonError::into_inner));
        // Names of OpenTelemetry's semantic conventions for RPC.
        attributes.push(("rpc.system", Value::Text("grpc".to_owned())));
        attributes.push(("rpc.grpc.status_code", Value::Number(code as i64)));
        if let Some((service, method)) = self.method.split_once('/') {
            attributes.push(("rpc.service", Value::Text(service.to_owned())));
            attributes.push(("rpc.method", Value::Text(method.to_owned())));
        }
        root.tracer.take(Ended {
            trace: root.trace,
            id: root.id,
            parent: root.above,
            state: root.state,
            name: std::mem::take(&mut self.method),
            serves: true,
            began: root.clock.0,
            took: root.clock.1.elapsed(),
            attributes,
            error: (code != Code::Ok).then_some(message),
        });
    }
}

/// Does a part of the work of an RPC, with a span of its own where the RPC has one.
///
/// # Errors
/// Those of `work`.
pub async fn part<T, E>(name: &'static str, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
    let Ok(parent) = CURRENT.try_with(Current::clone) else {
        return work.await;
    };
    let Some(id) = SpanId::random() else {
        return work.await;
    };
    let clock = Clock::start();
    let current = Current {
        span: id,
        ..parent.clone()
    };
    let done = CURRENT.scope(current, work).await;
    parent.tracer.take(Ended {
        trace: parent.trace,
        id,
        parent: Some(parent.span),
        state: String::new(),
        name: name.to_owned(),
        serves: false,
        began: clock.0,
        took: clock.1.elapsed(),
        attributes: Vec::new(),
        // What it was is told by the RPC's span.
        error: done.is_err().then(String::new),
    });
    done
}

/// The same work, in the trace of the task that asks for it: a task that is spawned has none of its own.
pub fn inherit<F: Future>(work: F) -> impl Future<Output = F::Output> {
    let current = CURRENT.try_with(Current::clone).ok();
    async move {
        match current {
            Some(current) => CURRENT.scope(current, work).await,
            None => work.await,
        }
    }
}

/// Notes what the RPC is about, where it has a span.
pub fn note(name: &'static str, value: impl fmt::Display) {
    let _ = CURRENT.try_with(|current| {
        let mut notes = current.notes.lock().unwrap_or_else(PoisonError::into_inner);
        if notes.iter().all(|(known, _)| *known != name) {
            notes.push((name, Value::Text(value.to_string())));
        }
    });
}

/// Notes the pod that the RPC is about, in the names of OpenTelemetry's semantic conventions.
pub fn note_pod(namespace: &str, name: &str, uid: &str) {
    note("k8s.namespace.name", namespace);
    note("k8s.pod.name", name);
    note("k8s.pod.uid", uid);
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn headers_are_read_as_the_specification_demands() {
        let parent = Parent::parse(GOOD, "vendor=1").unwrap();
        assert_eq!(parent.trace.to_string(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!((parent.span.0[0], parent.span.0[7]), (0, 0xb7));
        assert!(parent.sampled);
        assert_eq!(parent.state, "vendor=1");
        assert!(!Parent::parse(&GOOD.replace("-01", "-fe"), "").unwrap().sampled);
        assert!(
            Parent::parse(&format!("{}-more", GOOD.replace("00-4", "01-4")), "")
                .unwrap()
                .sampled
        );
        for bad in [
            "".to_owned(),
            GOOD.replace("00-4", "ff-4"),
            GOOD.replace("4bf9", "4BF9"),
            GOOD.replace("4bf9", "+bf9"),
            GOOD.replace("-01", ""),
            GOOD.replace("-01", "-1"),
            format!("{GOOD}-more"),
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01".to_owned(),
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01".to_owned(),
        ] {
            assert_eq!(Parent::parse(&bad, ""), None, "{bad}");
        }
    }

    #[test]
    fn ids_are_made_at_the_configured_rate() {
        let made = |per_million| {
            (0..20_000)
                .filter(|_| TraceId::random_below(per_million).is_some())
                .count()
        };
        assert_eq!(made(0), 0);
        assert_eq!(made(1_000_000), 20_000);
        assert!((1700..2300).contains(&made(100_000)), "a tenth, more or less");
    }

    #[tokio::test]
    async fn nothing_happens_outside_a_trace() {
        note("podd.pod", "x");
        assert_eq!(part("network", async { Ok::<_, ()>(1) }).await, Ok(1));
        assert_eq!(inherit(async { 2 }).await, 2);
    }
}
