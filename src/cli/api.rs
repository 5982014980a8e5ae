//! `cryoscope api`: everything that a script can name, from the engine's own metadata.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use crate::script::surface::{FunctionDoc, Kind, Surface};
use crate::script::{ModuleDoc, Reference, reference};
use crate::words::nearest;

mod page;

/// What `cryoscope api` takes.
#[derive(Debug, Args)]
pub struct ApiArgs {
    /// Only this type, function or module
    name: Option<String>,
    /// Rhai's own functions too
    #[arg(long)]
    all: bool,
    /// As a page in Markdown, all of it
    #[arg(long, conflicts_with_all = ["name", "all", "definitions"])]
    markdown: bool,
    /// Write definition files for editors (`.d.rhai`) into this directory instead
    #[arg(long, value_name = "DIR", conflicts_with_all = ["name", "all"])]
    definitions: Option<PathBuf>,
}

/// Prints the reference or writes the definition files.
///
/// # Errors
/// Nothing has that name; the directory cannot be written to.
pub fn run(args: &ApiArgs) -> Result<u8, Failure> {
    let reference = reference();
    if let Some(dir) = &args.definitions {
        return definitions(&reference, dir);
    }
    let (surface, modules) = (reference.surface(args.all), reference.modules());
    if args.markdown {
        super::print(&page::markdown(&surface, &modules));
        return Ok(0);
    }
    let text = match &args.name {
        None => everything(&surface, &modules),
        Some(name) => about(&surface, &modules, name)?,
    };
    super::print(&text);
    Ok(0)
}

fn definitions(reference: &Reference, dir: &Path) -> Result<u8, Failure> {
    let cannot = |path: &Path, e: std::io::Error| {
        Failure::new(format!("cannot write {}: {}", path.display(), e))
    };
    std::fs::create_dir_all(dir).map_err(|e| cannot(dir, e))?;
    let mut out = String::new();
    for (name, text) in reference.definitions() {
        let path = dir.join(name);
        std::fs::write(&path, text).map_err(|e| cannot(&path, e))?;
        out.push_str(&format!("wrote {}\n", path.display()));
    }
    super::print(&out);
    Ok(0)
}

/// The whole reference.
fn everything(surface: &Surface, modules: &[ModuleDoc]) -> String {
    let mut out = String::from(
        "A `duration` is a string like \"250ms\", \"2s\" or \"1m30s\"; where a scenario's duration is \
         known,\nalso \"50%\". Properties are written without parentheses: `snap.tag`.\n\n",
    );
    out.push_str("functions\n");
    for function in surface.of_type(None).filter(|f| is_offered(f)) {
        out.push_str(&entry(function));
    }
    for ty in owners(surface) {
        out.push('\n');
        out.push_str(&of_type(surface, ty));
    }
    for module in modules {
        out.push('\n');
        out.push_str(&of_module(module));
    }
    out
}

/// Types of ours, then Rhai's own that were given methods.
fn owners(surface: &Surface) -> Vec<&str> {
    let ours: BTreeSet<&str> = surface.types.iter().map(|t| t.name.as_str()).collect();
    let named = surface.functions.iter().filter(|f| f.kind != Kind::Operator);
    let owners: BTreeSet<&str> = named.filter_map(|f| f.owner.as_deref()).collect();
    ours.iter().chain(owners.difference(&ours)).copied().collect()
}

/// What there is to say about one name.
pub(super) fn about(
    surface: &Surface,
    modules: &[ModuleDoc],
    name: &str,
) -> Result<String, Failure> {
    let mut out = String::new();
    if surface.types.iter().any(|t| t.name == name) {
        out.push_str(&of_type(surface, name));
    }
    if let Some(module) = modules.iter().find(|m| m.name == name) {
        out.push_str(&of_module(module));
    }
    for function in surface.functions.iter().filter(|f| f.name == name) {
        let owner = function.owner.as_deref().unwrap_or("functions");
        out.push_str(&format!("{owner}\n{}", in_full(function)));
    }
    if !out.is_empty() {
        return Ok(out);
    }
    let names = surface.types.iter().map(|t| t.name.as_str());
    let names = names
        .chain(surface.functions.iter().map(|f| f.name.as_str()))
        .chain(modules.iter().map(|m| m.name.as_str()));
    let hint = match nearest(name, names) {
        Some(near) => format!("did you mean {near}?"),
        None => "`cryoscope api` lists everything".to_string(),
    };
    Err(Failure::new(format!("nothing in scripts is called {name}; {hint}")))
}

fn of_type(surface: &Surface, name: &str) -> String {
    let mut out = format!("{name}\n");
    if let Some(ty) = surface.types.iter().find(|t| t.name == name) {
        for line in ty.doc.lines() {
            out.push_str(&format!("  {line}\n"));
        }
    }
    let (members, signs) = members(surface, name);
    members.into_iter().for_each(|function| out.push_str(&entry(function)));
    if !signs.is_empty() {
        out.push_str(&format!("    operators {}\n", signs.join(" ")));
    }
    out
}

/// What a type offers: what can be called or read, and the signs of its operators.
fn members<'s>(surface: &'s Surface, name: &'s str) -> (Vec<&'s FunctionDoc>, Vec<&'s str>) {
    let offered = surface.of_type(Some(name)).filter(|f| is_offered(f));
    let (operators, members): (Vec<_>, Vec<_>) =
        offered.partition(|function| function.kind == Kind::Operator);
    let mut signs: Vec<&str> = operators.iter().map(|operator| operator.name.as_str()).collect();
    signs.dedup();
    (members, signs)
}

/// Whether a function is there to be used, not to say why it cannot be.
fn is_offered(function: &FunctionDoc) -> bool {
    !function.doc.starts_with("Refused")
}

fn of_module(module: &ModuleDoc) -> String {
    let mut out = format!("import \"{}\"\n", module.name);
    for line in module.doc.lines() {
        out.push_str(&format!("  {line}\n"));
    }
    for function in &module.functions {
        out.push_str(&in_full(function));
    }
    out
}

fn entry(function: &FunctionDoc) -> String {
    format!("    {}\n        {}\n", function.signature(), function.summary())
}

fn in_full(function: &FunctionDoc) -> String {
    format!("    {}\n{}", function.signature(), indented(&function.doc, "        "))
}

/// The lines of a text behind blanks.
fn indented(text: &str, blanks: &str) -> String {
    text.lines().fold(String::new(), |out, line| out + format!("{blanks}{line}").trim_end() + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_lists_types_functions_and_modules() {
        let (surface, modules) = (reference().surface(false), reference().modules());
        let text = everything(&surface, &modules);
        for part in [
            "\nfunctions\n",
            "    expect(x: any) -> Expectation\n        Begins a soft check",
            "\nVm\n  A live machine",
            "    freeze(tag: string) -> Snapshot\n        Stops all vCPUs",
            "\nSnapshot\n",
            "\nimport \"std/checks\"\n",
        ] {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(!text.contains("parse_int"), "Rhai's own functions are listed on demand only");
    }

    #[test]
    fn one_name_is_told_in_full_and_a_wrong_one_with_the_nearest() {
        let (surface, modules) = (reference().surface(false), reference().modules());
        let about = |name| about(&surface, &modules, name);
        let text = about("Cgroup").unwrap();
        assert!(text.starts_with("Cgroup\n  A cgroup (v2) of the guest"), "{text}");
        let text = about("start").unwrap();
        assert!(text.contains("\nVm\n") && text.contains("Options: `work`"), "{text}");
        let wrong = about("Cgruop").unwrap_err();
        assert_eq!(wrong.message, "nothing in scripts is called Cgruop; did you mean Cgroup?");
        let wrong = about("zzzzzzzz").unwrap_err();
        assert_eq!(
            wrong.message,
            "nothing in scripts is called zzzzzzzz; `cryoscope api` lists everything"
        );
    }

    #[test]
    fn definition_files_are_written_or_say_why_not() {
        let dir = std::env::temp_dir().join(format!("cryoscope-api-{}", std::process::id()));
        definitions(&reference(), &dir).unwrap();
        let files: Vec<_> = std::fs::read_dir(&dir).unwrap().flatten().map(|e| e.path()).collect();
        let text: String = files.iter().map(|f| std::fs::read_to_string(f).unwrap()).collect();
        assert!(text.contains("fn freeze(self: Vm, tag: string)"), "{text}");
        std::fs::write(dir.join("file"), "").unwrap();
        let wrong = definitions(&reference(), &dir.join("file/x")).unwrap_err();
        let want = format!("cannot write {}: Not a directory", dir.join("file/x").display());
        assert!(wrong.message.starts_with(&want), "{}", wrong.message);
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
