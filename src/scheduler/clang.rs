//! Finding a compiler.

use std::ffi::{OsStr, OsString};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::child::command_dying_with_parent;

use super::SchedulerError;
use crate::words::plain;

/// The oldest version that can be used: older ones cannot describe enums of more than 32 bits
/// in BTF, and sched_ext's constants are such.
pub const OLDEST: u32 = 16;

/// The newest version that is looked for by its number.
const NEWEST: u32 = 99;

/// Where programs are looked for. Taken once, in `main`, from the command line and the
/// environment, and passed down.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Toolchain {
    clang: Option<PathBuf>,
    path: OsString,
}

impl Toolchain {
    /// With the compiler that `--clang` named, if any, and the value of `PATH`.
    #[must_use]
    pub fn new(clang: Option<PathBuf>, path: Option<OsString>) -> Self {
        Toolchain { clang, path: path.unwrap_or_else(|| "/usr/local/bin:/usr/bin:/bin".into()) }
    }

    /// The compiler: the one asked for, else the newest `clang-N`, else `clang`.
    ///
    /// # Errors
    /// [`SchedulerError::NoSuchClang`] for one that was asked for; `Ok(None)` when there is none.
    pub fn clang(&self) -> Result<Option<Clang>, SchedulerError> {
        if let Some(asked) = &self.clang {
            let path = match asked.components().count() {
                1 => self.search(asked.as_os_str()).unwrap_or_else(|| asked.clone()),
                _ => asked.clone(),
            };
            return match Clang::at(&path) {
                Ok(clang) => Ok(Some(clang)),
                Err(cause) => {
                    Err(SchedulerError::NoSuchClang { path: asked.clone(), cause: plain(&cause) })
                }
            };
        }
        let numbered = |n: u32| self.search(OsStr::new(&format!("clang-{n}")));
        let found = (OLDEST..=NEWEST)
            .rev()
            .find_map(numbered)
            .or_else(|| self.search(OsStr::new("clang")))
            // Too old, but then the message can say so.
            .or_else(|| (1..OLDEST).rev().find_map(numbered));
        Ok(found.and_then(|path| Clang::at(&path).ok()))
    }

    fn search(&self, name: &OsStr) -> Option<PathBuf> {
        std::env::split_paths(&self.path)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(name))
            .find(|path| is_executable(path))
    }
}

pub(super) fn is_executable(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| m.is_file() && m.mode() & 0o111 != 0)
}

/// A compiler that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Clang {
    /// The program.
    pub path: PathBuf,
    /// What changes whenever the program does, without running it.
    pub(super) identity: String,
}

impl Clang {
    fn at(path: &Path) -> Result<Self, std::io::Error> {
        // Packages install a link to the real program; the link's age says nothing.
        let real = path.canonicalize()?;
        let meta = real.metadata()?;
        if !is_executable(&real) {
            return Err(std::io::Error::other("not an executable file"));
        }
        let identity =
            format!("{} {} {}.{}", real.display(), meta.len(), meta.mtime(), meta.mtime_nsec());
        Ok(Clang { path: path.to_owned(), identity })
    }

    /// Asks it for its version, as in `19.1.7`.
    ///
    /// # Errors
    /// [`SchedulerError::BadClang`] and [`SchedulerError::OldClang`].
    pub fn version(&self) -> Result<String, SchedulerError> {
        let bad = |cause| SchedulerError::BadClang { path: self.path.clone(), cause };
        let mut command = Command::new(&self.path);
        command.arg("--version").stdin(Stdio::null());
        let out = command_dying_with_parent(command).output().map_err(|e| bad(plain(&e)))?;
        let text = String::from_utf8_lossy(&out.stdout);
        let version = text
            .split_once("clang version ")
            .and_then(|(_, rest)| rest.split([' ', '\n', '-', '+']).next())
            .filter(|_| out.status.success())
            .ok_or_else(|| bad(format!("`{} --version` names no version", self.path.display())))?;
        let major: u32 = version.split('.').next().unwrap_or_default().parse().unwrap_or_default();
        if major < OLDEST {
            let version = version.to_owned();
            return Err(SchedulerError::OldClang { path: self.path.clone(), version });
        }
        Ok(version.to_owned())
    }
}
