//! A test and what surrounds it: the shared daemon, the census, a pod that removes itself, small assertions.

use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Completion, Failed, Trial};
use podd_e2e::PATIENCE;
use podd_e2e::census::{self, Census};
use podd_e2e::cri::{self, Cri};
use podd_e2e::fixture::Fixture;
use podd_e2e::podd::{self, Podd};
use podd_e2e::registry::Registry;
use podd_proto::v1 as pb;
use tonic::{Code, Status};

/// One test.
#[derive(Clone, Copy)]
pub struct Case {
    /// `module::function`.
    pub name: &'static str,
    /// The test itself.
    pub run: fn(&mut Env<'_>) -> Result<()>,
}

/// The tests of a module, by the names of their functions.
macro_rules! cases {
    ($group:literal: $($name:ident),* $(,)?) => {
        pub(crate) const CASES: &[crate::case::Case] =
            &[$(crate::case::Case { name: concat!($group, "::", stringify!($name)), run: $name }),*];
    };
}
pub(crate) use cases;

/// Why a test could not run here: an error that counts as skipped.
#[derive(Debug)]
struct Skipped(String);

impl std::fmt::Display for Skipped {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skipped {}

/// Ends a test that cannot run on this machine.
pub fn skip<T>(reason: &str) -> Result<T> {
    Err(Skipped(reason.to_owned()).into())
}

/// The reason, where an error says that a test could not run.
pub fn reason(error: &anyhow::Error) -> Option<&str> {
    error
        .downcast_ref::<Skipped>()
        .map(|Skipped(reason)| reason.as_str())
}

/// What all tests share.
#[derive(Clone, Default)]
pub struct World {
    fixture: Arc<Mutex<Option<Fixture>>>,
    skipped: Arc<Mutex<Vec<String>>>,
}

impl World {
    /// The test as the runner wants it.
    pub fn trial(&self, case: Case) -> Trial {
        let world = self.clone();
        Trial::ignorable_test(case.name, move || world.perform(case))
    }

    /// Says which tests could not run, and why.
    pub fn report(&self) {
        for line in lock(&self.skipped).iter() {
            println!("skipped {line}");
        }
        for (what, command) in census::uncounted() {
            println!("the census did not count {what}: {command} is not installed");
        }
    }

    fn perform(&self, case: Case) -> Result<Completion, Failed> {
        let mut guard = lock(&self.fixture);
        let done = match guard.as_mut() {
            Some(fixture) => Ok(fixture),
            None => Fixture::start(false).map(|fixture| guard.insert(fixture)),
        };
        let fixture = done.map_err(|e| Failed::from(format!("fixture: {e:#}")))?;
        let mark = podd::log_mark();
        match in_census(fixture, case) {
            Ok(()) => Ok(Completion::Completed),
            Err(e) => match reason(&e) {
                Some(reason) => {
                    lock(&self.skipped).push(format!("{}: {reason}", case.name));
                    Ok(Completion::ignored_with(reason))
                }
                None => {
                    let tail = podd::log_since(mark);
                    fixture.discard();
                    Err(Failed::from(format!("{e:#}\n{tail}")))
                }
            },
        }
    }
}

/// Runs a test between two counts; what it left is an error even where it passed.
fn in_census(fixture: &mut Fixture, case: Case) -> Result<()> {
    warm_up(fixture.podd()?)?;
    let before = Census::settled(Some(fixture.podd()?.pid()), PATIENCE);
    let ran = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (case.run)(&mut Env { fixture })));
    let ran = ran.unwrap_or_else(|cause| {
        let text = cause.downcast_ref::<String>().map(String::as_str);
        bail!(
            "panicked: {}",
            text.or_else(|| cause.downcast_ref().copied()).unwrap_or("?")
        )
    });
    let podd = fixture.podd_as_it_is().context("podd crashed during the test")?;
    if std::env::var_os("ARENA_CENSUS").is_some_and(|asked| asked == "off") {
        return ran;
    }
    let left = before.difference(
        Some(podd.pid()),
        if ran.is_ok() { PATIENCE } else { Duration::ZERO },
    );
    ran?;
    ensure!(left.is_empty(), "the census differs:\n  {}", left.join("\n  "));
    Ok(())
}

/// One pod up and down on each new state directory, so that what is made once (bridge, table) is there, and gone
/// what goes in its own time.
fn warm_up(podd: &Podd) -> Result<()> {
    let mark = Path::new(podd::WARM);
    if !mark.exists() {
        let pod = Pod::run(podd.cri(), cri::pod_config("warm-up"))?;
        pod.started(&cri::shell("c", "sleep 1000"))?;
        pod.remove()?;
        eventually("the pod's link is gone", || Ok(census::links() <= 2))?;
        fs::write(mark, "")?;
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a test is given.
pub struct Env<'a> {
    fixture: &'a mut Fixture,
}

impl Env<'_> {
    /// A client of the daemon under test.
    pub fn cri(&mut self) -> Result<Cri> {
        Ok(self.podd()?.cri().clone())
    }

    /// The daemon itself.
    pub fn podd(&mut self) -> Result<&mut Podd> {
        self.fixture.podd_as_it_is().context("podd is not running")
    }

    /// The registry, to push further images.
    pub fn registry(&mut self) -> &mut Registry {
        &mut self.fixture.registry
    }

    /// A pod with the default configuration.
    pub fn pod(&mut self, name: &str) -> Result<Pod> {
        Pod::run(&self.cri()?, cri::pod_config(name))
    }
}

/// A pod that is removed with the value, log directory included.
pub struct Pod {
    /// Its id.
    pub id: String,
    /// What it was made from.
    pub config: pb::PodSandboxConfig,
    cri: Cri,
    removed: bool,
}

impl Pod {
    /// Runs a pod.
    pub fn run(cri: &Cri, config: pb::PodSandboxConfig) -> Result<Self> {
        if !config.log_directory.is_empty() {
            fs::create_dir_all(&config.log_directory)?;
        }
        let id = cri.run_pod(&config).context("run the pod")?;
        Ok(Self {
            id,
            config,
            cri: cri.clone(),
            removed: false,
        })
    }

    /// Creates a container.
    pub fn created(&self, config: &pb::ContainerConfig) -> Result<String> {
        self.cri
            .create(&self.id, &self.config, config)
            .context("create the container")
    }

    /// Creates and starts a container.
    pub fn started(&self, config: &pb::ContainerConfig) -> Result<String> {
        let id = self.created(config)?;
        self.cri.start(&id).context("start the container")?;
        Ok(id)
    }

    /// Runs a container to its end: its status and what it wrote to standard output.
    pub fn ran(&self, config: &pb::ContainerConfig) -> Result<(pb::ContainerStatus, String)> {
        let id = self.started(config)?;
        let status = self.cri.wait_exit(&id)?;
        let lines = log_lines(&self.config, config)?;
        let out = lines
            .iter()
            .filter(|l| l.stream == "stdout")
            .map(LogLine::text)
            .collect();
        self.cri.remove_ctr(&id).context("remove the container")?;
        Ok((status, out))
    }

    /// The standard output of a container that has to succeed.
    pub fn output(&self, config: &pb::ContainerConfig) -> Result<String> {
        let (status, out) = self.ran(config)?;
        ensure!(
            status.exit_code == 0,
            "exit code {} ({}): {out}",
            status.exit_code,
            status.message
        );
        Ok(out)
    }

    /// The status of this pod.
    pub fn status(&self) -> Result<pb::PodSandboxStatus> {
        self.cri.pod(&self.id)
    }

    /// The address of this pod that contains `mark`: `.` for IPv4, `:` for IPv6.
    pub fn address(&self, mark: char) -> Result<String> {
        let network = self.status()?.network.context("the pod has no network status")?;
        let more = network.additional_ips.into_iter().map(|a| a.ip);
        let found = std::iter::once(network.ip)
            .chain(more)
            .find(|ip| ip.contains(mark));
        found.with_context(|| format!("the pod has no address with a {mark:?}"))
    }

    /// Stops and removes the pod.
    pub fn remove(mut self) -> Result<()> {
        self.removed = true;
        self.cri.remove_pod(&self.id).context("remove the pod")?;
        if !self.config.log_directory.is_empty() {
            fs::remove_dir_all(&self.config.log_directory)?;
        }
        Ok(())
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        if !self.removed {
            // The test has failed or ends here; what cannot be removed is named by the census.
            let _ = self.cri.remove_pod(&self.id);
            let _ = fs::remove_dir_all(&self.config.log_directory);
        }
    }
}

/// One line of a log in the CRI format.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds.
    pub time: String,
    /// `stdout` or `stderr`.
    pub stream: String,
    /// Whether the line goes on in the next entry.
    pub partial: bool,
    /// The content, without line feed.
    pub content: String,
}

impl LogLine {
    /// The content with the line feed it had.
    pub fn text(&self) -> String {
        format!("{}{}", self.content, if self.partial { "" } else { "\n" })
    }
}

/// Reads and parses a container's log.
pub fn log_lines(pod: &pb::PodSandboxConfig, container: &pb::ContainerConfig) -> Result<Vec<LogLine>> {
    let path = cri::log_path(pod, container);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    parse_log(&text)
}

/// Parses text in the CRI's log format.
pub fn parse_log(text: &str) -> Result<Vec<LogLine>> {
    text.lines()
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let mut word = || {
                words
                    .next()
                    .with_context(|| format!("log line {line:?} has too few fields"))
            };
            let (time, stream, tag) = (word()?.to_owned(), word()?.to_owned(), word()?);
            ensure!(
                time.contains('T') && time.contains('.'),
                "{time:?} is no time with nanoseconds"
            );
            ensure!(matches!(tag, "P" | "F"), "tag {tag:?}");
            let partial = tag == "P";
            Ok(LogLine {
                time,
                stream,
                partial,
                content: words.next().unwrap_or_default().to_owned(),
            })
        })
        .collect()
}

/// The answer has to be an error with this code.
pub fn refused<T: std::fmt::Debug>(what: &str, code: Code, answer: Result<T, Box<Status>>) -> Result<String> {
    match answer {
        Ok(value) => bail!("{what}: accepted with {value:?}, expected {code:?}"),
        Err(status) if status.code() == code => Ok(status.message().to_owned()),
        Err(status) => bail!(
            "{what}: {:?} ({}), expected {code:?}",
            status.code(),
            status.message()
        ),
    }
}

/// Both values have to be equal.
pub fn equal<T: PartialEq + std::fmt::Debug>(what: &str, found: T, expected: T) -> Result<()> {
    ensure!(found == expected, "{what}: {found:?}, expected {expected:?}");
    Ok(())
}

/// `text` has to contain `part`.
pub fn contains(what: &str, text: &str, part: &str) -> Result<()> {
    ensure!(text.contains(part), "{what}: {part:?} is not in {text:?}");
    Ok(())
}

/// A value of `/proc/PID/status`.
pub fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    let found = status
        .lines()
        .find_map(|l| l.strip_prefix(name)?.strip_prefix(':'));
    Ok(found.with_context(|| format!("no {name} in {status:?}"))?.trim())
}

/// Waits until `done` says so.
pub fn eventually(what: &str, mut done: impl FnMut() -> Result<bool>) -> Result<()> {
    let deadline = std::time::Instant::now() + PATIENCE;
    while !done()? {
        ensure!(
            std::time::Instant::now() < deadline,
            "{what}: not after {PATIENCE:?}"
        );
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// A number from the environment.
pub fn asked(name: &str) -> Result<Option<u64>> {
    let Some(value) = std::env::var_os(name) else {
        return Ok(None);
    };
    let number = value.to_string_lossy().parse();
    Ok(Some(number.with_context(|| format!("{name} is {value:?}"))?))
}
