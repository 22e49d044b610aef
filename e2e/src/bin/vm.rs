//! Runs a command in a virtual machine: `vm [--kernel 6.1|6.12] [--systemd | --selinux] [--podd] [--] COMMAND [ARG…]`.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result};
use clap::Parser;
use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use podd_e2e::vm::{self, Init, Kernel, Machine, Order};

/// Boots a Debian kernel with every cgroup controller and runs a command in it; this machine's files are seen
/// read-only, what is written is gone afterwards.
#[derive(Debug, Parser)]
struct Options {
    /// The kernel: 6.1 or 6.12.
    #[arg(long, default_value = "6.12")]
    kernel: Kernel,
    /// Boot systemd as process 1.
    #[arg(long, conflicts_with = "selinux")]
    systemd: bool,
    /// Boot with SELinux enforcing Debian's policy.
    #[arg(long)]
    selinux: bool,
    /// Start a registry and podd beside the command, in an arena inside.
    #[arg(long)]
    podd: bool,
    /// End the virtual machine after so many seconds.
    #[arg(long, default_value_t = 3600)]
    limit: u64,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        Err(e) => {
            eprintln!("vm: {e:#}");
            ExitCode::from(125)
        }
    }
}

fn run() -> Result<i32> {
    let options = Options::parse();
    if let Some(reason) = vm::unable() {
        anyhow::bail!(reason);
    }
    let init = if options.systemd {
        Init::Systemd
    } else if options.selinux {
        Init::Selinux
    } else {
        Init::Small
    };
    let machine = Machine::prepare(options.kernel, init)?;
    let mut words = options.command;
    if options.podd {
        let arena = vm::program("arena")?.to_string_lossy().into_owned();
        words.splice(0..0, [arena, "--podd".to_owned(), "--".to_owned()]);
    }
    let terminal = std::io::stdin().is_terminal() && std::io::stdout().is_terminal();
    let order = Order {
        command: words,
        terminal,
        ..Order::new(&[], Duration::from_secs(options.limit))
    };
    let _raw = terminal.then(RawTerminal::set).transpose()?;
    Ok(machine.run(&order, &mut |line| println!("{line}"))?.code)
}

/// The terminal passes every key on to the guest, until the value ends.
struct RawTerminal(Termios);

impl RawTerminal {
    fn set() -> Result<Self> {
        let before = tcgetattr(std::io::stdin()).context("read the terminal's settings")?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(std::io::stdin(), SetArg::TCSANOW, &raw).context("set the terminal")?;
        Ok(Self(before))
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), SetArg::TCSADRAIN, &self.0);
    }
}
