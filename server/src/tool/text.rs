//! Text for people: what comes from a container is escaped and cut, numbers get units. Pure.

/// Longest command line, path or name that a table shows, in characters.
pub const LONGEST: usize = 512;

/// Appends `text` with everything that a terminal might obey, or would not show, as an escape.
fn append_safe(out: &mut String, text: &str) {
    for c in text.chars() {
        let mut escaped = c.escape_debug();
        match (c, escaped.len()) {
            (' '..='~', _) => out.push(c),
            // What escape_debug leaves alone is printable: no control, format or direction character.
            (_, 1) => out.push(c),
            _ => out.extend(&mut escaped),
        }
    }
}

/// `text` without anything that a terminal might obey.
#[must_use]
pub fn safe(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    append_safe(&mut out, text);
    out
}

/// `text` for a terminal that may show tabs and colours, and nothing else that it would obey.
#[must_use]
pub fn guarded(text: &str) -> String {
    let (mut out, mut rest, mut coloured) = (String::with_capacity(text.len()), text, false);
    while let Some(at) = rest.find(['\t', '\x1b']) {
        append_safe(&mut out, &rest[..at]);
        rest = &rest[at..];
        let kept = if rest.starts_with('\t') { 1 } else { colour(rest) };
        coloured |= kept > 1;
        if kept == 0 {
            append_safe(&mut out, "\x1b");
        } else {
            out.push_str(&rest[..kept]);
        }
        rest = &rest[kept.max(1)..];
    }
    append_safe(&mut out, rest);
    // What follows is not the container's.
    if coloured {
        out.push_str("\x1b[0m");
    }
    out
}

/// The length of the sequence that sets colours (ECMA-48, SGR) at the beginning of `text`; 0 where there is none.
fn colour(text: &str) -> usize {
    let Some(rest) = text.strip_prefix("\x1b[") else {
        return 0;
    };
    let parameters = rest
        .bytes()
        .take(32)
        .take_while(|b| b.is_ascii_digit() || *b == b';')
        .count();
    match rest.as_bytes().get(parameters) {
        Some(b'm') => 2 + parameters + 1,
        _ => 0,
    }
}

/// `text` in at most `longest` characters, the last of them an ellipsis where something is missing.
#[must_use]
pub fn cut(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        None => text.to_owned(),
        Some(_) => {
            let kept = longest.saturating_sub(1);
            let end = text.char_indices().nth(kept).map_or(text.len(), |(at, _)| at);
            format!("{}…", &text[..end])
        }
    }
}

/// `text` for a table: safe, cut, and `-` where there is none.
#[must_use]
pub fn cell(text: &str) -> String {
    // Before and after: escapes make text longer.
    let text = cut(&safe(&cut(text, LONGEST)), LONGEST);
    if text.is_empty() { "-".to_owned() } else { text }
}

/// `text` and spaces, safe, up to a number of characters.
#[must_use]
pub fn padded(text: &str, width: usize) -> String {
    let mut out = safe(text);
    let missing = width.saturating_sub(out.chars().count());
    out.extend(std::iter::repeat_n(' ', missing));
    out
}

/// As much of an id as people read, as crictl does.
#[must_use]
pub fn short(id: &str) -> &str {
    id.get(..13).unwrap_or(id)
}

/// Bytes with a binary unit.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let (mut whole, mut tenths) = (count, 0);
    let mut unit = "";
    for next in UNITS {
        if whole < 1024 {
            break;
        }
        tenths = whole % 1024 * 10 / 1024;
        whole /= 1024;
        unit = next;
    }
    if whole < 100 {
        format!("{whole}.{tenths} {unit}")
    } else {
        format!("{whole} {unit}")
    }
}

/// `part` of `whole` in percent, with one digit; more than 100 where several processors work.
#[must_use]
pub fn percent(part: u64, whole: u64) -> String {
    let tenths = u128::from(part) * 1000 / u128::from(whole.max(1));
    format!("{}.{}", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_a_terminal_obeys_comes_through() {
        for (text, want) in [
            ("plain \\ \"text\" 'ü' 日本", "plain \\ \"text\" 'ü' 日本"),
            ("a\x1b[2Jb", "a\\u{1b}[2Jb"),
            ("a\nb\tc\rd\0", "a\\nb\\tc\\rd\\0"),
            ("\u{9b}31m", "\\u{9b}31m"),
            ("abc\u{202e}cba", "abc\\u{202e}cba"),
            ("zero\u{200b}width", "zero\\u{200b}width"),
        ] {
            assert_eq!(safe(text), want);
        }
    }

    #[test]
    fn terminals_obey_colours_only() {
        for (text, want) in [
            ("a\tb", "a\tb"),
            ("\x1b[1;31mred\x1b[m!", "\x1b[1;31mred\x1b[m!\x1b[0m"),
            ("\x1b]0;title\x07", "\\u{1b}]0;title\\u{7}"),
            ("\x1b[31", "\\u{1b}[31"),
            ("a\rb\x1b", "a\\rb\\u{1b}"),
        ] {
            assert_eq!(guarded(text), want);
        }
    }

    #[test]
    fn cells_are_bounded() {
        assert_eq!(cut("abcdef", 6), "abcdef");
        assert_eq!(cut("abcdefg", 6), "abcde…");
        assert_eq!(cut("üüüü", 3), "üü…");
        assert_eq!(cell("\x1b".repeat(100_000).as_str()).chars().count(), LONGEST);
        assert_eq!(cell(""), "-");
    }

    #[test]
    fn numbers_have_units() {
        for (count, want) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1_600_000, "1.5 MiB"),
            (200 << 20, "200 MiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(bytes(count), want);
        }
        assert_eq!(percent(1, 3), "33.3");
        assert_eq!(percent(5, 2), "250.0");
        assert_eq!(percent(5, 0), "500.0");
        assert_eq!(short("0123456789abcdef"), "0123456789abc");
        assert_eq!(short("abc"), "abc");
    }
}
