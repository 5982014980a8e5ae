//! Which scenarios are meant, and what they become on this command line.

use std::path::Path;

use super::Shard;
use super::files::Script;
use crate::cli::Failure;
use crate::scenario::ScenarioDecl;
use crate::scenario::cell::Overrides;
use crate::scenario::verdict::plural;
use crate::words::nearest;

/// Compiles a script and gives what it declares, or says what is wrong with it.
pub(super) type Collect<'a> = &'a dyn Fn(&Path) -> Result<Vec<ScenarioDecl>, String>;

/// Everything that the scripts declare. All are compiled before anything is said, so that one
/// round shows every mistake.
///
/// A file found in a directory that declares no scenario is a module for others; one that the
/// user named is a script to be run as a whole.
pub(super) fn collect(scripts: &[Script], collect: Collect) -> Result<Vec<ScenarioDecl>, Failure> {
    let (mut decls, mut wrong) = (Vec::new(), Vec::new());
    for script in scripts {
        match collect(&script.path) {
            Ok(found) => decls.extend(found.into_iter().filter(|d| script.named || !d.plain)),
            Err(error) => wrong.push(error),
        }
    }
    if wrong.is_empty() {
        return Ok(decls);
    }
    let count = plural(wrong.len() as u64, "script");
    let text = format!("{count} cannot be used; nothing was run\n\n{}", wrong.join("\n\n"));
    Err(Failure::usage(text))
}

/// The scenarios whose name contains `filter` (in whatever case), or that have it as a tag.
pub(super) fn select(
    decls: Vec<ScenarioDecl>,
    filter: Option<&str>,
) -> Result<Vec<ScenarioDecl>, Failure> {
    if decls.is_empty() {
        return Err(Failure::new("no scenarios there: a script declares one with scenario(..)"));
    }
    let Some(filter) = filter else {
        return Ok(decls);
    };
    let wanted = filter.to_lowercase();
    let matches = |d: &ScenarioDecl| {
        d.name.to_lowercase().contains(&wanted) || d.options.tags.iter().any(|tag| tag == filter)
    };
    let (chosen, rest): (Vec<_>, Vec<_>) = decls.into_iter().partition(matches);
    if !chosen.is_empty() {
        return Ok(chosen);
    }
    let mut text = format!("{filter:?} matches none of {}", plural(rest.len() as u64, "scenario"));
    let names = rest
        .iter()
        .flat_map(|d| d.options.tags.iter().map(String::as_str).chain([d.name.as_str()]));
    match nearest(filter, names) {
        Some(near) => text.push_str(&format!("; did you mean {near:?}?")),
        None => text.push_str("; --list shows their names and tags"),
    }
    Err(Failure::new(text))
}

/// Every N-th scenario, from the K-th on.
pub(super) fn part(decls: Vec<ScenarioDecl>, shard: Option<Shard>) -> Vec<ScenarioDecl> {
    let Some(Shard { part, of }) = shard else { return decls };
    let own = |(i, _): &(usize, ScenarioDecl)| i % of == part - 1;
    decls.into_iter().enumerate().filter(own).map(|(_, decl)| decl).collect()
}

/// One line per scenario: where it stands, its name, its tags.
pub(super) fn list(decls: &[ScenarioDecl]) -> String {
    let mut out = String::new();
    for decl in decls {
        out.push_str(&decl.file.display().to_string());
        if let Some(at) = &decl.at {
            out.push_str(&format!(":{}", at.line));
        }
        out.push_str(&format!(": {}", decl.name));
        if !decl.options.tags.is_empty() {
            out.push_str(&format!(" [{}]", decl.options.tags.join(", ")));
        }
        out.push('\n');
    }
    out
}

/// The scenario with this command line's options in the place of its own.
pub(super) fn overridden(mut decl: ScenarioDecl, overrides: &Overrides) -> ScenarioDecl {
    overrides.apply(&mut decl.options);
    decl
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scenario::ScenarioOptions;
    use crate::scenario::verdict::ScriptPos;

    fn decl(name: &str, tags: &[&str], plain: bool) -> ScenarioDecl {
        let options = ScenarioOptions {
            tags: tags.iter().map(|t| (*t).to_string()).collect(),
            ..ScenarioOptions::default()
        };
        let at = ScriptPos { file: "a.rhai".into(), line: 7, column: 1, text: String::new() };
        ScenarioDecl {
            name: name.into(),
            file: "a.rhai".into(),
            index: 0,
            at: (!plain).then_some(at),
            plain,
            boots: !plain,
            options,
        }
    }

    fn script(path: &str, named: bool) -> Script {
        Script { path: path.into(), named }
    }

    #[test]
    fn modules_in_directories_are_not_scenarios() {
        let plain = |_: &Path| Ok(vec![decl("a", &[], true)]);
        assert_eq!(collect(&[script("a.rhai", false)], &plain).unwrap().len(), 0);
        assert_eq!(collect(&[script("a.rhai", true)], &plain).unwrap().len(), 1);
    }

    #[test]
    fn every_script_that_does_not_compile_is_told() {
        let some = |path: &Path| match path.to_str() {
            Some("good") => Ok(vec![decl("x", &[], false)]),
            _ => Err(format!("{} is bad", path.display())),
        };
        let scripts = [script("good", true), script("b", true), script("c", true)];
        let failure = collect(&scripts, &some).unwrap_err();
        assert_eq!(failure.code, 64);
        assert_eq!(
            failure.message,
            "2 scripts cannot be used; nothing was run\n\nb is bad\n\nc is bad"
        );
    }

    #[test]
    fn filters_match_names_and_tags() {
        let all = || vec![decl("Counters advance", &["smoke"], false), decl("hash", &[], false)];
        let names = |filter| -> Vec<String> {
            select(all(), filter).unwrap().into_iter().map(|d| d.name).collect()
        };
        assert_eq!(names(None).len(), 2);
        assert_eq!(names(Some("ADVANCE")), ["Counters advance"]);
        assert_eq!(names(Some("smoke")), ["Counters advance"]);
        assert_eq!(names(Some("")).len(), 2);
        let cases = [
            ("smok", "\"smok\" matches none of 2 scenarios; did you mean \"smoke\"?"),
            ("xyzzy", "\"xyzzy\" matches none of 2 scenarios; --list shows their names and tags"),
        ];
        for (filter, says) in cases {
            let failure = select(all(), Some(filter)).unwrap_err();
            assert_eq!((failure.message.as_str(), failure.code), (says, 1));
        }
        let failure = select(vec![], None).unwrap_err();
        assert_eq!(failure.code, 1, "nothing matched");
    }

    #[test]
    fn shards_are_all_of_it_and_nothing_twice() {
        let all = || (0..7).map(|i| decl(&i.to_string(), &[], false)).collect::<Vec<_>>();
        for of in 1..9 {
            let parts = (1..=of).flat_map(|n| part(all(), Some(Shard { part: n, of })));
            let mut names: Vec<String> = parts.map(|decl| decl.name).collect();
            names.sort();
            assert_eq!(names, ["0", "1", "2", "3", "4", "5", "6"]);
        }
        let second: Vec<String> =
            part(all(), Some(Shard { part: 2, of: 3 })).into_iter().map(|d| d.name).collect();
        assert_eq!(second, ["1", "4"]);
    }

    #[test]
    fn lists_can_be_read_and_jumped_to() {
        let text = list(&[decl("x", &["a", "b"], false), decl("whole", &[], true)]);
        assert_eq!(text, "a.rhai:7: x [a, b]\na.rhai: whole\n");
    }
}
