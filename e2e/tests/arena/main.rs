//! Tests of podd over its CRI socket, in an arena, with a census before and after each.
//!
//! `cargo test -p podd-e2e --test arena -- [FILTER]`. Ends with one line `N passed, N failed, N skipped`.

// Visible to the tests in virtual machines (../vm), which compile all this in.
pub(crate) mod agreement;
pub(crate) mod attacks;
pub(crate) mod cadvisor;
pub(crate) mod case;
pub(crate) mod cdi;
pub(crate) mod churn;
pub(crate) mod crash;
pub(crate) mod errors;
pub(crate) mod events;
pub(crate) mod exec;
pub(crate) mod fields;
pub(crate) mod hooks;
pub(crate) mod images;
pub(crate) mod isolation;
pub(crate) mod lifecycle;
pub(crate) mod lists;
pub(crate) mod logs;
pub(crate) mod metrics;
pub(crate) mod mounts;
pub(crate) mod network;
pub(crate) mod observe;
pub(crate) mod pod_limits;
pub(crate) mod recovery;
pub(crate) mod resources;
pub(crate) mod runtime;
pub(crate) mod sandbox;
pub(crate) mod scale;
pub(crate) mod security;
pub(crate) mod selinux;
pub(crate) mod stalls;
pub(crate) mod stats;
pub(crate) mod streaming;
pub(crate) mod tls;
pub(crate) mod tool;
pub(crate) mod tool_sessions;
pub(crate) mod traces;
pub(crate) mod users;

use std::ffi::OsString;
use std::process::ExitCode;

use libtest_mimic::Arguments;
use podd_e2e::arena;

/// Environment: the tests to run, by their whole names, with commas between them; all where it is not set.
pub(crate) const CASES: &str = "PODD_ARENA_CASES";

pub(crate) fn main() -> ExitCode {
    arena::stage_hook();
    let mut options = Arguments::from_args();
    // The census sees the whole arena, so one test runs at a time.
    options.test_threads = Some(1);
    if options.list || arena::inside() {
        return run(&options);
    }
    if let Some(reason) = unable() {
        println!("arena tests cannot run here: {reason}");
        println!("0 passed, 0 failed, {} skipped", all().len());
        return ExitCode::SUCCESS;
    }
    let again: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arena::enter(&again, true) {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("no arena: {e:#}");
            println!("0 passed, 1 failed, 0 skipped");
            ExitCode::FAILURE
        }
    }
}

/// Why this machine cannot run the tests, where that is no fault of podd's.
fn unable() -> Option<&'static str> {
    (!nix::unistd::geteuid().is_root()).then_some("only root can make namespaces")
}

pub(crate) fn all() -> Vec<case::Case> {
    let groups = [
        runtime::CASES,
        images::CASES,
        sandbox::CASES,
        network::CASES,
        isolation::CASES,
        lifecycle::CASES,
        logs::CASES,
        exec::CASES,
        fields::CASES,
        streaming::CASES,
        churn::CASES,
        tls::CASES,
        tool::CASES,
        tool_sessions::CASES,
        security::CASES,
        selinux::CASES,
        mounts::CASES,
        attacks::CASES,
        cdi::CASES,
        hooks::CASES,
        errors::CASES,
        recovery::CASES,
        crash::CASES,
        stalls::CASES,
        stats::CASES,
        agreement::CASES,
        observe::CASES,
        traces::CASES,
        events::CASES,
        metrics::CASES,
        cadvisor::CASES,
        lists::CASES,
        resources::CASES,
        pod_limits::CASES,
        users::CASES,
        scale::CASES,
    ];
    groups.concat()
}

fn run(options: &Arguments) -> ExitCode {
    let world = case::World::default();
    let asked = std::env::var(CASES).ok();
    let wanted = |case: &case::Case| {
        asked
            .as_ref()
            .is_none_or(|list| list.split(',').any(|n| n == case.name))
    };
    let trials = all()
        .into_iter()
        .filter(wanted)
        .map(|case| world.trial(case))
        .collect();
    let done = libtest_mimic::run(options, trials);
    if options.list {
        return ExitCode::SUCCESS;
    }
    world.report();
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
