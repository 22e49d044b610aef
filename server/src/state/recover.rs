//! What a starting podd makes of the records it finds.
//!
//! Owns the reading of all records and what a reboot means for them. Touches no process and no network: whether a
//! pod of this boot still lives is asked of the kernel by the engine afterwards.
//!
//! Assumptions:
//! * records are written whole or not at all while the machine runs; a crash of the machine may leave any of them
//!   empty or torn, because they are never synced;
//! * so an unreadable record of this boot is a defect that someone must look at (quarantine), and one of an older
//!   boot describes nothing that still exists (dropped and counted);
//! * a record is written before anything it describes is made, so a directory with nothing in it describes nothing;
//! * after a reboot no process, namespace, address or cgroup of a record exists any more.

use std::path::PathBuf;
use std::sync::Arc;

use super::State;
use super::feed::RETENTION;
use super::phase::{ContainerEvent, ContainerPhase, Exit, Nanos, PodPhase, Reason};
use super::record::{ContainerRecord, PodRecord, RecordError};
use super::store::{Container, Pod};
use crate::model::{ContainerConfig, ContainerId, PodConfig, PodId};

/// Exit code of a container whose end nobody saw; other runtimes report the same.
pub const UNSEEN_EXIT: i32 = 255;

/// How the requests kept in records are read again.
#[derive(Debug, Clone, Copy)]
pub struct Decode {
    /// Reads an encoded RunPodSandboxRequest.
    pub pod: fn(&[u8]) -> Result<PodConfig, String>,
    /// Reads an encoded CreateContainerRequest.
    pub container: fn(&[u8]) -> Result<ContainerConfig, String>,
}

/// A record that could not be read, and where it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quarantined {
    /// Where its directory was moved to.
    pub place: PathBuf,
    /// Why it could not be read.
    pub reason: String,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Recovered {
    /// The machine was started anew since the records were written.
    pub rebooted: bool,
    /// And podd had not ended before the machine did, as after a power cut: files may be torn.
    pub crashed: bool,
    /// Records of this boot that nobody can read.
    pub quarantined: Vec<Quarantined>,
    /// Records that describe nothing, now deleted: unreadable, half-made or left-over ones of an older boot, and
    /// those that podd was about to write when it ended.
    pub dropped: usize,
    /// Pods of this boot that were being created when podd died, or were left over: the engine takes them back.
    pub half_made_pods: Vec<PodId>,
    /// Containers of this boot of which the same is true.
    pub half_made_containers: Vec<ContainerId>,
}

/// Reads every record into the state. Called once, before anything else uses the state. Blocks.
///
/// # Errors
/// The directory of the records cannot be listed or changed; a single bad record is no error.
pub fn recover(state: &State, decode: Decode, now: Nanos) -> Result<Recovered, RecordError> {
    let records = state.records();
    let last_boot = records.last_boot()?;
    let rebooted = last_boot.as_deref().is_some_and(|boot| boot != state.boot_id());
    let clean = records.take_clean(last_boot.as_deref().unwrap_or_default())?;
    let mut found = Recovered {
        rebooted,
        crashed: rebooted && !clean,
        ..Recovered::default()
    };
    // What the last daemon could not finish deleting.
    records.trash().empty();
    for name in records.pod_names()? {
        let dir = records.pods_dir().join(&name);
        match read_pod(state, decode, &name) {
            Err(reason) => found.give_up(state, dir, reason)?,
            Ok(pod) if rebooted && is_void(pod.record.phase == PodPhase::Creating, pod.record.leftover) => {
                records.drop_dir(&dir)?;
                found.dropped += 1;
            }
            Ok(mut pod) => {
                if rebooted {
                    bury_pod(&mut pod.record, state.boot_id());
                    records.save_pod(&pod.record)?;
                } else if is_void(pod.record.phase == PodPhase::Creating, pod.record.leftover) {
                    found.half_made_pods.push(pod.record.id);
                }
                let id = pod.record.id;
                state.store.restore_pod(Arc::new(pod));
                recover_containers(state, decode, now, &id, &mut found)?;
            }
        }
    }
    records.set_boot(state.boot_id())?;
    let retention = Nanos::try_from(RETENTION.as_nanos()).unwrap_or(Nanos::MAX);
    state.store.tell_ends(now.saturating_sub(retention));
    Ok(found)
}

fn recover_containers(
    state: &State,
    decode: Decode,
    now: Nanos,
    pod: &PodId,
    found: &mut Recovered,
) -> Result<(), RecordError> {
    let records = state.records();
    for name in records.container_names(pod)? {
        let dir = records.pod_dir(pod).join("containers").join(&name);
        match read_container(state, decode, pod, &name) {
            Err(reason) => found.give_up(state, dir, reason)?,
            Ok(c)
                if found.rebooted
                    && is_void(c.record.phase == ContainerPhase::Creating, c.record.leftover) =>
            {
                records.drop_dir(&dir)?;
                found.dropped += 1;
            }
            Ok(mut container) => {
                if found.rebooted {
                    bury_container(&mut container.record, state.boot_id(), now);
                    records.save_container(&container.record)?;
                } else if is_void(
                    container.record.phase == ContainerPhase::Creating,
                    container.record.leftover,
                ) {
                    found.half_made_containers.push(container.record.id);
                }
                state.store.restore_container(Arc::new(container));
            }
        }
    }
    Ok(())
}

impl Recovered {
    fn give_up(&mut self, state: &State, dir: PathBuf, reason: String) -> Result<(), RecordError> {
        if self.rebooted || state.records().is_blank(&dir)? {
            state.records().drop_dir(&dir)?;
            self.dropped += 1;
        } else {
            let place = state.records().quarantine(&dir)?;
            self.quarantined.push(Quarantined { place, reason });
        }
        Ok(())
    }
}

/// Whether a record describes something that no client was ever told of, or that is to be taken back.
fn is_void(creating: bool, leftover: bool) -> bool {
    creating || leftover
}

fn read_pod(state: &State, decode: Decode, name: &str) -> Result<Pod, String> {
    let record = state.records().load_pod(name).map_err(|e| e.to_string())?;
    let config = Arc::new((decode.pod)(&record.request.0)?);
    Ok(Pod {
        record,
        config,
        lock: Arc::default(),
    })
}

fn read_container(state: &State, decode: Decode, pod: &PodId, name: &str) -> Result<Container, String> {
    let record = state
        .records()
        .load_container(pod, name)
        .map_err(|e| e.to_string())?;
    let config = Arc::new((decode.container)(&record.request.0)?);
    Ok(Container {
        record,
        config,
        lock: Arc::default(),
    })
}

/// What is left of a pod after a reboot.
fn bury_pod(record: &mut PodRecord, boot_id: &str) {
    boot_id.clone_into(&mut record.boot_id);
    record.phase = PodPhase::NotReady;
    record.attachment = None;
    record.podinit = None;
    record.cgroup = None;
}

/// What is left of a container after a reboot.
fn bury_container(record: &mut ContainerRecord, boot_id: &str, now: Nanos) {
    boot_id.clone_into(&mut record.boot_id);
    record.cgroup = None;
    let exit = Exit {
        code: UNSEEN_EXIT,
        reason: Reason::Unknown,
        message: "the machine was restarted".to_owned(),
        started_at: 0,
        finished_at: now,
    };
    if let Ok(phase) = record.phase.apply(ContainerEvent::Exited(exit)) {
        record.phase = phase;
    }
}

/// The id of the running kernel's boot.
///
/// # Errors
/// procfs is not mounted.
pub fn boot_id() -> std::io::Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?
        .trim()
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::record::tests::{DECODE, container, pod};

    fn fill(dir: &std::path::Path) -> (Pod, Container) {
        let state = State::open(dir, "first".to_owned()).unwrap();
        recover(&state, DECODE, 1).unwrap();
        let mut pod = pod("a", 0);
        pod.record.phase = PodPhase::Ready;
        let mut container = container(&pod, "c");
        container.record.phase = ContainerPhase::Running {
            pid: 7,
            started_at: 5,
        };
        state.insert_pod(pod.clone()).unwrap();
        state.insert_container(container.clone()).unwrap();
        (pod, container)
    }

    #[test]
    fn the_same_boot_finds_everything_as_it_was() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, container) = fill(dir.path());
        let state = State::open(dir.path(), "first".to_owned()).unwrap();
        let found = recover(&state, DECODE, 9).unwrap();
        assert!(!found.rebooted && found.quarantined.is_empty() && found.dropped == 0);
        let snapshot = state.snapshot();
        assert_eq!(snapshot.pod(&pod.record.id).unwrap().record, pod.record);
        assert_eq!(snapshot.pod(&pod.record.id).unwrap().config, pod.config);
        assert_eq!(
            snapshot.container(&container.record.id).unwrap().record,
            container.record
        );
    }

    #[test]
    fn after_a_reboot_all_is_over_and_nothing_is_lost() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, container) = fill(dir.path());
        let state = State::open(dir.path(), "second".to_owned()).unwrap();
        assert!(recover(&state, DECODE, 9).unwrap().rebooted);
        let snapshot = state.snapshot();
        let buried = &snapshot.pod(&pod.record.id).unwrap().record;
        assert_eq!(
            (buried.phase, buried.boot_id.as_str()),
            (PodPhase::NotReady, "second")
        );
        let ContainerPhase::Exited(exit) = &snapshot.container(&container.record.id).unwrap().record.phase
        else {
            panic!("not exited")
        };
        assert_eq!(
            (exit.code, exit.started_at, exit.finished_at),
            (UNSEEN_EXIT, 5, 9)
        );
        let again = State::open(dir.path(), "second".to_owned()).unwrap();
        assert!(!recover(&again, DECODE, 10).unwrap().rebooted);
    }

    #[test]
    fn unreadable_records_are_kept_in_this_boot_and_dropped_in_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, container) = fill(dir.path());
        let state = State::open(dir.path(), "first".to_owned()).unwrap();
        let path = state
            .records()
            .container_dir(&pod.record.id, &container.record.id)
            .join("container.json");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, text.replace("\"version\":1", "\"version\":2")).unwrap();
        let found = recover(&state, DECODE, 9).unwrap();
        assert_eq!(found.quarantined.len(), 1);
        assert!(
            found.quarantined[0]
                .reason
                .contains("has version 2, this podd reads 1"),
            "{found:?}"
        );
        assert!(found.quarantined[0].place.join("container.json").exists());
        assert_eq!(state.snapshot().pods().count(), 1);
        assert_eq!(state.snapshot().containers().count(), 0);

        std::fs::write(state.records().pod_dir(&pod.record.id).join("pod.json"), "").unwrap();
        let state = State::open(dir.path(), "second".to_owned()).unwrap();
        let found = recover(&state, DECODE, 9).unwrap();
        assert_eq!((found.dropped, found.quarantined.len()), (1, 0));
        assert!(state.records().pod_names().unwrap().is_empty());
    }

    #[test]
    fn a_directory_without_anything_in_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        let (pod, _) = fill(dir.path());
        let state = State::open(dir.path(), "first".to_owned()).unwrap();
        let records = state.records();
        let blank = records.container_dir(&pod.record.id, &ContainerId::random().unwrap());
        std::fs::create_dir_all(&blank).unwrap();
        let torn = records.pod_dir(&PodId::random().unwrap());
        std::fs::create_dir_all(&torn).unwrap();
        std::fs::write(torn.join("pod.json.new"), "{\"vers").unwrap();
        let odd = records.pod_dir(&PodId::random().unwrap());
        std::fs::create_dir_all(odd.join("containers")).unwrap();
        let found = recover(&state, DECODE, 9).unwrap();
        assert_eq!((found.dropped, found.quarantined.len()), (2, 1));
        assert!(!blank.exists() && !torn.exists() && !odd.exists());
    }

    #[test]
    fn a_machine_that_went_down_under_podd_has_crashed() {
        let dir = tempfile::tempdir().unwrap();
        let open = |boot: &str| State::open(dir.path(), boot.to_owned()).unwrap();
        let start = |state: &State| {
            let found = recover(state, DECODE, 1).unwrap();
            (found.rebooted, found.crashed)
        };
        assert_eq!(start(&open("first")), (false, false));
        // Killed in the same boot.
        assert_eq!(start(&open("first")), (false, false));
        assert_eq!(start(&open("second")), (true, true));
        open("second").records().set_clean("second").unwrap();
        let third = open("third");
        assert_eq!(start(&third), (true, false));
        // The note is used up.
        assert_eq!(start(&open("fourth")), (true, true));
        // One of an older boot says nothing.
        third.records().set_clean("third").unwrap();
        assert_eq!(start(&open("fifth")), (true, true));
    }

    #[test]
    fn half_made_objects_are_reported_in_this_boot_and_gone_after_the_next() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(dir.path(), "first".to_owned()).unwrap();
        recover(&state, DECODE, 1).unwrap();
        let half = pod("a", 0);
        state.insert_pod(half.clone()).unwrap();
        let state = State::open(dir.path(), "first".to_owned()).unwrap();
        assert_eq!(
            recover(&state, DECODE, 1).unwrap().half_made_pods,
            [half.record.id]
        );
        let marked = state.update_pod(&half.record.id, |record| {
            record.leftover = true;
            record.phase = PodPhase::NotReady;
            Ok(())
        });
        marked.unwrap();
        let state = State::open(dir.path(), "first".to_owned()).unwrap();
        assert_eq!(
            recover(&state, DECODE, 1).unwrap().half_made_pods,
            [half.record.id]
        );
        let state = State::open(dir.path(), "second".to_owned()).unwrap();
        assert_eq!(recover(&state, DECODE, 1).unwrap().dropped, 1);
    }
}
