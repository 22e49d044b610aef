//! Hooks of a spec that are run in the container's namespaces (OCI runtime spec, config.md, "POSIX-platform Hooks").
//!
//! Those of the runtime's namespaces (`createRuntime`, `poststart`, `poststop`) are the caller's: a plan only stops
//! at a gate of their own before the root is changed.

use std::ffi::{CStr, CString};

use oci_spec::runtime::{Hook as OciHook, Hooks, Spec};

use super::namespaces::slot;
use super::text::{borrow, path, text, texts};
use super::{CompileError, ContainerInputs};
use crate::plan::{Hook, HookRoot, PlanBuf, Slot, Step};
use crate::seccomp::Filter;

/// What hooks need that a spec cannot say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HookInputs {
    /// The container's state as a JSON object without `pid`, while it is being created.
    pub creating: String,
    /// The same, when it is created.
    pub created: String,
    /// The directory of the host where hooks find the root: the bundle's `rootfs`, which exists and is empty.
    pub root: String,
    /// How long a hook may take that has no timeout, in ms.
    pub patience_ms: u32,
}

/// The hooks of a spec, if it has any.
pub(super) fn of(spec: &Spec) -> Option<&Hooks> {
    spec.hooks().as_ref().filter(|hooks| **hooks != Hooks::default())
}

/// Whether a spec has hooks that need the host's tree; it comes as the last volume.
#[must_use]
pub fn needs_host_tree(spec: &Spec) -> bool {
    of(spec).is_some_and(|hooks| !listed(hooks.create_container()).is_empty())
}

fn listed(list: &Option<Vec<OciHook>>) -> &[OciHook] {
    list.as_deref().unwrap_or_default()
}

/// Appends what happens before the root is changed.
pub(super) fn before_root(
    plan: &mut PlanBuf,
    spec: &Spec,
    inputs: &ContainerInputs,
    users: bool,
) -> Result<(), CompileError> {
    let Some(hooks) = of(spec) else { return Ok(()) };
    if hooks.prestart().is_some() {
        return Err(CompileError::Unsupported {
            what: "part of the spec",
            value: "prestart hooks".to_owned(),
        });
    }
    if !listed(hooks.create_runtime()).is_empty() {
        plan.push(&Step::Gate);
    }
    let in_container = listed(hooks.create_container());
    if in_container.is_empty() {
        return Ok(());
    }
    if users {
        // Its root may not enter podd's state directory, where hooks look for the bundle.
        return Err(CompileError::Unsupported {
            what: "hook in a pod with a user namespace",
            value: "createContainer".to_owned(),
        });
    }
    let more = inputs
        .hooks
        .as_ref()
        .ok_or(CompileError::Missing("state for its hooks"))?;
    plan.push(&Step::HostTree {
        slot: host_slot(inputs),
        root: &path("bundle", more.root.as_ref())?,
    });
    for hook in in_container {
        let owned = Owned::of(hook, &more.creating, more.patience_ms)?;
        plan.push(&Step::Hook(owned.hook(c"createContainer", HookRoot::Host, None)));
    }
    Ok(())
}

/// Appends the hooks between the start gate and the application, under its filter: their programs are the image's.
pub(super) fn before_exec(
    plan: &mut PlanBuf,
    spec: &Spec,
    inputs: Option<&HookInputs>,
    filter: Option<&Filter>,
) -> Result<(), CompileError> {
    let hooks = of(spec).map_or(&[][..], |hooks| listed(hooks.start_container()));
    if hooks.is_empty() {
        return Ok(());
    }
    let inputs = inputs.ok_or(CompileError::Missing("state for its hooks"))?;
    for hook in hooks {
        let owned = Owned::of(hook, &inputs.created, inputs.patience_ms)?;
        plan.push(&Step::Hook(owned.hook(
            c"startContainer",
            HookRoot::Container,
            filter,
        )));
    }
    Ok(())
}

fn host_slot(inputs: &ContainerInputs) -> Slot {
    let behind = Slot::try_from(inputs.volumes.len()).unwrap_or(Slot::MAX);
    slot::FIRST_MOUNT.saturating_add(behind)
}

/// A hook in the kernel's terms.
struct Owned<'a> {
    path: CString,
    argv: Vec<CString>,
    env: Vec<CString>,
    state: &'a str,
    timeout_ms: u32,
}

impl<'a> Owned<'a> {
    fn of(hook: &OciHook, state: &'a str, patience_ms: u32) -> Result<Self, CompileError> {
        let program = path("path of a hook", hook.path())?;
        let argv = match hook.args().as_deref() {
            None | Some([]) => vec![program.clone()],
            Some(args) => texts("argument of a hook", args)?,
        };
        Ok(Self {
            path: program,
            argv,
            env: hook
                .env()
                .iter()
                .flatten()
                .map(|var| text("environment of a hook", var.as_str()))
                .collect::<Result<_, _>>()?,
            state,
            timeout_ms: timeout_ms(hook, patience_ms)?,
        })
    }

    fn hook<'s>(&'s self, name: &'s CStr, root: HookRoot, filter: Option<&'s Filter>) -> Hook<'s> {
        Hook {
            name,
            path: &self.path,
            argv: borrow(&self.argv),
            env: borrow(&self.env),
            state: self.state.as_bytes(),
            timeout_ms: self.timeout_ms,
            root,
            filter: filter.map_or(&[], Filter::program),
            filter_flags: filter.map_or(0, Filter::flags),
        }
    }
}

/// How long a hook may take, in ms; `patience_ms` where it says nothing.
///
/// # Errors
/// Its timeout is not positive.
pub fn timeout_ms(hook: &OciHook, patience_ms: u32) -> Result<u32, CompileError> {
    match hook.timeout() {
        None => Ok(patience_ms),
        Some(seconds) if seconds > 0 => Ok(u32::try_from(seconds.saturating_mul(1000)).unwrap_or(u32::MAX)),
        Some(value) => Err(CompileError::Range {
            what: "timeout of a hook",
            value,
        }),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::super::tests::{inputs, outline, print, spec_with};
    use super::super::{ContainerInputs, container};
    use super::*;

    fn hook(path: &str) -> Value {
        json!({ "path": path, "args": ["hook", "x"], "env": ["A=b"], "timeout": 2 })
    }

    fn with_state() -> ContainerInputs {
        let state = HookInputs {
            creating: "{\"status\":\"creating\"}".to_owned(),
            created: "{\"status\":\"created\"}".to_owned(),
            root: "/var/lib/podd/pods/p/containers/c/rootfs".to_owned(),
            patience_ms: 7000,
        };
        ContainerInputs {
            hooks: Some(state),
            ..inputs()
        }
    }

    #[test]
    fn hooks_come_where_the_spec_says() {
        let hooks = json!({
            "createRuntime": [hook("/runtime")],
            "createContainer": [hook("/a"), { "path": "/b" }],
            "startContainer": [hook("/start")],
            "poststart": [hook("/poststart")],
            "poststop": [hook("/poststop")]
        });
        let spec = spec_with("/hooks", hooks);
        assert!(needs_host_tree(&spec));
        let plan = container(&spec, &with_state()).unwrap();
        let steps = outline(&plan);
        assert!(
            steps.contains("ReadOnly Gate HostTree Hook Hook PivotRoot"),
            "{steps}"
        );
        assert!(steps.ends_with("Become Gate FindProgram Hook Exec"), "{steps}");
        let text = print(&plan);
        let lines: Vec<_> = text.lines().filter(|line| line.starts_with("H")).collect();
        assert_eq!(
            lines[0],
            "HostTree { slot: 14, root: \"/var/lib/podd/pods/p/containers/c/rootfs\" }"
        );
        assert!(
            lines[1].starts_with(
                "Hook(Hook { name: \"createContainer\", path: \"/a\", argv: [\"hook\", \"x\"], env: [\"A=b\"], state: [123,"
            ),
            "{}",
            lines[1]
        );
        assert!(
            lines[1].contains("timeout_ms: 2000, root: Host, filter: []"),
            "{}",
            lines[1]
        );
        assert!(lines[2].contains("argv: [\"/b\"], env: [], "), "{}", lines[2]);
        assert!(lines[2].contains("timeout_ms: 7000"), "{}", lines[2]);
        assert!(lines[3].contains("name: \"startContainer\"") && lines[3].contains("root: Container"));
    }

    #[test]
    fn a_start_hook_runs_under_the_filter_of_the_application() {
        let seccomp = json!({ "defaultAction": "SCMP_ACT_ERRNO" });
        let mut spec = spec_with("/linux/seccomp", seccomp);
        let hooks = serde_json::from_value(json!({ "startContainer": [hook("/start")] })).unwrap();
        spec.set_hooks(Some(hooks));
        let plan = container(&spec, &with_state()).unwrap();
        let steps = crate::plan::Plan::decode(&plan).unwrap().steps;
        let (mut of_hook, mut of_application) = (None, None);
        for step in steps {
            match step {
                Step::Hook(hook) => of_hook = Some(hook.filter.to_vec()),
                Step::Seccomp { program, .. } => of_application = Some(program.to_vec()),
                _ => {}
            }
        }
        assert!(of_hook.as_ref().is_some_and(|filter| !filter.is_empty()));
        assert_eq!(of_hook, of_application);
    }

    #[test]
    fn a_container_without_hooks_has_no_step_for_them() {
        let plain = container(&spec_with("/hooks", json!({})), &inputs()).unwrap();
        let none = container(&spec_with("/hostname", Value::Null), &inputs()).unwrap();
        assert_eq!(plain, none);
        assert_eq!(outline(&none).matches("Gate").count(), 1);
        // Those that podd runs beside it change nothing either.
        let beside = json!({ "poststart": [hook("/a")], "poststop": [hook("/b")] });
        assert_eq!(container(&spec_with("/hooks", beside), &inputs()).unwrap(), none);
    }

    #[test]
    fn hooks_that_cannot_be_run_are_refused() {
        for (hooks, message) in [
            (
                json!({ "prestart": [hook("/a")] }),
                "part of the spec \"prestart hooks\" is not supported",
            ),
            (
                json!({ "createContainer": [{ "path": "a" }] }),
                "path of a hook \"a\" is not an absolute path",
            ),
            (
                json!({ "startContainer": [{ "path": "/a", "timeout": 0 }] }),
                "timeout of a hook 0 is out of range",
            ),
        ] {
            let e = container(&spec_with("/hooks", hooks), &with_state()).unwrap_err();
            assert_eq!(e.to_string(), message);
        }
    }
}
