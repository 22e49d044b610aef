//! Completions for shells, and manual pages: both from the command line's own description.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::Command;
use clap_complete::{Generator as _, shells};
use clap_mangen::Man;

/// Shells that complete `podd`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Shell {
    /// bash, with the package bash-completion.
    Bash,
    /// zsh.
    Zsh,
    /// fish.
    Fish,
}

/// The pages could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot write {}: {source}", path.display())]
pub struct ManualError {
    path: PathBuf,
    source: io::Error,
}

/// The script that makes `shell` complete the command.
#[must_use]
pub fn completions(shell: Shell, mut command: Command) -> String {
    let name = command.get_name().to_owned();
    command.set_bin_name(name);
    command.build();
    let mut script = Vec::new();
    match shell {
        Shell::Bash => shells::Bash.generate(&command, &mut script),
        Shell::Zsh => shells::Zsh.generate(&command, &mut script),
        Shell::Fish => shells::Fish.generate(&command, &mut script),
    }
    String::from_utf8_lossy(&script).into_owned()
}

/// Writes a page for the command and for each of its commands to `directory`, which has to exist.
///
/// # Errors
/// A page cannot be written.
pub fn pages(directory: &Path, command: Command) -> Result<(), ManualError> {
    let mut command = command.disable_help_subcommand(true);
    command.build();
    for (name, page) in rendered(&command) {
        let path = directory.join(name);
        let written = page.and_then(|page| fs::write(&path, page));
        written.map_err(|source| ManualError { path, source })?;
    }
    Ok(())
}

fn rendered(command: &Command) -> Vec<(String, io::Result<Vec<u8>>)> {
    let whole = command.get_name().to_owned();
    let page = |name: String, command: Command| {
        let man = Man::new(command)
            .title(name.as_str())
            .section("8")
            .source(concat!("podd ", env!("CARGO_PKG_VERSION")));
        let mut page = Vec::new();
        let done = man.render(&mut page).map(|()| page);
        (format!("{name}.8"), done)
    };
    let mut pages = vec![page(whole.clone(), command.clone())];
    for part in command.get_subcommands() {
        pages.push(page(format!("{whole}-{}", part.get_name()), part.clone()));
    }
    pages
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory as _;

    #[test]
    fn every_command_is_completed_and_has_a_page() {
        let command = Cli::command();
        let names: Vec<_> = command
            .get_subcommands()
            .map(|c| c.get_name().to_owned())
            .collect();
        assert!(
            names.iter().any(|n| n == "ps") && names.iter().any(|n| n == "serve"),
            "{names:?}"
        );
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = completions(shell, Cli::command());
            for name in &names {
                assert!(script.contains(name.as_str()), "{shell:?}: {name}");
            }
        }
        let directory = tempfile::tempdir().unwrap();
        pages(directory.path(), Cli::command()).unwrap();
        for name in &names {
            let page = fs::read_to_string(directory.path().join(format!("podd-{name}.8"))).unwrap();
            assert!(page.contains(".SH NAME") && page.contains("\\-\\-help"), "{page}");
        }
        let whole = fs::read_to_string(directory.path().join("podd.8")).unwrap();
        assert!(whole.contains("podd\\-ps(8)"), "{whole}");
        assert!(pages(Path::new("/nonexistent"), Cli::command()).is_err());
    }
}
