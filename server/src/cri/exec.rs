//! ExecSync.

use std::sync::Arc;
use std::time::Duration;

use podd_proto::v1;
use tracing::Span;

use super::fault::Fault;
use crate::engine::Engine;

/// ExecSync. A timeout of zero or less waits for ever, as the CRI says.
pub async fn exec_sync(
    engine: &Arc<Engine>,
    request: v1::ExecSyncRequest,
) -> Result<v1::ExecSyncResponse, Fault> {
    Span::current().record("container", &request.container_id);
    check_command(&request.cmd)?;
    let timeout = u64::try_from(request.timeout)
        .ok()
        .filter(|t| *t > 0)
        .map(Duration::from_secs);
    let output = engine
        .exec_sync(&request.container_id, request.cmd, timeout)
        .await?;
    Ok(v1::ExecSyncResponse {
        stdout: output.stdout,
        stderr: output.stderr,
        exit_code: output.code,
    })
}

/// A command that can be executed.
pub(super) fn check_command(argv: &[String]) -> Result<(), Fault> {
    if argv.is_empty() {
        return Err(Fault::invalid("cmd", "must name a command"));
    }
    if argv.iter().any(|argument| argument.contains('\0')) {
        return Err(Fault::invalid("cmd", "must not contain a NUL byte"));
    }
    Ok(())
}
