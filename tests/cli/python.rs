//! Python, for tests that hold the program to what others wrote.

use std::ffi::OsString;
use std::process::Command;

/// The Python that can import `modules` (separated by commas); where it cannot, a line that names `what`, and a failure if nothing
/// may be skipped.
#[allow(clippy::disallowed_methods, reason = "tests look for Python where the caller has it")]
pub(crate) fn python_with(modules: &str, what: &str) -> Option<OsString> {
    let python = std::env::var_os("MPCC_TEST_PYTHON").unwrap_or_else(|| "python3".into());
    let there = Command::new(&python).args(["-c", &format!("import {modules}")]).output();
    if there.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    assert!(std::env::var_os("MPCC_TEST_ALL").is_none(), "{what} is needed: Python must import {modules}");
    println!("skipped: needs {what}");
    None
}
