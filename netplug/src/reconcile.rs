//! Making memory and kernel agree with the live pods, once, at start.
//!
//! Owns: adoption and the removal of what belongs to nobody. Never: touches links or tables that are not podd's.
//!
//! Assumes: the caller passes the attachment of every pod that may still run, and drops those of an earlier boot.

use std::collections::HashSet;
use std::sync::Arc;

use crate::error::Error;
use crate::network::{Attachment, Inner};
use crate::{bridge, table};

/// What [`crate::Network::reconcile`] found and did.
#[derive(Debug, Default)]
pub struct Reconciled {
    /// Pods that keep their addresses and ports.
    pub adopted: usize,
    /// Adopted pods whose link is gone: their network is dead.
    pub dead: Vec<String>,
    /// Links of nobody that were deleted.
    pub removed_links: Vec<String>,
    /// Attachments that contradict another one and were not adopted, and links that could not be deleted.
    pub problems: Vec<Error>,
}

/// See [`crate::Network::reconcile`].
pub(crate) async fn reconcile(inner: &Arc<Inner>, live: &[Attachment]) -> Result<Reconciled, Error> {
    let mut report = Reconciled::default();
    let links = bridge::list(&inner.handle).await?;
    for attachment in live {
        let same = |link: &&bridge::Link| {
            link.index == attachment.host_link_index && link.name == attachment.host_link
        };
        let link_gone = links.iter().find(same).is_none();
        match inner.state().adopt(attachment, link_gone) {
            Ok(()) => {
                report.adopted += 1;
                if link_gone {
                    report.dead.push(attachment.id.clone());
                }
            }
            Err(problem) => report.problems.push(problem),
        }
    }
    let bridge_index = links
        .iter()
        .find(|link| link.name == inner.config.bridge)
        .map(|link| link.index);
    if let Some(bridge_index) = bridge_index {
        // A pod whose attachment was refused still lives: its link is a problem to report, not to delete.
        let known: HashSet<u32> = live.iter().map(|attachment| attachment.host_link_index).collect();
        for link in links.iter().filter(|link| bridge::is_ours(link, bridge_index)) {
            if known.contains(&link.index) || inner.state().is_attached(link.index) {
                continue;
            }
            match bridge::delete(&inner.handle, link.index, &link.name).await {
                Ok(()) => report.removed_links.push(link.name.clone()),
                Err(problem) => report.problems.push(problem),
            }
        }
    }
    rebuild_table(inner).await?;
    // A link may have vanished between the listing and its adoption, when nobody listened for it.
    inner.resynchronise().await;
    Ok(report)
}

/// With pods the table is made anew from their records; without it goes, and comes back with the first pod.
async fn rebuild_table(inner: &Arc<Inner>) -> Result<(), Error> {
    let has_subnets = !inner.state().ipam.subnets().is_empty();
    let (has_pods, is_set_up) = {
        let state = inner.state();
        (state.has_pods(), state.host.is_some())
    };
    if has_pods && has_subnets && !is_set_up {
        return inner.ensure_host().await.map(|_| ());
    }
    let inner = Arc::clone(inner);
    let worker = tokio::task::spawn_blocking(move || {
        let mut filter = inner.filter();
        if has_pods || is_set_up {
            let wanted = inner.wanted(true);
            table::rebuild(&mut filter, &wanted).map(|_| ())
        } else {
            table::remove(&mut filter)
        }
    });
    worker.await.map_err(|_| Error::WorkerLost {
        operation: "reconcile",
    })?
}
