//! Where results go: standard output, which may be a terminal.

use std::io::{self, Write as _};

use rustix::termios;

use super::failure::Failure;

/// Standard output.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    columns: Option<usize>,
    rows: Option<usize>,
}

impl Screen {
    /// Looks at what standard output is.
    #[must_use]
    pub fn look() -> Self {
        let out = io::stdout();
        let size = termios::tcgetwinsize(&out).ok();
        // A terminal whose size is not known says 0.
        let known = |count: u16, usual: usize| if count == 0 { usual } else { count.into() };
        Self {
            columns: size.map(|size| known(size.ws_col, 80)),
            rows: size.map(|size| known(size.ws_row, 24)),
        }
    }

    /// Characters in a line, where this is a terminal.
    #[must_use]
    pub fn width(self) -> Option<usize> {
        self.columns
    }

    /// `text` in the place of what is on a terminal, as far as it fits.
    #[must_use]
    pub fn again(self, text: &str) -> String {
        match self.rows {
            None => text.to_owned() + "\n",
            // The last row is left to the cursor.
            Some(rows) => {
                let lines = text.split_inclusive('\n').take(rows.saturating_sub(1));
                format!("\x1b[H\x1b[J{}", lines.collect::<String>())
            }
        }
    }

    /// Prints a result.
    ///
    /// # Errors
    /// Standard output is closed or full.
    pub fn print(self, text: &str) -> Result<(), Failure> {
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())
            .and_then(|()| out.flush())
            .map_err(Failure::Output)
    }
}
