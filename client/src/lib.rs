//! The client's side: a channel to the CRI socket, and sessions at the URLs of Exec, Attach and PortForward.
//!
//! Written from the protocols and sharing no code with the daemon, so that both can be wrong in different ways only.

mod channel;
mod session;

pub use channel::{MESSAGE, connect};
pub use session::{Dialect, Message, Pen, Session, SessionError};
