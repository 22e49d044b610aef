//! Tests that are not the arena's: they own the whole guest, and run one after the other in the order of their list.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use libtest_mimic::{Arguments, Completion, Failed, Trial};

use crate::{case, reboot, systemd};

/// Environment: the tests to run, by their names, with commas between them.
pub const CASES: &str = "PODD_VM_CASES";

/// A test of the whole guest.
#[derive(Clone, Copy)]
pub struct Case {
    /// `module::function`.
    pub name: &'static str,
    /// The test itself.
    pub run: fn() -> Result<()>,
}

/// The tests of a module, by the names of their functions.
macro_rules! guest_cases {
    ($group:literal: $($name:ident),* $(,)?) => {
        &[$(crate::guest::Case { name: concat!($group, "::", stringify!($name)), run: $name }),*]
    };
}
pub(crate) use guest_cases;

/// Runs the tests whose names are in `asked`; a test after a failed one is as good as its beginning, and no better.
pub fn run(asked: &str) -> ExitCode {
    let skipped = Arc::new(Mutex::new(Vec::new()));
    let all = [systemd::CASES, reboot::BEFORE, reboot::AFTER].concat();
    let wanted = all
        .into_iter()
        .filter(|case| asked.split(',').any(|name| name == case.name));
    let trials = wanted.map(|case| {
        let skipped = Arc::clone(&skipped);
        Trial::ignorable_test(case.name, move || match (case.run)() {
            Ok(()) => Ok(Completion::Completed),
            Err(e) => match case::reason(&e) {
                Some(reason) => {
                    let line = format!("{}: {reason}", case.name);
                    skipped.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                    Ok(Completion::ignored_with(reason))
                }
                None => Err(Failed::from(format!("{e:#}"))),
            },
        })
    });
    let options = Arguments {
        test_threads: Some(1),
        ..Arguments::default()
    };
    let done = libtest_mimic::run(&options, trials.collect());
    for line in skipped.lock().unwrap_or_else(PoisonError::into_inner).iter() {
        println!("skipped {line}");
    }
    println!(
        "{} passed, {} failed, {} skipped",
        done.num_passed, done.num_failed, done.num_ignored
    );
    if done.has_failed() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}
