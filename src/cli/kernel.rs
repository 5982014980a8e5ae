//! `cryoscope kernel`: what kernels there are, and what one of them is.

use std::fmt::Write as _;
use std::fs;
use std::io::{self, Write};

use clap::{Args, Subcommand};

use crate::kernel::progress::Printed;
use crate::kernel::{CacheDir, KernelError, KernelImage, Kernels};

/// List, fetch and inspect kernels.
#[derive(Args, Debug)]
pub struct KernelArgs {
    #[command(subcommand)]
    command: KernelCommand,
}

#[derive(Subcommand, Debug)]
enum KernelCommand {
    /// Show the kernels that have been fetched
    List {
        /// Show the newest kernel of each series that Debian has instead
        #[arg(long)]
        available: bool,
        /// Ask the archive even if its package lists are recent
        #[arg(long, requires = "available")]
        refresh: bool,
    },
    /// Fetch a kernel, unless it has been, and show what it is
    Fetch {
        /// `auto`, or `debian:` and a version: 7.2, 7.2.13, 7.2.13-1
        spec: String,
        /// Ask the archive for something newer than what has been fetched
        #[arg(long)]
        refresh: bool,
    },
    /// Show what a kernel is
    Inspect {
        /// Path of a vmlinuz, a vmlinux or a build tree, or `auto`, `host`, `debian:SERIES`
        spec: String,
    },
}

/// Does what was asked, on standard output; progress and errors go to standard error. Gives the
/// exit code: 0, 64 for a spec that cannot be, 1 for everything else.
#[must_use]
pub fn run(args: &KernelArgs, cache: &CacheDir) -> u8 {
    let answer = {
        let progress = Printed::to_stderr();
        execute(args, Kernels::new(cache, &progress))
    };
    match answer {
        Ok(text) => {
            // A reader that has gone wants no more.
            let _ = io::stdout().write_all(text.as_bytes());
            0
        }
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            if error.is_bad_usage() { 64 } else { 1 }
        }
    }
}

fn execute(args: &KernelArgs, kernels: Kernels<'_>) -> Result<String, KernelError> {
    match &args.command {
        KernelCommand::List { available: false, .. } => list(&kernels),
        KernelCommand::List { available: true, refresh } => available(&kernels.refreshed(*refresh)),
        KernelCommand::Fetch { spec, refresh } => {
            Ok(describe(&kernels.refreshed(*refresh).resolve(spec)?))
        }
        KernelCommand::Inspect { spec } => Ok(describe(&kernels.inspect(spec)?)),
    }
}

fn list(kernels: &Kernels<'_>) -> Result<String, KernelError> {
    let cached = kernels.cached()?;
    if cached.is_empty() {
        return Ok("no kernel has been fetched yet: `cryoscope kernel fetch auto` gets one, \
                   `cryoscope kernel list --available` shows which there are\n"
            .to_owned());
    }
    let mut rows = vec![["KERNEL", "SCHED_EXT", "SIZE", "PACKAGE"].map(str::to_owned)];
    rows.extend(cached.into_iter().map(|kernel| {
        let (name, version) = kernel.package;
        let package = format!("{name} {version}");
        [kernel.spec, yes_or_no(kernel.has_sched_ext).to_owned(), megabytes(kernel.size), package]
    }));
    Ok(table(&rows))
}

fn available(kernels: &Kernels<'_>) -> Result<String, KernelError> {
    let available = kernels.available()?;
    if available.is_empty() {
        return Ok("the Debian archive lists no kernels\n".to_owned());
    }
    let mut rows = vec![["KERNEL", "VERSION", "DOWNLOAD", "PACKAGE"].map(str::to_owned)];
    rows.extend(available.into_iter().map(|kernel| {
        [
            format!("debian:{}", kernel.series),
            kernel.version,
            megabytes(kernel.size),
            kernel.package,
        ]
    }));
    Ok(table(&rows))
}

fn describe(image: &KernelImage) -> String {
    let facts = &image.facts;
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(text, "{name:<10}  {value}");
    };
    line("release", &image.release);
    if let Some(package) = &image.package {
        line("package", package);
    }
    if let Some(path) = image.bzimage() {
        let size = fs::metadata(path).map_or(0, |meta| meta.len());
        line("vmlinuz", &format!("{} ({})", path.display(), megabytes(size)));
    }
    line("vmlinux", &format!("{} ({})", image.elf().display(), megabytes(facts.size)));
    let btf = facts.btf.as_ref().map(|range| megabytes(range.end - range.start));
    line("BTF", btf.as_deref().unwrap_or("no"));
    line("sched_ext", yes_or_no(facts.has_sched_ext));
    line("symbols", if facts.has_symtab { "ELF symtab" } else { "kallsyms in guest memory" });
    line("PVH entry", yes_or_no(facts.has_pvh));
    let config = image.config.as_ref().map(|path| path.display().to_string());
    line("config", config.as_deref().unwrap_or("no"));
    text
}

fn yes_or_no(yes: bool) -> &'static str {
    if yes { "yes" } else { "no" }
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

/// Columns as wide as their longest entry.
fn table(rows: &[[String; 4]]) -> String {
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let [first, second, third] = [width(0), width(1), width(2)];
    let mut text = String::new();
    for [a, b, c, d] in rows {
        let _ = writeln!(text, "{a:<first$}  {b:<second$}  {c:>third$}  {d}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::progress::Silent;
    use clap::Parser;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        kernel: KernelArgs,
    }

    fn args(words: &[&str]) -> KernelArgs {
        let words = ["kernel"].iter().chain(words);
        Cli::try_parse_from(words).unwrap_or_else(|error| panic!("{error}")).kernel
    }

    #[test]
    fn an_empty_cache_says_how_to_fill_it() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CacheDir::at(dir.path());
        let text = execute(&args(&["list"]), Kernels::new(&cache, &Silent)).expect("listed");
        assert_eq!(
            text,
            "no kernel has been fetched yet: `cryoscope kernel fetch auto` gets one, `cryoscope \
             kernel list --available` shows which there are\n"
        );
    }

    #[test]
    fn exit_codes_tell_a_bad_spec_from_a_failure() {
        let dir = tempfile::tempdir().expect("a directory");
        let cache = CacheDir::at(dir.path().join("cache"));
        assert_eq!(run(&args(&["list"]), &cache), 0);
        assert_eq!(run(&args(&["inspect", "atuo"]), &cache), 64);
        assert_eq!(run(&args(&["inspect", "/nowhere/vmlinuz"]), &cache), 64);
        let text = dir.path().join("text");
        fs::write(&text, "hello").expect("written");
        assert_eq!(run(&args(&["inspect", text.to_str().expect("UTF-8")]), &cache), 1);
    }

    #[test]
    fn bad_arguments_are_refused() {
        for words in [&["list", "--refresh"][..], &["fetch"], &["inspect"], &[], &["remove"]] {
            let words = ["kernel"].iter().chain(words);
            assert!(Cli::try_parse_from(words).is_err());
        }
    }

    #[test]
    fn a_description_names_everything_there_is_to_know() {
        let found = KernelImage::for_test("/k/vmlinuz", "/k/vmlinux");
        assert_eq!(
            describe(&found),
            "release     7.2.13+made\n\
             package     linux-binary-7.2.13+made 7.2.13-1\n\
             vmlinuz     /k/vmlinuz (0.0 MB)\n\
             vmlinux     /k/vmlinux (62.1 MB)\n\
             BTF         5.0 MB\n\
             sched_ext   yes\n\
             symbols     kallsyms in guest memory\n\
             PVH entry   yes\n\
             config      no\n"
        );
    }

    #[test]
    fn tables_are_as_wide_as_they_must_be() {
        let row = |cells: [&str; 4]| cells.map(str::to_owned);
        let rows = [row(["KERNEL", "X", "SIZE", "PACKAGE"]), row(["a", "yes", "1.0 MB", "p"])];
        assert_eq!(table(&rows), "KERNEL  X      SIZE  PACKAGE\na       yes  1.0 MB  p\n");
    }
}
