use super::*;

#[test]
fn requests_survive_the_wire() {
    let launch = Request::Launch {
        kind: TaskKind::Container,
        flags: launch_flag::TTY | launch_flag::STDIN,
        target: 9,
        roles: vec![Role::Stage, Role::Plan, Role::Mount, Role::Mount],
    };
    let resize = Request::Resize {
        rows: 24,
        columns: 80,
    };
    let plain = [
        Request::Hello,
        Request::Start,
        Request::Signal(15),
        Request::Reopen,
        Request::Forget,
    ];
    let attach = Request::Attach {
        flags: attach_flag::INPUT,
        roles: vec![Role::Stdout],
    };
    let rest = [
        Request::List,
        Request::Namespaces,
        Request::Quit,
        launch,
        resize,
        attach,
    ];
    for request in plain.into_iter().chain(rest) {
        let frame = RequestFrame {
            sequence: 3,
            handle: 7,
            request,
        };
        assert_eq!(RequestFrame::decode(&frame.encode()), Ok(frame));
    }
}

#[test]
fn answers_survive_the_wire() {
    let state = TaskState {
        handle: 1,
        pid: 0,
        phase: TaskPhase::Killed(9),
        started: 5,
        finished: 6,
    };
    for answer in [
        Answer::Exited(state),
        Answer::Reply {
            sequence: 8,
            errno: 2,
            body: vec![1, 2],
        },
    ] {
        assert_eq!(Answer::decode(&answer.encode()), Ok(answer));
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A podinit lives as long as its pod, below whatever podd there is then: what version 1 says may never change.
#[test]
fn frames_have_the_bytes_that_they_had_from_the_beginning() {
    let all_roles: Vec<Role> = (0..=8).filter_map(Role::from_byte).collect();
    let launch = |kind, flags, roles| Request::Launch {
        kind,
        flags,
        target: 9,
        roles,
    };
    let (rows, columns) = (24, 80);
    for (request, expected) in [
        (Request::Hello, "0100 0100 03000000 07000000 00000000"),
        (
            launch(TaskKind::Pod, 1 | 2 | 4 | 8 | 16, all_roles),
            "0100 0200 03000000 07000000 01000000 1f000000 09000000 000102030405060708",
        ),
        (
            launch(TaskKind::Container, launch_flag::STDIN, vec![Role::Mount]),
            "0100 0200 03000000 07000000 02000000 20000000 09000000 08",
        ),
        (
            launch(TaskKind::Exec, launch_flag::TTY, vec![]),
            "0100 0200 03000000 07000000 03000000 40000000 09000000",
        ),
        (Request::Start, "0100 0300 03000000 07000000 00000000"),
        (Request::Signal(15), "0100 0400 03000000 07000000 0f000000"),
        (Request::Reopen, "0100 0500 03000000 07000000 00000000"),
        (
            Request::Resize { rows, columns },
            "0100 0600 03000000 07000000 50001800",
        ),
        (Request::Forget, "0100 0700 03000000 07000000 00000000"),
        (Request::List, "0100 0800 03000000 07000000 00000000"),
        (Request::Namespaces, "0100 0900 03000000 07000000 00000000"),
        (Request::Quit, "0100 0a00 03000000 07000000 00000000"),
        (
            Request::Attach {
                flags: attach_flag::INPUT | attach_flag::TAKE_INPUT,
                roles: vec![Role::Stdout, Role::Stderr],
            },
            "0100 0b00 03000000 07000000 03000000 0607",
        ),
    ] {
        let frame = RequestFrame {
            sequence: 3,
            handle: 7,
            request,
        };
        assert_eq!(hex(&frame.encode()), expected.replace(' ', ""), "{frame:?}");
    }
    let state = |phase| TaskState {
        handle: 5,
        pid: 6,
        phase,
        started: 0x0102_0304_0506_0708,
        finished: 9,
    };
    for (phase, expected) in [
        (TaskPhase::Created, "01000000 00000000"),
        (TaskPhase::Running, "02000000 00000000"),
        (TaskPhase::Exited(3), "03000000 03000000"),
        (TaskPhase::Killed(9), "04000000 09000000"),
    ] {
        let expected = format!(
            "0100 0140 00000000 05000000 00000000 05000000 06000000 {expected} 0807060504030201 0900000000000000"
        );
        assert_eq!(
            hex(&Answer::Exited(state(phase)).encode()),
            expected.replace(' ', "")
        );
    }
    let reply = Answer::Reply {
        sequence: 8,
        errno: 2,
        body: vec![0xab],
    };
    let expected = "0100 0080 08000000 00000000 02000000 ab".replace(' ', "");
    assert_eq!(hex(&reply.encode()), expected);
}

#[test]
fn foreign_frames_are_refused() {
    assert_eq!(RequestFrame::decode(b""), Err(Refused::Malformed));
    let unknown = frame(0x3fff, 77, 0, 0, &[]);
    assert_eq!(RequestFrame::decode(&unknown), Err(Refused::Unknown(77)));
    let mut other_version = frame(1, 1, 0, 0, &[]);
    other_version[0] = 2;
    assert_eq!(RequestFrame::decode(&other_version), Err(Refused::Malformed));
    let unknown_role = frame(2, 1, 1, 2, &[0, 0, 0, 0, 0, 0, 0, 0, 200]);
    assert_eq!(RequestFrame::decode(&unknown_role), Err(Refused::Malformed));
}
