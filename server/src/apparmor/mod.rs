//! AppArmor: podd's own profile, and whether a profile is loaded.
//!
//! The profile is compiled beforehand (podd-default.profile, `make apparmor`), for the features of Linux 5.4, which
//! newer kernels load as well: a node needs no apparmor_parser, and podd starts no program.

use std::fs;
use std::io::{self, Write as _};
use std::path::Path;

/// Name of podd's own profile.
pub const DEFAULT: &str = "podd-default";

const COMPILED: &[u8] = include_bytes!("podd-default.bin");
const INTERFACE: &str = "/sys/kernel/security/apparmor";

/// Loads podd's own profile, or replaces an older one; `None` on a node without AppArmor.
///
/// # Errors
/// The kernel refuses: podd would then run containers without what they are to have.
pub fn load() -> io::Result<Option<String>> {
    if !enabled() {
        return Ok(None);
    }
    let interface = Path::new(INTERFACE).join(".replace");
    let mut file = fs::File::options().write(true).open(interface)?;
    // The kernel takes a profile by one write(2).
    match file.write(COMPILED)? {
        written if written == COMPILED.len() => Ok(Some(DEFAULT.to_owned())),
        _ => Err(io::ErrorKind::WriteZero.into()),
    }
}

/// Whether the kernel enforces AppArmor and says so in a place that podd sees, as under other runtimes.
fn enabled() -> bool {
    let on = fs::read("/sys/module/apparmor/parameters/enabled");
    on.is_ok_and(|on| on.first() == Some(&b'Y')) && Path::new(INTERFACE).is_dir()
}

/// Whether a profile of this name is loaded.
///
/// # Errors
/// The list cannot be read.
pub fn is_loaded(name: &str) -> io::Result<bool> {
    if !enabled() {
        return Ok(false);
    }
    let list = fs::read_to_string(Path::new(INTERFACE).join("profiles"))?;
    Ok(lists(&list, name))
}

/// Lines are `name (mode)`; a name may have spaces and parentheses.
fn lists(list: &str, name: &str) -> bool {
    list.lines()
        .any(|line| line.rsplit_once(" (").is_some_and(|(loaded, _)| loaded == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_names_are_found() {
        let list = "a (enforce)\nmy profile (v2) (complain)\n/usr/bin/x (enforce)\n";
        for name in ["a", "my profile (v2)", "/usr/bin/x"] {
            assert!(lists(list, name), "{name}");
        }
        for name in ["", "my profile", "x", "a (enforce)"] {
            assert!(!lists(list, name), "{name}");
        }
    }

    #[test]
    fn the_compiled_profile_has_the_name_that_containers_get() {
        let name = [DEFAULT.as_bytes(), &[0]].concat();
        assert!(COMPILED.windows(name.len()).any(|bytes| bytes == name));
    }
}
