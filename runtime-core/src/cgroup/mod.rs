//! cgroup v2: directories, limits, devices, kill and wait.
//!
//! Owns the files below one cgroup2 mount, or below a part of it that was given to podd. Everything is opened
//! beneath that directory's descriptor; no path is used twice. Knows neither pods nor drivers: who asks for
//! systemd's consent does so before it comes here. The law is Documentation/admin-guide/cgroup-v2.rst.

mod account;
mod devices;
mod error;
mod files;
mod group;
mod limits;
mod oom_score;
mod path;
mod root;
mod stats;
#[cfg(test)]
mod tests;
mod update;

pub use account::{Account, Bound};
pub use devices::{DeviceControl, DeviceProgram, DeviceRules};
pub use error::CgroupError;
pub use group::{Cgroup, MemoryEvents};
pub use limits::{Limits, Phase, shares_of_weight, weight_of_shares};
pub use path::{CgroupPath, CgroupPathError};
pub use root::{CgroupRoot, Controllers};
pub use stats::{CpuStats, IoStats, MemoryStats, Pressure, PressureLine, StatsReader};
pub use update::Updated;
