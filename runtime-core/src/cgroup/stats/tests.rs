//! Files as the kernel's documentation draws them, in plain directories; and the real files where this machine has cgroup2.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use super::super::tests::{Real, sleeper, soon};
use super::super::{CgroupPath, CgroupRoot};
use super::*;

/// In the format of Documentation/admin-guide/cgroup-v2.rst and accounting/psi.rst, shortened.
const FILES: [(&str, &str); 9] = [
    (
        "cpu.stat",
        "usage_usec 1234567\nuser_usec 1000000\nsystem_usec 234567\nnice_usec 0\nnr_periods 12\nnr_throttled 3\n",
    ),
    (
        "cpu.pressure",
        "some avg10=1.25 avg60=0.50 avg300=0.07 total=98765\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=4321\n",
    ),
    ("memory.current", "10485760\n"),
    ("memory.max", "134217728\n"),
    (
        "memory.stat",
        "anon 4096000\nfile 5242880\nkernel 102400\nfile_mapped 0\ninactive_anon 4000000\nactive_anon 96000\n\
         inactive_file 3145728\nactive_file 2097152\npgfault 777\npgmajfault 7\n",
    ),
    ("memory.swap.current", "8192\n"),
    ("memory.swap.max", "max\n"),
    (
        "memory.pressure",
        "some avg10=0.00 avg60=0.00 avg300=0.00 total=0\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=0\n",
    ),
    ("pids.current", "5\n"),
];

fn fake(dir: &Path) -> Cgroup {
    let root = CgroupRoot::open_anywhere(dir).unwrap();
    root.find(&CgroupPath::root()).unwrap().unwrap()
}

#[test]
fn counters_are_read_as_the_kernel_writes_them() {
    let temp = tempfile::tempdir().unwrap();
    for (name, text) in FILES {
        fs::write(temp.path().join(name), text).unwrap();
    }
    let (group, mut reader) = (fake(temp.path()), StatsReader::default());

    let cpu = reader.cpu(&group).unwrap();
    assert_eq!(cpu.usage_usec, Some(1_234_567));
    assert_eq!((cpu.user_usec, cpu.system_usec), (Some(1_000_000), Some(234_567)));
    assert_eq!((cpu.periods, cpu.throttled_periods), (Some(12), Some(3)));
    assert_eq!(cpu.throttled_usec, None);
    let line = |total_usec, avg10, avg60, avg300| PressureLine {
        total_usec,
        avg10,
        avg60,
        avg300,
    };
    let stalled = cpu.pressure.unwrap();
    assert_eq!(stalled.some, line(98_765, 1.25, 0.5, 0.07));
    assert_eq!(stalled.full, line(4321, 0.0, 0.0, 0.0));

    let memory = reader.memory(&group).unwrap();
    let expected = MemoryStats {
        usage: Some(10_485_760),
        limit: Some(134_217_728),
        inactive_file: Some(3_145_728),
        file: Some(5_242_880),
        active_file: Some(2_097_152),
        file_mapped: Some(0),
        kernel: Some(102_400),
        anon: Some(4_096_000),
        page_faults: Some(777),
        major_page_faults: Some(7),
        swap_usage: Some(8192),
        swap_limit: None,
        pressure: Some(Pressure::default()),
    };
    assert_eq!(memory, expected);
    assert_eq!(memory.working_set(), Some(10_485_760 - 3_145_728));

    assert_eq!(reader.io_pressure(&group).unwrap(), None);
    assert_eq!(reader.tasks(&group).unwrap(), Some(5));
}

#[test]
fn what_is_missing_is_absent() {
    let temp = tempfile::tempdir().unwrap();
    let (group, mut reader) = (fake(temp.path()), StatsReader::default());
    assert_eq!(reader.cpu(&group).unwrap(), CpuStats::default());
    assert_eq!(reader.memory(&group).unwrap(), MemoryStats::default());
    assert_eq!(reader.memory(&group).unwrap().working_set(), None);
    assert_eq!(reader.tasks(&group).unwrap(), None);

    // Old kernels lack keys and lines; text that makes no sense is no number.
    fs::write(temp.path().join("cpu.stat"), "user_usec 1\n").unwrap();
    fs::write(
        temp.path().join("cpu.pressure"),
        "some avg10=2.00 avg60=x total=9\n",
    )
    .unwrap();
    fs::write(temp.path().join("pids.current"), "many\n").unwrap();
    let cpu = reader.cpu(&group).unwrap();
    assert_eq!(cpu.usage_usec, None);
    let stalled = cpu.pressure.unwrap();
    assert_eq!((stalled.some.avg10, stalled.some.total_usec), (2.0, 9));
    assert_eq!(stalled.full, PressureLine::default());
    assert_eq!(reader.tasks(&group).unwrap(), None);
}

#[test]
fn a_working_set_is_never_negative() {
    let memory = MemoryStats {
        usage: Some(10),
        inactive_file: Some(11),
        ..MemoryStats::default()
    };
    assert_eq!(memory.working_set(), Some(0));
}

#[test]
fn what_cannot_be_read_is_an_error_that_names_the_file() {
    let temp = tempfile::tempdir().unwrap();
    let (group, mut reader) = (fake(temp.path()), StatsReader::default());
    fs::create_dir(temp.path().join("cpu.stat")).unwrap();
    assert!(matches!(
        reader.cpu(&group),
        Err(CgroupError::Read { file, .. }) if file == "cpu.stat"
    ));
    fs::write(temp.path().join("pids.current"), vec![b'1'; BUFFER]).unwrap();
    assert!(matches!(
        reader.tasks(&group),
        Err(CgroupError::Read {
            source: Errno::FBIG,
            ..
        })
    ));
}

#[test]
fn root_the_kernels_own_files_are_understood() {
    let Some(real) = Real::new("stats") else { return };
    let path: CgroupPath = "busy".parse().unwrap();
    let group = real.root.create(&path).unwrap();
    let mut reader = StatsReader::default();
    let controllers = group.controllers().unwrap();
    let mut child = sleeper(&group);

    let usage = reader.cpu(&group).unwrap().usage_usec.unwrap();
    let text = group.read("cpu.stat").unwrap();
    let after = files::keyed(&text, "usage_usec").unwrap();
    assert!(usage <= after, "{usage} {after}");
    if controllers.has("memory") {
        let memory = reader.memory(&group).unwrap();
        assert!(memory.working_set() <= memory.usage && memory.usage > Some(0));
    } else {
        assert_eq!(reader.memory(&group).unwrap().usage, None);
    }
    if controllers.has("pids") {
        assert_eq!(reader.tasks(&group).unwrap(), Some(1));
    }

    group.kill().unwrap();
    child.wait().unwrap();
    group.wait_empty(soon()).unwrap();
    real.root.remove(&path, soon()).unwrap();
    // Removed while it was open.
    assert_eq!(reader.cpu(&group).unwrap(), CpuStats::default());
    assert_eq!(reader.memory(&group).unwrap(), MemoryStats::default());
}

/// Says what a read costs on this machine at its best: with the directory kept open, and opened anew each time.
#[test]
#[ignore = "measures, proves nothing: run with --ignored --nocapture"]
fn root_cost_of_a_read() {
    let Some(real) = Real::new("cost") else { return };
    let path: CgroupPath = "kubepods/pod/container".parse().unwrap();
    let kept = real.root.create(&path).unwrap();
    let mut reader = StatsReader::default();
    let mut all = |group: &Cgroup| {
        reader.cpu(group).unwrap();
        reader.memory(group).unwrap();
        reader.io_pressure(group).unwrap();
    };
    let (mut open, mut opened) = (Duration::MAX, Duration::MAX);
    for _ in 0..5000 {
        let began = Instant::now();
        all(&kept);
        open = open.min(began.elapsed());
        let began = Instant::now();
        all(&real.root.find(&path).unwrap().unwrap());
        opened = opened.min(began.elapsed());
    }
    eprintln!("kept open {open:?}, opened each time {opened:?}");
    real.root.remove(&"kubepods".parse().unwrap(), soon()).unwrap();
}
