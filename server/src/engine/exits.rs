//! What the end of a container's first process means: the rest of it is killed, and the kernel is asked whether
//! it was out of memory, before anybody is told.

use std::sync::Weak;
use std::time::Instant;

use runtime_core::cgroup::{Cgroup, CgroupError};
use runtime_core::pod::{TaskPhase, TaskState};

use super::keeper::container_number;
use super::{Engine, EngineError};
use crate::model::PodId;
use crate::state::phase::{Exit, Reason};
use crate::state::store::Container;

const SIGKILL: u8 = 9;

/// Called for each exit that podinit reports, once or again after a restart of podd. Returns at once.
pub fn report(engine: &Weak<Engine>, pod: PodId, state: TaskState) {
    let Some(engine) = engine.upgrade() else { return };
    let Some(number) = container_number(state.handle) else {
        // The pod's pid 1 died: nothing can run in its pid namespace any more.
        engine.report_pod_lost(pod);
        return;
    };
    let snapshot = engine.snapshot();
    let Some(container) = snapshot
        .containers_of(&pod)
        .find(|c| c.record.handle == number)
        .cloned()
    else {
        return;
    };
    tokio::task::spawn_blocking(move || {
        let exit = settle(&engine, &container, state);
        engine.report_exit(container.record.id, exit);
    });
}

/// Ends what is left of the container and says how it ended. Blocks.
pub fn settle(engine: &Engine, container: &Container, state: TaskState) -> Exit {
    let cgroup = find_cgroup(engine, container).ok().flatten();
    if let Some(cgroup) = &cgroup
        && let Err(e) = bury(engine, cgroup)
    {
        // The exit is told all the same; removing the container tries again and reports what it finds.
        let e: &(dyn std::error::Error + 'static) = &e;
        tracing::warn!(container = %container.record.id, error = e, "processes outlive their container");
    }
    let (code, killed) = match state.phase {
        TaskPhase::Killed(signal) => (128 + i32::from(signal), signal == SIGKILL),
        TaskPhase::Exited(status) => (i32::from(status), false),
        TaskPhase::Created | TaskPhase::Running => (super::containers::START_FAILED, false),
    };
    // The counter tells of all processes and of all times: what was there before podd killed is not why this one ended.
    let before = container.lock.oom_kills_before(nanos(state.finished));
    let out_of_memory = killed && cgroup.is_some_and(|cgroup| oom_kills(&cgroup) > before);
    let reason = if out_of_memory {
        Reason::OOMKilled
    } else {
        Reason::of_code(code)
    };
    Exit {
        code,
        reason,
        message: String::new(),
        started_at: nanos(state.started),
        finished_at: nanos(state.finished),
    }
}

/// The end that podinit wrote down before it died itself (`podinit/src/task.rs`); `None` if it did not. Blocks.
pub fn recorded(engine: &Engine, container: &Container) -> Option<Exit> {
    let record = &container.record;
    let directory = engine.state.records().container_dir(&record.pod, &record.id);
    let text = std::fs::read_to_string(directory.join("exit")).ok()?;
    parse(&text, record.handle).map(|state| settle(engine, container, state))
}

/// Reads `exited|killed STATUS STARTED FINISHED`, times in ns since 1970.
fn parse(text: &str, handle: u32) -> Option<TaskState> {
    let mut words = text.split_ascii_whitespace();
    let (word, status) = (words.next()?, words.next()?.parse().ok()?);
    let phase = match word {
        "exited" => TaskPhase::Exited(status),
        "killed" => TaskPhase::Killed(status),
        _ => return None,
    };
    let (started, finished) = (words.next()?.parse().ok()?, words.next()?.parse().ok()?);
    Some(TaskState {
        handle,
        pid: 0,
        phase,
        started,
        finished,
    })
}

/// Without a pid namespace of its own a container's other processes survive its first.
fn bury(engine: &Engine, cgroup: &Cgroup) -> Result<(), CgroupError> {
    if !cgroup.populated()? {
        return Ok(());
    }
    cgroup.kill()?;
    cgroup.wait_empty(Instant::now() + engine.kill_wait())
}

/// Processes in the cgroup and below that the kernel has killed for want of memory.
pub fn oom_kills(cgroup: &Cgroup) -> u64 {
    match cgroup.memory_events() {
        Ok(Some(events)) => events.oom_kill,
        Ok(None) | Err(_) => 0,
    }
}

/// A time of the wire as one of the records.
pub fn nanos(time: u64) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// The container's cgroup, if it still exists. Blocks.
///
/// A container that was being made when podd died has it too, though its record does not name it yet.
///
/// # Errors
/// It cannot be opened.
pub fn find_cgroup(engine: &Engine, container: &Container) -> Result<Option<Cgroup>, EngineError> {
    use super::native::NativeError;
    let find = |path| engine.native.cgroups.find(path).map_err(NativeError::from);
    if let Some(path) = &container.record.cgroup {
        return Ok(find(&path.parse().map_err(NativeError::CgroupPath)?)?);
    }
    let (snapshot, id) = (engine.snapshot(), &container.record.id);
    let Some(pod) = snapshot.pod(&container.record.pod) else {
        return Ok(None);
    };
    match find(&engine.native.container_cgroup(pod, id)?)? {
        None => Ok(find(&engine.native.container_cgroup_before(pod, id)?)?),
        found => Ok(found),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_records_are_read_as_podinit_writes_them() {
        let read = |text| parse(text, 3).map(|state| (state.phase, state.started, state.finished));
        assert_eq!(read("exited 7 10 20\n"), Some((TaskPhase::Exited(7), 10, 20)));
        assert_eq!(read("killed 9 10 20\n"), Some((TaskPhase::Killed(9), 10, 20)));
        for torn in ["", "exited", "exited 7 10", "exited 300 1 2", "gone 7 10 20"] {
            assert_eq!(read(torn), None, "{torn:?}");
        }
    }
}
