//! Strings on their way to the kernel: no NUL, paths absolute.

use std::ffi::{CStr, CString};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::CompileError;

/// A string without NUL.
pub(super) fn text(what: &'static str, value: impl Into<Vec<u8>>) -> Result<CString, CompileError> {
    CString::new(value).map_err(|_| CompileError::Nul { what })
}

/// An absolute path without NUL.
pub(super) fn path(what: &'static str, value: &Path) -> Result<CString, CompileError> {
    if !value.is_absolute() {
        return Err(CompileError::Relative {
            what,
            path: value.to_owned(),
        });
    }
    text(what, value.as_os_str().as_bytes())
}

/// Several strings without NUL.
pub(super) fn texts<'a>(
    what: &'static str,
    values: impl IntoIterator<Item = &'a String>,
) -> Result<Vec<CString>, CompileError> {
    values
        .into_iter()
        .map(|value| text(what, value.as_str()))
        .collect()
}

/// Borrows each of several strings, as steps hold them.
pub(super) fn borrow(values: &[CString]) -> Vec<&CStr> {
    values.iter().map(CString::as_c_str).collect()
}
