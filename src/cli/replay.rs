//! `cryoscope replay`: the events of a run, as `run --json` wrote them, as a report again.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use clap::Args as ClapArgs;

use super::{Config, Failure, say};
use crate::scenario::event::{RunEvent, RunModel};
use crate::scenario::report::{Fan, Html, Junit, Terminal, Trouble};
use crate::scenario::runner::Sink;
use crate::scenario::verdict::plural;
use crate::words::plain;

/// Bytes of a line; the largest that is written has some logs in it.
const LINE: u64 = 64 << 20;

/// Report once more on a run, from the events that `run --json` wrote
#[derive(Debug, ClapArgs)]
pub(super) struct Args {
    /// The file
    file: PathBuf,
    /// Write JUnit XML, as CI services read it
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    /// Write a page of HTML about the run, DIR/index.html
    #[arg(long, value_name = "DIR")]
    report: Option<PathBuf>,
}

pub(super) fn run(args: &Args, config: &Config) -> Result<u8, Failure> {
    let unreadable = |e: &io::Error| {
        Failure::usage(format!("cannot read {}: {}", args.file.display(), plain(e)))
    };
    let file = File::open(&args.file).map_err(|e| unreadable(&e))?;
    let trouble = Trouble::default();
    let mut sinks = Fan::default();
    sinks.add(Terminal::new(io::stdout(), config.style));
    if let Some(path) = &args.junit {
        let junit = Junit::create(path, &trouble);
        let failure = |e| Failure::usage(format!("--junit {}: {}", path.display(), plain(&e)));
        sinks.add(junit.map_err(failure)?);
    }
    if let Some(dir) = &args.report {
        let failure = |e| Failure::usage(format!("--report {}: {e}", dir.display()));
        sinks.add(Html::create(dir, &trouble).map_err(failure)?);
    }
    let code = replay(&args.file, BufReader::new(file), &mut sinks)?;
    if let Some(what) = trouble.first() {
        say(&format!("cryoscope: {what}; free some space, or choose another place\n"));
        return Ok(code.max(1));
    }
    Ok(code)
}

/// Hands every event to the sinks; the run's exit code.
fn replay(path: &Path, mut lines: impl BufRead, sinks: &mut dyn Sink) -> Result<u8, Failure> {
    let mut model = RunModel::default();
    let (mut number, mut unknown, mut code) = (0u64, 0u64, None);
    let wrong = |number: u64, why: String| {
        let partial = if number > 1 { "; the report is partial" } else { "" };
        let at = path.display();
        let text = format!("{at}:{number}: {why}; give a file that run --json wrote{partial}");
        Failure::usage(text)
    };
    let mut line = Vec::new();
    loop {
        line.clear();
        number += 1;
        let read = (&mut lines).take(LINE + 1).read_until(b'\n', &mut line);
        read.map_err(|e| wrong(number, plain(&e)))?;
        if line.is_empty() {
            break;
        }
        if line.len() as u64 > LINE {
            return Err(wrong(number, format!("a line of more than {} MiB", LINE >> 20)));
        }
        if !line.ends_with(b"\n") {
            return Err(wrong(number, "the line has no end: the file was cut off".to_owned()));
        }
        let text = std::str::from_utf8(&line);
        let text = text.map_err(|_| wrong(number, "not an event: it is no text".to_owned()))?;
        let event = match RunEvent::from_line(text) {
            Ok(event) => event,
            Err(_) if RunEvent::is_of_a_later_kind(text) => {
                unknown += 1;
                continue;
            }
            Err(why) => return Err(wrong(number, why)),
        };
        model.apply(&event).map_err(|why| wrong(number, why))?;
        sinks.event(&event, &model);
        if let RunEvent::RunFinished { exit_code, .. } = event {
            code = Some(exit_code);
        }
    }
    if unknown > 0 {
        let events = plural(unknown, "event");
        say(&format!(
            "cryoscope: {events} of kinds that this version does not know are left out\n"
        ));
    }
    code.ok_or_else(|| {
        Failure::new(format!(
            "{} ends before the run did: it was killed, or goes on still; the report is partial",
            path.display()
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::event::CellInfo;

    struct Seen(Vec<RunEvent>);

    impl Sink for Seen {
        fn event(&mut self, event: &RunEvent, _: &RunModel) {
            self.0.push(event.clone());
        }
    }

    fn started() -> String {
        let info = CellInfo {
            name: "x".into(),
            file: "a.rhai".into(),
            index: 0,
            kernel: "auto".into(),
            topology: "1n1l1c1t".into(),
            scheduler: "none".into(),
            tags: vec![],
            axes: vec![],
        };
        let event = RunEvent::RunStarted { cryoscope: "1".into(), cells: vec![info], jobs: 1 };
        event.to_line()
    }

    fn over() -> String {
        let outcomes = std::collections::BTreeMap::new();
        let (not_run, interrupted, duration_ms, exit_code) = (1, false, 5, 2);
        let event =
            RunEvent::RunFinished { outcomes, not_run, interrupted, duration_ms, exit_code };
        event.to_line()
    }

    fn told(text: &str) -> (Result<u8, (u8, String)>, usize) {
        let mut seen = Seen(Vec::new());
        let code = replay(Path::new("e.jsonl"), text.as_bytes(), &mut seen);
        (code.map_err(|failure| (failure.code, failure.message)), seen.0.len())
    }

    #[test]
    fn whole_runs_end_with_their_exit_code() {
        assert_eq!(told(&format!("{}{}", started(), over())), (Ok(2), 2));
        let later = "{\"v\":1,\"event\":\"danced\",\"cell\":0}\n";
        assert_eq!(
            told(&format!("{}{later}{}", started(), over())),
            (Ok(2), 2),
            "what is unknown is skipped"
        );
    }

    #[test]
    fn a_run_that_was_killed_is_reported_as_far_as_it_went() {
        let (code, events) = told(&started());
        let says = "e.jsonl ends before the run did: it was killed, or goes on still; the report is \
                    partial";
        assert_eq!((code, events), (Err((1, says.to_owned())), 1));
    }

    #[test]
    fn what_is_no_file_of_events_is_refused_with_the_line() {
        let give = "; give a file that run --json wrote";
        let cases = [
            ("hello\n".to_owned(), "e.jsonl:1: not an event: "),
            (started() + "{\"v\":1", "e.jsonl:2: the line has no end: the file was cut off"),
            (started() + "{\"v\":9,\"event\":\"x\"}\n", "e.jsonl:2: not an event: "),
            (over(), "e.jsonl:1: an event before the start of the run"),
            (format!("{0}{0}", started()), "e.jsonl:2: the run started twice"),
            (started() + "\u{0}\n", "e.jsonl:2: not an event: "),
        ];
        for (text, says) in cases {
            let (code, _) = told(&text);
            let (code, message) = code.unwrap_err();
            let partial =
                if says.starts_with("e.jsonl:1") { "" } else { "; the report is partial" };
            let ends = format!("{give}{partial}");
            assert!(code == 64 && message.starts_with(says), "{message}");
            assert!(message.ends_with(&ends), "{message}");
        }
        let mut seen = Seen(Vec::new());
        let bytes = replay(Path::new("e"), &b"\xff\xfe\n"[..], &mut seen).unwrap_err().message;
        assert_eq!(bytes, format!("e:1: not an event: it is no text{give}"));
    }
}
