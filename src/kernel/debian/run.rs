//! apt and dpkg as child processes that end with us.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, ChildStdout, Command, Stdio};
use std::thread::JoinHandle;

use crate::child::command_dying_with_parent;
use crate::kernel::cache::CacheDir;
use crate::kernel::error::KernelError;

/// The programs that fetch and unpack packages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tools {
    /// `apt-get`
    pub apt_get: PathBuf,
    /// `apt-cache`
    pub apt_cache: PathBuf,
    /// `apt-config`
    pub apt_config: PathBuf,
    /// `dpkg-deb`
    pub dpkg_deb: PathBuf,
}

impl Default for Tools {
    /// Those on the search path.
    fn default() -> Self {
        Tools {
            apt_get: "apt-get".into(),
            apt_cache: "apt-cache".into(),
            apt_config: "apt-config".into(),
            dpkg_deb: "dpkg-deb".into(),
        }
    }
}

/// Lines of a program's complaints that are kept, from the end.
const LOG_LINES: usize = 12;
/// The longest line that is taken as one.
const LINE: u64 = 64 << 10;

/// A program at work: its output is read, its complaints are collected beside.
pub(super) struct Running {
    child: Child,
    stdout: BufReader<ChildStdout>,
    complaints: Option<JoinHandle<String>>,
    program: String,
}

impl Running {
    /// Starts `program`. `spec` is what is being fetched, for the message when there is no such
    /// program.
    pub(super) fn start(
        spec: &str,
        program: &Path,
        set_up: impl FnOnce(&mut Command),
    ) -> Result<Running, KernelError> {
        let mut command = Command::new(program);
        // Messages are searched for known causes.
        command.env("LC_ALL", "C").env_remove("LANGUAGE");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        set_up(&mut command);
        let missing =
            |cause| KernelError::NoApt { spec: spec.to_owned(), program: program.into(), cause };
        let mut child = command_dying_with_parent(command).spawn().map_err(missing)?;
        let (Some(stdout), Some(stderr)) = (child.stdout.take(), child.stderr.take()) else {
            return Err(missing(io::Error::other("its output is not connected")));
        };
        let complaints = std::thread::Builder::new().spawn(move || last_lines(stderr));
        let program = program.file_name().unwrap_or(program.as_os_str());
        Ok(Running {
            child,
            stdout: BufReader::new(stdout),
            complaints: complaints.ok(),
            program: program.to_string_lossy().into_owned(),
        })
    }

    /// What the program writes, as it comes.
    pub(super) fn output(&mut self) -> &mut impl Read {
        &mut self.stdout
    }

    /// Hands each line of output to `line`, to the end.
    pub(super) fn each_line(&mut self, mut line: impl FnMut(&str)) {
        let mut bytes = Vec::new();
        loop {
            bytes.clear();
            match (&mut self.stdout).take(LINE).read_until(b'\n', &mut bytes) {
                Ok(0) | Err(_) => return,
                Ok(_) => line(String::from_utf8_lossy(&bytes).trim_end()),
            }
        }
    }

    /// The whole output, up to `limit` bytes of it.
    pub(super) fn text(&mut self, limit: u64) -> String {
        let mut bytes = Vec::new();
        // What could not be read shows in how the program ends.
        let _ = (&mut self.stdout).take(limit).read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits for the program's end. `action` completes "cannot …".
    pub(super) fn finish(mut self, action: &str, cache: &CacheDir) -> Result<(), KernelError> {
        // A program that still has something to say would wait for a reader.
        let _ = io::copy(&mut self.stdout, &mut io::sink());
        let status = self.child.wait();
        let log = self.complaints.take().and_then(|c| c.join().ok()).unwrap_or_default();
        match status {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(failure(action, &self.program, &status.to_string(), &log, cache)),
            Err(error) => Err(failure(action, &self.program, &error.to_string(), &log, cache)),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Both fail harmlessly when it has been waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn last_lines(stderr: ChildStderr) -> String {
    let mut lines = VecDeque::new();
    let mut stderr = BufReader::new(stderr);
    let mut bytes = Vec::new();
    loop {
        bytes.clear();
        match (&mut stderr).take(LINE).read_until(b'\n', &mut bytes) {
            Ok(0) | Err(_) => break,
            Ok(_) => lines.push_back(String::from_utf8_lossy(&bytes).trim_end().to_owned()),
        }
        if lines.len() > LOG_LINES {
            lines.pop_front();
        }
    }
    Vec::from(lines).join("\n")
}

/// Finds the cause in what apt says, and with it the remedy.
fn failure(action: &str, program: &str, status: &str, log: &str, cache: &CacheDir) -> KernelError {
    let says = |texts: &[&str]| texts.iter().any(|text| log.contains(text));
    if says(&["No space left on device", "enough free space"]) {
        let full = io::Error::from_raw_os_error(libc::ENOSPC);
        return cache.error("write", cache.path().join("apt"), full).into();
    }
    let remedy = if says(&[
        "resolving",
        "Could not resolve",
        "Could not connect",
        "Connection failed",
        "timed out",
    ]) {
        "check the network connection (`apt-get update` has to work on this machine); kernels that \
         `cryoscope kernel list` shows need none"
    } else if says(&["NO_PUBKEY", "not signed", "signature", "EXPKEYSIG"]) {
        "this machine's keyring does not know the archive's key: install the current package \
         debian-archive-keyring"
    } else if says(&["404", "Hash Sum mismatch"]) {
        "the archive has changed since it was asked: ask again with `cryoscope kernel fetch \
         --refresh`"
    } else {
        "check that `apt-get update` works on this machine, or give the path of a kernel"
    };
    KernelError::Apt {
        action: action.to_owned(),
        program: program.to_owned(),
        status: status.to_owned(),
        log: log.to_owned(),
        remedy: remedy.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> Running {
        let run = Running::start("debian:7.2", Path::new("/bin/sh"), |c| {
            c.args(["-c", script]);
        });
        run.expect("sh runs")
    }

    fn ended(script: &str) -> String {
        let result = shell(script).finish("ask the archive", &CacheDir::at("/cache"));
        result.expect_err("it failed").to_string()
    }

    #[test]
    fn output_and_success() {
        let cache = CacheDir::at("/cache");
        let mut run = shell("echo one; echo two; echo unheard >&2");
        let mut lines = Vec::new();
        run.each_line(|line| lines.push(line.to_owned()));
        assert_eq!(lines, ["one", "two"]);
        run.finish("ask", &cache).expect("it succeeded");
        // More than a pipe holds, unread.
        shell("head -c 200000 /dev/zero").finish("ask", &cache).expect("it succeeded");
    }

    #[test]
    fn a_missing_program_is_named() {
        let missing = Path::new("/nowhere/apt-get");
        let error = Running::start("debian:7.2", missing, |_| {}).err().expect("it is not there");
        assert_eq!(
            error.to_string(),
            "cannot fetch `debian:7.2`: `/nowhere/apt-get` is not on this machine (No such file or \
             directory); Debian kernels are fetched with apt and dpkg: run this on Debian, or give \
             the path of a vmlinuz, a vmlinux or a build tree"
        );
    }

    #[test]
    fn a_failure_has_its_log_and_the_remedy_for_its_cause() {
        assert_eq!(
            ended("echo 'E: Temporary failure resolving x' >&2; exit 100"),
            "cannot ask the archive: sh failed (exit status: 100)\n  \
             E: Temporary failure resolving x\n\
             check the network connection (`apt-get update` has to work on this machine); kernels \
             that `cryoscope kernel list` shows need none"
        );
        assert_eq!(
            ended("echo 'E: the repository is not signed' >&2; exit 100"),
            "cannot ask the archive: sh failed (exit status: 100)\n  \
             E: the repository is not signed\n\
             this machine's keyring does not know the archive's key: install the current package \
             debian-archive-keyring"
        );
        assert_eq!(
            ended("echo 'E: 404 Not Found' >&2; exit 100"),
            "cannot ask the archive: sh failed (exit status: 100)\n  E: 404 Not Found\n\
             the archive has changed since it was asked: ask again with `cryoscope kernel fetch \
             --refresh`"
        );
        assert_eq!(
            ended("kill -9 $$"),
            "cannot ask the archive: sh failed (signal: 9 (SIGKILL))\n\
             check that `apt-get update` works on this machine, or give the path of a kernel"
        );
        assert_eq!(
            ended("echo 'E: write (28: No space left on device)' >&2; exit 100"),
            "disk full: No space left on device while writing /cache/apt; free some space there \
             (everything below /cache can be deleted and is made anew when needed), or set \
             XDG_CACHE_HOME to a directory on a larger disk"
        );
    }

    #[test]
    fn only_the_end_of_a_long_log_is_kept() {
        let text = ended("for i in $(seq 1000); do echo line $i >&2; done; exit 1");
        assert!(text.contains("\n  line 989\n") && text.contains("\n  line 1000\n"), "{text}");
        assert!(!text.contains("line 988\n"), "{text}");
    }
}
