//! The text of a context, `user:role:type[:level]`, and of the files that name contexts.

use std::fmt;

use crate::model::SelinuxLabel;

/// A context in its parts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// SELinux user.
    pub user: String,
    /// Role.
    pub role: String,
    /// Type; for a process its domain.
    pub kind: String,
    /// Level or range of levels; none under a policy without them.
    pub level: Option<String>,
}

impl Context {
    /// Takes a context apart; none where parts are missing.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let mut parts = text.splitn(4, ':').map(str::to_owned);
        let (user, role, kind) = (parts.next()?, parts.next()?, parts.next()?);
        let whole = ![&user, &role, &kind].iter().any(|part| part.is_empty());
        whole.then(|| Self {
            user,
            role,
            kind,
            level: parts.next(),
        })
    }

    /// The same with the parts that a request names. A level is nothing to a policy that has none.
    #[must_use]
    pub fn with(mut self, named: Option<&SelinuxLabel>) -> Self {
        let Some(named) = named else { return self };
        let parts = [
            (&mut self.user, &named.user),
            (&mut self.role, &named.role),
            (&mut self.kind, &named.kind),
        ];
        for (part, name) in parts.into_iter().filter(|(_, name)| !name.is_empty()) {
            part.clone_from(name);
        }
        if let Some(level) = &mut self.level
            && !named.level.is_empty()
        {
            level.clone_from(&named.level);
        }
        self
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.user, self.role, self.kind)?;
        match &self.level {
            Some(level) => write!(f, ":{level}"),
            None => Ok(()),
        }
    }
}

/// Whether a text is a level or a range of them, as the kernel writes it: `s0`, `s0:c1,c4.c7`, `s0-s3:c0.c1023`.
#[must_use]
pub fn is_level(text: &str) -> bool {
    let number = |text: &str, letter| {
        let digits = text.strip_prefix(letter).unwrap_or_default();
        !digits.is_empty() && digits.len() <= 4 && digits.bytes().all(|b| b.is_ascii_digit())
    };
    let categories = |text: &str| {
        let mut all = text.split(',');
        all.all(|some| some.splitn(2, '.').all(|one| number(one, 'c')))
    };
    let level = |text: &str| match text.split_once(':') {
        Some((sensitivity, some)) => number(sensitivity, 's') && categories(some),
        None => number(text, 's'),
    };
    text.splitn(2, '-').all(level)
}

/// The value of `key = "value"` in a file of such lines.
pub fn entry<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    let mut pairs = text.lines().filter_map(|line| line.split_once('='));
    let found = pairs.find(|(name, _)| name.trim() == key);
    found.map(|(_, value)| value.trim().trim_matches('"'))
}
