//! What is said about a scenario beside its verdict: the checks that did not hold, where they
//! stand, and the ends of the logs.

use super::{Colour, Style};
use crate::scenario::event::Logs;
use crate::scenario::text::{caret, clean, head, tail};
use crate::scenario::verdict::{Check, Outcome, ScriptPos};

/// Lines of a value that are shown.
const VALUE_LINES: usize = 30;

/// One failed check, as lines without indentation:
///
/// ```text
/// fail: every worker is tracked
///   expected: 4
///      found: 3
///       from: map task_ctx, tag "end", at 1.20 s
///   --> scripts/smoke.rhai:42:5
///    |
/// 42 |     expect(snap.map("task_ctx").len).eq(4);
///    |     ^
/// ```
pub(super) fn check(check: &Check, style: Style) -> Vec<String> {
    let colour = colour_of(check.outcome);
    let word = style.paint(colour, check.outcome.word());
    let mut out = vec![format!("{word}: {}", style.paint(Colour::Bold, &one_line(&check.label)))];
    if let Some(message) = &check.message {
        out.extend(indented(&block(message, style)));
    }
    let parts = [("expected", &check.expected), ("found", &check.found), ("from", &check.origin)];
    for (name, value) in parts {
        let Some(value) = value else { continue };
        for (i, line) in block(value, style).iter().enumerate() {
            let name = if i == 0 { format!("{name}:") } else { String::new() };
            out.push(format!("  {name:>9} {line}"));
        }
    }
    if let Some(at) = &check.at {
        out.extend(place(at, style));
    }
    out
}

/// A place in a script, as lines.
pub(super) fn place(at: &ScriptPos, style: Style) -> Vec<String> {
    indented(&caret(at, style.width.saturating_sub(8)))
}

/// The last `lines` lines of each log, as lines, unless they have been `said`.
pub(super) fn logs(logs: &Logs, said: &str, lines: usize, style: Style) -> Vec<String> {
    let mut out = Vec::new();
    let console = since_init(&logs.console);
    for (name, log) in [("the scheduler's log", logs.scheduler.as_str()), ("the console", console)]
    {
        let log = clean(log);
        let end = tail(&log, lines, 8 << 10);
        if end.trim().is_empty() || said.contains(end.trim()) {
            continue;
        }
        out.push(style.paint(Colour::Dim, &format!("end of {name}:")));
        out.extend(end.lines().map(|line| format!("{} {line}", style.paint(Colour::Dim, "│"))));
    }
    out
}

/// What a console has from the start of the first process on. How the kernel got there matters
/// only if it did not: then this is everything.
fn since_init(console: &str) -> &str {
    let line = console.rfind("] Run /init as init process");
    let end = line.and_then(|line| Some(line + console[line..].find('\n')? + 1));
    &console[end.unwrap_or(0)..]
}

/// The colour of an outcome.
pub(super) fn colour_of(outcome: Outcome) -> Colour {
    match outcome {
        Outcome::Pass => Colour::Green,
        Outcome::Skip => Colour::Blue,
        Outcome::Inconclusive => Colour::Yellow,
        Outcome::Fail | Outcome::Error => Colour::Red,
    }
}

/// Text of any length as some lines of some width.
pub(super) fn block(text: &str, style: Style) -> Vec<String> {
    // A message is cut less readily than a value: its end often says what to do.
    let width = style.width.max(40) * 8;
    head(clean(text).trim_end(), VALUE_LINES, width)
}

/// Text on one line.
pub(super) fn one_line(text: &str) -> String {
    clean(text).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Lines, two columns to the right.
pub(super) fn indented(lines: &[String]) -> Vec<String> {
    lines.iter().map(|line| format!("  {line}").trim_end().to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_check_says_everything_in_order() {
        let at = ScriptPos {
            file: "scripts/a.rhai".into(),
            line: 42,
            column: 5,
            text: "    expect(snap.map(\"task_ctx\").len).eq(4);".into(),
        };
        let failed = Check::fail("every worker is tracked", "too few\nentries")
            .compared("4", "#{\n  len: 3\n}")
            .origin(Some("map task_ctx, tag \"end\"".into()))
            .at(Some(at));
        let lines = check(&failed, Style::plain());
        let want = [
            "fail: every worker is tracked",
            "  too few",
            "  entries",
            "  expected: 4",
            "     found: #{",
            "              len: 3",
            "            }",
            "      from: map task_ctx, tag \"end\"",
            "    --> scripts/a.rhai:42:5",
            "     |",
            "  42 |     expect(snap.map(\"task_ctx\").len).eq(4);",
            "     |     ^",
        ];
        assert_eq!(lines, want, "{lines:#?}");
    }

    #[test]
    fn only_the_ends_of_logs_are_shown_and_nothing_of_empty_ones() {
        assert!(logs(&Logs::default(), "", 5, Style::plain()).is_empty());
        let console = (0..100).map(|i| format!("line {i}\r\n")).collect();
        let shown = logs(&Logs { scheduler: " \n".into(), console }, "", 5, Style::plain());
        assert_eq!(shown.len(), 1 + 5);
        assert_eq!(shown[0], "end of the console:");
        assert_eq!(shown.last().map(String::as_str), Some("│ line 99"));
    }

    #[test]
    fn a_log_that_a_check_has_quoted_is_not_shown_again() {
        let both = Logs { scheduler: "a\nb\nc\n".into(), console: "hello\n".into() };
        assert_eq!(
            logs(&both, "no:\na\nb\nc", 2, Style::plain()),
            ["end of the console:", "│ hello"]
        );
        assert_eq!(logs(&both, "no:\na\nb", 2, Style::plain()).len(), 5);
    }

    #[test]
    fn how_the_kernel_started_is_shown_only_if_it_got_no_further() {
        let mut console = "[    1.0] evm\r\n[    2.1] Run /init as init process\r\n".to_owned();
        let shown = |console: &str| {
            let console = console.to_owned();
            logs(&Logs { scheduler: String::new(), console }, "", 9, Style::plain())
        };
        assert_eq!(shown("[    1.0] evm\n"), ["end of the console:", "│ [    1.0] evm"]);
        assert!(shown(&console).is_empty());
        console.push_str("[    3.0] Oops\r\n");
        assert_eq!(shown(&console), ["end of the console:", "│ [    3.0] Oops"]);
    }

    #[test]
    fn colours_are_used_only_where_they_may() {
        let failed = Check::fail("x", "no");
        assert!(!check(&failed, Style::plain()).concat().contains('\x1b'));
        let colours = Style { colour: true, ..Style::plain() };
        assert_eq!(check(&failed, colours)[0], "\x1b[31mfail\x1b[0m: \x1b[1mx\x1b[0m");
    }
}
