//! One session: inputs in, answers out.

use std::cell::RefCell;
use std::ops::Range;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::INTERRUPTED;
use super::commands::{self, Command};
use super::editor::{Editor, Read};
use super::interrupt::Interrupts;
use super::show::Voice;
use super::tables;
use crate::cli::{Failure, api};
use crate::scenario::text::{clean, fit};
use crate::script::reference;
use crate::script::repl::{Answer, Interactive, continues, is_whole};
use crate::snapshot::Snapshot;

const NO_SNAPSHOT: &str = "there is no snapshot yet: vm.freeze(\"a name\") takes one";

/// A session.
pub(super) struct Repl<'a> {
    interactive: Rc<RefCell<Interactive>>,
    interrupts: &'a Interrupts,
    voice: &'a Voice,
    /// Says why the machine has ended, once it has.
    ended: Box<dyn Fn() -> Option<String> + 'a>,
    told_end: bool,
}

/// What follows an input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The next one.
    Input,
    /// It failed; a script ends.
    Failed,
    /// It was stopped; a script ends.
    Interrupted,
    /// The end.
    Quit,
}

impl<'a> Repl<'a> {
    pub(super) fn new(
        interactive: Interactive,
        interrupts: &'a Interrupts,
        voice: &'a Voice,
        ended: Box<dyn Fn() -> Option<String> + 'a>,
    ) -> Self {
        let interactive = Rc::new(RefCell::new(interactive));
        Repl { interactive, interrupts, voice, ended, told_end: false }
    }

    /// Takes inputs from the editor, to the end.
    pub(super) fn converse(
        &mut self,
        history: Option<&Path>,
        greeting: &str,
    ) -> Result<u8, Failure> {
        let cannot = |e| Failure::new(format!("cannot use the terminal: {e}"));
        let style = self.voice.style();
        let mut editor = Editor::new(self.interactive.clone(), style).map_err(cannot)?;
        self.voice.say(greeting);
        if let Some(why) = editor.keep_history(history) {
            self.voice.tell(&format!("what you type is not kept: {why}"));
        }
        loop {
            self.look();
            match editor.read().map_err(cannot)? {
                Read::Input(input) => {
                    if self.input(&input) == Next::Quit {
                        return Ok(0);
                    }
                }
                Read::Nothing => {}
                Read::End => return Ok(0),
            }
        }
    }

    /// Takes all inputs of a script, up to the first that fails; gives the exit code.
    pub(super) fn run_script(&mut self, script: &str) -> u8 {
        for part in inputs(script) {
            let input = &script[part.clone()];
            let next = match commands::is_command(input) {
                true => self.obey(input),
                false => self.evaluate(|i| i.eval_part(script, part)),
            };
            self.look();
            match next {
                Next::Input => {}
                Next::Failed => return 1,
                Next::Interrupted => return INTERRUPTED,
                Next::Quit => break,
            }
        }
        u8::from(self.voice.failed())
    }

    fn input(&mut self, input: &str) -> Next {
        match commands::is_command(input) {
            true => self.obey(input),
            false => self.evaluate(|i| i.eval(input)),
        }
    }

    /// Says once that the machine has ended.
    fn look(&mut self) {
        if self.told_end {
            return;
        }
        if let Some(why) = (self.ended)() {
            self.told_end = true;
            self.voice.tell(&format!("{why}; its snapshots can still be read"));
        }
    }

    fn evaluate(&self, evaluate: impl FnOnce(&mut Interactive) -> Answer) -> Next {
        let mut interactive = self.interactive.borrow_mut();
        let (answer, _) = self.interrupts.busy(|| evaluate(&mut interactive));
        match answer {
            Answer::Value(text) => self.voice.show(&text),
            Answer::Nothing => {}
            // `skip` ends a script too, but it is no failure.
            Answer::Ended if self.voice.failed() => return Next::Failed,
            Answer::Ended => return Next::Quit.unless(self.voice.is_interactive()),
            Answer::Interrupted => {
                self.voice.interrupted();
                return Next::Interrupted;
            }
            Answer::Error(error) => {
                self.voice.error(&error);
                return Next::Failed;
            }
        }
        Next::Input
    }

    fn obey(&self, input: &str) -> Next {
        let refuse = |why: &str| {
            self.voice.refuse(why);
            Next::Failed
        };
        match commands::parse(input) {
            Err(why) => refuse(&why),
            Ok(Command::Quit) => Next::Quit,
            Ok(Command::Help("")) => self.say(&commands::help()),
            Ok(Command::Help(name)) => match self.about(name) {
                Ok(text) => self.say(&text),
                Err(why) => refuse(&why),
            },
            Ok(Command::Type(text)) => self.evaluate(|i| i.type_of(text)),
            Ok(Command::Time(text)) => {
                let start = Instant::now();
                let next = self.evaluate(|i| i.eval(text));
                self.say(&format!("took {}", duration(start.elapsed())));
                next
            }
            Ok(Command::Load(file)) => self.evaluate(|i| i.load(Path::new(file))),
            Ok(Command::Maps) => match self.maps() {
                Ok(text) => self.say(&text),
                Err(why) => refuse(&why),
            },
            Ok(Command::Vars) => self.say(&self.vars()),
            Ok(Command::Ps) => match self.newest().and_then(|s| tables::tasks(&s)) {
                Ok(text) => self.say(&text),
                Err(why) => refuse(&why),
            },
            Ok(Command::Dsq) => match self.newest().and_then(|s| tables::queues(&s)) {
                Ok(text) => self.say(&text),
                Err(why) => refuse(&why),
            },
            Ok(Command::Save(file)) => match self.save(Path::new(file)) {
                Ok(text) => self.say(&text),
                Err(why) => refuse(&why),
            },
        }
    }

    fn newest(&self) -> Result<Arc<Snapshot>, String> {
        self.interactive.borrow().newest().cloned().ok_or_else(|| NO_SNAPSHOT.to_owned())
    }

    /// Writes the newest snapshot to a file.
    fn save(&self, file: &Path) -> Result<String, String> {
        let snapshot = self.newest()?;
        snapshot.save(file).map_err(|e| e.to_string())?;
        Ok(format!("{} is in {}", snapshot.headline(), file.display()))
    }

    fn say(&self, text: &str) -> Next {
        self.voice.say(text);
        Next::Input
    }

    fn about(&self, name: &str) -> Result<String, String> {
        let interactive = self.interactive.borrow();
        // A variable stands for its type.
        let variables = interactive.variables();
        let variable = variables.iter().find(|v| v.name == name);
        let kind = variable.and_then(|v| v.kind.split(' ').next()).unwrap_or(name);
        let surface = interactive.surface();
        let kind = if surface.types.iter().any(|t| t.name == kind) { kind } else { name };
        api::about(surface, &reference().modules(), kind).map_err(|failure| failure.message)
    }

    /// The maps of the newest snapshot as a table.
    fn maps(&self) -> Result<String, String> {
        let snapshot = self.newest()?;
        let maps = snapshot.maps().map_err(|e| e.to_string())?;
        let head = ["MAP", "KIND", "LIVE", "ENTRIES", "OF", "KEY", "VALUE"].map(str::to_owned);
        let live = snapshot.live_maps();
        let row = |(i, map): (usize, &crate::snapshot::Map)| {
            let live = if live.get(i) == Some(&true) { "live" } else { "" };
            let attrs = map.attrs();
            let entries = map.len().map_or_else(|_| "?".to_owned(), |len| len.to_string());
            let (of, key, value) = (attrs.max_entries, attrs.key_size, attrs.value_size);
            [
                map.name().to_owned(),
                attrs.kind.clone(),
                live.to_owned(),
                entries,
                of.to_string(),
                format!("{key} B"),
                format!("{value} B"),
            ]
        };
        let rows = std::iter::once(head).chain(maps.iter().enumerate().map(row));
        let rows: Vec<[String; 7]> = rows.collect();
        Ok(format!("{}\n{}", snapshot.tag(), table(&rows, 3)))
    }

    fn vars(&self) -> String {
        let variables = self.interactive.borrow().variables();
        let row = |v: crate::script::repl::Variable| [v.name, v.kind, v.value];
        let rows: Vec<[String; 3]> = variables.into_iter().map(row).collect();
        let width = self.voice.style().width;
        table(&rows, usize::MAX).lines().map(|line| format!("{}\n", fit(line, width))).collect()
    }
}

impl Next {
    /// The next input, where somebody is there to give it.
    fn unless(self, interactive: bool) -> Next {
        if interactive { Next::Input } else { self }
    }
}

/// Columns as wide as their longest entry; those from `right` on are numbers.
pub(super) fn table<const N: usize>(rows: &[[String; N]], right: usize) -> String {
    let clean = |cell: &String| clean(cell).replace('\n', " ");
    let width = |column: usize| {
        rows.iter().map(|row| clean(&row[column]).chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..N).map(width).collect();
    let mut out = String::new();
    for row in rows {
        let cells = row.iter().enumerate().map(|(i, cell)| {
            let (cell, width) = (clean(cell), widths[i]);
            if i >= right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        });
        out.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        out.push('\n');
    }
    out
}

/// A time in the unit that shows it best.
fn duration(time: std::time::Duration) -> String {
    match time.as_secs_f64() {
        s if s < 1e-3 => format!("{:.0} µs", s * 1e6),
        s if s < 1.0 => format!("{:.1} ms", s * 1e3),
        s => format!("{s:.2} s"),
    }
}

/// The inputs of a script: as few lines as are whole, with those that go on with them.
fn inputs(script: &str) -> Vec<Range<usize>> {
    let mut out: Vec<Range<usize>> = Vec::new();
    let mut open: Option<usize> = None;
    let mut at = 0;
    for line in script.split_inclusive('\n') {
        let (start, end) = (at, at + line.len());
        at = end;
        let begin = match open {
            Some(begin) => begin,
            None if line.trim().is_empty() => continue,
            None if commands::is_command(line) => {
                out.push(start..end);
                continue;
            }
            None => match out.last() {
                Some(last) if continues(line) && !commands::is_command(&script[last.clone()]) => {
                    out.pop().map_or(start, |last| last.start)
                }
                _ => start,
            },
        };
        open = Some(begin);
        if is_whole(&script[begin..end]) {
            out.push(begin..end);
            open = None;
        }
    }
    if let Some(begin) = open {
        out.push(begin..script.len());
    }
    out
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use super::*;
    use crate::scenario::report::Style;
    use crate::script::tests::lab::FakeLab;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl Buffer {
        fn text(&self) -> String {
            String::from_utf8(std::mem::take(&mut *self.0.lock().unwrap())).unwrap()
        }
    }

    /// Runs a script; exit code, standard output, standard error.
    fn run(script: &str) -> (u8, String, String) {
        run_until(script, None)
    }

    fn run_until(script: &str, ended: Option<&str>) -> (u8, String, String) {
        let (out, err) = (Buffer::default(), Buffer::default());
        let voice = Voice::to(Style::plain(), false, Box::new(out.clone()), Box::new(err.clone()));
        let interrupts = Interrupts::idle();
        let lab = Arc::new(FakeLab::new().with_fifo());
        let interactive = Interactive::new(lab, voice.recorder(), interrupts.cancel.clone());
        let ended = ended.map(str::to_owned);
        let mut repl = Repl::new(interactive, &interrupts, &voice, Box::new(move || ended.clone()));
        let code = repl.run_script(script);
        (code, out.text(), err.text())
    }

    #[test]
    fn scripts_are_taken_apart_into_inputs() {
        let script = "1\n\nlet a = [\n  1,\n];\n:maps\n  .x\nif a {\n}\nelse {\n}\na\n  .len\nfn (";
        let found: Vec<&str> = inputs(script).into_iter().map(|part| &script[part]).collect();
        let want = [
            "1\n",
            "let a = [\n  1,\n];\n",
            ":maps\n",
            "  .x\n",
            "if a {\n}\nelse {\n}\n",
            "a\n  .len\n",
            "fn (",
        ];
        assert_eq!(found, want);
    }

    #[test]
    fn a_script_runs_to_its_first_error() {
        let (code, out, err) =
            run("let n = 2;\nn * 3\nfn f(x) {\n    x + 1\n}\nf(n)\n\"a\\x1b[31mb\"");
        assert_eq!((code, out.as_str(), err.as_str()), (0, "6\n3\n\"a\\u{1b}[31mb\"\n", ""));
        let (code, out, err) = run("print(1);\nvm.freeze(\"a\");\nsnap.map(\"tsk\")\nprint(2);");
        assert_eq!((code, out.as_str()), (1, "1\n"));
        assert!(err.starts_with("error: no captured map is called \"tsk\""), "{err}");
        assert!(err.contains("--> stdin:3:6"), "{err}");
    }

    #[test]
    fn checks_count_for_the_exit_code() {
        let (code, out, _) = run("expect(1).eq(1)\n");
        assert_eq!((code, out.as_str()), (0, "pass: 1\n"));
        let (code, out, err) = run("expect(1, \"one\").eq(2);\nprint(\"on\");\n");
        assert_eq!((code, err.as_str()), (1, ""));
        assert!(out.starts_with("fail: one\n") && out.ends_with("on\n"), "{out}");
        let (code, out, _) = run("require(false, \"must\");\nprint(\"never\");");
        assert_eq!(code, 1);
        assert!(out.contains("fail: must") && !out.contains("never"), "{out}");
        let (code, out, _) = run("skip(\"not here\");\nprint(\"never\");");
        assert_eq!((code, out.as_str()), (0, "skip: not here\n"));
    }

    #[test]
    fn commands_answer_or_say_why_not() {
        let (code, out, err) = run(":help\n:type 1.5\n:vars\n:h SnapshotEntry\n:time 6 * 7\n");
        assert_eq!((code, err.as_str()), (0, ""));
        for part in [":quit", "float\n", "vm  Vm  ", "SnapshotEntry\n  A key and its", "42\ntook "]
        {
            assert!(out.contains(part), "{part:?} in\n{out}");
        }
        let (code, out, err) = run("vm.freeze(\"a\");\n:maps\n:help snap\n:quit\nprint(1)");
        assert_eq!((code, err.as_str()), (0, ""));
        assert!(out.starts_with("a\nMAP          KIND"), "{out}");
        assert!(out.contains("task_ctx     hash"), "{out}");
        assert!(out.contains("Snapshot\n  The machine as it stood"), "{out}");
        for (command, says) in [
            (":maps", "there is no snapshot yet"),
            (":ps", "there is no snapshot yet"),
            (":dsq", "there is no snapshot yet"),
            (":save x.cryo", "there is no snapshot yet"),
            ("vm.freeze(\"a\");\n:save /nowhere/x.cryo", "cannot save the snapshot to /nowhere/x"),
            (":help Snapshott", "did you mean Snapshot?"),
            (":load nowhere.rhai", "cannot read nowhere.rhai"),
            (":what", "there is no command :what"),
        ] {
            let (code, _, err) = run(command);
            assert_eq!(code, 1, "{command}");
            assert!(err.contains(says), "{command}: {err}");
        }
    }

    #[test]
    fn a_file_is_evaluated_in_the_session() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.rhai");
        std::fs::write(&file, "fn twice(x) { 2 * x }\nlet loaded = 21;\n").unwrap();
        let (code, out, err) = run(&format!(":load {}\ntwice(loaded)", file.display()));
        assert_eq!((code, out.as_str(), err.as_str()), (0, "42\n", ""));
        std::fs::write(&file, "let a = 1;\na.b.c\n").unwrap();
        let (code, _, err) = run(&format!(":load {}", file.display()));
        assert_eq!(code, 1);
        assert!(err.contains("a.rhai:2:"), "{err}");
    }

    #[test]
    fn the_end_of_the_machine_is_told_once() {
        let (code, out, err) = run_until("1\n2\n", Some("the machine ended: killed"));
        assert_eq!((code, out.as_str()), (0, "1\n2\n"));
        assert_eq!(err, "the machine ended: killed; its snapshots can still be read\n");
    }
}
