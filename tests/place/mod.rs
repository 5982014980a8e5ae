//! A directory from which `cryoscope` is run, as a user runs it.

#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub mod shown;

/// An emulated machine takes a whole CPU: tests that boot some run one after the other.
pub fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A path in the project.
pub fn project(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A directory of its own, and `cryoscope` run from there.
pub struct Place {
    dir: tempfile::TempDir,
    own_cache: bool,
}

impl Place {
    /// With the cache that the user has: kernels are fetched once.
    pub fn new() -> Self {
        Place { dir: tempfile::tempdir().unwrap(), own_cache: false }
    }

    /// With a cache that is empty.
    pub fn with_own_cache() -> Self {
        Place { own_cache: true, ..Place::new() }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    pub fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> &Self {
        let path = self.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
        self
    }

    pub fn program(&self, name: &str, script: &str) -> &Self {
        use std::os::unix::fs::PermissionsExt;
        self.file(name, script);
        let path = self.path().join(name);
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
        self
    }

    pub fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_cryoscope"));
        command.args(args).current_dir(self.path()).stdin(Stdio::null());
        command.env_remove("RUST_BACKTRACE").env_remove("NO_COLOR");
        command.env_remove("GITHUB_ACTIONS").env_remove("GITHUB_STEP_SUMMARY");
        if self.own_cache {
            command.env("XDG_CACHE_HOME", self.path().join(".cache"));
        }
        command
    }

    pub fn run(&self, args: &[&str]) -> Said {
        Said::from(self.command(args).output().unwrap())
    }
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub code: Option<i32>,
    pub out: String,
    pub err: String,
}

impl From<Output> for Said {
    fn from(output: Output) -> Self {
        Said {
            code: output.status.code(),
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
        }
    }
}

impl Said {
    /// The part of a report that is about one scenario: from its line to the next one's.
    pub fn about(&self, name: &str) -> &str {
        let is_verdict = |line: &str| {
            ["PASS", "FAIL", "SKIP", "ERROR", "INCONCLUSIVE", "start"]
                .iter()
                .any(|word| line.trim_start().starts_with(word))
        };
        let mut from = None;
        let mut at = 0;
        for line in self.out.split_inclusive('\n') {
            match from {
                None if is_verdict(line)
                    && !line.trim_start().starts_with("start")
                    && line.trim_end().ends_with(name) =>
                {
                    from = Some(at);
                }
                Some(from) if is_verdict(line) => return &self.out[from..at],
                _ => {}
            }
            at += line.len();
        }
        match from {
            Some(from) => &self.out[from..],
            None => panic!("nothing about {name:?} in\n{}\n{}", self.out, self.err),
        }
    }
}
