//! The operator's terminal, while it belongs to a process in a container.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};

/// The terminal in raw mode. Dropped, it is as it was.
#[derive(Debug, Clone)]
pub struct Terminal(Arc<Mutex<Option<Termios>>>);

impl Terminal {
    /// Passes every key on: also those that would end this program.
    ///
    /// # Errors
    /// Standard input is no terminal.
    pub fn raw() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self(Arc::new(Mutex::new(Some(before)))))
    }

    /// Makes it as it was, once.
    pub fn restore(&self) {
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(before) = before {
            // Where the terminal is gone there is nothing left to restore.
            let _ = tcsetattr(io::stdin(), OptionalActions::Drain, &before);
        }
    }

    /// Columns and rows; none where the terminal does not know.
    #[must_use]
    pub fn size() -> Option<(u16, u16)> {
        let size = tcgetwinsize(io::stdin()).ok()?;
        (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
    }
}

/// Restores a terminal when a command ends, however it does.
#[derive(Debug)]
pub struct Restored(pub Terminal);

impl Drop for Restored {
    fn drop(&mut self) {
        self.0.restore();
    }
}
