//! Filters that were compiled before. A node has a handful of profiles and starts many containers.

use std::sync::{Arc, Mutex, PoisonError};

use oci_spec::runtime::LinuxSeccomp;

use super::{Filter, SeccompError, compile};

/// Profiles kept; a node with more of them compiles some again.
const KEPT: usize = 32;

/// Compiled filters by profile, the latest used first.
#[derive(Debug, Default)]
pub struct FilterCache {
    known: Mutex<Vec<(LinuxSeccomp, Arc<Filter>)>>,
}

impl FilterCache {
    /// The filter of a profile, compiled unless it was before.
    ///
    /// # Errors
    /// The profile does not compile; that is not remembered.
    pub fn get(&self, profile: &LinuxSeccomp) -> Result<Arc<Filter>, SeccompError> {
        // A panic while it is held leaves a list that is still a list of good filters.
        let lock = || self.known.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut known = lock();
            if let Some(at) = known.iter().position(|(old, _)| old == profile) {
                known[..=at].rotate_right(1);
                return Ok(Arc::clone(&known[0].1));
            }
        }
        let filter = Arc::new(compile(profile)?);
        let mut known = lock();
        known.insert(0, (profile.clone(), Arc::clone(&filter)));
        known.truncate(KEPT);
        Ok(filter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::CapSet;
    use crate::seccomp::{KernelVersion, default_profile};

    #[test]
    fn a_profile_is_compiled_once_and_the_least_used_is_forgotten() {
        let cache = FilterCache::default();
        let profile = |bits| default_profile(CapSet::from_bits(bits), KernelVersion::new(6, 1));
        let first = cache.get(&profile(0)).unwrap();
        assert!(Arc::ptr_eq(&first, &cache.get(&profile(0)).unwrap()));
        for bit in 16..27 {
            cache.get(&profile(1 << bit)).unwrap();
        }
        assert!(Arc::ptr_eq(&first, &cache.get(&profile(0)).unwrap()));
        assert!(cache.known.lock().unwrap().len() <= KEPT);
    }
}
