//! The life of the daemon: lock, recover, listen, serve, drain.
//!
//! Owns the socket, the lock that keeps a second podd away, and the orderly end. Stopping podd stops no pod.

use std::fs::{self, DirBuilder, File, Permissions, TryLockError};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, RawFd};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use podd_proto::v1::image_service_server::ImageServiceServer;
use podd_proto::v1::runtime_service_server::RuntimeServiceServer;
use rustix::process::{PidfdFlags, PidfdGetfdFlags, getpid, pidfd_getfd, pidfd_open};
use sd_notify::NotifyState;
use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::{error, info, warn};

use crate::authority::Lenient;
use crate::config::Config;
use crate::cri::layers::Observe;
use crate::cri::{Cri, request};
use crate::engine::{Engine, OpenError};
use crate::observe::health::Subject;
use crate::observe::listener::Listeners;
use crate::observe::metrics::{Leak, Metrics};
use crate::state::recover::Recovered;
use crate::streaming::{self, Streaming, TlsError};
use crate::telemetry::{self, LogLevel, TelemetryError};
use crate::trace::Tracer;

/// Why the daemon could not start, or had to stop.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The log.
    #[error("cannot set up the log")]
    Telemetry(#[from] TelemetryError),
    /// Another podd uses the same directory.
    #[error("another podd (pid {pid}) uses {}: stop it first", directory.display())]
    Alive {
        /// The other's process id, as it wrote it.
        pid: String,
        /// The directory both want.
        directory: PathBuf,
    },
    /// A file, directory or socket.
    #[error("cannot {verb} {}", path.display())]
    Io {
        /// What was tried.
        verb: &'static str,
        /// On what.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address for Exec, Attach and PortForward.
    #[error("cannot listen on {address}: change [streaming] in the configuration")]
    Streaming {
        /// Where podd was to listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The collector of traces.
    #[error("cannot send traces: change tracing.endpoint in the configuration")]
    Tracing(#[source] tonic::transport::Error),
    /// An address for metrics and health.
    #[error("cannot listen on {address}: change observe.listen in the configuration")]
    Observe {
        /// Where podd was to listen.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// What they are encrypted with.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// What systemd passed is no listening unix socket.
    #[error("systemd passed no listening unix socket: {0}")]
    Activation(String),
    /// State, images or host.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The runtime or the signal handlers.
    #[error("cannot set up the event loop")]
    Runtime(#[source] io::Error),
    /// The server ended by itself.
    #[error("the server failed")]
    Server(#[from] tonic::transport::Error),
}

fn io_error(verb: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ServeError {
    move |source| ServeError::Io {
        verb,
        path: path.to_owned(),
        source,
    }
}

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// The daemon could not start, or the server failed.
pub fn run(config: Config) -> Result<(), ServeError> {
    sys::heap::one_arena();
    let level = telemetry::init(&config.log)?;
    // More threads than this only cost memory: what takes time happens in the kernel and in podinit.
    let threads = std::thread::available_parallelism()
        .map_or(2, usize::from)
        .clamp(2, 4);
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    let runtime = runtime
        .worker_threads(threads)
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    runtime.block_on(live(config, level))
}

/// How long the collector of traces may take for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(2);

async fn live(config: Config, level: LogLevel) -> Result<(), ServeError> {
    let config = Arc::new(config);
    make_dir(&config.run_dir)?;
    make_dir(&config.state_dir)?;
    let _run_lock = lock(&config.run_dir)?;
    let _state_lock = lock(&config.state_dir)?;
    let (stop, stopping) = watch::channel(false);
    watch_signals(stop)?;

    let observers = Listeners::bind(&config.observe).await?;
    let (tracer, exporting) = Tracer::start(&config.tracing)
        .map_err(ServeError::Tracing)?
        .unzip();
    let (engine, found) = Engine::open(Arc::clone(&config), request::DECODE).await?;
    report_recovery(&engine.metrics, &found);
    let tls = config
        .streaming
        .tls
        .as_ref()
        .map(streaming::load_tls)
        .transpose()?;
    let streaming = streaming::Listener::bind(&config.streaming, tls).await;
    let streaming = streaming.map_err(|source| ServeError::Streaming {
        address: (config.streaming.address, config.streaming.port).into(),
        source,
    })?;
    let listener = listen(&config)?;
    notify(NotifyState::Ready);
    info!(version = env!("CARGO_PKG_VERSION"), socket = %config.socket.display(), "serving");
    let streaming = Arc::new(Streaming::start(streaming, Arc::clone(&engine)));
    let subject = Subject {
        engine: Arc::clone(&engine),
        streaming: Arc::clone(&streaming),
        stopping: stopping.clone(),
    };
    let observing = observers.start(subject, level, tracer.clone());
    let state = Arc::clone(&engine.state);
    tokio::spawn(async move { state.feed().forget().await });
    serve(Arc::clone(&engine), streaming, listener, stopping, tracer).await?;
    drain(&engine).await;
    drop(observing);
    if let Some(exporting) = exporting {
        exporting.finish(LAST_SPANS).await;
    }
    if let Err(e) = engine.state.records().set_clean(engine.state.boot_id()) {
        warn!("cannot note that podd ended in order: {e}");
    }
    info!("stopped; pods keep running");
    Ok(())
}

/// Serves both services on `listener` until `stopping` says so, and then answers what was asked already.
///
/// # Errors
/// The server failed.
pub async fn serve(
    engine: Arc<Engine>,
    streaming: Arc<Streaming>,
    listener: UnixListener,
    mut stopping: watch::Receiver<bool>,
    tracer: Option<Tracer>,
) -> Result<(), ServeError> {
    let limit = usize::try_from(engine.config.limits.grpc_message_bytes).unwrap_or(usize::MAX);
    let patience = Duration::from_secs(engine.config.timeouts.drain_seconds.into());
    let observe = Observe::new(engine.metrics.clone(), tracer);
    let cri = Cri::new(Arc::clone(&engine), streaming);
    let runtime = RuntimeServiceServer::new(cri.clone())
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let images = ImageServiceServer::new(cri)
        .max_decoding_message_size(limit)
        .max_encoding_message_size(limit);
    let mut told = stopping.clone();
    let clients = UnixListenerStream::new(listener).map(|accepted| accepted.map(Lenient::new));
    let server = Server::builder()
        .layer(observe)
        .add_service(runtime)
        .add_service(images)
        .serve_with_incoming_shutdown(clients, async move {
            // An error means that nobody is left who could tell: stop as well.
            let _ = told.wait_for(|stop| *stop).await;
            engine.state.feed().close();
        });
    // A client may leave an answer unread for ever, so the wait for it ends.
    let deadline = async move {
        let _ = stopping.wait_for(|stop| *stop).await;
        notify(NotifyState::Stopping);
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        done = server => Ok(done?),
        () = deadline => {
            warn!(seconds = patience.as_secs(), "requests were still being answered when podd had to stop");
            Ok(())
        }
    }
}

/// Waits for operations whose clients have gone; what is not done in time is taken up at the next start.
async fn drain(engine: &Engine) {
    let patience = Duration::from_secs(engine.config.timeouts.drain_seconds.into());
    let idle = async {
        while engine.operations() > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    if tokio::time::timeout(patience, idle).await.is_err() {
        warn!(
            operations = engine.operations(),
            "stopping with operations unfinished"
        );
    }
}

fn watch_signals(stop: watch::Sender<bool>) -> Result<(), ServeError> {
    let mut term = signal(SignalKind::terminate()).map_err(ServeError::Runtime)?;
    let mut int = signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?;
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        info!("asked to stop");
        let _ = stop.send(true);
    });
    Ok(())
}

fn report_recovery(metrics: &Metrics, found: &Recovered) {
    metrics.leaked(Leak::Unreadable, found.quarantined.len(), false);
    metrics.leaked(Leak::Record, found.dropped, true);
    for bad in &found.quarantined {
        error!(place = %bad.place.display(), "unreadable record moved away: {}", bad.reason);
    }
    if found.dropped > 0 {
        info!(
            dropped = found.dropped,
            "records that described nothing were deleted"
        );
    }
}

fn notify(state: NotifyState<'_>) {
    // Without a service manager there is nobody to tell, which sd-notify takes for success.
    if let Err(e) = sd_notify::notify(&[state]) {
        warn!(error = %e, "cannot tell the service manager");
    }
}

fn make_dir(path: &Path) -> Result<(), ServeError> {
    // Others may pass through, to the socket and to the root of a container in a user namespace, but not look.
    DirBuilder::new()
        .recursive(true)
        .mode(0o711)
        .create(path)
        .map_err(io_error("make", path))
}

/// How long what a killed podd was starting may hold its lock: a process between clone and exec has all its files.
const LAST_CHILD: Duration = Duration::from_secs(5);

/// Keeps every other podd away from a directory while the file is open.
fn lock(directory: &Path) -> Result<File, ServeError> {
    let path = directory.join("podd.lock");
    let open = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let mut file = open.map_err(io_error("open", &path))?;
    let deadline = Instant::now() + LAST_CHILD;
    loop {
        match file.try_lock() {
            Ok(()) => break,
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                let _ = file.rewind().and_then(|()| file.read_to_string(&mut pid));
                let pid = pid.trim().to_owned();
                if Path::new("/proc").join(&pid).exists() || Instant::now() > deadline {
                    let directory = directory.to_owned();
                    return Err(ServeError::Alive { pid, directory });
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Err(TryLockError::Error(e)) => return Err(io_error("lock", &path)(e)),
        }
    }
    let write = |file: &mut File| {
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())
    };
    write(&mut file).map_err(io_error("write", &path))?;
    Ok(file)
}

/// The socket that systemd passed, or a new one in the place of whatever an earlier podd left there.
fn listen(config: &Config) -> Result<UnixListener, ServeError> {
    let passed = sd_notify::listen_fds().map_err(|e| ServeError::Activation(e.to_string()))?;
    let listener = match passed.collect::<Vec<_>>().as_slice() {
        [] => bind(&config.socket, 0o660)?,
        [fd] => adopt(*fd)?,
        many => return Err(ServeError::Activation(format!("it passed {}", many.len()))),
    };
    listener.set_nonblocking(true).map_err(ServeError::Runtime)?;
    UnixListener::from_std(listener).map_err(ServeError::Runtime)
}

/// Binds a socket of this mode. The lock says that nobody serves on one that is there.
pub fn bind(path: &Path, mode: u32) -> Result<std::os::unix::net::UnixListener, ServeError> {
    if let Some(parent) = path.parent() {
        make_dir(parent)?;
    }
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                let source = io::Error::from(io::ErrorKind::AddrInUse);
                return Err(ServeError::Io {
                    verb: "take over, as someone serves on",
                    path: path.to_owned(),
                    source,
                });
            }
            fs::remove_file(path).map_err(io_error("replace", path))?;
        }
        Ok(_) => return Err(io_error("replace", path)(io::Error::other("it is not a socket"))),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        Err(e) => return Err(io_error("look at", path)(e)),
    }
    let listener = std::os::unix::net::UnixListener::bind(path).map_err(io_error("bind", path))?;
    fs::set_permissions(path, Permissions::from_mode(mode)).map_err(io_error("set the mode of", path))?;
    Ok(listener)
}

/// Takes over a socket that systemd passed.
///
/// The number of a descriptor is not an owned descriptor; a copy by way of the process itself is, without unsafe.
fn adopt(fd: RawFd) -> Result<std::os::unix::net::UnixListener, ServeError> {
    let bad = |what: &str| ServeError::Activation(what.to_owned());
    let copy = pidfd_open(getpid(), PidfdFlags::empty())
        .and_then(|me| pidfd_getfd(me, fd, PidfdGetfdFlags::empty()))
        .map_err(|e| ServeError::Activation(e.to_string()))?;
    let domain = rustix::net::sockopt::socket_domain(copy.as_fd()).map_err(|_| bad("it is no socket"))?;
    if domain != rustix::net::AddressFamily::UNIX {
        return Err(bad("it is of another family"));
    }
    if !rustix::net::sockopt::socket_acceptconn(copy.as_fd()).unwrap_or(false) {
        return Err(bad("it does not listen"));
    }
    Ok(copy.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_a_live_one_and_a_file_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run/podd.sock");
        let first = bind(&path, 0o660).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(matches!(bind(&path, 0o660), Err(ServeError::Io { .. })));
        drop(first);
        bind(&path, 0o660).unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "precious").unwrap();
        assert!(bind(&file, 0o660).is_err());
        assert_eq!(fs::read_to_string(&file).unwrap(), "precious");
    }

    #[test]
    fn a_second_podd_is_refused_by_pid() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let e = lock(dir.path()).unwrap_err().to_string();
        assert!(e.contains(&format!("(pid {})", std::process::id())), "{e}");
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn a_passed_socket_is_adopted() {
        use std::os::fd::AsRawFd as _;
        let dir = tempfile::tempdir().unwrap();
        let passed = std::os::unix::net::UnixListener::bind(dir.path().join("s")).unwrap();
        let adopted = adopt(passed.as_raw_fd()).unwrap();
        drop(passed);
        std::os::unix::net::UnixStream::connect(dir.path().join("s")).unwrap();
        adopted.accept().unwrap();
        let file = File::open(dir.path()).unwrap();
        assert!(adopt(file.as_raw_fd()).is_err());
    }
}
