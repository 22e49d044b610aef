//! Scopes, made and stopped by systemd over the system bus.
//!
//! Owns the one connection to the bus and the wait for jobs: systemd answers a call with a job, and says by a signal
//! how it ended. Every wait has a limit. Knows units and no pods; what is below a scope's cgroup is podd's own.
//! The law is org.freedesktop.systemd1(5) and systemd's CONTROL_GROUP_INTERFACE.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use tokio::sync::mpsc;
use zbus::connection::Builder;
use zbus::message::Type;
use zbus::{Connection, DynamicType, MatchRule, Message, MessageStream, OwnedObjectPath, Variant};

const DESTINATION: &str = "org.freedesktop.systemd1";
const PATH: &str = "/org/freedesktop/systemd1";
const MANAGER: &str = "org.freedesktop.systemd1.Manager";

/// How long systemd may take for anything. The kubelet gives up after two minutes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Jobs of one unit that end while one of them is waited for; there is one at a time, and one more that was given up.
const JOBS: usize = 4;

/// Why systemd did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SystemdError {
    /// The bus.
    #[error("cannot talk to systemd over the system bus")]
    Bus(#[source] zbus::Error),
    /// systemd says no.
    #[error("systemd refuses to {doing}")]
    Refused {
        /// What was asked, in the imperative.
        doing: String,
        /// Its words.
        source: zbus::Error,
    },
    /// systemd tried and failed.
    #[error("systemd could not {doing}: its job ended as {result:?}")]
    Failed {
        /// What was asked, in the imperative.
        doing: String,
        /// A word of systemd's: `canceled`, `timeout`, `failed`, `dependency`.
        result: String,
    },
    /// No answer.
    #[error("systemd did not {doing} within {} s: it is busy, or stuck", PATIENCE.as_secs())]
    Silent {
        /// What was asked, in the imperative.
        doing: String,
    },
    /// The scope is not where its slice says.
    #[error("systemd made {unit}, but there is no cgroup {expected} below cgroup.root")]
    Elsewhere {
        /// The scope.
        unit: String,
        /// Where it should be.
        expected: String,
    },
}

/// A scope to be made around a process.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'a> {
    /// Its name, with `.scope`.
    pub unit: &'a str,
    /// The slice that it is made in.
    pub slice: &'a str,
    /// For people who list units.
    pub description: &'a str,
    /// The process that keeps it alive.
    pub pid: u32,
}

/// Who waits for jobs of a unit: the job's path and how it ended.
type Waiting = Mutex<HashMap<String, mpsc::Sender<(OwnedObjectPath, String)>>>;

/// systemd, as far as it is process 1 of this machine.
#[derive(Debug, Default)]
pub struct Systemd {
    link: tokio::sync::Mutex<Option<Link>>,
    waiting: Arc<Waiting>,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    listener: tokio::task::JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.listener.abort();
    }
}

impl Systemd {
    /// Whether systemd is process 1 (sd_booted(3)).
    #[must_use]
    pub fn is_booted() -> bool {
        std::path::Path::new("/run/systemd/system").is_dir()
    }

    /// Whether this machine has a system bus, which small systems with systemd lack.
    #[must_use]
    pub fn has_bus() -> bool {
        ["/run/dbus/system_bus_socket", "/var/run/dbus/system_bus_socket"]
            .iter()
            .any(|socket| std::path::Path::new(socket).exists())
    }

    /// Asks for the version, which systemd answers in any state.
    ///
    /// # Errors
    /// It does not answer.
    pub async fn version(&self) -> Result<String, SystemdError> {
        let doing = || "say its version".to_owned();
        let connection = self.connection().await?;
        let properties = "org.freedesktop.DBus.Properties";
        let asked = connection.call_method(
            Some(DESTINATION),
            PATH,
            Some(properties),
            "Get",
            &(MANAGER, "Version"),
        );
        let reply = answer(asked, doing).await?;
        let body = reply.body();
        let version: Variant<'_> = body.deserialize().map_err(SystemdError::Bus)?;
        Ok(String::try_from(version).unwrap_or_default())
    }

    /// Makes a scope around a process and waits until it is there. What is below its cgroup is the caller's
    /// (`Delegate`), has no limit of tasks, and the unit goes without a trace when it is empty (`CollectMode`).
    ///
    /// # Errors
    /// systemd refuses, fails, or takes too long: then the scope may still come to be.
    pub async fn start_scope(&self, scope: Scope<'_>) -> Result<(), SystemdError> {
        let properties: Vec<(&str, Variant<'_>)> = vec![
            ("Description", scope.description.into()),
            ("Slice", scope.slice.into()),
            ("Delegate", true.into()),
            ("TasksMax", u64::MAX.into()),
            ("CollectMode", "inactive-or-failed".into()),
            // Not stopped before the kubelet and podd when the machine goes down.
            ("DefaultDependencies", false.into()),
            ("PIDs", vec![scope.pid].into()),
        ];
        let auxiliary: Vec<(&str, Vec<(&str, Variant<'_>)>)> = Vec::new();
        self.job(
            "start",
            "StartTransientUnit",
            scope.unit,
            &(scope.unit, "fail", properties, auxiliary),
        )
        .await
    }

    /// Stops a scope and waits until it is gone; one that does not exist is stopped.
    ///
    /// # Errors
    /// systemd fails or takes too long.
    pub async fn stop_scope(&self, unit: &str) -> Result<(), SystemdError> {
        let done = self.job("stop", "StopUnit", unit, &(unit, "replace")).await;
        match done {
            Err(SystemdError::Refused { source, .. }) if names(&source, "NoSuchUnit") => Ok(()),
            other => other,
        }
    }

    /// Sends SIGKILL to every process of a scope; one that does not exist has none.
    ///
    /// # Errors
    /// systemd refuses or takes too long.
    pub async fn kill_scope(&self, unit: &str) -> Result<(), SystemdError> {
        const SIGKILL: i32 = 9;
        let body = (unit, "all", SIGKILL);
        let connection = self.connection().await?;
        let asked = manager(&connection, "KillUnit", &body);
        match answer(asked, || format!("kill {unit}")).await {
            Err(SystemdError::Refused { source, .. }) if names(&source, "NoSuchUnit") => Ok(()),
            other => other.map(drop),
        }
    }

    /// Names and descriptions of the units that match a pattern of glob(7).
    ///
    /// # Errors
    /// systemd does not answer.
    pub async fn units(&self, pattern: &str) -> Result<Vec<(String, String)>, SystemdError> {
        /// What ListUnitsByPatterns says of a unit: name, description, load, active and sub state, the unit it
        /// follows, its path, and the id, type and path of its job.
        type Unit = (
            String,
            String,
            String,
            String,
            String,
            String,
            OwnedObjectPath,
            u32,
            String,
            OwnedObjectPath,
        );
        let body = (Vec::<&str>::new(), vec![pattern]);
        let connection = self.connection().await?;
        let asked = manager(&connection, "ListUnitsByPatterns", &body);
        let reply = answer(asked, || "list units".to_owned()).await?;
        let units: Vec<Unit> = reply.body().deserialize().map_err(SystemdError::Bus)?;
        Ok(units.into_iter().map(|unit| (unit.0, unit.1)).collect())
    }

    /// Calls a method that answers with a job, and waits for the end of that.
    async fn job<B: serde::Serialize + DynamicType>(
        &self,
        verb: &str,
        method: &str,
        unit: &str,
        body: &B,
    ) -> Result<(), SystemdError> {
        let doing = || format!("{verb} {unit}");
        let connection = self.connection().await?;
        // Before the call, as the signal may overtake its answer.
        let (sender, mut ended) = mpsc::channel(JOBS);
        lock(&self.waiting).insert(unit.to_owned(), sender);
        let _forget = Forget {
            waiting: &self.waiting,
            unit,
        };
        let reply = answer(manager(&connection, method, body), doing).await?;
        let job: OwnedObjectPath = reply.body().deserialize().map_err(SystemdError::Bus)?;
        let wait = async {
            loop {
                match ended.recv().await {
                    Some((path, result)) if path == job => return Some(result),
                    // Of a job that somebody gave up waiting for.
                    Some(_) => {}
                    None => return None,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, wait).await {
            Ok(Some(result)) if result == "done" => Ok(()),
            Ok(Some(result)) => Err(SystemdError::Failed {
                doing: doing(),
                result,
            }),
            Ok(None) | Err(_) => Err(SystemdError::Silent { doing: doing() }),
        }
    }

    /// The connection; a new one where there is none, or the bus has closed it.
    async fn connection(&self) -> Result<Connection, SystemdError> {
        let open = async {
            let mut link = self.link.lock().await;
            if let Some(link) = link.as_ref().filter(|link| !link.listener.is_finished()) {
                return Ok(link.connection.clone());
            }
            let new = connect(Arc::clone(&self.waiting))
                .await
                .map_err(SystemdError::Bus)?;
            Ok(link.insert(new).connection.clone())
        };
        let late = |_| SystemdError::Silent {
            doing: "answer on the system bus".to_owned(),
        };
        tokio::time::timeout(PATIENCE, open).await.map_err(late)?
    }
}

/// Ends the wait for a unit's jobs.
struct Forget<'a> {
    waiting: &'a Waiting,
    unit: &'a str,
}

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        lock(self.waiting).remove(self.unit);
    }
}

async fn connect(waiting: Arc<Waiting>) -> zbus::Result<Link> {
    let connection = Builder::system().build().await?;
    // The bus checks who sends: a name that moves, as at a re-execution of systemd, is followed.
    let removed = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(DESTINATION)
        .path(PATH)
        .interface(MANAGER)
        .member("JobRemoved")
        .build()?;
    let mut signals = MessageStream::for_match_rule(removed, &connection, None).await?;
    // systemd sends signals only while somebody has asked for them.
    manager(&connection, "Subscribe", &()).await?;
    let listener = tokio::spawn(async move {
        while let Some(Ok(signal)) = signals.next().await {
            tell(&waiting, &signal);
        }
    });
    Ok(Link { connection, listener })
}

/// Passes the end of a job on to whoever waits for its unit.
fn tell(waiting: &Waiting, signal: &Message) {
    let body = signal.body();
    let Ok((_, job, unit, result)) = body.deserialize::<(u32, OwnedObjectPath, &str, &str)>() else {
        return;
    };
    if let Some(waiter) = lock(waiting).get(unit) {
        // Full only of jobs that are not the one waited for, which is then found too late, in time.
        let _gone_or_full = waiter.try_send((job, result.to_owned()));
    }
}

async fn manager<B: serde::Serialize + DynamicType>(
    connection: &Connection,
    method: &str,
    body: &B,
) -> zbus::Result<Message> {
    connection
        .call_method(Some(DESTINATION), PATH, Some(MANAGER), method, body)
        .await
}

/// Waits for the answer to a call.
async fn answer(
    call: impl Future<Output = zbus::Result<Message>>,
    doing: impl Fn() -> String,
) -> Result<Message, SystemdError> {
    match tokio::time::timeout(PATIENCE, call).await {
        Ok(Ok(reply)) => Ok(reply),
        Ok(Err(source @ (zbus::Error::MethodError(..) | zbus::Error::FDO(_)))) => {
            Err(SystemdError::Refused {
                doing: doing(),
                source,
            })
        }
        Ok(Err(source)) => Err(SystemdError::Bus(source)),
        Err(_) => Err(SystemdError::Silent { doing: doing() }),
    }
}

/// Whether an error of systemd has this name.
fn names(e: &zbus::Error, name: &str) -> bool {
    matches!(e, zbus::Error::MethodError(full, ..) if full.strip_prefix("org.freedesktop.systemd1.") == Some(name))
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
