//! Who runs the poll loop. One thread does; a second one sleeps, and takes over when the first hangs in the write of a
//! log, for the disk below it does not answer. The first comes back when the disk does, and sleeps then.
//!
//! What may hang is done without the lock on the [`Keeper`], on what it has lent ([`Loan`]). There is one loan at a
//! time: who has taken over lends nothing, so that it cannot hang as well. The alarm is a timer that is set ahead of the
//! work now and then, not for each write; where nothing is written, nobody wakes up.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::epoll;
use rustix::fd::OwnedFd;
use rustix::io::{Errno, Result, read};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use sys::thread::{Guard, Mutex, start};

use crate::keeper::Keeper;
use crate::loan::Loan;
use crate::task::uptime;

/// How long work on a log may take before the other thread takes over, in ns; at most twice as long.
const HANG: u64 = 250_000_000;

/// Exit status, for people who read it in podd's log.
const LOOP_FAILED: u32 = 65;

struct Shared {
    epoll: OwnedFd,
    keeper: Mutex<Keeper>,
    alarm: OwnedFd,
    /// When the alarm goes off, in ns since boot, as the thread that works believes.
    set_to: AtomicU64,
    /// Since when there is work on a loan; 0 while there is none.
    since: AtomicU64,
    /// Whether there is a second thread.
    two: AtomicBool,
}

/// Runs the loop until podd says quit.
pub fn run(keeper: Keeper, epoll: OwnedFd) -> Result<()> {
    let shared: &'static Shared = Box::leak(Box::new(Shared {
        epoll,
        keeper: Mutex::new(keeper),
        alarm: timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC)?,
        set_to: AtomicU64::new(0),
        since: AtomicU64::new(0),
        two: AtomicBool::new(false),
    }));
    shared.lead(0)?;
    second(shared)
}

fn second(shared: &'static Shared) -> ! {
    loop {
        let turn = shared.follow();
        if shared.lead(turn).is_err() {
            sys::clone::exit(LOOP_FAILED);
        }
    }
}

impl Shared {
    /// Works until the other thread has taken over.
    fn lead(&'static self, turn: u32) -> Result<()> {
        let mut keeper = self.keeper.lock();
        loop {
            let timeout = keeper.until_deadline();
            drop(keeper);
            let mut space = [MaybeUninit::<epoll::Event>::uninit(); 16];
            let ready: Vec<u64> = match epoll::wait(&self.epoll, &mut space, timeout.as_ref()) {
                Ok((events, _)) => events.iter().map(|event| event.data.u64()).collect(),
                Err(Errno::INTR) => Vec::new(),
                Err(errno) => return Err(errno),
            };
            keeper = self.keeper.lock();
            for data in ready {
                keeper.handle(data);
                keeper = self.work(keeper, turn);
            }
            keeper.end_waits();
            if keeper.is_over() {
                sys::clone::exit(0);
            }
            if keeper.turn != turn {
                return Ok(());
            }
        }
    }

    /// Does what may hang, as long as there is some of it.
    fn work(&'static self, mut keeper: Guard<'static, Keeper>, turn: u32) -> Guard<'static, Keeper> {
        while let Some(mut loan) = keeper.lend(turn) {
            drop(keeper);
            self.perform(&mut loan);
            keeper = self.keeper.lock();
            keeper.take_back(loan);
        }
        keeper
    }

    fn perform(&'static self, loan: &mut Loan) {
        let now = uptime();
        self.since.store(now, Ordering::Relaxed);
        if !self.two.load(Ordering::Relaxed) {
            // Without it a log that hangs makes everything wait; the next work tries again.
            self.two.store(start(self, second).is_ok(), Ordering::Relaxed);
        }
        if self.set_to.load(Ordering::Relaxed) < now + HANG {
            self.set_to.store(now + 2 * HANG, Ordering::Relaxed);
            self.set_alarm(2 * HANG);
        }
        loan.perform();
        self.since.store(0, Ordering::Relaxed);
    }

    fn set_alarm(&self, nanos: u64) {
        let none = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let time = Itimerspec {
            it_interval: none,
            it_value: Timespec {
                tv_nsec: nanos.cast_signed(),
                ..none
            },
        };
        let _ = timerfd_settime(&self.alarm, TimerfdTimerFlags::empty(), &time);
    }

    /// Sleeps until the other thread hangs; the number of the turn that begins then.
    fn follow(&self) -> u32 {
        loop {
            let _ = read(&self.alarm, &mut [0u8; 8]);
            // It is not set any more, whatever was believed.
            self.set_to.store(0, Ordering::Relaxed);
            let since = self.since.load(Ordering::Relaxed);
            if since == 0 {
                continue;
            }
            let lasts = uptime().saturating_sub(since);
            if lasts < HANG {
                self.set_alarm(HANG - lasts);
                continue;
            }
            let mut keeper = self.keeper.lock();
            // It may have come back just now.
            if self.since.load(Ordering::Relaxed) == since {
                return keeper.take_over();
            }
        }
    }
}
