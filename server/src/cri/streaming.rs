//! Exec, Attach and PortForward: each answers with a URL, and the session is held there.

use podd_proto::v1;
use tracing::Span;

use super::exec::check_command;
use super::fault::Fault;
use crate::engine::Engine;
use crate::engine::dial::Target;
use crate::engine::session::Wanted;
use crate::streaming::{Request, Streaming};

/// Exec.
pub fn exec(
    engine: &Engine,
    streaming: &Streaming,
    request: v1::ExecRequest,
) -> Result<v1::ExecResponse, Fault> {
    Span::current().record("container", &request.container_id);
    check_command(&request.cmd)?;
    let wanted = streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    let container = engine.enterable(&request.container_id)?;
    let url = streaming.url(Request::Exec {
        container: container.record.id,
        argv: request.cmd,
        wanted,
    })?;
    Ok(v1::ExecResponse { url })
}

/// Attach.
pub fn attach(
    engine: &Engine,
    streaming: &Streaming,
    request: &v1::AttachRequest,
) -> Result<v1::AttachResponse, Fault> {
    Span::current().record("container", &request.container_id);
    let wanted = streams(request.stdin, request.stdout, request.stderr, request.tty)?;
    let container = engine.running(&request.container_id)?;
    let url = streaming.url(Request::Attach {
        container: container.record.id,
        wanted,
    })?;
    Ok(v1::AttachResponse { url })
}

/// PortForward. Clients that speak SPDY name the ports again, with each stream; channels of WebSocket are those of the
/// ports that are named here.
pub fn port_forward(
    engine: &Engine,
    streaming: &Streaming,
    request: &v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, Fault> {
    Span::current().record("pod", &request.pod_sandbox_id);
    let ports = request.port.iter().map(|port| u16::try_from(*port).ok());
    let ports: Option<Vec<u16>> = ports.map(|port| port.filter(|port| *port > 0)).collect();
    let ports = ports.ok_or_else(|| Fault::invalid("port", "must be between 1 and 65535"))?;
    let pod = engine.find_pod(&request.pod_sandbox_id)?;
    Target::new(engine, &pod).map_err(std::sync::Arc::new)?;
    let url = streaming.url(Request::PortForward {
        pod: pod.record.id,
        ports,
    })?;
    Ok(v1::PortForwardResponse { url })
}

/// The streams that a session has, as Exec and Attach ask for them.
fn streams(stdin: bool, stdout: bool, stderr: bool, terminal: bool) -> Result<Wanted, Fault> {
    if terminal && stderr {
        return Err(Fault::invalid(
            "stderr",
            "must be false with tty: a terminal has one output",
        ));
    }
    if !(stdin || stdout || stderr) {
        return Err(Fault::invalid(
            "stdin",
            "at least one of stdin, stdout and stderr must be true",
        ));
    }
    Ok(Wanted {
        stdin,
        stdout,
        stderr,
        terminal,
    })
}
