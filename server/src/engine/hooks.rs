//! Hooks of the OCI runtime spec (config.md, "POSIX-platform Hooks"): those that run in the runtime's own namespaces,
//! and what the others need. Only CDI devices bring hooks; a container without them never comes here.
//!
//! Owns the processes of `createRuntime`, `poststart` and `poststop`: children of podd in the host's namespaces, each
//! in a process group of its own, which is killed when its time is over. `createContainer` and `startContainer` are
//! steps of the container's plan (runtime-core/src/stage/hook.rs).

use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, Command, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use oci_spec::runtime::{Hook, Hooks};
use runtime_core::compile::{HookInputs, timeout_ms};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde_json::json;

use super::native::NativeError;
use super::{Engine, EngineError, blocking};
use crate::observe::metrics::Stage;
use crate::state::store::Container;

/// The hooks that podd itself runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// All mounts are made and the root is not changed yet; a failure ends the creation.
    CreateRuntime,
    /// The application was executed; a failure ends the container.
    Poststart,
    /// The container is gone; a failure is only worth a warning.
    Poststop,
}

impl When {
    fn name(self) -> &'static str {
        match self {
            Self::CreateRuntime => "createRuntime",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    fn of(self, hooks: &Hooks) -> &[Hook] {
        let list = match self {
            Self::CreateRuntime => hooks.create_runtime(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        list.as_deref().unwrap_or_default()
    }

    fn stage(self) -> Stage {
        match self {
            Self::CreateRuntime => Stage::CreateRuntimeHooks,
            Self::Poststart => Stage::PoststartHooks,
            Self::Poststop => Stage::PoststopHooks,
        }
    }

    /// The container's status meanwhile (runtime.md, "State").
    fn status(self) -> &'static str {
        match self {
            Self::CreateRuntime => "creating",
            Self::Poststart => "running",
            Self::Poststop => "stopped",
        }
    }
}

fn hooks(container: &Container) -> Option<&Hooks> {
    container
        .record
        .cdi
        .as_ref()
        .and_then(|edits| edits.hooks.as_ref())
}

/// Whether a container has hooks of a kind.
#[must_use]
pub fn any(container: &Container, when: When) -> bool {
    hooks(container).is_some_and(|hooks| !when.of(hooks).is_empty())
}

/// What a stage's report of a `startContainer` hook that failed begins with.
pub const START_MARK: &[u8] = b"startContainer hook /";

/// How much longer than without `createContainer` hooks a creation may take.
#[must_use]
pub fn patience(engine: &Engine, container: &Container) -> Duration {
    all(
        engine,
        hooks(container).and_then(|hooks| hooks.create_container().as_ref()),
    )
}

/// How much longer than without `startContainer` hooks a start may take.
#[must_use]
pub fn patience_at_start(engine: &Engine, container: &Container) -> Duration {
    all(
        engine,
        hooks(container).and_then(|hooks| hooks.start_container().as_ref()),
    )
}

fn all(engine: &Engine, hooks: Option<&Vec<Hook>>) -> Duration {
    let each = hooks.into_iter().flatten();
    each.map(|hook| limit(engine, hook).unwrap_or_default())
        .fold(Duration::ZERO, Duration::saturating_add)
}

fn limit(engine: &Engine, hook: &Hook) -> Result<Duration, NativeError> {
    Ok(Duration::from_millis(
        timeout_ms(hook, patience_ms(engine))?.into(),
    ))
}

/// Who writes no timeout would have podd wait for ever: a hook may then take as long as a creation.
fn patience_ms(engine: &Engine) -> u32 {
    engine.config.timeouts.create_seconds.saturating_mul(1000)
}

/// What a plan needs for its hooks; makes the bundle what hooks expect of one. `None` without hooks.
///
/// # Errors
/// The bundle cannot be made.
pub fn inputs(
    engine: &Engine,
    container: &Container,
    bundle: &Path,
) -> Result<Option<HookInputs>, NativeError> {
    if hooks(container).is_none() {
        return Ok(None);
    }
    let root = bundle.join("rootfs");
    std::fs::create_dir(&root).map_err(|source| NativeError::File {
        operation: "make",
        path: root.clone(),
        source,
    })?;
    let state = |status| state(container, bundle, status, None);
    Ok(Some(HookInputs {
        creating: state("creating"),
        created: state("created"),
        root: root.to_string_lossy().into_owned(),
        patience_ms: patience_ms(engine),
    }))
}

/// The container's state as JSON.
fn state(container: &Container, bundle: &Path, status: &str, pid: Option<i32>) -> String {
    let mut state = json!({
        "ociVersion": crate::spec::OCI_VERSION,
        "id": container.record.id.as_str(),
        "status": status,
        "bundle": bundle,
        "annotations": container.config.annotations,
    });
    if let Some(pid) = pid {
        state["pid"] = pid.into();
    }
    state.to_string()
}

/// Runs the hooks of a kind, one after the other; nothing where there are none.
///
/// # Errors
/// The first hook that fails; those after it are not run, except that all `poststop` hooks are.
pub async fn run(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    when: When,
    pid: Option<i32>,
) -> Result<(), EngineError> {
    if !any(container, when) {
        return Ok(());
    }
    let (metrics, engine, container) = (&engine.metrics, Arc::clone(engine), Arc::clone(container));
    let ran = blocking(when.name(), move || -> Result<(), EngineError> {
        let record = &container.record;
        let bundle = engine.state.records().container_dir(&record.pod, &record.id);
        let state = state(&container, &bundle, when.status(), pid);
        let mut failed = None;
        for hook in hooks(&container).map_or(&[][..], |hooks| when.of(hooks)) {
            let done = limit(&engine, hook).and_then(|limit| run_one(when, hook, &state, limit));
            match done {
                Err(e) if when != When::Poststop => return Err(e.into()),
                Err(e) => failed = failed.or(Some(e)),
                Ok(()) => {}
            }
        }
        failed.map_or(Ok(()), |e| Err(e.into()))
    });
    metrics.stage(when.stage(), ran).await
}

/// How much of what a hook writes is kept for the error.
const KEPT: u64 = 1024;

fn run_one(when: When, hook: &Hook, state: &str, limit: Duration) -> Result<(), NativeError> {
    let what = format!("{} hook {}", when.name(), hook.path().display());
    let failed = |reason: String| NativeError::Hook {
        what: what.clone(),
        reason,
        late: false,
    };
    let (mut child, mut said) = start(hook, state).map_err(|e| failed(format!("cannot be executed: {e}")))?;
    let (status, text) = watch(&mut child, &mut said, limit).map_err(|e| failed(e.to_string()))?;
    match status {
        None => Err(NativeError::Hook {
            what,
            reason: format!("did not end within {} s and was killed", limit.as_secs()),
            late: true,
        }),
        Some(status) if status.success() => Ok(()),
        Some(status) => {
            let ended = match (status.code(), status.signal()) {
                (Some(code), _) => format!("ended with {code}"),
                (None, signal) => format!("was killed by signal {}", signal.unwrap_or_default()),
            };
            let text = text.trim_end();
            Err(failed(if text.is_empty() {
                ended
            } else {
                format!("{ended}: {text}")
            }))
        }
    }
}

fn start(hook: &Hook, state: &str) -> io::Result<(Child, io::PipeReader)> {
    // A file, so that a hook that does not read its input keeps nobody waiting.
    let file = rustix::fs::memfd_create(c"state", rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(state.as_bytes())?;
    file.rewind()?;
    let (reader, writer) = io::pipe()?;
    let args = hook.args().as_deref().unwrap_or_default();
    let mut command = Command::new(hook.path());
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    let env = hook.env().iter().flatten().filter_map(|var| var.split_once('='));
    command
        .env_clear()
        .envs(env)
        .current_dir("/")
        .process_group(0)
        .stdin(OwnedFd::from(file))
        .stdout(writer.try_clone()?)
        .stderr(writer);
    // With the command go podd's copies of the writing end.
    Ok((command.spawn()?, reader))
}

/// Waits for a hook to end and returns what it wrote; no status where it was killed for being late.
fn watch(
    child: &mut Child,
    said: &mut io::PipeReader,
    limit: Duration,
) -> io::Result<(Option<ExitStatus>, String)> {
    let pid = rustix::process::Pid::from_child(child);
    let watched = wait_ended(pid, said, Instant::now() + limit);
    if !matches!(watched, Ok((true, _))) {
        let _ = rustix::process::kill_process_group(pid, rustix::process::Signal::KILL);
    }
    let status = child.wait()?;
    let (ended, text) = watched?;
    Ok((
        ended.then_some(status),
        String::from_utf8_lossy(&text).into_owned(),
    ))
}

/// Whether a process ended in time, and what it said until then. Its descendants may keep the pipe open.
fn wait_ended(
    pid: rustix::process::Pid,
    said: &mut io::PipeReader,
    end: Instant,
) -> io::Result<(bool, Vec<u8>)> {
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    let (mut text, mut open) = (Vec::new(), true);
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        let mut fds = [
            PollFd::new(&pidfd, PollFlags::IN),
            PollFd::from_borrowed_fd(said.as_fd(), PollFlags::IN),
        ];
        let count = if open { 2 } else { 1 };
        match poll(&mut fds[..count], Some(&timeout)) {
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(errno.into()),
            Ok(0) => return Ok((false, text)),
            Ok(_) => {}
        }
        let (ended, readable) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        if open && readable {
            let mut chunk = [0u8; 1024];
            let n = said.read(&mut chunk)?;
            open = n > 0;
            let room = KEPT.saturating_sub(text.len() as u64);
            text.extend(chunk[..n].iter().take(usize::try_from(room).unwrap_or(0)));
        } else if ended {
            return Ok((true, text));
        }
    }
}

/// Tells people of a hook that failed where nothing else comes of it.
pub fn warn(container: &Container, failed: Result<(), EngineError>) {
    if let Err(e) = failed {
        let e: &(dyn std::error::Error + 'static) = &e;
        tracing::warn!(container = %container.record.id, error = e, "a hook failed");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, timeout: Option<i64>) -> Hook {
        let mut hook = Hook::default();
        hook.set_path("/bin/sh".into())
            .set_args(Some(vec!["hook".into(), "-c".into(), script.into(), "x".into()]))
            .set_env(Some(vec!["A=b=c".into()]))
            .set_timeout(timeout);
        hook
    }

    fn run(script: &str, state: &str, limit: Duration) -> Result<(), String> {
        run_one(When::CreateRuntime, &hook(script, None), state, limit).map_err(|e| e.to_string())
    }

    #[test]
    fn a_hook_gets_its_state_arguments_and_nothing_else() {
        let minute = Duration::from_secs(60);
        let big = format!("{{\"x\":\"{}\"}}", "y".repeat(200_000));
        run(
            "test $(cat | wc -c) = 200008 && test \"$A\" = b=c && test $0 = x && test -z \"$HOME\"",
            &big,
            minute,
        )
        .unwrap();
        // Neither input that is not read nor output that is not asked for holds it up.
        run("head -c 300000 /dev/zero", &big, minute).unwrap();
        let e = run("echo no such thing >&2; exit 3", "{}", minute).unwrap_err();
        assert_eq!(e, "createRuntime hook /bin/sh ended with 3: no such thing");
        let e = run("kill -9 $$", "{}", minute).unwrap_err();
        assert_eq!(e, "createRuntime hook /bin/sh was killed by signal 9");
        let absent = run_one(
            When::Poststop,
            Hook::default().set_path("/no/such/hook".into()),
            "{}",
            minute,
        );
        let e = absent.unwrap_err().to_string();
        assert!(
            e.starts_with("poststop hook /no/such/hook cannot be executed: No such file"),
            "{e}"
        );
    }

    #[test]
    fn a_late_hook_is_killed_with_all_that_it_started() {
        let marker = tempfile::NamedTempFile::new().unwrap();
        let script = format!("sleep 60 & echo $! >{}; wait", marker.path().display());
        let begun = Instant::now();
        let e = run(&script, "{}", Duration::from_secs(1)).unwrap_err();
        assert_eq!(
            e,
            "createRuntime hook /bin/sh did not end within 1 s and was killed"
        );
        assert!(begun.elapsed() < Duration::from_secs(30));
        let child = std::fs::read_to_string(marker.path()).unwrap();
        let stat = format!("/proc/{}/stat", child.trim());
        let gone = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        while !gone() {
            assert!(
                begun.elapsed() < Duration::from_secs(30),
                "the hook's child lives on"
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        // One that left something behind and ended is over.
        run("sleep 60 >/dev/null 2>&1 & exit 0", "{}", Duration::from_secs(30)).unwrap();
    }

    #[test]
    fn what_a_hook_leaves_behind_is_not_waited_for() {
        let begun = Instant::now();
        run("sleep 5 & exit 0", "{}", Duration::from_secs(60)).unwrap();
        assert!(begun.elapsed() < Duration::from_secs(4), "{:?}", begun.elapsed());
    }
}
