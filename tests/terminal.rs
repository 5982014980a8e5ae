//! The prompt as someone at a terminal of 80 columns meets it: driven through tmux.

use std::path::PathBuf;
use std::process::Command;
use std::thread::sleep;
use std::time::{Duration, Instant};

use place::{Place, alone, project};

mod place;

/// Longest wait for anything on the screen: a boot is among it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A terminal in which a command runs; it goes with this value.
struct Terminal {
    socket: PathBuf,
}

impl Terminal {
    /// A terminal of 80 columns and 30 lines that runs `cryoscope` with these arguments.
    fn run(place: &Place, args: &[&str]) -> Terminal {
        let terminal = Terminal { socket: place.path().join("tmux") };
        let command = place.command(args);
        let mut tmux = terminal.tmux();
        tmux.args(["-f", "/dev/null", "new-session", "-d", "-x", "80", "-y", "30"]);
        tmux.arg("-c").arg(place.path());
        tmux.arg("env").arg("-u").arg("NO_COLOR").arg("TERM=screen-256color");
        tmux.arg(format!("XDG_STATE_HOME={}", place.path().join("state").display()));
        tmux.arg(command.get_program()).args(command.get_args());
        let said = tmux.output().expect("tmux is among what tools/setup installs");
        assert!(said.status.success(), "{said:?}");
        terminal
    }

    fn tmux(&self) -> Command {
        let mut tmux = Command::new("tmux");
        tmux.arg("-S").arg(&self.socket).env_remove("TMUX");
        tmux
    }

    /// What is on the screen, without the empty lines below; nothing when the command has ended.
    fn screen(&self) -> String {
        let said = self.tmux().args(["capture-pane", "-p"]).output().unwrap();
        String::from_utf8_lossy(&said.stdout).trim_end().to_owned()
    }

    /// The screen as soon as `holds` of it.
    fn wait(&self, what: &str, holds: impl Fn(&str) -> bool) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let screen = self.screen();
            if holds(&screen) {
                return screen;
            }
            assert!(Instant::now() < until, "waited for {what}; the screen is\n{screen}");
            sleep(Duration::from_millis(20));
        }
    }

    /// Waits until the last line is `line`.
    fn ends(&self, line: &str) -> String {
        self.wait(&format!("a last line {line:?}"), |screen| {
            screen.lines().last().is_some_and(|last| last.trim_end() == line)
        })
    }

    /// Types text as it is.
    fn types(&self, text: &str) -> &Self {
        // A semicolon at the end would separate commands of tmux.
        let text = text.strip_suffix(';').map_or(text.to_owned(), |text| format!("{text}\\;"));
        assert!(self.tmux().args(["send-keys", "-l", &text]).status().unwrap().success());
        self
    }

    /// Presses a key, by tmux's name for it.
    fn press(&self, key: &str) -> &Self {
        assert!(self.tmux().args(["send-keys", key]).status().unwrap().success());
        self
    }

    /// Empties the screen, and waits until it is empty: what it showed before may look as if what is
    /// typed next had been done already, and what is typed ahead of that may be lost.
    fn clear(&self) -> String {
        self.press("C-l").wait("an empty screen", |screen| screen == ">")
    }

    /// Types a line on an empty screen and gives what stands between it and the next prompt.
    fn says(&self, line: &str) -> String {
        self.clear();
        self.types(line).press("Enter");
        let screen = self.wait(&format!("the end of {line}"), |screen| {
            screen.lines().count() > 1 && screen.lines().last() == Some(">")
        });
        let lines: Vec<&str> = screen.lines().skip(1).collect();
        lines[..lines.len() - 1].join("\n")
    }

    /// Waits until the command has ended.
    fn ended(self) {
        self.wait("the end of the command", str::is_empty);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.tmux().arg("kill-server").output();
    }
}

#[test]
fn a_session_with_a_machine() {
    let _alone = alone();
    let place = Place::new();
    let fifo = project("examples/schedulers/fifo.bpf.c").display().to_string();
    let it = Terminal::run(&place, &["repl", "--scheduler", &fifo, "--topology", "1n1l1c1t"]);
    it.ends(">");
    it.says("let pids = vm.start(#{ work: \"spin\", count: 3 });");
    it.says("vm.hold(\"300ms\"); vm.freeze(\"a\");");

    // Names of globals, by what the snapshot has.
    it.clear();
    it.types("snap.global(\"nr_").press("Tab");
    let names = it.wait("names of globals", |screen| screen.contains("nr_running"));
    assert!(names.contains("nr_enqueued"), "{names}");
    it.types("enq").press("Tab").ends("> snap.global(\"nr_enqueued\")");
    it.press("Enter").wait("its value", |screen| screen.contains("\nnr_enqueued  "));

    // A path of members, from the types of the map.
    it.clear();
    it.types("snap.map(\"task_c").press("Tab").ends("> snap.map(\"task_ctx\")");
    it.types(".at(0).value.ru").press("Tab").ends("> snap.map(\"task_ctx\").at(0).value.runs");
    it.types(".").press("Tab");
    it.wait("members of runs", |screen| screen.contains("nr_runs") && screen.contains("total_ns"));
    it.press("C-c").ends(">");

    // A loop is stopped, and the machine is not.
    let before: i64 = it.says("vm.elapsed_ms").parse().unwrap();
    it.clear();
    it.types("print(\"looping\"); loop {}").press("Enter");
    it.wait("the loop", |screen| screen.lines().any(|line| line == "looping"));
    it.press("C-c");
    it.wait("an end of the loop", |screen| screen.contains("interrupted"));
    it.ends(">");
    it.says("vm.hold(\"50ms\");");
    let after: i64 = it.says("vm.elapsed_ms").parse().unwrap();
    assert!(after >= before + 50, "{before} {after}");
    assert_eq!(it.says("pids.len"), "3", "variables stay");

    // A closure of several lines.
    it.clear();
    for line in ["let heavy = |task| {", "    task.tid > 0", "};"] {
        it.types(line).press("Enter");
    }
    it.wait("the closure", |screen| screen.contains("\n};"));
    it.ends(">");
    assert_eq!(it.says("snap.tasks().all(heavy)"), "true");

    // An error leaves the session usable, and its lines end between words.
    let error = it.says("snap.map(\"task_ctxx\").at(0).value.runs.nr_runs + snap.global(\"none\")");
    assert!(error.contains("no captured map is called \"task_ctxx\""), "{error}");
    let text = error.split_whitespace().collect::<Vec<_>>().join(" ");
    let names = "(there are task_ctx, task_times, cpu_stats, reasons, run_hist, fifo.rodata,";
    assert!(text.contains(names), "{error}");
    assert_eq!(it.says("snap.tag"), "\"a\"");
    it.says("snap.save(\"a.cryo\");");
    it.types(":quit").press("Enter");
    it.ended();

    // Another session, on the file: what was typed is still known.
    let it = Terminal::run(&place, &["repl", "a.cryo"]);
    it.ends(">");
    it.press("Up").ends("> :quit");
    it.press("Up").ends("> snap.save(\"a.cryo\");");
    it.press("C-c").ends(">");
    it.press("C-r").types("nr_enq");
    it.wait("what was typed before", |screen| screen.contains("snap.global(\"nr_enqueued\")"));
    it.press("Enter");
    it.wait("its value", |screen| screen.contains("\nnr_enqueued  "));
    it.clear();
    it.types("open(\"a.c").press("Tab").ends("> open(\"a.cryo");
    it.press("C-c").ends(">");
    it.press("C-d");
    it.ended();
}
