//! The levels that pods are told apart by: pairs of categories.
//!
//! Two sets of two categories never contain each other, so that no pod reaches what is another's.

/// All pairs of different categories, in one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pairs {
    categories: u32,
}

impl Pairs {
    /// Those of the categories 0 to `categories` - 1, two at least.
    #[must_use]
    pub fn new(categories: u16) -> Self {
        Self {
            categories: u32::from(categories).max(2),
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(self) -> u32 {
        self.categories * (self.categories - 1) / 2
    }

    /// Each of them once, the lower category first, beginning anywhere.
    pub fn from(self, start: u32) -> impl Iterator<Item = (u32, u32)> {
        let (low, high) = self.at(start % self.count());
        let follow = move |&(low, high): &(u32, u32)| {
            Some(if high + 1 < self.categories {
                (low, high + 1)
            } else if low + 2 < self.categories {
                (low + 1, low + 2)
            } else {
                (0, 1)
            })
        };
        std::iter::successors(Some((low, high)), follow).take(self.count() as usize)
    }

    fn at(self, mut index: u32) -> (u32, u32) {
        let mut low = 0;
        loop {
            let above = self.categories - 1 - low;
            if index < above {
                return (low, low + 1 + index);
            }
            (index, low) = (index - above, low + 1);
        }
    }
}
