//! GetContainerEvents.
//!
//! Owns what an event looks like on the wire. Each reader has a task of its own, which makes the messages when the
//! client takes them: who reads slowly costs nobody else anything, and is told what it missed.

use std::sync::Arc;

use podd_proto::v1;
use tonic::Status;

use super::fault::Fault;
use super::{Messages, convert};
use crate::engine::Engine;
use crate::state::feed::{Happened, Listener, News};

/// GetContainerEvents: what was kept while nobody listened, and then what happens.
pub fn stream(engine: &Arc<Engine>) -> Messages<v1::ContainerEventResponse> {
    let reader = (Arc::clone(engine), engine.state.feed().listen());
    Box::pin(futures::stream::unfold(Some(reader), |reader| async move {
        let (engine, mut listener) = reader?;
        match next(&engine, &mut listener).await {
            Ok(event) => Some((Ok(event), Some((engine, listener)))),
            Err(fault) => Some((Err(Status::from(fault)), None)),
        }
    }))
}

async fn next(engine: &Arc<Engine>, listener: &mut Listener) -> Result<v1::ContainerEventResponse, Fault> {
    let news = listener.next().await?;
    let held_to = engine.container_resources(news.containers.clone());
    let resources = held_to.await.map_err(Arc::new)?;
    let statuses = news.containers.iter().zip(&resources);
    Ok(v1::ContainerEventResponse {
        containers_statuses: statuses.map(|(c, r)| convert::container_status(c, r)).collect(),
        ..event(&news)
    })
}

/// The event without the containers.
fn event(news: &News) -> v1::ContainerEventResponse {
    let kind = match news.happened {
        Happened::Created => v1::ContainerEventType::ContainerCreatedEvent,
        Happened::Started => v1::ContainerEventType::ContainerStartedEvent,
        Happened::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        Happened::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    v1::ContainerEventResponse {
        container_id: news.subject.as_ref().to_owned(),
        container_event_type: kind.into(),
        created_at: news.at,
        pod_sandbox_status: Some(convert::pod_status(&news.pod)),
        containers_statuses: Vec::new(),
    }
}
