//! Times: nanoseconds since the Unix epoch, as the CRI counts, and text. Pure but for the clock.

use std::time::{SystemTime, UNIX_EPOCH};

const SECOND: i64 = 1_000_000_000;
const DAY: i64 = 86_400;

/// A text is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a time like 2026-01-31T12:00:00Z nor an age like 90s, 5m, 1h30m or 2d")]
pub struct NoTime(String);

/// Now.
#[must_use]
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// RFC 3339 in UTC with all nanoseconds, as the lines of container logs begin. Text compares as time does.
#[must_use]
pub fn stamp(nanos: i64) -> String {
    let (seconds, rest) = (nanos.div_euclid(SECOND), nanos.rem_euclid(SECOND));
    let (days, in_day) = (seconds.div_euclid(DAY), seconds.rem_euclid(DAY));
    let (year, month, day) = civil(days);
    format!(
        "{year:04}-{month:02}-{day:02}T{:02}:{:02}:{:02}.{rest:09}Z",
        in_day / 3600,
        in_day / 60 % 60,
        in_day % 60
    )
}

/// A time for people, to the second; `-` for none.
#[must_use]
pub fn clock(nanos: i64) -> String {
    match nanos {
        0 => "-".to_owned(),
        _ => format!("{}Z", &stamp(nanos)[..19]),
    }
}

/// How long ago `then` was, in its largest unit, or two where they are small.
#[must_use]
pub fn age(then: i64, now: i64) -> String {
    if then <= 0 {
        return "-".to_owned();
    }
    match now.saturating_sub(then).max(0) / SECOND {
        s @ ..120 => format!("{s}s"),
        s @ 120..7200 => format!("{}m", s / 60),
        s @ 7200..172_800 => format!("{}h", s / 3600),
        s => format!("{}d", s / DAY),
    }
}

/// A time in RFC 3339, or that long before `now`.
///
/// # Errors
/// The text is neither.
pub fn since(text: &str, now: i64) -> Result<i64, NoTime> {
    let found = match duration(text) {
        Some(seconds) => seconds.checked_mul(SECOND).map(|ago| now.saturating_sub(ago)),
        None => rfc3339(text),
    };
    found.ok_or_else(|| NoTime(text.to_owned()))
}

/// Seconds of numbers with units.
fn duration(text: &str) -> Option<i64> {
    let (mut rest, mut sum) = (text, 0i64);
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: i64 = rest[..digits].parse().ok()?;
        let unit = match rest.as_bytes()[digits] {
            b's' => 1,
            b'm' => 60,
            b'h' => 3600,
            b'd' => DAY,
            _ => return None,
        };
        sum = sum.checked_add(number.checked_mul(unit)?)?;
        rest = &rest[digits + 1..];
    }
    (!text.is_empty()).then_some(sum)
}

fn rfc3339(text: &str) -> Option<i64> {
    let bytes = text.as_bytes();
    if bytes.get(..19)?.iter().any(|b| !b.is_ascii()) || !matches!(bytes[10], b'T' | b't' | b' ') {
        return None;
    }
    let separated = [(4, b'-'), (7, b'-'), (13, b':'), (16, b':')];
    if separated.iter().any(|(at, mark)| bytes[*at] != *mark) {
        return None;
    }
    let number = |at: usize, length: usize, most: i64| -> Option<i64> {
        let digits = text.get(at..at + length)?;
        let all = digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse().ok().filter(|n| all && *n <= most)
    };
    let (year, month, day) = (number(0, 4, 9999)?, number(5, 2, 12)?, number(8, 2, 31)?);
    let (hour, minute, second) = (number(11, 2, 23)?, number(14, 2, 59)?, number(17, 2, 60)?);
    let days = day_number(year, month, day);
    if civil(days) != (year, month, day) {
        return None;
    }
    let (mut rest, mut nanos) = (&text[19..], 0);
    if let Some(fraction) = rest.strip_prefix('.') {
        let digits = fraction.bytes().take_while(u8::is_ascii_digit).count();
        nanos = format!("{:0<9}", &fraction[..digits]).get(..9)?.parse().ok()?;
        rest = fraction.get(digits..).filter(|_| digits > 0)?;
    }
    let offset = offset(rest)?;
    let seconds = days * DAY + hour * 3600 + minute * 60 + second - offset;
    seconds.checked_mul(SECOND)?.checked_add(nanos)
}

/// Seconds that a zone is ahead of UTC.
fn offset(text: &str) -> Option<i64> {
    let digits = |tens: u8, ones: u8| {
        let both = tens.is_ascii_digit() && ones.is_ascii_digit();
        both.then(|| i64::from(tens - b'0') * 10 + i64::from(ones - b'0'))
    };
    match *text.as_bytes() {
        [b'Z' | b'z'] => Some(0),
        [sign @ (b'+' | b'-'), h, hh, b':', m, mm] => {
            let seconds = digits(h, hh)? * 3600 + digits(m, mm)? * 60;
            Some(if sign == b'+' { seconds } else { -seconds })
        }
        _ => None,
    }
}

/// Days since the epoch of a date; months count from March, so that the leap day comes last in its year.
fn day_number(year: i64, month: i64, day: i64) -> i64 {
    let (year, month) = if month > 2 {
        (year, month - 3)
    } else {
        (year - 1, month + 9)
    };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// Year, month and day of a number of days since the epoch.
fn civil(days: i64) -> (i64, i64, i64) {
    let (era, of_era) = (
        (days + 719_468).div_euclid(146_097),
        (days + 719_468).rem_euclid(146_097),
    );
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + i64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_logs_write_them() {
        for (nanos, want) in [
            (0, "1970-01-01T00:00:00.000000000Z"),
            (1_475_713_029_669_794_202, "2016-10-06T00:17:09.669794202Z"),
            (951_868_799_999_999_999, "2000-02-29T23:59:59.999999999Z"),
            (4_107_542_400_000_000_000, "2100-03-01T00:00:00.000000000Z"),
            (-1, "1969-12-31T23:59:59.999999999Z"),
        ] {
            assert_eq!(stamp(nanos), want);
            assert_eq!(since(want, 7), Ok(nanos));
        }
        assert_eq!(clock(1_475_713_029_669_794_202), "2016-10-06T00:17:09Z");
        assert_eq!(clock(0), "-");
    }

    #[test]
    fn since_is_a_time_or_an_age() {
        let now = 1_000_000 * SECOND;
        for (text, seconds) in [
            ("90s", 90),
            ("5m", 300),
            ("1h30m", 5400),
            ("2d", 2 * DAY),
            ("0s", 0),
        ] {
            assert_eq!(since(text, now), Ok(now - seconds * SECOND), "{text}");
        }
        for (text, seconds) in [
            ("1970-01-01T01:00:00+01:00", 0),
            ("1970-01-01T00:00:00-00:30", 1800),
            ("1970-01-01 00:01:00.5Z", 60),
        ] {
            assert_eq!(since(text, now).unwrap() / SECOND, seconds, "{text}");
        }
        for text in [
            "",
            "5",
            "m",
            "5x",
            "-5m",
            "99999999999999999999s",
            "2026-02-30T00:00:00Z",
            "2026-01-01",
            "2026-01-01T00:00:00",
            "2026-01-01T00:00:00+0100",
            "2026-01-01T00:00:00.Z",
            "2026-01-01T25:00:00Z",
            "20ü6-01-01T00:00:00Z",
            "2026-01-01T00:00:00+01:0ü",
        ] {
            assert_eq!(since(text, now), Err(NoTime(text.to_owned())), "{text}");
        }
    }

    #[test]
    fn ages_are_short() {
        let now = 1_000_000 * SECOND;
        for (seconds, want) in [
            (5, "5s"),
            (119, "119s"),
            (180, "3m"),
            (7200, "2h"),
            (200_000, "2d"),
        ] {
            assert_eq!(age(now - seconds * SECOND, now), want);
        }
        assert_eq!(age(now + SECOND, now), "0s");
        assert_eq!(age(0, now), "-");
    }
}
