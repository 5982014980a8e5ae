//! What the environment says, read once.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::path::PathBuf;

use super::Failure;
use crate::kernel::CacheDir;
use crate::scenario::report::Style;
use crate::scheduler::Toolchain;

/// The configuration: everything that comes from outside the command line.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where to cache, or why nowhere.
    cache: Result<CacheDir, String>,
    /// How to write to standard output.
    pub style: Style,
    /// Where to keep what was typed, if there is a place for it.
    pub history: Option<PathBuf>,
    /// Whether somebody sits at a terminal, for input and output.
    pub interactive: bool,
    /// This program's file, by the name that it had when it started.
    pub program: PathBuf,
    /// Whether GitHub Actions runs this.
    pub github: bool,
    /// The file that a step's summary is appended to.
    pub github_summary: Option<PathBuf>,
    /// Where programs are looked for.
    path: Option<OsString>,
}

/// The parts of the environment that matter.
#[derive(Clone, Debug, Default)]
struct Environment {
    xdg_cache_home: Option<OsString>,
    xdg_state_home: Option<OsString>,
    home: Option<OsString>,
    no_color: Option<OsString>,
    term: Option<OsString>,
    path: Option<OsString>,
    github_actions: Option<OsString>,
    github_step_summary: Option<OsString>,
    /// Whether standard input is a terminal.
    types: bool,
    /// Columns of the terminal on standard output, when it is one.
    columns: Option<u16>,
}

impl Config {
    /// Reads the environment.
    #[must_use]
    pub fn from_environment() -> Self {
        let stdout = std::io::stdout();
        let columns = stdout
            .is_terminal()
            .then(|| rustix::termios::tcgetwinsize(&stdout).map_or(80, |size| size.ws_col));
        let environment = Environment {
            xdg_cache_home: std::env::var_os("XDG_CACHE_HOME"),
            xdg_state_home: std::env::var_os("XDG_STATE_HOME"),
            home: std::env::var_os("HOME"),
            no_color: std::env::var_os("NO_COLOR"),
            term: std::env::var_os("TERM"),
            path: std::env::var_os("PATH"),
            github_actions: std::env::var_os("GITHUB_ACTIONS"),
            github_step_summary: std::env::var_os("GITHUB_STEP_SUMMARY"),
            types: std::io::stdin().is_terminal(),
            columns,
        };
        let program = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
        Config::parse(environment, program)
    }

    fn parse(environment: Environment, program: PathBuf) -> Self {
        let history = history(environment.xdg_state_home, environment.home.clone());
        let interactive = environment.types && environment.columns.is_some();
        let cache = CacheDir::locate(environment.xdg_cache_home, environment.home);
        let smart = environment.term.is_some_and(|term| !term.is_empty() && term != "dumb");
        let wants_none = environment.no_color.is_some_and(|value| !value.is_empty());
        let live = environment.columns.is_some() && smart;
        // A terminal without a size says 0.
        let width = environment.columns.filter(|columns| *columns > 0).unwrap_or(match live {
            true => 80,
            false => Style::plain().width as u16,
        });
        let style = Style { colour: live && !wants_none, live, width: width.max(40).into() };
        Config {
            cache: cache.map_err(|e| e.to_string()),
            style,
            history,
            interactive,
            program,
            github: environment.github_actions.is_some_and(|value| value == "true"),
            github_summary: environment
                .github_step_summary
                .filter(|path| !path.is_empty())
                .map(PathBuf::from),
            path: environment.path,
        }
    }

    /// The cache directory.
    ///
    /// # Errors
    /// When the environment names no place for one.
    pub fn cache(&self) -> Result<&CacheDir, Failure> {
        self.cache.as_ref().map_err(|e| Failure::new(e.as_str()))
    }

    /// Where compilers are, with the one that the command line names, if it does.
    #[must_use]
    pub fn tools(&self, clang: Option<PathBuf>) -> Toolchain {
        Toolchain::new(clang, self.path.clone())
    }

    /// Whether a program is on the search path.
    #[must_use]
    pub fn has_program(&self, name: &str) -> bool {
        let path = self.path.as_deref().unwrap_or_default();
        std::env::split_paths(path).any(|dir| dir.join(name).is_file())
    }

    /// The guest's agent, which lies beside this program.
    ///
    /// # Errors
    /// When it does not.
    pub fn agent(&self) -> Result<PathBuf, Failure> {
        let path = self.program.with_file_name("cryoscope-agent");
        if path.is_file() {
            return Ok(path);
        }
        Err(Failure::new(format!(
            "the guest's agent is missing: {} should be there; build both programs (cargo build \
             --bins) and keep them side by side",
            path.display()
        )))
    }
}

/// The file below the state directory of the XDG base directory specification: relative values of
/// its variable are to be ignored.
fn history(state: Option<OsString>, home: Option<OsString>) -> Option<PathBuf> {
    let given = state.map(PathBuf::from).filter(|dir| dir.is_absolute());
    let usual = || {
        let home = home.map(PathBuf::from).filter(|dir| dir.is_absolute())?;
        Some(home.join(".local/state"))
    };
    Some(given.or_else(usual)?.join("cryoscope/history"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn style(no_color: Option<&str>, term: Option<&str>, columns: Option<u16>) -> Style {
        let environment = Environment {
            no_color: no_color.map(Into::into),
            term: term.map(Into::into),
            columns,
            ..Environment::default()
        };
        Config::parse(environment, PathBuf::new()).style
    }

    #[test]
    fn colours_and_live_lines_are_for_terminals_that_can() {
        let xterm = Some("xterm");
        let cases = [
            (None, xterm, Some(80), (true, true, 80)),
            (Some("1"), xterm, Some(80), (false, true, 80)),
            (Some(""), xterm, Some(80), (true, true, 80)),
            (None, Some("dumb"), Some(80), (false, false, 80)),
            (None, None, Some(80), (false, false, 80)),
            (None, xterm, None, (false, false, 100)),
            (None, xterm, Some(0), (true, true, 80)),
            (None, xterm, Some(10), (true, true, 40)),
        ];
        for (no_color, term, columns, want) in cases {
            let style = style(no_color, term, columns);
            let found = (style.colour, style.live, style.width);
            assert_eq!(found, want, "{no_color:?} {term:?} {columns:?}");
        }
    }

    #[test]
    fn the_cache_is_where_xdg_says() {
        let environment =
            Environment { xdg_cache_home: Some("/x".into()), ..Environment::default() };
        let config = Config::parse(environment, PathBuf::new());
        assert_eq!(config.cache().unwrap().path(), std::path::Path::new("/x/cryoscope"));
        let config = Config::parse(Environment::default(), PathBuf::new());
        let failure = config.cache().unwrap_err();
        assert!(failure.message.starts_with("no place for the cache: "), "{failure:?}");
        assert_eq!(failure.code, 1);
    }

    #[test]
    fn the_history_is_state() {
        let cases = [
            (Some("/s"), Some("/h"), Some("/s/cryoscope/history")),
            (None, Some("/h"), Some("/h/.local/state/cryoscope/history")),
            (Some("s"), Some("/h"), Some("/h/.local/state/cryoscope/history")),
            (Some(""), Some("h"), None),
            (None, None, None),
        ];
        for (state, home, want) in cases {
            let found = history(state.map(Into::into), home.map(Into::into));
            assert_eq!(found, want.map(PathBuf::from), "{state:?} {home:?}");
        }
    }

    #[test]
    fn the_agent_lies_beside_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let config = Config::parse(Environment::default(), dir.path().join("cryoscope"));
        let agent = dir.path().join("cryoscope-agent");
        let failure = config.agent().unwrap_err();
        assert_eq!(
            failure.message,
            format!(
                "the guest's agent is missing: {} should be there; build both programs (cargo \
                 build --bins) and keep them side by side",
                agent.display()
            )
        );
        std::fs::write(&agent, "").unwrap();
        assert_eq!(config.agent().unwrap(), agent);
    }
}
