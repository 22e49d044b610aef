//! Lists, as one message or as a stream.
//!
//! Owns how much one message may hold and what a client is told beyond that, and how a stream goes: one item in each
//! message, so that no message is larger than its item, and each item made when the client takes it, from objects
//! that were chosen at once.

use std::future::Future;
use std::sync::Arc;

use futures::StreamExt as _;
use prost::Message;
use tonic::Status;

use super::Messages;
use super::fault::Fault;
use crate::engine::Engine;

/// So many objects of which counters are read are read in one pass.
const PASS: usize = 16;

/// The calls that answer one list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Calls {
    /// Answers in one message.
    pub whole: &'static str,
    /// Answers by a stream.
    pub stream: &'static str,
}

/// A list that one message cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the answer to {} is longer than {limit} bytes, which is what the kubelet and crictl take in one message \
     (limits.list_bytes): use {}, as the kubelet does with its feature gate CRIListStreaming, or a filter",
    calls.whole, calls.stream
)]
pub struct TooLong {
    calls: Calls,
    limit: usize,
}

impl Calls {
    /// The items of a list that is answered in one message.
    ///
    /// # Errors
    /// They are too long for it.
    pub fn whole<T: Message>(
        self,
        engine: &Engine,
        items: impl Iterator<Item = T>,
    ) -> Result<Vec<T>, TooLong> {
        let limits = &engine.config.limits;
        let limit = limits.list_bytes.min(limits.grpc_message_bytes);
        whole(self, usize::try_from(limit).unwrap_or(usize::MAX), items)
    }
}

/// The items of a list that is answered in one message of at most `limit` bytes. Makes no more of them than fit.
///
/// # Errors
/// They do not fit.
fn whole<T: Message>(calls: Calls, limit: usize, items: impl Iterator<Item = T>) -> Result<Vec<T>, TooLong> {
    let (mut list, mut length) = (Vec::new(), 0);
    for item in items {
        let bytes = item.encoded_len();
        // A field of the lists has a number below 16: one byte for it, then the length, then the item.
        length += 1 + prost::length_delimiter_len(bytes) + bytes;
        if length > limit {
            return Err(TooLong { calls, limit });
        }
        list.push(item);
    }
    Ok(list)
}

/// A message for each object, made when it is asked for.
pub fn each<I: Send + 'static, M: Send + 'static>(
    objects: Vec<I>,
    message: impl Fn(I) -> M + Send + 'static,
) -> Messages<M> {
    Box::pin(futures::stream::iter(
        objects.into_iter().map(move |object| Ok(message(object))),
    ))
}

/// A message for each object, of which a few at a time are read when they are asked for.
pub fn each_read<E, I, T, M, F>(
    engine: &Arc<E>,
    objects: Vec<I>,
    read: fn(Arc<E>, Vec<I>) -> F,
    message: fn(T) -> M,
) -> Messages<M>
where
    E: Send + Sync + 'static,
    I: Clone + Send + 'static,
    T: Send + 'static,
    M: Send + 'static,
    F: Future<Output = Result<Vec<T>, Fault>> + Send + 'static,
{
    let passes: Vec<Vec<I>> = objects.chunks(PASS).map(<[I]>::to_vec).collect();
    let engine = Arc::clone(engine);
    let passes = futures::stream::iter(passes).then(move |pass| read(Arc::clone(&engine), pass));
    let messages = passes.flat_map(move |done| {
        let messages = match done {
            Ok(items) => items.into_iter().map(|item| Ok(message(item))).collect(),
            Err(fault) => vec![Err(Status::from(fault))],
        };
        futures::stream::iter(messages)
    });
    Box::pin(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use podd_proto::v1;

    const CALLS: Calls = Calls {
        whole: "ListContainers",
        stream: "StreamContainers",
    };

    fn container(id: &str) -> v1::Container {
        v1::Container {
            id: id.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_list_fits_to_the_byte_or_is_refused() {
        let items: Vec<_> = (0..300).map(|n| container(&"x".repeat(n))).collect();
        let list = v1::ListContainersResponse {
            containers: items.clone(),
        };
        let length = list.encoded_len();
        assert_eq!(whole(CALLS, length, items.iter().cloned()), Ok(list.containers));
        let made = std::cell::Cell::new(0);
        let counted = items.iter().cloned().inspect(|_| made.set(made.get() + 1));
        let e = whole(CALLS, length / 4, counted).unwrap_err();
        assert!(made.get() < 160, "{} of 300 were made for nothing", made.get());
        let text = e.to_string();
        for part in [
            "ListContainers",
            "use StreamContainers",
            "CRIListStreaming",
            "limits.list_bytes",
        ] {
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(
            whole(CALLS, 0, std::iter::empty::<v1::Container>()),
            Ok(Vec::new())
        );
    }

    #[tokio::test]
    async fn each_item_is_a_message_and_an_empty_list_is_none() {
        let items: Vec<u32> = (0..600).collect();
        let sent: Vec<_> = each(items.clone(), |n| n).map(Result::unwrap).collect().await;
        assert_eq!(sent, items);
        assert_eq!(each(Vec::<u32>::new(), |n| n).count().await, 0);
    }

    #[tokio::test]
    async fn what_is_read_is_read_in_passes() {
        async fn read(bad: Arc<u32>, part: Vec<u32>) -> Result<Vec<u32>, Fault> {
            match part.contains(&bad) {
                false if part.len() <= PASS => Ok(part),
                _ => Err(Fault::Unimplemented("a bad one")),
            }
        }
        let bad = Arc::new(40);
        let sent: Vec<_> = each_read(&bad, (0..20).collect(), read, |n| n)
            .map(Result::unwrap)
            .collect()
            .await;
        assert_eq!(sent, (0..20).collect::<Vec<_>>());
        let mut stream = each_read(&bad, (30..50).collect(), read, |n| n);
        assert!(
            stream.next().await.unwrap().is_err(),
            "the failure ends what was asked"
        );
    }
}
